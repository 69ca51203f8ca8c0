"""The log that nodes share, as the settings name it."""

from typing import TYPE_CHECKING

from brain.config import Settings

if TYPE_CHECKING:
    from brain.nodes.connection import Access


def shared_log(settings: Settings, url: str) -> "tuple[Access, str]":
    """How to reach NATS, and the stream for this database URL."""
    # The client of NATS is an extra, and a Brain alone does not need it.
    from brain.nodes.connection import Access  # noqa: PLC0415
    from brain.nodes.log import stream_of  # noqa: PLC0415

    access = Access(
        [each.get_secret_value() for each in settings.nats_url],
        settings.nats_credentials,
        settings.nats_ca,
    )
    return access, settings.nats_stream or stream_of(url, settings.table)
