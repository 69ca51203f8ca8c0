"""Those who write to `runs` while the oracle looks on: each in a thread and on a connection of its own, again and again.

A run's version is `progress` in thousandths. Every UPDATE adds one, in the row and under its lock, so versions count up in the
order of commits. Who finished a run has written its last version: an end is final.
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
"""Which transaction has last changed a run, so that its commit time can be asked for. Not `xmin`: an ALTER that rewrites the table
sets that of all rows."""

NEXT: LiteralString = "progress = round(progress * 1000 + 1) / 1000, xact = pg_current_xact_id()"
"""Of a double the nearest to its thousandth, of a numeric the same: both print as that."""

SOME: LiteralString = """(SELECT id FROM runs WHERE status IN ('queued', 'running') ORDER BY random() LIMIT %s
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
       -- Now and then too long to be stored in its row: what an UPDATE leaves as it is, the stream then does not repeat.
       CASE WHEN i %% 20 = 0 THEN (SELECT string_agg(md5(random()::text || g), '') FROM generate_series(1, 150) g) ELSE repeat('x', 500) END
FROM generate_series(%s::int, %s::int) i"""

Conn: TypeAlias = psycopg.Connection[tuple[object, ...]]
Act: TypeAlias = Callable[[Conn, random.Random], int]
"""One transaction or a few: returns how many rows were changed by what was committed."""


class Numbers:
    """Fresh ids for all; a run that was deleted does not come again."""

    def __init__(self) -> None:
        self._next = 1
        self._lock = threading.Lock()

    def take(self, count: int) -> tuple[int, int]:
        with self._lock:
            first, self._next = self._next, self._next + count
        return first, first + count - 1


class Writers:
    """`rate` is how many rows they change in a second, roughly, all together."""

    def __init__(self, url: str, seed: str, rate: float) -> None:
        self.changes = self.transactions = self.failures = 0
        self.errors: list[Exception] = []
        """Beside those of a database that goes and comes: faults of the test's own."""
        self._url = url
        self._seed = seed
        self._numbers = Numbers()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        acts: dict[str, tuple[Act, float]] = {
            # Its share of the rate.
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
        """Returns when what was begun has ended, prepared transactions too."""
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"the writer that {thread.name} hangs"
        with psycopg.connect(self._url, autocommit=True) as conn:
            _clear(conn)

    def _connect(self) -> Conn:
        # Without prepared statements: what is altered under them would fail those.
        return psycopg.connect(self._url, connect_timeout=5, prepare_threshold=None)

    def _work(self, name: str, act: Act, rate: float) -> None:
        try:
            self._keep_working(name, act, rate)
        except Exception as error:  # noqa: BLE001 - it is told in the end
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
    """One run at a time, as a program would; its agent may change, and who filters must see it come and go."""
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
    """Rolls back: all, or to a savepoint; or fails."""
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
    """Writes, and takes its time: no slot can be made meanwhile."""
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
    query = "DELETE FROM runs WHERE id IN (SELECT id FROM runs ORDER BY random() LIMIT %s FOR UPDATE SKIP LOCKED)"
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
"""Those of types are a new beginning: every client is told to come back."""


def _alter(conn: Conn, dice: random.Random) -> int:
    conn.execute(dice.choice(ALTERATIONS))
    conn.commit()
    return 0


def _prepare(conn: Conn, dice: random.Random) -> int:
    """Two-phase commit. What a crash leaves prepared is brought to an end by the next."""
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
    """Roll back what is prepared and that nobody ends any more."""
    for (gid,) in conn.execute(
        "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
    ).fetchall():
        conn.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
