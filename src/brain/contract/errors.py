"""The root of Brain's own exceptions.

BrainError
├── access:    AddressError, TokenError, KeySetError
├── api:       RunError and its kinds
├── client:    WatchError
├── config:    SettingsError
├── embedded:  EmbeddedError
├── postgres:  DatabaseURLError, TableError, PgoutputError, StreamLost, StreamUnavailable
└── server:    ListenError, HandshakeError

Errors of libraries (psycopg, pydantic, PyJWT) are translated where they are caught, with
`raise … from`.
"""


class BrainError(Exception):
    """Brain cannot do what it was asked to do."""

    def __init__(self, message: str = "") -> None:
        # Python without docstrings (-OO) has the name of the class at least.
        super().__init__(message or (self.__doc__ or type(self).__name__).partition("\n")[0])
