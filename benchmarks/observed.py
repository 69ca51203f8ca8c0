"""`brain serve` that records how long it did not answer.

It appends lines to the files that the environment names. BENCHMARK_PAUSES: each pause of the
garbage collector, as generation, wall seconds, CPU seconds. BENCHMARK_TURNS: each turn of the event
loop of more than MIN_TURN, as wall seconds and CPU seconds. It imports nothing of the other
benchmarks, so that served.py can start it anywhere.
"""

import asyncio
import gc
import os
import time

import uvloop

from brain.cli.commands import main

BEAT = 0.001
MIN_TURN = 0.001


def opened(name: str) -> int | None:
    path = os.environ.get(name)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if path else None


class Pauses:
    def __init__(self, out: int) -> None:
        self.out = out
        self.wall = self.cpu = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self.wall, self.cpu = time.perf_counter(), time.thread_time()
        else:
            took, used = time.perf_counter() - self.wall, time.thread_time() - self.cpu
            os.write(self.out, f"{info['generation']} {took:.6f} {used:.6f}\n".encode())


class Turns:
    """A timer that is due every millisecond, and late by the turn that it has to wait for.

    uvloop sends what was written at the end of a turn, before the next timers: that is included.
    CPU seconds leave out the time in which nothing was to be done, or another process had the core.
    """

    def __init__(self, out: int) -> None:
        self.out = out
        self.wall = self.cpu = 0.0

    def begin(self) -> uvloop.Loop:
        loop = uvloop.Loop()
        self.wall, self.cpu = time.perf_counter(), time.thread_time()
        loop.call_later(BEAT, self.beat, loop)
        return loop

    def beat(self, loop: asyncio.AbstractEventLoop) -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        took, used = wall - self.wall, cpu - self.cpu
        if used > MIN_TURN:
            os.write(self.out, f"{took:.6f} {used:.6f}\n".encode())
        self.wall, self.cpu = wall, cpu
        loop.call_later(BEAT, self.beat, loop)


if (pauses := opened("BENCHMARK_PAUSES")) is not None:
    gc.callbacks.append(Pauses(pauses))
if (turns := opened("BENCHMARK_TURNS")) is not None:
    uvloop.new_event_loop = Turns(turns).begin

if __name__ == "__main__":
    main()
