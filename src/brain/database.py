"""The database that Brain follows: the one that is configured, or the embedded one."""

import contextlib
from collections.abc import AsyncIterator

from brain.config import Settings, SettingsError
from brain.embedded.server import embedded
from brain.postgres.connection import connect
from brain.postgres.table import init_sql


@contextlib.asynccontextmanager
async def database(settings: Settings) -> AsyncIterator[tuple[str, int | None]]:
    """The URL of the database, and its port if it is the embedded one, which runs until the end of
    the block. Raises EmbeddedError, SettingsError.
    """
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value(), None
        return
    async with embedded(settings.data_dir, settings.postgres_port) as server:
        async with await connect(server.url, "brain-init") as conn:
            await conn.execute(init_sql(settings.table).encode())
        yield server.url, server.port


def check_configured(settings: Settings) -> None:
    """Raises SettingsError if there is to be no embedded database, and no other is configured."""
    if settings.database_url is None and not settings.embedded:
        raise SettingsError(
            "no database is configured, and BRAIN_EMBEDDED=false forbids the embedded PostgreSQL: "
            "set BRAIN_DATABASE_URL=postgresql://user:password@host:5432/database"
        )
