"""The rate limit, and the logger that it bounds."""

from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import CapturingLogger

from brain.access.rate_limit import LINES, RateLimit, RateLimitedLogger


@given(
    limit=st.builds(RateLimit, burst=st.floats(1, 50), rate=st.floats(0.5, 50)),
    pauses=st.lists(st.floats(0, 2), max_size=200),
)
def test_no_more_than_the_burst_and_the_rate_pass(limit: RateLimit, pauses: list[float]) -> None:
    now = full = 1000.0
    taken: list[float] = []
    for pause in pauses:
        now += pause
        after = limit.after(full, now)
        if not limit.wait(after, now):
            full = after
            taken.append(now)
    for i, first in enumerate(taken):
        for j, last in enumerate(taken[i:], 1):
            assert j <= limit.burst + limit.rate * (last - first) + 1e-6


def test_a_request_passes_after_the_wait_that_was_returned() -> None:
    limit, full = RateLimit(burst=2, rate=10), 0.0
    for number in range(5):
        full = limit.after(full, 0.0)
        assert round(limit.wait(full, 0.0), 6) == [0, 0, 0.1, 0.2, 0.3][number]
    assert limit.wait(limit.after(full, 10.0), 10.0) == 0, "and is full again in the end"


def test_a_flood_of_lines_is_a_few_lines_and_a_number() -> None:
    said, now = CapturingLogger(), [0.0]
    lines = RateLimitedLogger(said, lambda: now[0])
    for i in range(10_000):
        lines.info("refused", "origin", peer=str(i))
    lines.info("refused", "network", peer="another")
    assert [call.kwargs["peer"] for call in said.calls] == [
        *map(str, range(int(LINES.burst))),
        "another",
    ]
    assert all("left_out" not in call.kwargs for call in said.calls)
    lines.settle()
    assert len(said.calls) == LINES.burst + 1, "what was left out must not make lines of its own"
    now[0] += 1.01 / LINES.rate
    lines.info("refused", "origin", peer="later")
    assert said.calls[-1].kwargs == {
        "peer": "later",
        "left_out": 10_000 - LINES.burst,
        "code": "origin",
    }
    lines.info("refused", "origin", peer="and one more")
    now[0] += 60
    lines.settle()
    assert said.calls[-1].kwargs == {"left_out": 1, "code": "origin"}, (
        "the last of a flood is not lost either"
    )
    count = len(said.calls)
    lines.settle()
    assert len(said.calls) == count
