"""Databases with an empty table `runs`, each for one test at a time.

To create a database and to drop it costs four times as much as to see that a test has changed only
rows, and most tests do no more. So `give_back` looks at what a test has left. If nobody has written
to the catalogs since the database was created, it deletes the rows, and another test gets the same
database. Otherwise it drops the database.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.support.patience import wait_until
from tests.support.postgres import Postgres, execute, hang_up
from tests.support.template import ROLE, TEMPLATE

LARGEST = 128 * 1024
"""Bytes of the table with its indexes above which no other test gets it: deleted rows stay there.
"""

_END_SESSIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()"""
"""Repeat it until there is no session. With a timeout, it looks again only after 100 ms."""

_LOOK = f"""
SELECT (SELECT stats_reset FROM pg_stat_wal),
       (SELECT sum(pg_stat_get_tuples_inserted(oid) + pg_stat_get_tuples_updated(oid)
                   + pg_stat_get_tuples_deleted(oid))
        FROM pg_class
        WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND NOT relisshared),
       relpages, reltuples, pg_total_relation_size(pg_class.oid) <= {LARGEST},
       datdba, datconnlimit, datallowconn, datacl,
       (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase = pg_database.oid),
       (SELECT count(*) FROM pg_shdescription WHERE objoid = pg_database.oid),
       (SELECT count(*) FROM pg_shdepend WHERE dbid = pg_database.oid),
       (SELECT count(*) FROM pg_replication_slots WHERE database = datname),
       (SELECT count(*) FROM pg_prepared_xacts WHERE database = datname)
FROM pg_database, pg_class
WHERE datname = current_database() AND pg_class.oid = 'public.runs'::regclass"""
"""What no test may change. A session has reported what it wrote before it leaves pg_stat_activity.
The counts of writes begin with the database, and are lost by a crash, which the first column shows.
"""


class Databases:
    """Those of one server."""

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self._free: list[str] = []
        name = self.take()
        self._new = execute(server.url(name), _LOOK)
        self._free.append(name)

    @contextmanager
    def one(self) -> Iterator[str]:
        """The name of a database for this block alone."""
        name = self.take()
        try:
            yield name
        finally:
            self.give_back(name)

    def take(self) -> str:
        """The name of a database with an empty table."""
        return self._free.pop() if self._free else self.server.create_database(TEMPLATE, ROLE)

    def give_back(self, name: str) -> bool:
        """Whether another test will get it. Ends its sessions."""
        hang_up()
        clean = self._cleaned(name)
        if clean:
            self._free.append(name)
        else:
            self.server.drop_database(name)
        return clean

    def _cleaned(self, name: str) -> bool:
        try:
            with psycopg.connect(self.server.url(name), autocommit=True) as connection:
                wait_until(
                    lambda: not connection.execute(_END_SESSIONS.encode()).fetchall(), pause=0.002
                )
                if connection.execute(_LOOK.encode()).fetchall() != self._new:
                    return False
                connection.execute("DELETE FROM public.runs")
                return True
        except psycopg.Error:
            return False
