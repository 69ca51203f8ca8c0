"""`brain watch`: the messages on standard output, the outages on standard error."""

from typing import assert_never

from brain import Away, Connected, Message
from brain import watch as watch_events
from brain.cli.console import note


async def print_messages(url: str, *, snapshot: bool, token: str | None) -> None:
    """Print one message per line until interrupted. Raises WatchError."""
    away = connected_before = False
    async for event in watch_events(url, snapshot=snapshot, token=token):
        match event:
            case Message(text=text):
                print(text, flush=True)
            case Connected(reset=reset):
                if away:
                    note("connected again")
                if reset and connected_before:
                    note(
                        "it is not known what changed during the outage; "
                        "the queued and running runs follow"
                    )
                away, connected_before = False, True
            case Away(reason=reason):
                note(f"no connection to {url} ({reason}); trying again")
                away = True
            case _:
                assert_never(event)
