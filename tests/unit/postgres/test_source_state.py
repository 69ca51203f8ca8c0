"""What Follow reports, and how often."""

from structlog.testing import capture_logs

from brain.postgres.source_state import POLLED, SourceState


def test_logs_each_state_once() -> None:
    state = SourceState()
    with capture_logs() as logs:
        for _ in range(3):
            state.change("none", "away", "connection refused")
        for _ in range(3):
            state.change("poll", "wal_level", "a detail", "a hint")
        state.change("poll", "lost", "another detail")
        state.change("poll", "wal_level", "a detail", "a hint")
        state.change("replication")
        state.change("poll", "lost", "another detail")
    assert [
        (line["log_level"], line["now"], line.get("detail"), line.get("hint")) for line in logs
    ] == [
        ("warning", "none", "connection refused", None),
        ("info", "poll", "a detail", "a hint"),
        ("info", "poll", "another detail", None),
        ("info", "replication", None, None),
        ("info", "poll", "another detail", None),
    ]


def test_logs_when_polling_becomes_slow_and_when_it_is_no_longer() -> None:
    state = SourceState()
    with capture_logs() as logs:
        for pause in (0.1, 0.6, 2.0, 0.4, 0.0):
            state.scan_pause(pause)
            assert state.slow == (pause > 0.5)
    assert [(line["slow"], line["seconds_between_scans"]) for line in logs] == [
        (True, 0.6),
        (False, 0.4),
    ]


def test_polling_with_a_hint_says_that_it_works() -> None:
    state = SourceState()
    with capture_logs() as logs:
        state.change("poll", "preparing", "the stream is being prepared")
        state.change("poll", "role", "the role may not replicate", "ALTER ROLE brain REPLICATION;")
        state.change("poll", "chosen", "BRAIN_SOURCE is poll", "BRAIN_SOURCE=auto")
        state.change("none", "table", "there is no table", "create it")
    assert [line.get("effect") for line in logs] == [None, POLLED, None, None]
    assert [line["log_level"] for line in logs] == ["info", "info", "info", "warning"]
