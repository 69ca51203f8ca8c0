"""Bytes of a column as text, in the database's encoding."""


class Unreadable(str):
    """A text some of whose bytes are none in the database's encoding: each bad one is U+FFFD.

    It claims to be longer than any bound, so that the decoder, which compares lengths anyway,
    notices it without a look at the type of every value.
    """

    __slots__ = ()

    def __len__(self) -> int:
        return 1 << 21


def unreadable(data: bytes, codec: str) -> Unreadable:
    return Unreadable(data.decode(codec, "replace"))
