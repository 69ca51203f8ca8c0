"""Database URLs as people paste them."""

import pytest
from psycopg import conninfo

from brain.postgres.connection import redact
from brain.postgres.database_url import DatabaseURLError, parse_url, schema_of

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
    "postgresql+asyncpg://h/d?ssl=require&command_timeout=60": {
        "host": "h",
        "dbname": "d",
        "sslmode": "require",
    },
    "postgres://h/d?ssl=false": {"host": "h", "dbname": "d", "sslmode": "disable"},
    "postgres://h/d?ssl=true&sslmode=verify-full": {
        "host": "h",
        "dbname": "d",
        "sslmode": "verify-full",
    },
    "postgres://h/d?sslmode=no-verify&uselibpqcompat=true": {
        "host": "h",
        "dbname": "d",
        "sslmode": "require",
    },
    "postgres://h/d?search_path=app&pool_max_conns=10&pool=5": {"host": "h", "dbname": "d"},
    "postgres://h/d?options=endpoint%3Dep-1&channel_binding=require&supa=base-pooler.x": {
        "host": "h",
        "dbname": "d",
        "options": "endpoint=ep-1",
        "channel_binding": "require",
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
        ("postgresql://u:secret@h/d?colour=red", "use one of libpq's (sslmode, sslrootcert"),
        ("postgresql://u:secret@h/d?sslmod=x", "'sslmod', which PostgreSQL does not know: did you"),
        ("postgresql://u:secret@h/d?SSLMODE=x", "did you mean sslmode?"),
        ("postgresql://u:secret@h/d?connect_timout=5", "did you mean connect_timeout?"),
        ("postgresql://u:secret@h/d?sslmode=maybe", 'invalid sslmode value: "maybe": it is dis'),
        ("postgresql://u:secret@h/d?sslmode", 'invalid sslmode value: ""'),
        ("postgresql://u:secret@h/d?ssl=maybe", 'invalid sslmode value: "maybe"'),
        ("postgresql://u:secret@h/d?target_session_attrs=writer", "read-write, read-only, primary"),
        ("postgresql://u:secret@h/d?connect_timeout=5s", "connect_timeout in the database URL is"),
        ("postgresql://h/d?sslmode=prefer&sslmode=disable", "sslmode more than once"),
        ("postgresql://u:sec@ss?ret=1@h/d", "%3F"),
        ("postgresql://u:sec?ret=1", "port"),
        ("host=h sslmod=disable password=secret", "did you mean sslmode?"),
        ("host=h password=sec ret=1", "postgresql://user"),
        ('"postgresql://u:secret@h/d"', "postgresql://user"),
        ("host=h password=sec ret", "postgresql://user"),
        ("host=h password='sec ret", "postgresql://user"),
        ('host=h a"secret', "postgresql://user"),
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
    ("url", "schema"),
    [
        ("postgresql://h/d?schema=app", "app"),
        ("jdbc:postgresql://h/d?currentSchema=a%20b", "a b"),
        ("postgresql://h/d?search_path=app", "app"),
        ("postgresql://h/d?search_path=app,public", None),
        ('postgresql://h/d?search_path="$user"', None),
        ("postgresql://h/d?schema=", None),
        ("postgresql://h/d?schema=a&schema=b", None),
        ("postgresql://h/d?sslmode=require", None),
        ("host=h", None),
    ],
)
def test_the_schema_of_a_url_for_other_tools(url: str, schema: str | None) -> None:
    assert schema_of(url) == schema


def test_a_wrong_variable_of_libpq_is_not_the_fault_of_the_url(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGSSLMODE", "maybe")
    assert parse_url(PLAIN) == PLAIN


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
        ("host=h dbname='a b/c?d%é'", "postgresql://h:5432/a%20b%2Fc%3Fd%25é"),
        ("host=/var/run user='me@srv'", "postgresql://me%40srv@%2Fvar%2Frun:5432/"),
        ("host=fe80::1%eth0 dbname=d", "postgresql://[fe80::1%25eth0]:5432/d"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert redact(parse_url(url)) == shown
    assert redact(shown) == shown, "psql, too, can read it"
