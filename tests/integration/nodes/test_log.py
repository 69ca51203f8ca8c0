"""The log, on a real nats-server (nodes/log.py, nodes/appender.py)."""

import asyncio
import secrets
from collections import Counter

import pytest

from brain.nodes.appender import Appender
from brain.nodes.connection import NATSError, Refused, Unanswered
from brain.nodes.log import Item, Log, Reader, Subject, Superseded
from brain.nodes.messages import decode, encode
from tests.support.nats import NatsServer
from tests.support.nodes import QUICK_NODES, opened
from tests.support.patience import PATIENCE

CLAIM = encode("claim", 0, 0, id="n", name="n", base="empty")


def stream() -> str:
    return f"BRAIN_TEST_{secrets.token_hex(6)}"


async def taken(log: Log, after: int, count: int) -> list[Item]:
    found: list[Item] = []
    async with asyncio.timeout(PATIENCE), log.read("log", after) as reader:
        while len(found) < count:
            found += await reader.take(0.2)
    return found


async def _read_for_ever(reader: Reader) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            await reader.take(0.2)


async def test_the_stream_is_made_once(nats: NatsServer) -> None:
    async with opened(nats.url, stream()) as log:
        first, again = await log.facts(), await log.facts()
        assert (first.last, first.idle) == (0, float("inf"))
        assert again.created == first.created
        await log.append("log", CLAIM, 0)
        facts = await log.facts()
        assert (facts.first, facts.last) == (1, 1)
        assert 0 <= facts.idle < PATIENCE


async def test_a_message_is_appended_behind_the_one_it_expects_or_not_at_all(
    nats: NatsServer,
) -> None:
    async with opened(nats.url, stream()) as log:
        await log.facts()
        assert await log.append("log", CLAIM, 0) == 1
        with pytest.raises(Superseded):
            await log.append("log", CLAIM, 0)
        assert await log.append("ckpt", b"x", 1) == 2
        with pytest.raises(Superseded):  # a part of a board moves the end, too
            await log.append("log", CLAIM, 1)
        assert [item.seq for item in await taken(log, 0, 1)] == [1]


async def test_without_a_stream_nothing_is_appended(nats: NatsServer) -> None:
    async with opened(nats.url, stream()) as log:
        with pytest.raises(NATSError):
            await log.append("log", CLAIM, 0)


async def test_the_newest_message_of_a_subject(nats: NatsServer) -> None:
    async with opened(nats.url, stream()) as log:
        await log.facts()
        assert await log.last("end") is None
        await log.append("log", CLAIM, 0)
        await log.append("end", encode("end", 1, 1, as_of=1), 1)
        found = await log.last("end")
        assert found is not None
        assert found[1] is not None
        assert (found[0], found[1].head["as_of"]) == (2, 1)


async def test_a_reader_goes_on_behind_any_message_and_says_how_many_follow(
    nats: NatsServer,
) -> None:
    async with opened(nats.url, stream()) as log:
        await log.facts()
        for seq in range(9):
            await log.append("log", CLAIM, seq)
        items = await taken(log, 4, 5)
        assert [(item.seq, item.pending) for item in items] == [
            (5, 4),
            (6, 3),
            (7, 2),
            (8, 1),
            (9, 0),
        ]


async def test_a_reader_that_is_slow_is_waited_for(nats: NatsServer) -> None:
    """40 MB, more than JetStream sends without being told that it was read."""
    async with opened(nats.url, stream()) as log:
        await log.facts()
        data = bytes(500_000)
        for seq in range(80):
            await log.append("log", data, seq)
        async with log.read("log", 0) as reader:
            await asyncio.sleep(0.3)
            assert len(reader._arrived) < 80
            seqs: list[int] = []
            async with asyncio.timeout(PATIENCE):
                while len(seqs) < 80:
                    seqs += [item.seq for item in await reader.take(0.5)]
            assert seqs == list(range(1, 81))


async def test_a_reader_notices_that_a_message_was_lost(nats: NatsServer) -> None:
    async with opened(nats.url, stream()) as log:
        await log.facts()
        async with log.read("log", 0) as reader:
            await log.append("log", CLAIM, 0)
            while not reader.waiting:
                await asyncio.sleep(0.01)
            reader._number -= 1  # as if one had come that never arrived
            await log.append("log", CLAIM, 1)
            with pytest.raises(NATSError, match="message 2 came after 0"):
                await _read_for_ever(reader)


async def test_a_reader_notices_that_nothing_is_heard(nats: NatsServer) -> None:
    async with opened(nats.url, stream()) as log:
        await log.facts()
        async with log.read("log", 0) as reader:
            assert reader._subscription is not None
            await reader._subscription.unsubscribe()
            with pytest.raises(NATSError, match="nothing was heard"):
                await _read_for_ever(reader)


async def test_what_jetstream_refuses_has_its_code(nats: NatsServer) -> None:
    async with opened(nats.url, stream()) as log:
        with pytest.raises(Refused) as caught:
            await log.connection.ask("STREAM.INFO.no-such-stream")
        assert caught.value.code == 10059


async def _duels(url: str, count: int) -> None:
    """Two leaders that both believe to lead append at once, from two connections."""
    name = stream()
    async with opened(url, name) as log, opened(url, name) as other:
        await log.facts()
        last = 0
        for _ in range(count):
            one = Appender(log, last, head=dict, timing=QUICK_NODES)
            two = Appender(other, last, head=dict, timing=QUICK_NODES)
            two.epoch += 1

            async def lead(appender: Appender) -> None:
                several = (appender.events(b"[]") for _ in range(5))
                await asyncio.gather(*several, return_exceptions=True)

            await asyncio.gather(lead(one), lead(two))
            end = (await log.facts()).last
            items = await taken(log, last, end - last)
            last = end
            found = Counter(decode(item.data).epoch for item in items)
            # What gathers while a message is in flight follows it: all five of one, in order.
            assert list(found.values()) == [5], found


async def test_of_two_leaders_one_appends(nats: NatsServer) -> None:
    """(N1) All of its messages, and none of the other's."""
    await _duels(nats.url, 30)


@pytest.mark.faults
async def test_of_two_leaders_one_appends_500_times(nats: NatsServer) -> None:
    await _duels(nats.url, 500)


@pytest.mark.parametrize("arrives", [False, True])
async def test_a_leader_whose_message_was_not_confirmed_appends_nothing_more(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    """(N1) Nobody knows whether it stands in the log, and another may lead."""
    async with opened(nats.url, stream()) as log:
        await log.facts()
        await log.append("log", CLAIM, 0)
        appender = Appender(log, 1, head=dict, timing=QUICK_NODES)
        append = log.append

        async def unanswered(subject: Subject, data: bytes, after: int) -> int:
            if arrives:
                await append(subject, data, after)
            raise Unanswered("it took too long")

        with monkeypatch.context() as patch:
            patch.setattr(log, "append", unanswered)
            with pytest.raises(Unanswered):
                await appender.events(b"[]")
        for _ in range(3):
            with pytest.raises(Superseded, match="it took too long"):
                await appender.events(b"[]")
        assert (await log.facts()).last == 1 + arrives


async def test_a_leader_that_is_cancelled_resigns_behind_what_is_in_flight(
    nats: NatsServer,
) -> None:
    """(N10)"""
    async with opened(nats.url, stream()) as log:
        await log.facts()
        await log.append("log", CLAIM, 0)
        appender = Appender(log, 1, head=dict, timing=QUICK_NODES)
        task = asyncio.create_task(appender.events(b"[]"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await appender.resign()
        kinds = [decode(item.data).kind for item in await taken(log, 1, 1)]
        assert kinds[-1] == "resign"
        with pytest.raises(Superseded):
            await appender.events(b"[]")


async def test_a_message_that_is_too_large_is_cut(nats: NatsServer) -> None:
    """NATS refuses more than 1 MB."""
    async with opened(nats.url, stream()) as log:
        await log.facts()
        await log.append("log", CLAIM, 0)
        appender = Appender(log, 1, head=dict, timing=QUICK_NODES)
        numbers: list[int] = []
        body = bytes(3_000_000)
        await appender.events(body, numbers.append)
        assert numbers == [appender.n]
        messages = [decode(item.data) for item in await taken(log, 1, appender.n)]
        assert b"".join(each.body for each in messages) == body
        assert [each.is_last for each in messages] == [False] * (len(messages) - 1) + [True]
