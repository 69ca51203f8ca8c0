"""deploy/: what Prometheus scrapes, and its alerts. promtool checks and plays them."""

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
