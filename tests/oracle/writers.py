"""The writers of the oracle. Each has a thread and a connection of its own, and reconnects for
ever.

A run's version is `progress` in thousandths. Every UPDATE adds one, in the row and under its lock,
so versions increase in the order of commits. The UPDATE that finishes a run writes its last
version.
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable
from typing import LiteralString, TypeAlias

import psycopg
from psycopg import sql

from tests.oracle.witness import GHOST
from tests.support.patience import PATIENCE

EXTRA: LiteralString = "ALTER TABLE runs ADD COLUMN xact xid8 DEFAULT pg_current_xact_id()"
"""The transaction that last changed a run, from which its commit time can be queried. `xmin` would
not do: an ALTER that rewrites the table sets it in all rows."""

NEXT: LiteralString = "progress = round(progress * 1000 + 1) / 1000, xact = pg_current_xact_id()"
"""Rounded, so that double precision and numeric print the same thousandth."""

SOME: LiteralString = """(
    SELECT id FROM runs WHERE status IN ('queued', 'running') ORDER BY random() LIMIT %s
    FOR UPDATE SKIP LOCKED)"""
STEP: LiteralString = f"""
UPDATE runs SET {NEXT}, started_at = coalesce(started_at, clock_timestamp()), status = 'running'
WHERE id IN {SOME}"""
FINISH: LiteralString = f"""
UPDATE runs SET {NEXT}, completed_at = clock_timestamp(),
                status = CASE WHEN random() < 0.7 THEN 'completed' ELSE 'failed' END
WHERE id IN {SOME}"""
HAUNT: LiteralString = (
    f"UPDATE runs SET {NEXT}, status = 'failed', error = '{GHOST}' WHERE id IN {SOME}"
)
INSERT: LiteralString = """
INSERT INTO runs (id, progress, agent, task_id, error)
SELECT 'run-' || i, 0.001, 'agent-' || i %% 5, 'task-' || i %% 7,
       -- Sometimes so long (TOAST) that the stream omits it when an UPDATE does not change it.
       CASE WHEN i %% 20 = 0
            THEN (SELECT string_agg(md5(random()::text || g), '') FROM generate_series(1, 150) g)
            ELSE repeat('x', 500) END
FROM generate_series(%s::int, %s::int) i"""

Conn: TypeAlias = psycopg.Connection[tuple[object, ...]]
Act: TypeAlias = Callable[[Conn, random.Random], int]
"""One or more transactions. Returns how many rows the committed ones changed."""


class Numbers:
    """Ids for new runs. The id of a deleted run is never used again."""

    def __init__(self) -> None:
        self._next = 1
        self._lock = threading.Lock()

    def take(self, count: int) -> tuple[int, int]:
        with self._lock:
            first, self._next = self._next, self._next + count
        return first, first + count - 1


class Writers:
    """`rate`: rows that all writers together change in a second, roughly."""

    def __init__(self, url: str, seed: str, rate: float) -> None:
        self.changes = self.transactions = self.failures = 0
        self.errors: list[Exception] = []
        """Other errors than those of a database that is down: faults of the test itself."""
        self._url = url
        self._seed = seed
        self._numbers = Numbers()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        acts: dict[str, tuple[Act, float]] = {
            # The writer, and its share of the rate
            "inserts": (self._insert, 0.05),
            "updates": (_update, 0.15),
            "bulk": (self._bulk, 0.6),
            "wavers": (_waver, 0.1),
            "sits": (_sit, 0.05),
            "deletes": (_delete, 0.002),
            "alters": (_alter, 0.0),
            "prepares": (_prepare, 0.03),
        }
        self._threads = [
            threading.Thread(target=self._work, args=(name, act, rate * share), name=name)
            for name, (act, share) in acts.items()
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait until all transactions have ended, and roll back those that are prepared."""
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"the writer {thread.name!r} hangs"
        with psycopg.connect(self._url, autocommit=True) as conn:
            _clear(conn)

    def _connect(self) -> Conn:
        # No prepared statements: an ALTER of the table makes them fail.
        return psycopg.connect(self._url, connect_timeout=5, prepare_threshold=None)

    def _work(self, name: str, act: Act, rate: float) -> None:
        try:
            self._keep_working(name, act, rate)
        except Exception as error:  # noqa: BLE001 - reported at the end
            self.errors.append(error)

    def _keep_working(self, name: str, act: Act, rate: float) -> None:
        dice = random.Random(f"{self._seed}/{name}")
        while not self._stop.is_set():
            with contextlib.suppress(psycopg.OperationalError), self._connect() as conn:
                conn.execute("SET lock_timeout = '2s'")
                if dice.random() < 0.3:
                    conn.execute("SET synchronous_commit = off")
                conn.commit()
                while not self._stop.is_set():
                    began = time.monotonic()
                    count = 0
                    try:
                        count = act(conn, dice)
                    except (psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable):
                        conn.rollback()
                    with self._lock:
                        self.changes += count
                        self.transactions += 1
                    pause = count / rate if rate else dice.uniform(1, 6)
                    self._stop.wait(max(0.005, min(pause, 5.0) - (time.monotonic() - began)))
            self.failures += 1
            self._stop.wait(0.1)

    def _insert(self, conn: Conn, dice: random.Random) -> int:
        count = conn.execute(INSERT, self._numbers.take(dice.randint(1, 10))).rowcount
        conn.commit()
        return count

    def _bulk(self, conn: Conn, dice: random.Random) -> int:
        match dice.choices(("step", "finish", "insert"), (90, 5, 5))[0]:
            case "step":
                count = conn.execute(STEP, (dice.randint(20, 300),)).rowcount
            case "finish":
                count = conn.execute(FINISH, (dice.randint(10, 60),)).rowcount
            case _:
                count = conn.execute(INSERT, self._numbers.take(dice.randint(10, 60))).rowcount
        conn.commit()
        return count


def _update(conn: Conn, dice: random.Random) -> int:
    """One run at a time. Its agent may change, so it enters and leaves the view of a filter by
    agent.
    """
    match dice.choices(("step", "finish", "hand over"), (60, 25, 15))[0]:
        case "step":
            count = conn.execute(STEP, (1,)).rowcount
        case "finish":
            count = conn.execute(FINISH, (1,)).rowcount
        case _:
            values = (f"agent-{dice.randrange(5)}", dice.randrange(3))
            query = (
                f"UPDATE runs SET {NEXT}, agent = %s, error = repeat('e', %s) WHERE id IN {SOME}"
            )
            count = conn.execute(query, (*values, 1)).rowcount
    conn.commit()
    return count


def _waver(conn: Conn, dice: random.Random) -> int:
    """Rolls back the transaction, or to a savepoint, or fails."""
    count = 0
    match dice.randrange(3):
        case 0:
            conn.execute(HAUNT, (dice.randint(1, 20),))
            conn.rollback()
        case 1:
            for _ in range(3):
                count += conn.execute(STEP, (dice.randint(1, 5),)).rowcount
                with contextlib.suppress(psycopg.Rollback), conn.transaction():
                    conn.execute(HAUNT, (dice.randint(1, 5),))
                    raise psycopg.Rollback
                with conn.transaction():
                    count += conn.execute(FINISH, (1,)).rowcount
            conn.commit()
        case _:
            with contextlib.suppress(psycopg.errors.DivisionByZero):
                conn.execute(HAUNT, (dice.randint(1, 5),))
                conn.execute("SELECT 1 / 0")
            conn.rollback()
    return count


def _sit(conn: Conn, dice: random.Random) -> int:
    """Keeps a writing transaction open: until it ends, PostgreSQL creates no slot."""
    count = conn.execute(STEP, (dice.randint(1, 20),)).rowcount
    time.sleep(dice.uniform(0.2, 3))
    count += conn.execute(FINISH, (dice.randint(1, 3),)).rowcount
    if dice.random() < 0.3:
        conn.execute(HAUNT, (3,))
        conn.rollback()
        return 0
    conn.commit()
    return count


def _delete(conn: Conn, dice: random.Random) -> int:
    some: LiteralString = "SELECT id FROM runs ORDER BY random() LIMIT %s FOR UPDATE SKIP LOCKED"
    query: LiteralString = f"DELETE FROM runs WHERE id IN ({some})"
    count = conn.execute(query, (dice.randint(1, 2),)).rowcount
    conn.commit()
    return count


ALTERATIONS: tuple[LiteralString, ...] = (
    "ALTER TABLE runs ADD COLUMN IF NOT EXISTS extra jsonb DEFAULT '[1]'",
    "ALTER TABLE runs DROP COLUMN IF EXISTS extra",
    "ALTER TABLE runs REPLICA IDENTITY FULL",
    "ALTER TABLE runs REPLICA IDENTITY DEFAULT",
    "CREATE INDEX IF NOT EXISTS runs_agent ON runs (agent)",
    "DROP INDEX IF EXISTS runs_agent",
    "ANALYZE runs",
    "ALTER TABLE runs ALTER progress TYPE numeric",
    "ALTER TABLE runs ALTER progress TYPE double precision",
    "ALTER TABLE runs ALTER agent TYPE varchar(100)",
    "ALTER TABLE runs ALTER agent TYPE text",
)
"""A change of a type starts a new history: every client is closed with 4410."""


def _alter(conn: Conn, dice: random.Random) -> int:
    conn.execute(dice.choice(ALTERATIONS))
    conn.commit()
    return 0


def _prepare(conn: Conn, dice: random.Random) -> int:
    """Two-phase commit. The next call rolls back what a crash left prepared."""
    conn.rollback()
    conn.autocommit = True
    try:
        _clear(conn)
        name = f"'torture-{dice.randrange(10**9)}'"
        keep = dice.random() < 0.8
        conn.execute("BEGIN")
        count = conn.execute(STEP if keep else HAUNT, (dice.randint(1, 10),)).rowcount
        conn.execute(f"PREPARE TRANSACTION {name}".encode())
        time.sleep(dice.uniform(0, 0.3))
        conn.execute(f"{'COMMIT' if keep else 'ROLLBACK'} PREPARED {name}".encode())
    except BaseException:
        conn.rollback()
        raise
    finally:
        if not conn.closed:
            conn.autocommit = False
    return count if keep else 0


def _clear(conn: Conn) -> None:
    """Roll back every transaction that was left prepared."""
    for (gid,) in conn.execute(
        "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
    ).fetchall():
        conn.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
