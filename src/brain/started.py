"""What `brain serve` says once it has started."""

from dataclasses import dataclass

from brain.postgres.example import ExampleRun


@dataclass(frozen=True)
class Started:
    port: int
    database: str
    """Without the password."""
    embedded_port: int | None
    example: ExampleRun | None = None
    """What to create and change. None if the table could not be looked at."""
    detail: str | None = None
    """Why Brain does not follow the table yet, or None if it does."""
