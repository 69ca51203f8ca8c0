"""A WebSocket connection to a server that may not even speak HTTP."""

from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidHandshake, InvalidMessage


class Connection(ClientConnection):
    """It fails at the first bytes that are no answer of HTTP.

    `websockets` waits for the end of the connection then, and its assertions fail if the bytes came
    before the request was sent: SSH, SMTP and MySQL speak first.
    """

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.protocol.handshake_exc is not None and self.response is None:
            self.transport.abort()

    async def handshake(self, *arguments: Any) -> None:
        try:
            if self.protocol.handshake_exc is not None:
                raise self.protocol.handshake_exc
            await super().handshake(*arguments)
        except InvalidHandshake as error:
            if self.response is not None:
                raise
            raise InvalidMessage("did not receive a valid HTTP response") from error
