"""N clients that resume on another node than the one that has closed them.

As benchmarks.resuming, but for the state that each holds, which `differ PATH FIRST LAST` compares:
PATH names a file with the truth, the stamp of each run as JSON. How many clients hold anything
else, and how many of the runs once-FIRST to once-LAST, which have ended, they lack.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import resuming
from benchmarks.load import STAMP
from tests.support.crowd import split
from tests.support.wire import TEXT

ID = b'"id":"'
KNOWN = 5_000
"""Pieces whose content is remembered: all clients of a node receive the same."""


class Crowd(resuming.Crowd):
    def __init__(self, ports: Sequence[int], count: int) -> None:
        super().__init__(ports, count)
        self.states: list[dict[bytes, bytes]] = [{} for _ in range(count)]
        """Run → stamp, of each client."""
        self.rests = [b""] * count
        """The beginning of a frame."""
        self.parsed: dict[bytes, tuple[dict[bytes, bytes], bytes]] = {}

    def away(self, client: resuming.Client) -> None:
        self.rests[self.numbers[id(client)]] = b""
        super().away(client)

    def take(self, client: resuming.Client, data: bytes) -> None:
        super().take(client, data)
        number = self.numbers[id(client)]
        data = self.rests[number] + data
        found = self.parsed.get(data)
        if found is None:
            if len(self.parsed) > KNOWN:
                self.parsed.clear()
            found = self.parsed[data] = parse(data)
        runs, self.rests[number] = found
        self.states[number].update(runs)

    def record(self) -> dict[str, Any]:
        """The states say what has arrived; no bytes are kept."""
        super().record()
        self.recording = False
        return {}

    def answer(self, *words: str) -> dict[str, Any] | None:
        match words:
            case ["differ", path, first, last]:
                truth = json.loads(Path(path).read_text())
                return self.differ(truth, range(int(first), int(last) + 1))
        return super().answer(*words)

    def differ(self, truth: dict[str, str], ends: range) -> dict[str, Any]:
        expected = {run.encode(): stamp.encode() for run, stamp in truth.items()}
        ended = {b"once-%09d" % number for number in ends}
        return {
            "differ": sum(
                any(state.get(run) != stamp for run, stamp in expected.items())
                for state in self.states
            ),
            "missing": sum(len(ended - state.keys()) for state in self.states),
        }


def parse(data: bytes) -> tuple[dict[bytes, bytes], bytes]:
    """Run → stamp, of all whole messages; the bytes behind the last whole frame."""
    frames, rest = split(data)
    found: dict[bytes, bytes] = {}
    for opcode, payload in frames:
        if opcode == TEXT and (stamps := STAMP.findall(payload)):
            found[payload.partition(ID)[2].partition(b'"')[0]] = stamps[-1]
    return found, rest


class Wandering(resuming.Resuming):
    """The program, seen from its parent."""

    program = "benchmarks.several.wandering"


if __name__ == "__main__":
    resuming.serve(Crowd([int(port) for port in sys.argv[2:]], int(sys.argv[1])))
