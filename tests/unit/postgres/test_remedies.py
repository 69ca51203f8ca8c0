"""What Brain says to do when it has no source. Integration tests of the doctor follow each."""

import psycopg
import pytest

from brain.postgres.remedies import remedy
from brain.postgres.table import Table

URL = "postgresql://a@127.0.0.1/app"
TABLE = Table("App", "Runs")


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (
            psycopg.OperationalError('FATAL:  password authentication failed for user "a"'),
            "set the right role and password in BRAIN_DATABASE_URL",
        ),
        (psycopg.OperationalError("Connection refused"), "start PostgreSQL there"),
        (
            psycopg.errors.InsufficientPrivilege("Berechtigung nur f\xfcr Eigent\xfcmer"),
            'GRANT USAGE ON SCHEMA "App" TO "a"; GRANT SELECT ON "App"."Runs" TO "a";',
        ),
        (psycopg.OperationalError("server closed the connection unexpectedly"), ""),
        (psycopg.errors.AdminShutdown("terminating connection: no such password"), ""),
        (TimeoutError("password"), ""),
    ],
)
def test_a_hint_says_what_to_do_and_only_where_somebody_must(error: Exception, hint: str) -> None:
    found = remedy(error, URL, TABLE)
    assert found.startswith(hint)
    assert bool(found) == bool(hint)


def test_the_role_of_a_url_that_names_none_is_libpqs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGUSER", "of the environment")
    denied = psycopg.errors.InsufficientPrivilege("permission denied for table runs")
    found = remedy(denied, "postgresql://127.0.0.1/app", TABLE)
    assert found.endswith(' TO "of the environment";')
