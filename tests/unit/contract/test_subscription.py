"""What a client of /ws may ask for."""

import pytest

from brain.contract.include import INCLUDE
from brain.contract.messages import MAX_ID_BYTES, iso
from brain.contract.subscription import (
    MAX_VALUES,
    Filter,
    FilterError,
    Subscription,
    parse_subscription,
)

T = 1_700_000_000_000_000


def test_a_query_is_parsed_into_a_subscription() -> None:
    query = [
        ("run_id", "r"),
        ("status", "running"),
        ("run_id", "s"),
        ("agent", "é"),
        ("task_id", "t"),
    ]
    assert parse_subscription(query) == Subscription(
        Filter(frozenset("rs"), frozenset("t"), frozenset("é"), frozenset(("running",)))
    )
    assert parse_subscription([]) == Subscription()
    for include in (
        [("include", "deleted,ready"), ("include", "source")],
        [("include", "source, ready ,deleted,deleted")],
    ):
        wish = parse_subscription([*include, ("snapshot", "true")])
        assert wish == Subscription(snapshot=True, include=frozenset(INCLUDE))
    assert parse_subscription([("snapshot", "true")]) == Subscription(snapshot=True)
    assert parse_subscription([("snapshot", "false")]) == Subscription()
    assert parse_subscription([("since", iso(T))]) == Subscription(since=T)
    assert parse_subscription([("since", iso(T)), ("snapshot", "false")]) == Subscription(since=T)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        (
            [("colour", "red")],
            "/ws knows run_id, task_id, agent, status, snapshot, since, include",
        ),
        ([("run_id", "")], f"run_id takes a text of 1 to {MAX_ID_BYTES} bytes, not ''"),
        (
            [("agent", "x" * 2000)],
            "agent takes a text of 1 to 1024 characters, not '" + "x" * 40 + "'",
        ),
        ([("status", "done")], "status is one of queued, running, completed, failed, not 'done'"),
        ([("snapshot", "yes")], "snapshot is true or false, not 'yes'"),
        ([("snapshot", "true"), ("snapshot", "true")], "snapshot may be given once"),
        (
            [("since", iso(T)), ("snapshot", "true")],
            "snapshot and since exclude each other: since already sends",
        ),
        (
            [("since", "2026-11-21T09:30:00 02:00")],
            "since: '2026-11-21T09:30:00 02:00' is not an ISO 8601 time",
        ),
        ([("since", "yesterday")], "in a URL, write + as %2B"),
        (
            [("include", "ready,progress")],
            "include is one or more of deleted, ready, source, not 'progress'",
        ),
        ([("include", "")], "include is one or more of deleted, ready, source, not ''"),
        ([("run_id", str(i)) for i in range(MAX_VALUES + 1)], "a filter takes at most 100 values"),
    ],
)
def test_an_invalid_query_is_rejected_with_the_rule(
    query: list[tuple[str, str]], sentence: str
) -> None:
    with pytest.raises(FilterError) as refusal:
        parse_subscription(query)
    assert sentence in str(refusal.value)


def test_a_hundred_values_are_accepted() -> None:
    query = [("run_id", str(i)) for i in range(MAX_VALUES)]
    assert len(parse_subscription(query + query).filter.run_id) == MAX_VALUES
