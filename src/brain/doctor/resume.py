"""Whether clients can resume over a restart of Brain, and whether those from before still can."""

import os
from collections.abc import Collection
from pathlib import Path

from brain.contract.messages import Run
from brain.doctor.context import Context
from brain.doctor.report import Finding
from brain.postgres.poll import Poll
from brain.postgres.progress import Progress
from brain.postgres.record_file import WRITE_HINT, RecordFile
from brain.postgres.void import why_void

_NO_RESUME = "after each restart of Brain, all clients start over"
_START_OVER = "when Brain starts the next time, clients from before start over"


class _Nothing:
    """A board that holds nothing."""

    seq = floor = time = last_time = floor_time = 0

    def unfinished(self) -> Collection[str]:
        return ()

    def differs(self, _: Run) -> bool:
        return True

    def __contains__(self, _: str) -> bool:
        return False


async def resume(context: Context) -> list[Finding]:
    folder = context.records
    if folder is None:
        return []
    poll = Poll(context.conn, context.table, context.decoder, _Nothing(), Progress())
    await poll.read_catalog()
    if (reason := poll.unrecordable()) is not None:
        detail, hint = reason
        return [Finding("resume", "note", detail, _NO_RESUME, hint)]
    if not _is_writable(folder):
        detail = f"{folder} cannot be written by this user"
        return [Finding("resume", "better", detail, _NO_RESUME, WRITE_HINT)]
    file = RecordFile(folder, poll.record_name, peek=True)
    void = why_void(file, [record for _, record in file.records()], await poll.here())
    return [Finding("resume", "note", void, _START_OVER)] if void else []


def _is_writable(folder: Path) -> bool:
    """Whether the folder can be written, or created and then written."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
