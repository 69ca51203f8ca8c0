"""The laws of laws.py, for what hypothesis generates: few examples, always the same, in seconds.

`make fuzz` takes minutes. Examples are close to valid input (a message of a real server with a byte
changed, a request with a header twice), because other bytes are refused at the first of them.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from brain.config import variables
from brain.environment import SECRETS
from tests.fuzz import laws
from tests.support.wire import CLOSE, KEY, PING, PONG, TEXT, frame
from tests.unit.postgres.test_pgoutput import GOLDEN

pytestmark = pytest.mark.usefixtures("unmeasured")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""Of each law. Unset: few, and always the same."""


def examples(few: int) -> settings:
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if EXAMPLES else [])],
    )


@pytest.fixture(scope="module", autouse=True)
def _host() -> Iterator[None]:
    yield
    laws.close_host()


@pytest.mark.parametrize(
    "path", sorted(laws.CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_bytes_that_broke_a_law_no_longer_do(path: Path) -> None:
    laws.LAWS[path.parent.name](path.read_bytes())


def bent(draw: st.DrawFn, data: bytes) -> bytes:
    """With some bytes changed, removed, inserted or repeated."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        cut = draw(st.integers(0, 4))
        put = draw(
            st.binary(max_size=4)
            | st.sampled_from([b"\r\n", b"\0", b"\xff\xff\xff\xff", data[at : at + 40]])
        )
        data = data[:at] + put + data[at + cut :]
    return data


# pgoutput


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    return bent(draw, draw(st.sampled_from(GOLDEN)))


@examples(300)
@given(messages() | st.binary(max_size=200))
def test_pgoutput_is_parsed_or_refused(data: bytes) -> None:
    laws.pgoutput(data)


# The upgrade request

NAMES = [
    "Host", "Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version",
    "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Origin", "Content-Length",
    "Transfer-Encoding", "X-Forwarded-For", "Authorization", "Expect", "Sec-Fetch-Site",
    "Sec-Fetch-Mode", "Cookie", "Trailer",
]  # fmt: skip
WORDS = [
    "localhost", "127.0.0.1:5221", "[::1]", "[::1%25lo]:80", "evil.example", "a.localhost", "0",
    "websocket", "WebSocket", "h2c", "Upgrade", "keep-alive, Upgrade", "close", KEY, KEY[:-1],
    "13", "8, 13", "http://localhost", "https://[::1]:443", "null", "chunked", "5", "-1",
    "99999999999999999999", "100-continue", "10.0.0.1, [fd00::1]:9, unknown", "Bearer a.b.c",
    "cross-site", "permessage-deflate; client_max_window_bits", "brain, bearer.x", "", " ", "\t",
    "\x7f", "\xe9", "a" * 500,
]  # fmt: skip
TARGETS = [
    "/ws", "/ws?", "/ws?snapshot=true", "/ws?since=2026-01-01T00:00:00Z", "/ws?since=",
    "/ws?run_id=a&run_id=b", "/ws?status=running", "/ws?status=x", "/ws?x=1", "/%77s", "//ws",
    "/ws/", "/ws#a", "/ws?a=%ff", "/ws?run_id=%00", "/ws?run_id=" + "a" * 2000, "*",
    "http://localhost/ws", "http://evil.example/ws", "ws://localhost/ws", "localhost:80",
    "/" + "a" * 9000, "/api/runs", "",
]  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    fields = [("Host", "localhost"), ("Upgrade", "websocket"), ("Connection", "Upgrade")]
    fields += [("Sec-WebSocket-Key", KEY), ("Sec-WebSocket-Version", "13")]
    for _ in range(draw(st.integers(0, 3))):
        field = (
            draw(st.sampled_from(NAMES)),
            draw(st.sampled_from(WORDS) | st.text('abc:/[]%.,;=" \t0', max_size=12)),
        )
        at = draw(st.integers(0, len(fields)))
        fields[at : at + draw(st.integers(0, 1))] = [field]
    method = draw(st.sampled_from(["GET"] * 8 + ["POST", "HEAD", "CONNECT", "OPTIONS", "get", "X"]))
    version = draw(st.sampled_from(["1.1"] * 8 + ["1.0", "2.0", "0.9", "1.2", "1.10"]))
    end = draw(st.sampled_from(["\r\n"] * 8 + ["\n", "\r", "\r\n "]))
    lines = [
        f"{method} {draw(st.sampled_from(['/ws'] * 8 + TARGETS))} HTTP/{version}",
        *(f"{n}: {v}" for n, v in fields),
    ]
    head = end.join([*lines, "", ""]).encode("latin-1")
    behind = draw(
        st.sampled_from(
            [
                b"",
                b"",
                frame(b"ping"),
                b"0\r\n\r\n",
                b"5\r\nhello\r\n0\r\nHost: x\r\n\r\n",
                head,
                b"\0",
            ]
        )
    )
    return bent(draw, head + behind)


@examples(120)
@given(requests() | requests() | requests() | st.binary(max_size=100))
def test_an_upgrade_request_is_answered_or_refused(data: bytes) -> None:
    laws.upgrade(data)


# A client's frames


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    data = b""
    for _ in range(draw(st.integers(0, 6))):
        payload = draw(
            st.sampled_from(
                [
                    b"ping",
                    b"",
                    b"\xe2\x82",
                    b"\xac",
                    b"\xff",
                    bytes(125),
                    bytes(126),
                    bytes(4096),
                    bytes(4097),
                ]
            )
            | st.binary(max_size=20)
        )
        opcode = draw(st.sampled_from([TEXT, 0, 2, PING, PONG, TEXT, 0]) | st.integers(0, 15))
        if opcode == CLOSE:
            payload = (
                draw(st.sampled_from([b"", b"\x03"]))
                or struct.pack("!H", draw(st.integers(0, 65535))) + payload[:100]
            )
        data += frame(
            payload,
            opcode,
            fin=draw(st.sampled_from([True, True, False])),
            rsv=draw(st.sampled_from([0] * 9 + [1, 2, 4])),
            masked=draw(st.sampled_from([True] * 9 + [False])),
            length=draw(
                st.sampled_from(
                    [None] * 9 + [0, 126, 65535, 65536, 1 << 30, 1 << 63, (1 << 64) - 1]
                )
            ),
        )
    return bent(draw, data)


@examples(100)
@given(streams())
def test_frames_of_a_client_are_answered_or_refused(data: bytes) -> None:
    laws.client(data)


# Settings

VALUES = [
    "", "0", "1", "-1", "65536", "1e400", "nan", "inf", "1_000", "٣", "true", "yes", "*", "null",
    "file://", "localhost", "::1", "[::1]", "10.0.0.0/8", "10.0.0.1/8", "::/0", "fe80::1%eth0",
    "public.runs", 'a."b', "a.b.c", "pending=queued", "a=b=c,=queued", "http://a:0", "a" * 5000,
    "1" * 5000, "," * 5000, "é", "\udcff", "\n", "\x1b[31m", "auto", "INFO", "~", "~nobody/x", "/",
    "0x10", " 5 ", "5.", "1e3",
]  # fmt: skip
URLS = [
    f"postgresql://u:{laws.PASSWORD}@h/d", f"postgresql://u:{laws.PASSWORD}@@h:x/d",
    f"postgres://{laws.PASSWORD}", f"x://:{laws.PASSWORD}@",
    f"host=h password={laws.PASSWORD} port=x", f"postgresql://u:%zz{laws.PASSWORD}@h",
    f"postgresql://h/d?password={laws.PASSWORD}&x=y",
]  # fmt: skip
SETTINGS = sorted(name.removeprefix("BRAIN_") for name in variables())


@st.composite
def environments(draw: st.DrawFn) -> bytes:
    pairs = []
    for name in draw(st.lists(st.sampled_from(SETTINGS), min_size=1, max_size=4, unique=True)):
        value = draw(
            st.sampled_from(URLS if f"BRAIN_{name}" in SECRETS and draw(st.booleans()) else VALUES)
        )
        if draw(st.booleans()):
            value += draw(st.sampled_from(["", ",", ".", ":", "/", "="])) + draw(
                st.sampled_from(VALUES)
            )
        if draw(st.booleans()):
            value = bent(draw, value.encode("utf-8", "surrogateescape")).decode(
                "utf-8", "surrogateescape"
            )
        pairs.append(f"{name}={value}")
    return "\0".join(pairs).encode("utf-8", "surrogateescape")


@examples(120)
@given(environments())
def test_settings_are_accepted_or_refused(data: bytes) -> None:
    laws.settings(data)
