"""Every hint that Brain prints has a test that follows it, as it is printed."""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.hints import Hint, in_the_code, in_the_tests

hints = cache(in_the_code)
followed = cache(in_the_tests)
"""They parse every module of Brain and of the tests: once, and not in each worker that collects."""

COLUMN_MAP = "tests/integration/postgres/test_column_map.py"

ELSEWHERE = {
    # Of a module, or with these words: the test that does what the hint says in another way.
    "access/policy.py": "tests/unit/access/test_hints.py::test_a_page_is_accepted_once_its_hint_is",
    "access/limits.py": "tests/unit/access/test_hints.py::test_every_hint_names_a_setting_that",
    "access/addresses.py": "tests/unit/test_config.py::test_an_error_names_the_variable_the_value",
    "config.py": "tests/unit/test_config.py::test_",
    "let nobody but nodes publish to": "tests/integration/nodes/test_intruders.py::test_what_some",
    "BRAIN_TABLE of this node, or set": "tests/integration/nodes/test_intruders.py::test_a_log_of",
    "the same role in the database": "tests/integration/nodes/test_intruders.py::test_a_node_that",
    "nodes/connection.py": "tests/unit/nodes/test_connection.py::test_a_file_that_cannot_be_used",
    "postgres/database_url.py": "tests/unit/postgres/test_database_url.py::test_urls_of_other",
    "cli/console.py": "tests/integration/cli/test_cli.py::test_the_commands_of_the_welcome_work",
    "cli/target.py": "tests/unit/cli/test_target.py::test_a",
    "its nearest columns are": "tests/integration/postgres/test_column_map.py::test_",
    "give it to one of them": "tests/integration/postgres/test_column_map.py::test_",
    " is ready: {} serve": "tests/integration/cli/test_cli.py::test_init_db_creates_the_table",
    "there is no table": "tests/integration/doctor/test_doctor.py::test_a_missing_table_or_column",
    "-- If the table exists there": "tests/integration/doctor/test_publication_rule.py::test_init",
    "raise max_replication_slots": "tests/integration/doctor/test_doctor.py::test_no_replication",
    "raise max_wal_senders": "tests/integration/doctor/test_doctor.py::test_no_walsender_is_free",
    "ALTER PUBLICATION {} ADD TABLE": "tests/integration/postgres/test_publication.py::test_",
    "ALTER PUBLICATION {} SET (publish": "tests/integration/doctor/test_publication_rule.py::test_",
    "embedded/postmaster.py": "tests/integration/embedded/test_embedded.py::test_a_port_that_is",
    "embedded/datadir.py": "tests/integration/embedded/test_embedded.py::test_a_second_brain_repor",
    "embedded/server.py": "tests/integration/embedded/test_embedded.py::test_a_path_that_is_no_f",
    "or set BRAIN_DATABASE_URL to a": "tests/integration/cli/test_cli.py::test_init_db_creates_th",
    "BRAIN_EMBEDDED=false forbids": "tests/integration/cli/test_cli.py::test_a_wrong_setting_is_on",
    "set BRAIN_PORT to another": "tests/integration/cli/test_cli.py::test_a_port_that_is_taken_is",
    "set BRAIN_HOST to an address": "tests/integration/cli/test_cli.py::test_a_wrong_setting_is_on",
    "openssl rand -base64 32": "tests/unit/test_config.py::test_a_jwt_secret_is_long_and_never",
    "BRAIN_COLUMN_MAP={}": f"{COLUMN_MAP}::test_a_table_without_id_or_status_is_told_its_map",
    "{} # if that is what they mean": f"{COLUMN_MAP}::test_a_table_without_id_or_status_is_told",
    "which BRAIN_COLUMN_MAP gives to": f"{COLUMN_MAP}::test_a_map_that",
    "BRAIN_COLUMN_MAP gives the column": f"{COLUMN_MAP}::test_a_map_that",
    "forbids the embedded PostgreSQL": "tests/integration/test_app.py::test_",
    "doctor/nats.py": "tests/integration/doctor/test_nats.py::test_",
    "workers/nats_server.py": "tests/integration/workers/test_starts.py::test_without_nats_server",
    "workers/channel.py": "tests/integration/workers/test_starts.py::test_a_worker_is_not_started",
    "rename it in the table": "tests/unit/postgres/test_decoder.py::test_",
}

NO_HINTS = {
    # What is no advice, or advice that a test cannot follow, and why.
    "HS256 by BRAIN_JWT_SECRET": "names a key in the log",
    "{} by BRAIN_JWT_JWKS": "names a key in the log",
    "the token is for another audience": "for the client, who cannot change the setting",
    "the token's issuer is not": "for the client, who cannot change the setting",
    "BRAIN_SOURCE is poll": "says what is set",
    "BRAIN_RESUME is 0": "says what is set",
    "the log of BRAIN_NATS_URL takes": "says what is set",
    "look at NATS (BRAIN_NATS_URL)": "for whoever runs NATS",
    "delete the stream and start them, or": "for whoever runs NATS",
    "upgrade this Brain": "needs a later version",
    "Brain takes times without a zone": "says what is set",
    "the database does not know the time zone": "needs other time zone data in PostgreSQL",
    "DROP TABLE IF EXISTS {}": "Brain runs it",
    "ALTER PUBLICATION {} DROP TABLE {}": "Brain runs it",
    "CREATE ROLE cecelia": "Brain runs it",
    "Memory used by these runs": "describes a metric",
    "ALTER TABLE {}": "the beginning of others",
    "DROP PUBLICATION {}": "the beginning of others",
    "only the database URL decides": "says what counts; the variables are ignored",
    "brain_values_corrected_total counts": "names a metric; test_metrics.py reads it",
    "give the run another id": "an id that is no text cannot be named in SQL by every client",
    "upgrade it to 15 or newer": "needs a PostgreSQL that is older than any in the wheel",
    "check that it runs": "for errors that no rule knows",
    "make room on the disk of PostgreSQL": "for whoever runs the machine",
    "the package {} is not installed": "installs packages; test_public_api.py reads it",
    "the package nats-py is not installed": "installs a package; test_public_api.py reads it",
    "this Brain shares no log with others": "test_served.py sets it",
    "has the public keys only": "for whoever runs the identity provider",
    "psql is missing": "installs packages",
    "descriptors for no more (ulimit -n)": "says how many there are",
    "for the {} of BRAIN_MAX_CONNECTIONS": "a limit of the account that runs the tests",
}


def explained(hint: Hint) -> list[str]:
    """Where the hint is accounted for."""
    return [
        *(text for text in followed() if hint.text.startswith(text)),
        *(text for text in ELSEWHERE if hint.place.startswith(f"{text}:") or text in hint.text),
        *(text for text in NO_HINTS if text in hint.text),
    ]


def test_a_test_follows_every_hint() -> None:
    """Otherwise decorate one with follows() of tests/support/hints.py."""
    missing = [f"{hint.place} {hint.text!r}" for hint in hints() if not explained(hint)]
    assert not missing, f"no test follows {missing}"


def test_what_is_followed_is_in_the_code() -> None:
    known = {text for hint in hints() for text in explained(hint)}
    assert known >= {*followed(), *ELSEWHERE, *NO_HINTS}


def functions(path: str) -> Iterable[str]:
    tree = ast.parse((ROOT / path).read_text())
    return [getattr(node, "name", "") for node in ast.walk(tree)]


def test_the_other_tests_exist() -> None:
    names = {
        path: functions(path) for path in {name.partition("::")[0] for name in ELSEWHERE.values()}
    }
    for name in ELSEWHERE.values():
        path, _, test = name.partition("::")
        assert any(each.startswith(test) for each in names[path]), name


def test_the_search_finds_a_hint_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = '''
_HINTS = {"no hint": "first of a dict", "": f"second {1} of a dict"}
BY_SQLSTATE = {"x": ("code", "a detail", "third in a tuple")}
def f(hints, log):
    """No hint: BRAIN_TABLE in a docstring."""
    hint = "fourth in a variable"
    detail, hint = "no hint", "fifth of a pair"
    hints.append("sixth in a list")
    log.warning("no hint", hint="seventh of a log line")
    raise StreamUnavailable("no hint", "eighth of an error", "code")
def _some_hint():
    return "ninth of a function"
raise ValueError("the tenth is a sentence about BRAIN_TABLE")
'''
    (tmp_path / "module.py").write_text(code)
    monkeypatch.setattr("tests.support.hints.SOURCE", tmp_path)
    found = sorted(hint.text.split()[0] for hint in in_the_code())
    ordinals = [
        "first",
        "second",
        "third",
        "fourth",
        "fifth",
        "sixth",
        "seventh",
        "eighth",
        "ninth",
        "the",
    ]
    assert found == sorted(ordinals)
