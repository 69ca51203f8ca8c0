"""The parts of the benchmark of nodes: what a client hears, and what is reported."""

import re
import time
from collections.abc import Iterator

import pytest

from benchmarks import machine, nodes, report
from benchmarks.nodes import Found, Stage, measure
from benchmarks.plan import ALONE
from benchmarks.resuming import Client
from benchmarks.several.wandering import Crowd, parse
from benchmarks.several.watchers import Watcher, silent, wrong

FIRST, SECOND = (b'{"id":"run-%d","error":"t=%019d"}' % (n, n) for n in (1, 2))
RUN_1, RUN_2 = ((b"run-%d" % n, b"%019d" % n) for n in (1, 2))


def framed(*payloads: bytes) -> bytes:
    return b"".join(b"\x81" + bytes([len(each)]) + each for each in payloads)


def watcher(*, last: float, longest: float = 0.0) -> Watcher:
    """`last`: seconds ago."""
    made = Watcher.__new__(Watcher)
    made.data, made.stamp, made.ended = bytearray(b"HTTP/1.1 101\r\n\r\n"), 0, False
    made.last, made.longest = time.monotonic_ns() - int(last * 1e9), int(longest * 1e9)
    return made


def test_a_silence_that_goes_on_counts() -> None:
    assert silent([watcher(last=0.0, longest=3.0), watcher(last=0.0, longest=1.0)]) == 3.0
    assert silent([watcher(last=0.0, longest=3.0), watcher(last=5.0)]) >= 5.0


def test_only_changes_end_a_silence() -> None:
    one = watcher(last=5.0)
    one.take(b"\x89\x00")
    assert silent([one]) >= 5.0
    one.take(framed(FIRST))
    assert one.longest >= 5e9
    assert one.stamp == 1


def test_a_client_that_lacks_a_change_is_wrong() -> None:
    whole, half = watcher(last=0.0), watcher(last=0.0)
    whole.take(framed(FIRST, SECOND))
    half.take(framed(FIRST))
    truth = {"run-1": f"{1:019}", "run-2": f"{2:019}"}
    assert wrong([whole, half], lambda: truth, 0.0) == 1
    assert wrong([whole], lambda: truth, 0.0) == 0


def test_messages_that_arrive_in_pieces_are_read_once() -> None:
    data = framed(FIRST) + b"\x89\x00" + framed(SECOND)
    for cut in range(len(data)):
        before, rest = parse(data[:cut])
        after, end = parse(rest + data[cut:])
        assert [*before.items(), *after.items()] == [RUN_1, RUN_2]
        assert end == b""


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    """Three clients of two nodes, none of them connected."""
    crowd = Crowd([1, 2], 3)
    yield crowd
    crowd.open.close()
    crowd.opening.close()


def test_clients_are_spread_over_the_nodes(crowd: Crowd) -> None:
    assert [client.port for client in crowd.clients] == [0, 1, 0]


def test_what_clients_hold_is_compared_with_the_truth(crowd: Crowd) -> None:
    one, two, three = crowd.clients
    end = b'{"id":"once-000000007","error":"t=%019d"}' % 7
    for client, data in ((one, framed(FIRST, end)), (two, framed(FIRST)), (three, framed(end))):
        crowd.take(client, data)
    answer = crowd.differ({"run-1": f"{1:019}"}, range(7, 8))
    assert answer == {"differ": 1, "missing": 1}


def test_a_part_of_a_message_is_forgotten_with_its_connection(crowd: Crowd) -> None:
    client = crowd.clients[0]
    client.sock = Socketless()  # type: ignore[assignment]
    crowd.take(client, framed(FIRST)[:20])
    crowd.away(client)
    crowd.take(client, framed(SECOND))
    assert crowd.states[0] == dict([RUN_2])
    assert isinstance(client, Client)
    assert client.port == 1


class Socketless:
    def fileno(self) -> int:
        return -1

    def close(self) -> None: ...


def test_a_part_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Found, __: Stage) -> None:
        raise RuntimeError("no server\nat all")

    def succeed(found: Found, _: Stage) -> None:
        found.add("a table", "a row", [{"seconds": 1.0}, {"seconds": 3.0}])
        found.reach("seconds", 2.0, most=1.0)

    monkeypatch.setattr(nodes, "PARTS", {"one": fail, "two": succeed})
    monkeypatch.setattr(machine, "BEGAN", time.monotonic())  # the tests may have begun long ago
    found = Found(quick=False, runs=1)
    measure(found, ["one", "two"])
    assert found.failed == {"one": "no server"}
    assert found.jobs["a table"]["a row"]["figures"]["seconds"]["median"] == 2.0
    assert [each["met"] for each in found.targets] == [False]
    assert "failed: one: no server" in capsys.readouterr().out


def test_a_quick_run_reaches_only_what_must_never_happen() -> None:
    found = Found(quick=True, runs=1)
    found.reach("seconds", 2.0, most=1.0)
    found.reach("clients wrong", 1.0, most=0)
    assert [each["what"] for each in found.targets] == ["clients wrong"]


@pytest.mark.parametrize("name", ALONE)
def test_a_program_that_runs_alone_has_a_place_in_the_report(name: str) -> None:
    title, what, rest = report.described(name)
    assert name in report.ORDER
    assert title
    assert what
    assert "python -m" not in rest
    assert re.search(rf"`python -m benchmarks\.{name} \[--quick\]", nodes.__doc__ or "")
