"""How the load counts messages that a peer joins into one frame."""

import socket
from collections.abc import Iterator

import pytest

from benchmarks.load import Client, Crowd, smallest

MESSAGE = b'{"error":"t=%019d"}'


def frame(*messages: bytes) -> bytes:
    payload = b"\n".join(messages)
    head = bytes([len(payload)]) if len(payload) < 126 else b"\x7e" + len(payload).to_bytes(2)
    return b"\x81" + head + payload


@pytest.fixture
def crowd() -> Crowd:
    """One without connections."""
    crowd = Crowd.__new__(Crowd)
    crowd.joined = False
    crowd.last = 0
    return crowd


@pytest.fixture
def probe() -> Iterator[Client]:
    client = Client(probe=True)
    with socket.socket() as client.sock:
        yield client


def test_a_frame_with_several_messages_counts_each(crowd: Crowd, probe: Client) -> None:
    messages = [MESSAGE % number for number in range(5)]
    crowd.came(probe, frame(messages[0]))
    whole, joined = probe.size, [crowd.joined]
    crowd.came(probe, frame(*messages[1:]))
    assert [*joined, crowd.joined] == [False, True]
    assert probe.messages == 5
    assert [stamp for stamp, _ in probe.stamps] == list(range(5))
    assert probe.size == len(messages[0]) + 1 < whole


def test_a_frame_that_arrives_in_pieces_counts_once(crowd: Crowd, probe: Client) -> None:
    data = frame(MESSAGE % 1, MESSAGE % 2)
    for at in range(len(data)):
        crowd.came(probe, data[at : at + 1])
    assert probe.messages == 2
    assert probe.count == len(data)


def test_the_smallest_size_counts_only_clients_that_received_something() -> None:
    silent, one, another = Client(probe=True), Client(probe=True), Client(probe=True)
    one.size, another.size = 30, 29
    assert smallest([silent, one, another]) == 29
    assert smallest([silent]) == 0
