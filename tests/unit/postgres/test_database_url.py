"""Database URLs as people paste them."""

import pytest
from psycopg import conninfo

from brain.postgres.connection import DatabaseURLError, parse_url, redact

PLAIN = "postgresql://u:secret@h:5433/d"

PASTED = {
    PLAIN: {"user": "u", "password": "secret", "host": "h", "port": "5433", "dbname": "d"},
    "postgres://u:secret@h/d": {"user": "u", "password": "secret", "host": "h", "dbname": "d"},
    "postgresql+asyncpg://u:secret@h/d": {
        "user": "u",
        "password": "secret",
        "host": "h",
        "dbname": "d",
    },
    "PostgreSQL+psycopg2://h/d": {"host": "h", "dbname": "d"},
    f" {PLAIN}\n": {"user": "u", "password": "secret", "host": "h", "port": "5433", "dbname": "d"},
    "postgresql://h/d?schema=public&sslmode=require&pgbouncer=true": {
        "host": "h",
        "dbname": "d",
        "sslmode": "require",
    },
    "postgres://h/d?schema=public": {"host": "h", "dbname": "d"},
    "postgres://u:s%40%2F%3F%20+#&=:@h/d": {
        "user": "u",
        "password": "s@/? +#&=:",
        "host": "h",
        "dbname": "d",
    },
    "postgres:///d?host=/run/postgresql": {"host": "/run/postgresql", "dbname": "d"},
    "postgres://[::1]:5/d": {"host": "::1", "port": "5", "dbname": "d"},
    "postgres://a:1,b:2/d?target_session_attrs=read-write": {
        "host": "a,b",
        "port": "1,2",
        "dbname": "d",
        "target_session_attrs": "read-write",
    },
    "postgres://h/d?options=-c%20search_path%3Da,b": {
        "host": "h",
        "dbname": "d",
        "options": "-c search_path=a,b",
    },
    "postgres://h/d?application_name=a+b": {"host": "h", "dbname": "d", "application_name": "a+b"},
    "host=h user=u password='se cret' dbname=d": {
        "host": "h",
        "user": "u",
        "password": "se cret",
        "dbname": "d",
    },
}


@pytest.mark.parametrize("url", PASTED)
def test_urls_of_other_tools_are_understood(url: str) -> None:
    assert conninfo.conninfo_to_dict(parse_url(url)) == PASTED[url]
    assert parse_url(parse_url(url)) == parse_url(url)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("mysql://u:secret@h/d", "mysql://"),
        ("jdbc:postgresql://h/d?password=secret", "jdbc:postgresql://"),
        ("postgresql://u:sec@ret@h/d", "%40"),
        ("postgresql://u:sec/ret@h/d", "%2F"),
        ("postgresql://u:sec?ret@h/d", "%3F"),
        ("postgresql://u:sec?ret=1@h/d", "%3F"),
        ("postgresql://u:secr%et@h/d", "%25"),
        ("postgresql://u:sec ret@h/d", "%20"),
        ("postgresql://u:secret@h:port/d", "port"),
        ("postgresql://u:secret@h:0/d", "port"),
        ("postgresql://u:secret@h:65536/d", "port"),
        ("postgresql://u:secret@[::1/d", "IPv6"),
        ("postgresql://u:secret@h/d?colour=red", "colour"),
        ('"postgresql://u:secret@h/d"', "postgresql://user"),
        ("host=h password=sec ret", "postgresql://user"),
        ("host=h password='sec ret", "postgresql://user"),
        ("secret", "postgresql://user"),
    ],
)
def test_other_texts_are_refused_without_repeating_the_password(url: str, named: str) -> None:
    with pytest.raises(DatabaseURLError) as error:
        parse_url(url)
    text = str(error.value)
    assert named in text
    assert "sec" not in text
    assert "ret" not in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (PLAIN, "postgresql://u@h:5433/d"),
        ("postgresql://h/d?user=u&password=secret&sslpassword=secret", "postgresql://u@h:5432/d"),
        ("host=h user=u password=secret", "postgresql://u@h:5432/"),
        ("postgresql:///d", "postgresql://localhost:5432/d"),
        ("postgresql://u:secret@[::1]:5/d", "postgresql://u@[::1]:5/d"),
        ("postgresql://u:secret@a:1,b:2/d", "postgresql://u@a:1,b:2/d"),
        ("postgresql://u:secret@a,b/d", "postgresql://u@a:5432,b:5432/d"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert redact(parse_url(url)) == shown
