"""`brain watch`: messages on standard output, and on standard error whether it is connected."""

from typing import assert_never

from brain import Away, Connected, Deleted, Message, Ready, Source
from brain import watch as watch_events
from brain.cli.console import note


async def print_messages(url: str, *, snapshot: bool, token: str | None) -> None:
    """Print one message per line until interrupted. Raises WatchError."""
    connected_before = False
    async for event in watch_events(url, snapshot=snapshot, token=token):
        match event:
            case Message(text=text) | Deleted(text=text) | Ready(text=text) | Source(text=text):
                print(text, flush=True)
            case Connected(reset=reset):
                note("connected again" if connected_before else f"connected to {url}")
                if reset and connected_before:
                    note(
                        "it is not known what changed during the outage; "
                        "the queued and running runs follow"
                    )
                connected_before = True
            case Away(reason=reason):
                note(f"no connection to {url} ({reason}); trying again")
            case _:
                assert_never(event)
