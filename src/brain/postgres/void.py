"""Why the records of before do not count (records.py, rule 8)."""

from brain.postgres.checkpoints import PARTS, Checkpoint, Identity, parts
from brain.postgres.record_file import Header, Record, RecordFile, digests


def header(checkpoint: Checkpoint) -> Header:
    """The header of records that count for this checkpoint."""
    return Header.of(checkpoint.identity, checkpoint.tree, checkpoint.epoch)


def why_void(file: RecordFile, records: list[Record], checkpoint: Checkpoint) -> str:
    """Why these records do not count for this checkpoint. "" if they do, or if there are none."""
    if file.ignored or not (records or file.torn):
        return file.ignored
    wanted, found = header(checkpoint), file.header
    if found is None:
        return f"the header of {file.path} is torn"
    if found.identity != wanted.identity:
        return _changed(file, checkpoint.identity)
    if found.tree != wanted.tree:
        return "the table's partitions are not those of before"
    behind = found.epoch == wanted.epoch and checkpoint.visible.xmax < records[-1].xmax
    if behind or 0 < checkpoint.flushed < max(record.flushed for record in records):
        return "an older state of the database was restored"
    return ""


def _changed(file: RecordFile, identity: Identity) -> str:
    """Names the parts of the identity that have changed since the records were made."""
    both = zip(PARTS, file.parts, digests(parts(identity)), strict=False)
    changed = [name for name, before, now in both if before != now]
    if not changed:
        return "the table, the server or the settings that change messages are not those of before"
    return f"{' and '.join(changed)} changed"
