"""deploy/: what Prometheus scrapes, and its alerts. promtool checks and plays them."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import ROOT

DEPLOY = ROOT / "deploy"
PROMTOOL = shutil.which("promtool")
METRICS = set(
    re.findall(r"^\| `(brain_\w+)`", (ROOT / "docs/reference/metrics.md").read_text(), re.MULTILINE)
)

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")


def promtool(*arguments: str, folder: Path = DEPLOY) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL
    return subprocess.run(
        [PROMTOOL, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts(arguments: tuple[str, ...]) -> None:
    result = promtool(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
@pytest.mark.parametrize("broken", [("> 2\n", "> 1\n"), ("for: 15m", "for: 45m"), ("== 0", "== 1")])
def test_the_tests_of_the_alerts_notice_another_rule(
    tmp_path: Path, broken: tuple[str, str]
) -> None:
    text = (DEPLOY / "alerts.yml").read_text()
    assert broken[0] in text
    (tmp_path / "alerts.yml").write_text(text.replace(*broken).replace("for: 1m", "for: 15s"))
    shutil.copy(DEPLOY / "alerts_test.yml", tmp_path)
    assert promtool("test", "rules", "alerts_test.yml", folder=tmp_path).returncode != 0


def test_every_alert_is_about_metrics_that_exist() -> None:
    for rule in rules():
        used = set(re.findall(r"\bbrain_\w+", rule["expr"]))
        assert used <= METRICS, rule["alert"]
        assert used or "up{" in rule["expr"]
        assert rule["annotations"].keys() == {"summary", "description"}


def test_pods_are_scraped_by_their_own_address() -> None:
    """Prometheus joins the values by `;` and takes what the whole regex captures."""
    (job,) = yaml.safe_load((DEPLOY / "prometheus-kubernetes.yml").read_text())["scrape_configs"]
    manifest = next(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text().split("---")[1]))
    metadata = manifest["spec"]["template"]["metadata"]
    prefix = "__meta_kubernetes_pod"
    labels = {f"{prefix}_ip": "100.64.3.4", f"{prefix}_name": "brain-0"}
    labels["__meta_kubernetes_namespace"] = "default"
    for kind, values in (("label", metadata["labels"]), ("annotation", metadata["annotations"])):
        for name, value in values.items():
            labels[f"{prefix}_{kind}_{re.sub('[^a-zA-Z0-9_]', '_', name)}"] = value
    for step in job["relabel_configs"]:
        value = ";".join(labels.get(name, "") for name in step["source_labels"])
        match = re.fullmatch(step.get("regex", "(.*)"), value)
        if step.get("action") == "keep":
            assert match, step
        else:
            assert match
            template = re.sub(r"\$(\d)", r"\\\1", step.get("replacement", "$1"))
            labels[step["target_label"]] = match.expand(template)
    assert labels["__address__"] == "100.64.3.4:5221"
    assert (labels["namespace"], labels["pod"]) == ("default", "brain-0")


# The dashboard for Grafana.

DASHBOARD = json.loads((DEPLOY / "grafana.json").read_text())
PANELS = DASHBOARD["panels"]


def expressions() -> list[str]:
    found = [target["expr"] for panel in PANELS for target in panel["targets"]]
    return [*found, *(each["expr"] for each in DASHBOARD["annotations"]["list"])]


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    suffixes = ("_bucket", "_sum", "_count")
    used = set()
    for expression in expressions():
        for name in re.findall(r"\bbrain_\w+", expression):
            used.add(next((name.removesuffix(s) for s in suffixes if name.endswith(s)), name))
    # /readyz and the log say which code it is.
    assert used == METRICS - {"brain_source_code", "brain_streams_total"}
    _, instance = DASHBOARD["templating"]["list"]
    assert instance["query"]["query"] == "label_values(brain_build_info, instance)"


def test_the_panels_of_the_dashboard_do_not_overlap_and_have_their_own_numbers() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


@needs_promtool
def test_prometheus_understands_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"dashboard:{i}", "expr": text.replace("$__rate_interval", "5m")}
        for i, text in enumerate(expressions())
    ]
    document = {"groups": [{"name": "dashboard", "rules": rules}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(document))
    result = promtool("check", "rules", "rules.yml", folder=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
