"""What PostgreSQL's errors mean for a stream."""

import psycopg
import pytest

from brain.postgres.unavailable import BY_SQLSTATE, SlotBlocked, from_error


@pytest.mark.parametrize("code", BY_SQLSTATE)
def test_every_known_sqlstate_has_a_detail_and_a_hint(code: str) -> None:
    found = from_error(psycopg.errors.lookup(code)("ERROR: what it said\nand more"), "the role")
    assert found.detail.endswith(f": what it said ({code})")
    assert bool(found.hint) == (code != "0A000")
    assert "{user}" not in found.hint
    assert str(found) == found.detail


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("FATAL:  permission denied to start WAL sender", "may not replicate"),
        ("FATAL:  must be superuser or replication role to start walsender", "may not replicate"),
        ("FATAL:  keine Berechtigung, um WAL-Sender zu starten", "may not replicate"),
        (
            (
                "FATAL:  number of requested standby connections exceeds"
                ' "max_wal_senders" (currently 1)'
            ),
            "no connection",
        ),
        ('FATAL:  no pg_hba.conf entry for replication connection from host "::1"', "pg_hba.conf"),
        ("FATAL:  unsupported startup parameter: replication", "a pooler"),
        ("could not receive data from server", "replication was refused"),
    ],
)
def test_an_error_without_a_sqlstate_is_known_by_its_text(text: str, detail: str) -> None:
    assert detail in from_error(psycopg.OperationalError(text), "u").detail


def test_a_lock_timeout_means_that_the_slot_is_blocked() -> None:
    assert isinstance(from_error(psycopg.errors.LockNotAvailable("x"), "u"), SlotBlocked)


def test_a_server_that_has_no_slots_at_all_is_not_told_to_change_its_wal_level() -> None:
    text = "replication slots can only be used if max_replication_slots > 0"
    found = from_error(psycopg.errors.ObjectNotInPrerequisiteState(text), "u")
    assert (found.code, found.hint) == ("slots", BY_SQLSTATE["53400"][2])
