"""Runs as a source makes them, and the time and the memory that the tests of this package use."""

from brain.contract.messages import Run

T = 1_700_000_000_000_000
"""Microseconds: a time of a commit."""

PLENTY = 10**9
"""Bytes of memory that no test fills."""


def run(
    run_id: str,
    status: str = "queued",
    progress: float | None = None,
    *,
    agent: str | None = None,
    task_id: str | None = None,
    error: str | None = None,
) -> Run:
    return (run_id, status, progress, task_id, agent, None, None, error)
