"""What the settings say of how Brain follows the table."""

from pathlib import Path

from brain.config import Settings
from brain.postgres.decoder import Decoder


def decoder_of(settings: Settings) -> Decoder:
    return Decoder(settings.status_map, settings.max_text, settings.timezone)


def records_folder(settings: Settings) -> Path | None:
    """Of the records by which clients resume over a restart. None: Brain keeps none, because
    BRAIN_RESUME is 0 or the log of BRAIN_NATS_URL takes their place.
    """
    if not settings.resume or settings.nats_url:
        return None
    return settings.data_dir / "resume"
