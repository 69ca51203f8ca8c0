"""A log that nobody reads, or that cannot be written, delays and breaks nothing."""

import asyncio
import fcntl
import os
import socket
import subprocess
import time

import pytest

from brain.log import MAX_LINES, Log
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.served import served
from tests.support.wire import Control, Peer, unread

SMALL = 4096
"""Bytes: the smallest size of a pipe."""


def small_pipe() -> tuple[int, int]:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, SMALL)
    return read, write


def test_lines_keep_their_order_and_lost_ones_are_counted() -> None:
    read, write = small_pipe()
    log = Log(write)
    long = "x" * 10_000  # more than the pipe holds, so the thread blocks
    log.write(f"{long}\n")
    until = time.monotonic() + PATIENCE
    while unread(read) < SMALL:
        assert time.monotonic() < until
    for number in range(MAX_LINES + 70):
        log.write(f"{number}\n")
    with os.fdopen(read) as lines:
        assert lines.readline() == f"{long}\n"
        assert [lines.readline() for _ in range(MAX_LINES)] == [
            f"{number}\n" for number in range(MAX_LINES)
        ]
        log.write("after\n")
        assert lines.readline() == 'level=warning event="log lines lost" lines=70\n'
        assert lines.readline() == "after\n"
        log.write("the last, ünd half a character: \ud800\n")
        log.close()
        os.close(write)
        assert lines.read() == "the last, ünd half a character: ?\n"


async def test_no_client_waits_for_a_log_that_nobody_reads(database: str) -> None:
    read, write = small_pipe()
    with served(database_url=database, errors=write) as brain:
        os.close(write)
        control = Control(brain, database)
        with control.undisturbed():
            until = time.monotonic() + PATIENCE
            while unread(read) < SMALL - 200:
                async with await Peer.upgraded(
                    brain.port
                ):  # "client connected", "client disconnected"
                    assert time.monotonic() < until
            for _ in range(50):
                async with await Peer.upgraded(brain.port):
                    pass
        control.stop()
        assert brain.stop() == 0
    os.close(read)


@pytest.mark.parametrize(
    "streams",
    [
        "2>/dev/full",
        pytest.param("2>&1 >/dev/full", marks=pytest.mark.faults),
        "closed pipe",
        pytest.param(">&-", marks=pytest.mark.faults),
        "2>&-",
        pytest.param("<&-", marks=pytest.mark.faults),
        "<&- >&- 2>&-",
    ],
)
async def test_an_unwritable_output_stream_breaks_nothing(database: str, streams: str) -> None:
    """A full disk, a reader that has exited, and a closed descriptor.

    A socket must not get the number of a closed one: the log would be written to it.
    """
    read, write = os.pipe()
    shell, errors = (
        ("", write) if streams == "closed pipe" else (f'exec "$@" {streams}', subprocess.STDOUT)
    )
    port = free_port()
    with served(wait=False, database_url=database, port=port, shell=shell, errors=errors) as brain:
        os.close(write)
        os.close(read)
        brain.port = port
        until = time.monotonic() + PATIENCE
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", port)):
                assert time.monotonic() < until, brain.log()
                await asyncio.sleep(0.02)
        brain.wait_ready("replication")
        control = Control(brain, database)
        with control.undisturbed():
            for _ in range(50):
                async with await Peer.upgraded(brain.port):
                    pass
        control.stop()
