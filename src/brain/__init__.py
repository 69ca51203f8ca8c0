"""Brain pushes every change of the PostgreSQL table `runs` to every WebSocket client.

This is the public API. It needs websockets and pydantic only, and none of the server.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brain.client.endings import WatchError
    from brain.client.events import Away, Connected, Deleted, Message, Ready, Source
    from brain.client.freshness import Freshness
    from brain.client.runs import Runs
    from brain.client.store import Change
    from brain.client.wait import wait
    from brain.client.watch import watch

__version__ = "0.1.0"
__all__ = [
    "Away",
    "Change",
    "Connected",
    "Deleted",
    "Freshness",
    "Message",
    "Ready",
    "Runs",
    "Source",
    "WatchError",
    "__version__",
    "wait",
    "watch",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # On first use: `brain serve` imports this package before it handles signals, and importing
        # the client takes 0.3 s, in which SIGTERM would end the process with a status other than 0.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from brain.client import (  # noqa: PLC0415 - on first use
            endings,
            events,
            freshness,
            runs,
            store,
            wait,
            watch,
        )

        globals().update(
            Away=events.Away,
            Change=store.Change,
            Connected=events.Connected,
            Deleted=events.Deleted,
            Freshness=freshness.Freshness,
            Message=events.Message,
            Ready=events.Ready,
            Runs=runs.Runs,
            Source=events.Source,
            WatchError=endings.WatchError,
            wait=wait.wait,
            watch=watch.watch,
        )
        return globals()[name]
