"""The log has one line for each POST and PATCH, and no value of a request but the id."""

import re
import time
from collections.abc import Iterator

import pytest

from tests.support.patience import PATIENCE
from tests.support.postgres import execute
from tests.support.served import Brain, served

SECRET = "s3cret-in-the-request"


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    with served(database_url=shared) as brain:
        yield brain


def lines(brain: Brain) -> list[str]:
    """The lines of writes, without their times."""
    found = re.findall(r"^timestamp=\S+ (level=\S+ event=write .*)$", brain.log(), re.MULTILINE)
    return [line.replace(" peer=127.0.0.1", "") for line in found]


def seen(brain: Brain, run_id: str, status: str) -> None:
    """Wait until clients have it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        runs = brain.get("/api/runs?order=changed")[1]["runs"]
        if {run["id"]: run["status"] for run in runs}.get(run_id) == status:
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def written(brain: Brain, method: str, path: str, body: object) -> str:
    """The one line that this request adds."""
    before = lines(brain)
    brain.request(method, path, body)
    brain.wait_for(rf"(?s)(event=write .*){{{len(before) + 1}}}")
    *rest, last = lines(brain)
    assert rest == before
    assert SECRET not in last
    return last


def test_names_the_run_the_status_from_and_to_and_the_answer(brain: Brain, shared: str) -> None:
    run = {"id": "logged", "agent": SECRET, "error": SECRET}
    assert written(brain, "POST", "/api/runs", run) == (
        "level=info event=write method=POST run=logged now=queued answer=201"
    )
    execute(shared, "UPDATE runs SET status = 'running' WHERE id = 'logged'")
    seen(brain, "logged", "running")
    change = {"status": "completed", "error": SECRET}
    assert written(brain, "PATCH", f"/api/runs/logged?{SECRET}", change) == (
        "level=info event=write method=PATCH run=logged was=running now=completed answer=200"
    )
    seen(brain, "logged", "completed")
    assert written(brain, "PATCH", "/api/runs/logged", {"status": "running"}) == (
        "level=info event=write method=PATCH run=logged was=completed answer=409"
    )


@pytest.mark.parametrize(
    ("method", "path", "body", "line"),
    [
        ("POST", "/api/runs", {"status": SECRET}, "method=POST answer=422"),
        ("POST", "/api/runs/", None, "method=POST answer=415"),
        ("PATCH", "/api/runs/none", {"status": "failed"}, "method=PATCH run=none answer=404"),
        (
            "PATCH",
            "/api/runs/a%0Alevel=critical%1B%22",
            {"status": "failed"},
            r'method=PATCH run="a\\nlevel=critical\\x1b\"" answer=404',
        ),
        (
            "PATCH",
            f"/api/runs/{'x' * 100}",
            {"status": "failed"},
            f"method=PATCH run={'x' * 80}... answer=404",
        ),
    ],
)
def test_a_request_that_writes_nothing_has_its_line_too(
    brain: Brain, method: str, path: str, body: object, line: str
) -> None:
    assert written(brain, method, path, body) == f"level=info event=write {line}"


def test_what_the_database_did_not_write_has_its_reason(brain: Brain, shared: str) -> None:
    """Otherwise an operator whose disk is full reads `answer=503` and nothing else."""
    execute(
        shared,
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$;"
        "CREATE TRIGGER full_disk BEFORE INSERT ON runs FOR EACH ROW EXECUTE FUNCTION full_disk()",
    )
    try:
        line = written(brain, "POST", "/api/runs", {"id": "full", "error": SECRET})
    finally:
        execute(shared, "DROP TRIGGER full_disk ON runs; DROP FUNCTION full_disk")
    assert line == (
        'level=info event=write method=POST run=full answer=503 detail="could not extend file"'
    )


def test_reads_and_other_paths_have_none(brain: Brain) -> None:
    before = lines(brain)
    for method, path in (("GET", "/api/runs"), ("GET", "/api/runs/x"), ("POST", "/api/other")):
        brain.request(method, path)
    assert "method=PATCH" in written(brain, "PATCH", "/api/runs/none", {"status": "failed"})
    assert len(lines(brain)) == len(before) + 1
