"""The documents of /readyz of several workers as one."""

from typing import Any

from brain.workers.readiness import merged


def worker(number: int, state: str = "ready") -> dict[str, Any]:
    return {"worker": number, "pid": 100 + number, "state": state}


def document(**changed: Any) -> dict[str, Any]:
    return {
        "ready": True,
        "source": "replication",
        "detail": None,
        "lag_seconds": 0.0,
        "since_seconds": 60.0,
        "clients": 2,
        "lagging": 1,
        "runs": 5,
        "warnings": [],
        "rejected": [],
    } | changed


AWAY = document(
    ready=False, source="none", detail="connection refused", lag_seconds=9.0, since_seconds=1.0
)


def test_it_is_ready_if_one_worker_is() -> None:
    answer = merged([(worker(1, "unready"), AWAY), (worker(2), document())])
    assert answer["ready"]
    assert answer["source"] == "replication"
    assert not merged([(worker(1, "unready"), AWAY)])["ready"]
    assert not merged([(worker(1, "starting"), None)])["ready"]
    assert not merged([])["ready"]


def test_the_detail_of_workers_that_are_not_ready_is_told_if_none_is() -> None:
    answer = merged([(worker(1, "unready"), AWAY), (worker(2, "unready"), AWAY)])
    assert answer["detail"] == "connection refused"
    assert answer["lag_seconds"] == 9.0


def test_clients_are_summed_and_the_worst_of_the_others_counts() -> None:
    answer = merged(
        [
            (worker(1), document(lag_seconds=3.0, since_seconds=5.0)),
            (worker(2), document(clients=40, runs=6, lag_seconds=None)),
            (worker(3, "unready"), AWAY),
        ]
    )
    assert answer["clients"] == 44
    assert answer["lagging"] == 3
    assert answer["runs"] == 6
    assert answer["lag_seconds"] == 3.0
    assert answer["since_seconds"] == 5.0


def test_each_worker_is_listed_with_its_own_state() -> None:
    answer = merged([(worker(1), document()), (worker(2, "silent"), None)])
    first, second = answer["workers"]
    assert first["clients"] == 2
    assert first["state"] == "ready"
    assert second == {"worker": 2, "pid": 102, "state": "silent"}


def test_a_warning_of_all_workers_is_told_once() -> None:
    clock, other = {"code": "clock", "detail": "a"}, {"code": "other", "detail": "b"}
    answer = merged(
        [(worker(1), document(warnings=[clock])), (worker(2), document(warnings=[clock, other]))]
    )
    assert answer["warnings"] == [clock, other]
