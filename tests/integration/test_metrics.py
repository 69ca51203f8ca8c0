"""/metrics compared with what was done, and with docs/reference/metrics.md."""

import asyncio
import contextlib
import re
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from brain.metrics import MERGED, Metrics, exposition
from tests.support import ROOT
from tests.support.patience import PATIENCE, eventually, wait_until
from tests.support.postgres import execute
from tests.support.served import Brain, messages, served
from tests.support.wire import Peer, get, request

BUILD = ("version", "python", "platform")
DOCUMENT = ROOT / "docs" / "reference" / "metrics.md"


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    with served(
        database_url=shared, allowed_networks="127.0.0.1/32", trusted_proxies="127.0.0.5/32"
    ) as brain:
        yield brain


def table(text: str) -> str:
    """All metrics as a table in Markdown, without what is documented by hand: the idle value."""
    lines = ["| metric | type | labels | what |", "|---|---|---|---|"]
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels: dict[str, list[str]] = {}
        for sample in family.samples:
            for label, value in sample.labels.items():
                labels.setdefault(label, []).append(value)
        labels.pop("le", None)
        described = "; ".join(
            label
            if family.name == "brain_build_info"
            else f"{label}: {', '.join(f'`{v}`' for v in values)}"
            for label, values in labels.items()
        )
        lines.append(f"| `{name}` | {family.type} | {described} | {family.documentation} |")
    return "\n".join(lines) + "\n"


async def test_connections_of_a_proxy_are_open_connections(brain: Brain) -> None:
    before = brain.metric("brain_connections")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            opened = await asyncio.open_connection(
                "127.0.0.1", brain.port, local_addr=("127.0.0.5", 0)
            )
            stack.callback(opened[1].close)
        await eventually(lambda: brain.metric("brain_connections") == before + 3)


def test_every_metric_is_described_in_its_help_and_in_the_docs(brain: Brain) -> None:
    status, text = brain.get("/metrics")
    assert status == 200
    families = list(text_string_to_metric_families(text))
    assert len(families) > 20
    for family in families:
        assert re.fullmatch(r"brain_[a-z_]+", family.name)
        assert family.documentation.endswith("."), family.name
        assert family.type in ("counter", "gauge", "histogram")
        for sample in family.samples:
            assert sample.labels.keys() <= {"le", "source", "code", "role", *BUILD}, (
                "each label has a bounded set of values"
            )
    rows = [
        line.replace("|---|---|---|---|---|---|", "|---|---|---|---|").split(" | ")
        for line in documented()
    ]
    assert "\n".join(" | ".join((*row[:3], *row[5:])) for row in rows) + "\n" == table(text)
    assert {row[0].strip("|` ").removesuffix("_total"): row[4] for row in rows[2:]} == MERGED


def test_the_text_of_families_is_that_of_the_metrics() -> None:
    metrics = Metrics(lambda: 100.0)
    metrics.observe(99_000_000)
    assert exposition(metrics.families()) == metrics.text()


def documented() -> list[str]:
    """The lines of the table in the docs."""
    text = DOCUMENT.read_text()
    return text[text.index("| metric | type |") :].splitlines()


GROWS = {"brain_since_seconds", "brain_resume_seconds"}
SAID: dict[str, float] = {
    "no observation": 0,
    "1, of the scrape": 1,
    "1 for `replication`": 1,
    "1 for `alone`": 1,
}


def test_each_metric_has_its_documented_value_on_an_idle_brain(database: str) -> None:
    idle = {row[0].strip("|` "): row[3] for row in (line.split(" | ") for line in documented()[2:])}
    with served(database_url=database) as brain:
        wait_until(lambda: brain.metric("brain_lag_seconds") == 0)
        for family in text_string_to_metric_families(brain.get("/metrics")[1]):
            name = family.name + ("_total" if family.type == "counter" else "")
            said = idle.pop(name)
            values = {
                tuple(sample.labels.values()): sample.value
                for sample in family.samples
                if not sample.name.endswith("_bucket")
            }
            if name in GROWS:
                assert (said, *(value > 0 for value in values.values())) == ("grows", True)
                continue
            wanted = SAID[said] if said in SAID else float(said)
            for labels, value in values.items():
                one = (
                    not labels or name == "brain_build_info" or {"replication", "alone"} & {*labels}
                )
                assert value == (wanted if one else 0), (name, labels)
    assert idle == {}


async def test_each_metric_counts_what_was_done(brain: Brain, shared: str) -> None:
    names = ("changes", "flushes", "deliveries", "changes_conflated", "catch_up_writes", "gaps")
    before = {name: brain.metric(f"brain_{name}_total") for name in names}
    observed = brain.metric("brain_commit_to_socket_seconds_count")
    async with brain.connect() as one, brain.connect("?status=running") as other:
        assert brain.metric("brain_clients") == 2
        assert brain.metric("brain_connections") == 3, "with the one of this request"
        execute(shared, "INSERT INTO runs (id) SELECT 'metric-' || i FROM generate_series(1, 10) i")
        await messages(one, 10)
        execute(shared, "UPDATE runs SET status = 'running' WHERE id = 'metric-1'")
        await messages(one, 1)
        await messages(other, 1)
        async with brain.connect("?snapshot=true") as third:
            await messages(third, 10)
        async with brain.connect("?since=2020-01-01T00:00:00Z") as late:
            await late.wait_closed()
            assert late.close_code == 4410
        after = {
            name: brain.metric(f"brain_{name}_total") - value for name, value in before.items()
        }
        flushes = after.pop("flushes")
        assert 2 <= flushes <= 11
        assert after == {
            "changes": 11,
            "deliveries": 12,
            "changes_conflated": 0,
            "catch_up_writes": 1,
            "gaps": 1,
        }
    observed = brain.metric("brain_commit_to_socket_seconds_count") - observed
    assert observed == flushes + 1, "one for each lane that had something to send"
    assert brain.metric("brain_runs") == 10
    assert brain.metric("brain_board_bytes") > 10_000
    assert [
        brain.metric(f'brain_source{{source="{name}"}}') for name in ("none", "poll", "replication")
    ] == [
        0,
        0,
        1,
    ]
    assert brain.metric("brain_lag_seconds") >= 0
    while brain.metric("brain_clients"):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("ask", [request(), get("/metrics")])
@pytest.mark.parametrize(
    ("rule", "old", "new", "local"),
    [
        ("host", b"localhost", b"evil.example", "127.0.0.1"),
        ("origin", b"\r\n\r\n", b"\r\nOrigin: https://evil.example\r\n\r\n", "127.0.0.1"),
        ("network", b"", b"", "127.0.0.9"),
        ("forwarded", b"\r\n\r\n", b"\r\nX-Forwarded-For: nobody\r\n\r\n", "127.0.0.5"),
    ],
)
async def test_each_rejection_is_counted_once_under_its_code(
    brain: Brain, *, ask: bytes, rule: str, old: bytes, new: bytes, local: str
) -> None:
    before = _rejected(brain)
    async with await Peer.open(brain.port, local=local) as peer:
        peer.send(ask.replace(old, new, 1) if old else ask)
        assert (await peer.answer()).status in (400, 403, 421)
    path = "/metrics" if ask == get("/metrics") else "/ws"
    brain.wait_for(rf"event=rejected peer=127\.0\.0\.\d method=GET path={path} .*code={rule}\n")
    after = _rejected(brain)
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        rule: 1
    }


def _rejected(brain: Brain) -> dict[str, float]:
    found = re.findall(
        r'^brain_rejections_total\{code="(\w+)"\} (\S+)$', brain.get("/metrics")[1], re.MULTILINE
    )
    return {rule: float(count) for rule, count in found}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_a_probe_may_send_head(brain: Brain, path: str) -> None:
    asked = urllib.request.Request(f"http://127.0.0.1:{brain.port}{path}", method="HEAD")
    with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
        assert (answer.status, answer.read()) == (200, b"")
