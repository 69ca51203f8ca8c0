"""The oracle: whatever happens to clients, Brain and PostgreSQL, in the end each client holds what
SELECT shows.

    make torture                                                     20 minutes, with a new seed
    .venv/bin/python -m tests.oracle.torture --minutes 1 --seed 7    the schedule of seed 7
    .venv/bin/python -m tests.oracle.torture --seed 7 --plan         print that schedule

Writers of every kind change the table (writers.py) while clients of every kind follow it
(witness.py). Meanwhile connections and processes are cut, stopped and killed, by a schedule that
depends only on the seed. Then everything is left alone, and every client is asked what it holds.
The top of witness.py says what it must hold, which messages it is entitled to, and in what order.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from brain.contract.messages import FIELDS
from tests.oracle.witness import KINDS
from tests.oracle.writers import EXTRA, Writers
from tests.support import ROOT
from tests.support.patience import LIFETIME, PATIENCE
from tests.support.ports import accepts, free_port
from tests.support.postgres import VERSIONS, Postgres, execute, running
from tests.support.served import Brain
from tests.support.template import ROLE, TEMPLATE, with_template

CREWS = ("steady", "dozing", "mortal")
"""Processes of clients. All may lose connections; the second is also stopped, the third killed."""


LATE = 2.0
"""Seconds: a client may learn of something that much later."""


class Event(NamedTuple):
    at: float
    """Seconds from the start."""
    what: str
    which: float = 0.0
    lasts: float = 0.0

    def __str__(self) -> str:
        return f"{self.at:7.2f} s  {self.what}" + (
            f"  {self.which:g}, {self.lasts:.2f} s" if self.lasts else ""
        )


WEIGHTS = {
    "a client: RST": 10,
    "a client: FIN": 5,
    "a client: close": 5,
    "clients: SIGSTOP": 8,
    "clients: SIGKILL": 5,
    "Brain: SIGKILL": 5,
    "Brain: SIGTERM": 4,
    "Brain: SIGSTOP": 6,
    "PostgreSQL: kill -9": 4,
    "PostgreSQL: fast restart": 4,
    "PostgreSQL: terminate the walsender": 6,
    "PostgreSQL: terminate all of Brain's": 4,
    "PostgreSQL: terminate everyone": 3,
}


def plan(seed: int, seconds: float) -> list[Event]:
    """What is done, and when. Nothing is done to an actor that is down; all ends 2 s before the
    end.
    """
    dice = random.Random(seed)
    busy: dict[str, float] = {}
    found: list[Event] = []
    at = 2.0
    while (at := at + dice.expovariate(1.0)) < seconds - 6:
        what = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        actor = what.partition(":")[0]
        which = dice.randrange(len(CREWS) * len(KINDS))
        lasts = dice.uniform(0, 1) ** 3 * 12 if "SIGSTOP" in what else dice.uniform(0, 3)
        lasts = min(lasts, seconds - 2 - at)
        if at >= busy.get(actor, 0):
            found.append(Event(round(at, 3), what, which, round(lasts, 3)))
            if actor != "a client":
                busy[actor] = at + lasts + 1.0
    return found


class Crew:
    """A process of witnesses."""

    def __init__(self, port: int, seed: str) -> None:
        program = [sys.executable, "-m", "tests.oracle.witness", str(port), seed]
        self.process = subprocess.Popen(
            program, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, **command: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def ask(self, **command: object) -> dict[str, Any]:
        assert self.process.stdout is not None
        assert self.process.poll() is None, "a process of witnesses has failed"
        self.tell(**command)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def end(self) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self.process.wait()


class Scene:
    """PostgreSQL, Brain and the crews, and the events that happen to them."""

    def __init__(self, server: Postgres, seed: int) -> None:
        self.server = server
        self.seed = seed
        self.database = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        execute(self.database, EXTRA)
        self.folder = Path(tempfile.mkdtemp(prefix="brain-torture-"))
        self.done: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        """What killed clients take with them."""
        self._dice = random.Random(f"{seed}/brain")
        self.port = free_port()
        self.forgetful: list[tuple[float, float]] = []
        """From when until when Brains had so little memory that they forgot what clients missed."""
        self.brain = Brain(
            database_url=self.database, folder=self.folder, port=self.port, **self._settings()
        )
        self._lives = 0
        self.crews = {name: self._crew(name) for name in CREWS}

    def await_clients(self) -> None:
        """Wait until all clients are connected: an event before that would hit nobody."""
        until = time.monotonic() + LIFETIME
        while sum(crew.ask(present=True)["present"] for crew in self.crews.values()) < len(
            CREWS
        ) * len(KINDS):
            assert time.monotonic() < until, "the clients did not connect"
            time.sleep(0.1)

    def _settings(self) -> dict[str, Any]:
        """Each Brain gets other settings. With little memory, some clients are closed with 4410."""
        plenty = 128 << 20
        memory = self._dice.choice([1 << 20, 4 << 20, plenty, plenty, plenty, plenty])
        now = time.time()
        if self.forgetful and self.forgetful[-1][1] == float("inf"):
            self.forgetful[-1] = (self.forgetful[-1][0], now)
        if memory < plenty:
            self.forgetful.append((now, float("inf")))
        source = self._dice.choice(["auto", "auto", "auto", "poll"]) if self.done else "auto"
        interval = self._dice.choice([0.005, 0.025, 0.1])
        return {"board_memory": memory, "source": source, "flush_interval": interval}

    def _crew(self, name: str) -> Crew:
        self._lives += 1
        return Crew(self.port, f"{self.seed}/{name}/{self._lives}")

    def do(self, event: Event) -> Iterator[None]:
        """Do the first part of the event; after the yield, when it has lasted, the second."""
        self.done[event.what] += 1
        actor, _, how = event.what.partition(": ")
        match actor, how:
            case "a client", _:
                name = CREWS[int(event.which) % len(CREWS)]
                if self.crews[name].process.poll() is None:
                    self.crews[name].tell(
                        cut=int(event.which) // len(CREWS), how=how.lower(), away=event.lasts
                    )
                yield
            case "clients", "SIGSTOP":
                self.crews["dozing"].process.send_signal(signal.SIGSTOP)
                yield
                self.crews["dozing"].process.send_signal(signal.SIGCONT)
            case "clients", _:
                self.crews["mortal"].end()
                yield
                self.crews["mortal"] = self._crew("mortal")
            case "Brain", "SIGSTOP":
                self.brain.process.send_signal(signal.SIGSTOP)
                yield
                self.brain.process.send_signal(signal.SIGCONT)
            case "Brain", _:
                number = signal.Signals[how]
                up = accepts(self.port)
                self.brain.process.send_signal(number)
                yield
                status = self.brain.process.wait(PATIENCE)
                # Python dies of a SIGTERM that arrives before Brain handles signals.
                expected = {0} if up else {0, -number}
                assert status in (expected if number == signal.SIGTERM else {-number}), (
                    f"Brain ended with {status}"
                )
                self.brain = Brain(
                    wait=False,
                    database_url=self.database,
                    folder=self.folder,
                    port=self.port,
                    **self._settings(),
                )
                self.brain.port = self.port
            case "PostgreSQL", "kill -9":
                self.server.kill()
                yield
                self.server.start()
            case "PostgreSQL", "fast restart":
                self.server.stop("fast")
                yield
                self.server.start()
            case _:
                if self.server.process is not None:
                    whose = {
                        "terminate the walsender": "backend_type = 'walsender'",
                        "terminate all of Brain's": "application_name LIKE 'brain%'",
                    }.get(how, "datname IS NOT NULL AND pid <> pg_backend_pid()")
                    query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {whose}"
                    with contextlib.suppress(psycopg.Error):
                        execute(self.server.url(), query)
                yield

    def unexcused(self, gaps: Sequence[tuple[float, float]]) -> list[str]:
        """The clients that were told 4410 without a reason that docs/reference/protocol.md names.

        A reason is that the Brain had little memory, or that it logged that clients from before
        start over, after the timestamp that the client had.
        """
        pattern = r"^timestamp=(\S+) .*(?:clients from before start over|table replaced|no resume)"
        logged = re.findall(pattern, self.brain.log(), re.MULTILINE)
        reasons = [datetime.fromisoformat(stamp).timestamp() for stamp in logged]
        return [
            f"4410 without a reason: {told - held:.3f} s after its timestamp {held:.6f}"
            for told, held in gaps
            if not any(begin <= told <= end + LATE for begin, end in self.forgetful)
            and not any(max(held, told - 60) - LATE <= at <= told + LATE for at in reasons)
        ]

    def truth(self) -> Path:
        """What SELECT shows, in the words of the contract, with the commit time of each row."""
        path = self.folder / "truth.json"
        columns = "id, status, progress::float8, task_id, agent, started_at, completed_at, error"
        committed_at = "extract(epoch FROM pg_xact_commit_timestamp(xact::xid))::float8"
        rows = execute(self.database, f"SELECT {columns}, {committed_at} FROM runs")
        document = []
        for *values, committed in rows:
            row = {
                name: value for name, value in zip(FIELDS, values, strict=True) if value is not None
            }
            for name in ("started_at", "completed_at"):
                if name in row:
                    row[name] = _printed(row[name])
            document.append((row, committed))
        path.write_text(json.dumps(document))
        return path

    def end(self) -> None:
        for crew in self.crews.values():
            crew.end()
        if self.brain.process.poll() is None:
            self.brain.process.kill()
            self.brain.process.wait()


def _printed(moment: datetime) -> str:
    """As PostgreSQL prints it: without trailing zeros in the fraction."""
    text = moment.astimezone(UTC).replace(tzinfo=None).isoformat()
    return (text.rstrip("0") if "." in text else text) + "Z"


def carry_out(scene: Scene, events: Sequence[Event], seconds: float, *, verbose: bool) -> None:
    """Carry out the schedule. A step that takes long delays those after it."""
    began = time.monotonic()
    todo: list[tuple[float, int, Event | Iterator[None]]] = [
        (e.at, i, e) for i, e in enumerate(events)
    ]
    while todo:
        todo.sort(key=lambda each: each[:2])
        at, i, each = todo.pop(0)
        time.sleep(max(0.0, began + at - time.monotonic()))
        for crew in scene.crews.values():
            assert crew.process.poll() in (None, -signal.SIGKILL), (
                "a process of witnesses has failed"
            )
        if isinstance(each, Event):
            if verbose:
                print(each, flush=True)
            steps = scene.do(each)
            next(steps)
            todo.append((at + each.lasts, i, steps))
        else:
            next(each, None)
    time.sleep(max(0.0, began + seconds - time.monotonic()))


def verdict(scene: Scene, patience: float) -> tuple[dict[str, Any], float]:
    """The sum of all witnesses, once nothing is wrong or `patience` is over; and the seconds
    taken.
    """
    began = time.monotonic()
    with contextlib.suppress(AssertionError):
        scene.brain.wait_ready("", patience)
    path = str(scene.truth())
    while True:
        found = [crew.ask(judge=path) for crew in scene.crews.values()]
        total = {
            name: sum((each[name] for each in found), type(found[0][name])()) for name in found[0]
        }
        took = time.monotonic() - began
        if total["faults"] or not total["wrong"] or took > patience:
            return total, took
        time.sleep(min(1.0, took / 4))


def torture(
    seed: int, seconds: float, *, rate: float, version: int, patience: float, verbose: bool
) -> bool:
    """Print a summary. Returns whether nothing was wrong."""
    began = time.monotonic()
    with ExitStack() as stack:
        server = stack.enter_context(running(version, track_commit_timestamp="on"))
        scene = Scene(with_template(server), seed)
        stack.callback(scene.end)
        scene.await_clients()
        writers = Writers(scene.database, str(seed), rate)
        try:
            carry_out(scene, plan(seed, seconds), seconds, verbose=verbose)
        finally:
            writers.stop()
        total, took = verdict(scene, patience)
        log = scene.brain.log()
        complaints = re.findall(
            r"^.*(?:Traceback|stream differed|client failed|following failed).*$", log, re.MULTILINE
        )
        assert scene.brain.stop() == 0
        runs = execute(scene.database, "SELECT count(*) FROM runs")[0][0]
    kills = ", ".join(f"{what} x {count}" for what, count in sorted(scene.done.items()))
    unexcused = scene.unexcused(total["gaps"])
    bad = [*total["faults"], *total["wrong"], *unexcused, *complaints, *map(repr, writers.errors)]
    print(f"done: {kills}")
    print(
        f"seed {seed}: {time.monotonic() - began:.0f} s, {writers.changes} changes of {runs} runs "
        f"in {writers.transactions} transactions, {sum(scene.done.values())} faults; "
        f"{total['clients']} clients on {total['sessions']} connections "
        f"received {total['messages']} messages and reloaded {total['reloads']} times; "
        f"{total['finals']} final states checked, "
        f"{sum('missing' in text for text in total['wrong'])} missed; "
        f"{total['untold']} not sent on connections that had ended, which is not judged; "
        f"{len(bad)} complaints; converged {took:.1f} s after the last fault"
    )
    for each in bad[:20]:
        print(f"WRONG  {each[:400]}")
    if bad:
        print(
            f"The log of Brain: {scene.folder / 'log'}. To repeat: python -m tests.oracle.torture"
            f" --minutes {seconds / 60:g} --seed {seed}"
        )
    else:
        shutil.rmtree(scene.folder)
    return not bad


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))
    parser.add_argument(
        "--rate", type=float, default=500.0, help="rows changed in a second, roughly"
    )
    parser.add_argument("--postgres", type=int, default=VERSIONS[0], choices=VERSIONS)
    parser.add_argument(
        "--patience",
        type=float,
        default=60.0,
        help="seconds in which all clients must converge in the end",
    )
    parser.add_argument("--plan", action="store_true", help="print the schedule, and run nothing")
    parser.add_argument("--verbose", action="store_true", help="print each event when it happens")
    asked = parser.parse_args(arguments)
    seconds = asked.minutes * 60
    print(f"seed {asked.seed}, {asked.minutes:g} minutes", flush=True)
    if asked.plan:
        print(*plan(asked.seed, seconds), sep="\n")
        return 0
    passed = torture(
        asked.seed,
        seconds,
        rate=asked.rate,
        version=asked.postgres,
        patience=asked.patience,
        verbose=asked.verbose,
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
