"""Composes the supervisor: a port, a database, a nats-server, and the workers."""

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from brain.config import DATABASE_VARIABLES, Settings, variables
from brain.database import check_configured, database
from brain.environment import unknown
from brain.postgres.connection import redact
from brain.postgres.example import ExampleRun
from brain.server.sockets import hold
from brain.signals import HangUp, end_soon
from brain.started import Started
from brain.workers.channel import Message
from brain.workers.nats_server import nats_server
from brain.workers.restarts import Restarts
from brain.workers.supervisor import Supervisor

log = structlog.get_logger()


async def serve_workers(settings: Settings, count: int, announce: Callable[[Started], None]) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit status.

    `announce` is called once the first worker has started. Raises EmbeddedError, ListenError,
    NatsServerError, SettingsError.
    """
    check_configured(settings)
    gc.enable()  # `__main__` has disabled it for the imports
    task = asyncio.current_task()
    assert task is not None
    status = 0
    # As in `app`: until there are workers, a signal stops the embedded PostgreSQL that starts.
    hang_up = HangUp()
    hang_up.replace = _nothing
    _on_signals(hang_up, task.cancel)
    hang_up.listen()
    with contextlib.suppress(asyncio.CancelledError):
        async with contextlib.AsyncExitStack() as closing:
            held = hold(settings.host, settings.port)
            for each in held:
                closing.enter_context(each)
            port = held[0].getsockname()[1]
            url, embedded_port = await closing.enter_async_context(database(settings))
            environ = worker_environ(os.environ, port, url)
            nats = None
            if not environ.get("BRAIN_NATS_URL"):
                nats = Restarts()
                environ["BRAIN_NATS_URL"] = await closing.enter_async_context(
                    nats_server(settings.data_dir, nats)
                )
                environ["BRAIN_NATS_STORAGE"] = "memory"
            supervisor = Supervisor(count, held, environ, nats)
            hang_up.replace = supervisor.replace
            _on_signals(hang_up, supervisor.stop)
            try:
                begun = await supervisor.begin()
                if isinstance(begun, int):
                    status = begun
                else:
                    announce(_started(Started(port, redact(url), embedded_port), begun))
                    await supervisor.run()
            finally:
                await supervisor.end()
                hang_up.replace = _nothing
                _on_signals(hang_up, task.cancel)
    end_soon(status)
    log.info("stopped")
    return status


def worker_environ(environ: Mapping[str, str], port: int, url: str) -> dict[str, str]:
    """The environment of each worker: the supervisor's settings, with those of its command line."""
    # The supervisor has already logged the variables that are no settings.
    ignored = unknown(environ, variables())
    result = {name: value for name, value in environ.items() if name not in ignored}
    result |= {"BRAIN_PORT": str(port), "BRAIN_WORKERS": "1"}
    if url != next((result[name] for name in DATABASE_VARIABLES if result.get(name)), None):
        result["BRAIN_DATABASE_URL"] = url
    return result


def _started(started: Started, message: Message) -> Started:
    example = message["example"]
    return replace(
        started,
        detail=message["detail"],
        example=None if example is None else ExampleRun(**example),
    )


def _on_signals(hang_up: HangUp, stop: Callable[[], object]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    hang_up.stop = stop


def _nothing() -> None:
    """There are no workers to replace."""
