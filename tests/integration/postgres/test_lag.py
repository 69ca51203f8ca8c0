"""How far behind the database Brain may be, as `source` messages and /readyz have it."""

import pytest

from brain.postgres.watch import Watch
from tests.support.following import Following


@pytest.mark.parametrize("passes", [True, False])
async def test_a_stream_is_current_as_of_the_mark_that_it_has_yet_to_pass(
    database: str, monkeypatch: pytest.MonkeyPatch, passes: bool
) -> None:
    """What the server sends proves that it lives, not that nothing is on its way."""
    if not passes:
        monkeypatch.setattr(Watch, "passed", lambda *_: iter(()))
    async with Following(database) as f:
        await f.source()
        seen: list[float] = []
        for i in range(4):
            await f.sql(f"INSERT INTO runs (id) VALUES ('{i}')")
            await f.pushed(str(i), "queued")
            if passes:
                before = seen[-1] if seen else 0.0
                await f.until(lambda: f.follow.state.heard > before)  # noqa: B023
            seen.append(f.follow.state.heard)
        assert seen == sorted(seen)
        assert len(set(seen[1:])) == (3 if passes else 1)
