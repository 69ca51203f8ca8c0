"""Silent connections: whether clients can still connect, and what memory is left.

`python -m benchmarks.silent [--quick]`.

For a minute, 10 000 connections from 100 addresses send nothing. Each that Brain closes connects
again at once. At the same time a client connects 20 times per second. Brain's memory: before, at
the end, and 10 s after all have gone. `waiting_percent` is the time that Brain was ready to run and
had no core. If it is above a few percent, the figures include other work on the machine.
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
INTERVAL = 0.05
"""Seconds between two clients."""


def crowd(port: int, count: int) -> None:
    """In a process of its own, so that no client waits for it."""
    asyncio.run(_crowd(port, count))


async def _crowd(port: int, count: int) -> None:
    connecting = asyncio.Semaphore(64)
    addresses = (f"127.0.1.{number % ADDRESSES + 1}" for number in range(count))
    await asyncio.gather(*(_silent(port, address, connecting) for address in addresses))


async def _silent(port: int, address: str, connecting: asyncio.Semaphore) -> None:
    while True:
        try:
            async with connecting:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, local_addr=(address, 0)
                )
            await reader.read()
            writer.close()
        except OSError:
            await asyncio.sleep(INTERVAL)


async def waits(port: int, seconds: float) -> list[float]:
    """Milliseconds to connect, of one client after another."""
    found: list[float] = []
    until = time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        async with connect(f"ws://127.0.0.1:{port}/ws", compression=None, proxy=None):
            found.append((time.monotonic() - began) * 1000)
        await asyncio.sleep(max(0.0, began + INTERVAL - time.monotonic()))
    return found


def waiting(pid: int) -> float:
    """Seconds that a process's main thread was ready to run and had no core."""
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
            time.sleep(4.0)  # until all have connected
            closed, used, waited = brain.metric(silent), machine.cpu_seconds(pid), waiting(pid)
            found = sorted(asyncio.run(waits(brain.port, seconds)))
            waited, used = waiting(pid) - waited, machine.cpu_seconds(pid) - used
            closed, during = brain.metric(silent) - closed, machine.rss_bytes(pid)
        finally:
            process.kill()
            process.join()
        time.sleep(10.0)  # Brain closes all and returns memory: see the docstring
        after = machine.rss_bytes(pid)
        return {
            "clients": float(len(found)),
            "p50_ms": statistics.median(found),
            "p99_ms": found[int(len(found) * 0.99)],
            "max_ms": found[-1],
            "closed_per_second": closed / seconds,
            "cpu_percent": 100 * used / seconds,
            "waiting_percent": 100 * waited / seconds,
            "before_mb": before / 2**20,
            "during_mb": during / 2**20,
            "after_mb": after / 2**20,
            "after_to_before": after / before,
        }


def main() -> None:
    options = machine.options(__doc__)
    machine.pin(os.getpid(), OTHER_CORES)
    count, seconds = (1_000, 8.0) if options.quick else (10_000, 60.0)
    job = f"{count} silent connections for {seconds:.0f} s"
    with machine.database(cores=OTHER_CORES) as url:
        found = machine.interleaved(options.runs, {job: partial(hold, url, count, seconds)})
    figures = machine.spreads(found[job])
    targets = [
        machine.target("ms to connect, p99", figures["p99_ms"]["median"], most=MAX_MS),
        machine.target(
            "memory after, relative to before", figures["after_to_before"]["max"], most=MAX_GROWTH
        ),
    ]
    document = {"jobs": {job: {"runs": found[job], "figures": figures}}, "targets": targets}
    machine.write("silent", document, quick=options.quick)


if __name__ == "__main__":
    main()
