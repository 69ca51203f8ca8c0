"""brain doctor: examine the database, and the log of the nodes, as these settings name them."""

from typing import TYPE_CHECKING

from brain.config import Settings
from brain.doctor import checks
from brain.doctor.report import Report
from brain.following import decoder_of, records_folder
from brain.shared_log import shared_log

if TYPE_CHECKING:
    from brain.doctor.nats import Nodes


async def examine(settings: Settings, url: str) -> Report:
    return await checks.examine(
        url,
        settings.table,
        decoder_of(settings),
        stream=settings.source != "poll",
        records=records_folder(settings),
        nodes=_nodes(settings, url) if settings.nats_url else None,
    )


def _nodes(settings: Settings, url: str) -> "Nodes":
    # The client of NATS is an extra.
    from brain.doctor.nats import Nodes  # noqa: PLC0415

    access, stream = shared_log(settings, url)
    return Nodes(access, stream, settings.nats_replicas, settings.nats_storage)
