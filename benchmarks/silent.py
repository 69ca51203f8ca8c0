"""Silent connections: whether clients can still connect, and what memory stays in use.

`python -m benchmarks.silent [--quick]`.

10 000 connections send nothing, from 100 addresses. Each that Brain closes connects again at once,
for half a minute. In that time a client connects 20 times per second. Brain's memory is measured
before, at the end, and 10 s after all have left. `waiting_percent` is the time that Brain was
ready to run and had no core: if it is more than a few percent, other programs affected the
figures.
"""

import asyncio
import multiprocessing
import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

from benchmarks import machine

SERVER_CORE, OTHER_CORES = machine.cores()
ADDRESSES = 100
MAX_MS, MAX_GROWTH = 100, 1.1
EVERY = 0.05
"""Seconds between two clients."""


def crowd(port: int, count: int) -> None:
    """In a process of its own, so that no client waits for it."""
    asyncio.run(_crowd(port, count))


async def _crowd(port: int, count: int) -> None:
    turn = asyncio.Semaphore(64)
    addresses = (f"127.0.1.{number % ADDRESSES + 1}" for number in range(count))
    await asyncio.gather(*(_silent(port, address, turn) for address in addresses))


async def _silent(port: int, address: str, turn: asyncio.Semaphore) -> None:
    while True:
        try:
            async with turn:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, local_addr=(address, 0)
                )
            await reader.read()
            writer.close()
        except OSError:
            await asyncio.sleep(EVERY)


async def waits(port: int, seconds: float) -> list[float]:
    """Milliseconds until a client is connected, for one client after another."""
    found: list[float] = []
    until = time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        async with connect(f"ws://127.0.0.1:{port}/ws", compression=None, proxy=None):
            found.append((time.monotonic() - began) * 1000)
        await asyncio.sleep(max(0.0, began + EVERY - time.monotonic()))
    return found


def waiting(pid: int) -> float:
    """Seconds that a process's main thread was ready and did not run."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def hold(url: str, count: int, seconds: float) -> dict[str, float]:
    settings: dict[str, Any] = {
        "max_connections": 10_000,
        "max_connections_per_ip": 2 * count // ADDRESSES,
    }
    with machine.brain(url, cores=SERVER_CORE, **settings | {"log_level": "error"}) as brain:
        pid, silent = brain.process.pid, 'brain_rejections_total{code="deadline"}'
        asyncio.run(waits(brain.port, 2.0))
        before = machine.rss_bytes(pid)
        process = multiprocessing.get_context("spawn").Process(
            target=crowd, args=(brain.port, count)
        )
        process.start()
        try:
            time.sleep(4.0)  # they connect
            let_go, used, waited = brain.metric(silent), machine.cpu_seconds(pid), waiting(pid)
            found = sorted(asyncio.run(waits(brain.port, seconds)))
            waited, used = waiting(pid) - waited, machine.cpu_seconds(pid) - used
            let_go, during = brain.metric(silent) - let_go, machine.rss_bytes(pid)
        finally:
            process.kill()
            process.join()
        time.sleep(10.0)  # as the docstring says: Brain has closed all and freed their memory
        after = machine.rss_bytes(pid)
        return {
            "clients": float(len(found)),
            "p50_ms": statistics.median(found),
            "p99_ms": found[int(len(found) * 0.99)],
            "max_ms": found[-1],
            "let_go_per_second": let_go / seconds,
            "cpu_percent": 100 * used / seconds,
            "waiting_percent": 100 * waited / seconds,
            "before_mb": before / 2**20,
            "during_mb": during / 2**20,
            "after_mb": after / 2**20,
            "after_of_before": after / before,
        }


def main() -> None:
    options = machine.options(__doc__, runs=1)
    machine.pin(os.getpid(), OTHER_CORES)
    count, seconds = (1_000, 8.0) if options.quick else (10_000, 30.0)
    job = f"{count} silent connections for {seconds:.0f} s"
    with machine.database(cores=OTHER_CORES) as url:
        found = machine.interleaved(options.runs, {job: partial(hold, url, count, seconds)})
    figures = machine.spreads(found[job])
    targets = [
        machine.target("ms until a client is in, p99", figures["p99_ms"]["median"], most=MAX_MS),
        machine.target(
            "memory after, of that before", figures["after_of_before"]["max"], most=MAX_GROWTH
        ),
    ]
    document = {"jobs": {job: {"runs": found[job], "figures": figures}}, "targets": targets}
    machine.write("silent", document, quick=options.quick)


if __name__ == "__main__":
    main()
