"""How late Brain is (`brain_lag_seconds`), and how old its proof is (`source` messages)."""

import asyncio
from dataclasses import replace

import pytest

from brain.postgres import lateness, watch
from brain.postgres.connection import Conn
from brain.postgres.lateness import LogEnd
from brain.postgres.pgoutput import LSN
from brain.postgres.polling import Mode
from brain.postgres.timing import PollTiming, StreamTiming
from tests.support.following import QUICK, Following, connected
from tests.support.postgres import execute
from tests.support.proxy import Proxy

pytestmark = pytest.mark.long

MODES: tuple[Mode, ...] = ("replication", "poll")
ASKING = replace(QUICK, stream=StreamTiming(idle=0.02, status_every=0.02, ask_every=0.05))
LATE = 0.5
"""Seconds. Each wait for it ends at once when it comes."""


def late(f: Following) -> float:
    return f.follow.state.lateness.seconds(asyncio.get_running_loop().time())


async def again(f: Following, times: int = 5) -> None:
    """Wait until Brain has asked, and knows that it has everything, so many times."""
    for _ in range(times):
        before = f.follow.state.heard
        await f.until(lambda: f.follow.state.heard > before and late(f) == 0)  # noqa: B023


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[LogEnd]:
    """Where the log was found to end, question by question."""
    found: list[LogEnd] = []
    ask = lateness.log_end

    async def recorded(conn: Conn, walsender: int | None) -> LogEnd:
        found.append(await ask(conn, walsender))
        return found[-1]

    monkeypatch.setattr(watch, "log_end", recorded)
    return found


async def waits(f: Following, ends: list[LogEnd], times: int = 5) -> None:
    """Wait until the walsender was found to have sent everything, so many times."""
    ends.clear()
    await f.until(lambda: sum(end.waiting for end in ends) >= times)


@pytest.mark.parametrize("mode", MODES)
async def test_is_not_late_while_nothing_is_committed(any_database: str, mode: Mode) -> None:
    async with Following(any_database, mode, timing=ASKING) as f:
        await f.source()
        await again(f)


async def test_an_idle_walsender_waits_for_log(any_database: str, ends: list[LogEnd]) -> None:
    async with Following(any_database) as f:
        await f.source()
        await waits(f, ends, 10)


async def test_an_open_transaction_whose_log_is_not_sent_makes_nothing_late(
    any_database: str, ends: list[LogEnd]
) -> None:
    """Without the other question, whose answer may be on its way when the test looks."""
    timing = replace(QUICK, stream=StreamTiming(idle=0.02, ask_every=600))
    async with Following(any_database, timing=timing) as f, connected(any_database) as other:
        await f.source()
        for i in range(5):
            await other.execute(
                f"INSERT INTO runs SELECT '{i}-' || j FROM generate_series(1, 700) j"
            )
            await waits(f, ends)
            assert late(f) == 0


@pytest.mark.parametrize("mode", MODES)
async def test_an_open_transaction_makes_nothing_late(
    any_database: str, mode: Mode, ends: list[LogEnd]
) -> None:
    """Of what it has written, the flushed part of the log may end in the middle of a record."""
    async with Following(any_database, mode, timing=ASKING) as f, connected(any_database) as other:
        await f.source()
        await other.execute("INSERT INTO runs SELECT i::text FROM generate_series(1, 2000) i")
        await again(f)
        if mode == "replication":
            await waits(f, ends)
        await other.commit()
        await f.pushed("2000", "queued")
        await again(f)


async def test_a_role_that_may_not_look_at_its_walsender_goes_by_the_log_alone(
    database: str, superuser_url: str, ends: list[LogEnd]
) -> None:
    execute(superuser_url, "REVOKE EXECUTE ON FUNCTION pg_stat_get_activity(int) FROM PUBLIC")
    async with Following(database, timing=ASKING) as f:
        await f.source()
        await again(f)
        assert not any(end.waiting for end in ends)
        assert f.follow.state.losses == 0


@pytest.mark.parametrize("mode", MODES)
async def test_a_database_that_falls_silent_makes_brain_late_until_it_speaks_again(
    any_database: str, mode: Mode
) -> None:
    with Proxy(any_database) as proxy:
        async with Following(proxy.url, mode, writer=any_database, timing=ASKING) as f:
            await f.source()
            await again(f)
            proxy.fall_silent()
            await f.sql("INSERT INTO runs (id) VALUES ('behind')")
            await f.until(lambda: late(f) > LATE)
            assert f.pushes == []
            proxy.speak()
            await f.pushed("behind", "queued")
            await again(f)


async def test_a_huge_transaction_makes_late_what_is_behind_it(any_database: str) -> None:
    async with Following(any_database, timing=replace(ASKING, watch_every=0.01)) as f:
        await f.source()
        await f.sql("CREATE TABLE huge (id bigint)")
        await again(f)
        seen = asyncio.create_task(f.until(lambda: late(f) > 0))
        await f.sql("INSERT INTO huge SELECT i FROM generate_series(1, 100000) i")
        await seen
        await again(f)


async def test_a_lock_on_the_table_makes_a_poll_late(any_database: str) -> None:
    async with Following(any_database, "poll") as f, connected(any_database) as other:
        await f.source()
        await other.execute("INSERT INTO runs (id) VALUES ('locked')")
        await other.commit()
        await other.execute("LOCK TABLE runs")
        await other.execute("INSERT INTO runs (id) VALUES ('more')")
        await f.until(lambda: late(f) > LATE)
        await other.commit()
        await f.pushed("more", "queued")
        await again(f)


class LongPause(PollTiming):
    def pause(self, *_: float, **__: float) -> float:
        return LATE * 2


async def test_a_long_pause_between_polls_makes_late_only_if_something_was_committed(
    any_database: str,
) -> None:
    timing = replace(QUICK, poll=LongPause())
    async with Following(any_database, "poll", timing=timing) as f:
        await f.source()
        await again(f, 20)  # in two polls there are not as many
        await f.sql("INSERT INTO runs (id) VALUES ('meanwhile')")
        await f.until(lambda: late(f) > 0)
        await f.pushed("meanwhile", "queued")
        await again(f)


@pytest.mark.parametrize("mode", MODES)
async def test_is_late_since_the_table_is_gone(any_database: str, mode: Mode) -> None:
    async with Following(any_database, mode, timing=ASKING) as f:
        await f.source()
        await f.sql("ALTER TABLE runs RENAME TO elsewhere")
        await f.source("none")
        await f.until(lambda: late(f) > LATE)
        await f.sql("ALTER TABLE elsewhere RENAME TO runs")
        await f.source()
        await again(f)


@pytest.mark.parametrize("reaches", [True, False])
async def test_the_proof_is_as_old_as_the_end_of_the_log_that_the_stream_has_reached(
    database: str, monkeypatch: pytest.MonkeyPatch, reaches: bool
) -> None:
    """What the server sends proves that it lives, not that nothing is on its way."""
    if not reaches:
        ask = lateness.log_end

        async def far(conn: Conn, walsender: int | None) -> LogEnd:
            return replace(await ask(conn, walsender), lsn=LSN(1 << 62), waiting=False)

        monkeypatch.setattr(watch, "log_end", far)
    async with Following(database, timing=ASKING) as f:
        await f.source()
        seen: list[float] = []
        for i in range(4):
            await f.sql(f"INSERT INTO runs (id) VALUES ('{i}')")
            await f.pushed(str(i), "queued")
            if reaches:
                before = seen[-1] if seen else 0.0
                await f.until(lambda: f.follow.state.heard > before)  # noqa: B023
            seen.append(f.follow.state.heard)
        assert seen == sorted(seen)
        assert len(set(seen[1:])) == (3 if reaches else 1)
        if not reaches:
            await f.until(lambda: late(f) > 0)
