"""BRAIN_COLUMN_MAP: what it means, and what is wrong with one."""

import subprocess

import pytest

from brain.contract.messages import FIELDS
from brain.postgres.column_map import ColumnMap, guess


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("completed=ended_at", "'completed' is no field of the contract: the nearest is complete"),
        ("zzz=ended_at", "'zzz' is no field of the contract: the fields are id, status, "),
        ("ended_at=completed_at", "write the field first, completed_at=ended_at"),
        ("=x", "'' is no field of the contract"),
        ("id", "'id' is not field=column, such as completed_at=ended_at"),
        ("id,error=x", "'id' is not field=column"),
        ("id=", "the column of 'id' is no name: a name is empty"),
        ("id= ,error=x", "the column of 'id' is no name: a name is empty"),
        ('id=""', "the column of 'id' is no name: a name is empty"),
        ('id="a', "the column of 'id' is no name: the quote before 'a' is not closed"),
        ('id="a"b', "'b' follows a quoted name; a quote in a name is written twice"),
        ("id=a\tb", "has a control character"),
        ("id=" + "é" * 32, "a name has at most 63 bytes, and PostgreSQL has cut this one to"),
        ("id=a,id=b", "id has two columns: give it one"),
        ("error=a,agent=a", "error and agent cannot both be the column a"),
        ('error=a,agent="a"', "error and agent cannot both be the column a"),
        ("agent=id", "agent takes the column id, so map id to another one too"),
    ],
)
def test_a_map_that_is_none_is_an_error_with_the_rule(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        ColumnMap.parse(text)
    assert rule in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "id=run_id", 'started_at=startedAt,error="a,b=""c"""', "agent=task_id,task_id=agent"],
)
def test_a_map_is_printed_as_it_is_read(text: str) -> None:
    assert str(ColumnMap.parse(text)) == text
    assert ColumnMap.parse(f" {text} ,") == ColumnMap.parse(text)


COLUMNS = ["run_id", "status", "startedAt", "ended_at", "error", "task_id"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("id=run_id", {"id": "run_id"}),
        ("id=Run_ID", {"id": "run_id"}),
        ("started_at=startedAt", {"started_at": "startedAt"}),
        ('started_at="startedAt"', {"started_at": "startedAt"}),
        ("completed_at=Ended_At", {"completed_at": "ended_at"}),
        ("agent=task_id", {"agent": "task_id", "task_id": None}),
        ("agent=task_id,task_id=error", {"agent": "task_id", "task_id": "error", "error": None}),
    ],
)
def test_a_field_has_the_column_of_the_map(text: str, found: dict[str, str | None]) -> None:
    same = {field: field for field in FIELDS if field in COLUMNS}
    wanted = {field: column for field, column in (same | found).items() if column}
    columns = ColumnMap.parse(text)
    assert columns.resolve(COLUMNS) == wanted
    assert not list(columns.missing(COLUMNS))


def test_a_name_without_quotes_means_the_exact_spelling_first() -> None:
    columns = ColumnMap.parse("started_at=startedAt")
    assert columns.resolve(["startedat", "startedAt"]) == {"started_at": "startedAt"}
    assert columns.resolve(["startedat"]) == {"started_at": "startedat"}


def test_a_quoted_name_is_not_folded() -> None:
    columns = ColumnMap.parse('started_at="StartedAt"')
    assert columns.resolve(["startedat"]) == {}
    (rule,) = columns.missing(["startedat", "x"])
    assert rule.startswith('no column "StartedAt", which BRAIN_COLUMN_MAP gives to started_at')
    assert rule.endswith("its nearest columns are startedat")


def test_two_fields_that_fold_to_one_column_are_found() -> None:
    columns = ColumnMap.parse("agent=Who,task_id=WHO")
    assert columns.shared(["who"]) == ("who", "agent", "task_id")
    assert columns.shared(["Who", "who"]) is None


def test_usual_names_are_recognized() -> None:
    columns = ["runId", "State", "started_time", "finishedAt", "error_message", "agent_name"]
    assert guess(FIELDS, columns) == {
        "id": "runId",
        "status": "State",
        "completed_at": "finishedAt",
        "error": "error_message",
        "agent": "agent_name",
    }
    assert guess(FIELDS, ["pct", "begun", "lastError"]) == {
        "progress": "pct",
        "started_at": "begun",
        "error": "lastError",
    }


def test_the_hint_is_an_assignment_of_the_shell() -> None:
    hint = ColumnMap.parse("id=run_id,error=x").hint({"started_at": "startedAt", "error": "it's"})
    shell = subprocess.run(
        ["/bin/sh", "-c", f"{hint} /bin/sh -c 'printf %s \"$BRAIN_COLUMN_MAP\"'"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shell.stdout == 'id=run_id,started_at="startedAt",error="it\'s"'
    ColumnMap.parse(shell.stdout)
