"""What `brain doctor` finds, as text for people and as JSON for programs."""

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeAlias

from brain.postgres.unavailable import StreamUnavailable, UnavailableCode

Level: TypeAlias = Literal["broken", "better", "note"]

EXIT_STATUSES: dict[Level, int] = {"broken": 2, "better": 1, "note": 0}
"""The exit status for the worst finding; 0 if there are no findings."""

LABELS: dict[Level, str] = {"broken": "broken", "better": "could be better", "note": "note"}

CheckCode: TypeAlias = Literal[
    "version",
    "select",
    "write",
    "columns",
    "status",
    "values",
    "status_index",
    "id_index",
    "id_unique",
    "time_zone",
    "slot_log",
    "resume",
    "nats_version",
    "nats_jetstream",
    "nats_permission",
    "nats_limits",
    "nats_stream",
]
"""The codes of findings that are not reasons to poll."""

POLLS = (
    "Brain polls instead of streaming: clients see a change up to 0.1 s later, and later than that"
    " if the table is large. Of several changes between two polls they see only the last, and an"
    " UPDATE that changes nothing they do not see"
)
NO_CHANGES = "Brain cannot read the table, and keeps trying; until then clients receive no changes"


@dataclass(frozen=True, slots=True)
class Finding:
    check: CheckCode | UnavailableCode
    """If Brain polls because of it, the `code` of /readyz."""
    level: Level
    what: str
    detail: str
    """The effect."""
    hint: str = ""
    """What to run or to set. SQL can be pasted into psql. "" if nothing can or need be done."""


def polls(unavailable: StreamUnavailable, *, also: str = "", hint: str = "") -> Finding:
    """Why Brain polls. `hint` replaces that of `unavailable`; `also` is added to its detail."""
    return Finding(
        unavailable.code,
        "better",
        f"{unavailable.detail}{also}",
        POLLS,
        hint or unavailable.hint,
    )


@dataclass(slots=True)
class Report:
    database: str
    table: str
    version: str = ""
    source: Literal["none", "poll", "replication"] = "none"
    """How Brain would follow the table."""
    log: str = ""
    """The stream of NATS by which it would share the table with other nodes; "" if by none."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def status(self) -> int:
        return max((EXIT_STATUSES[finding.level] for finding in self.findings), default=0)

    @property
    def broken(self) -> bool:
        """Whether Brain cannot follow the table at all."""
        return any(finding.level == "broken" for finding in self.findings)

    def has(self, check: str) -> bool:
        """Whether there is a finding with this code."""
        return any(finding.check == check for finding in self.findings)

    def json(self) -> str:
        return json.dumps({"status": self.status} | asdict(self), indent=2)

    def text(self, program: str = "brain") -> str:
        """`program`: how a hint calls Brain."""
        version = f", PostgreSQL {self.version}" if self.version else ""
        lines = [f"{self.database}{version}, table {self.table}", ""]
        for finding in sorted(self.findings, key=lambda finding: -EXIT_STATUSES[finding.level]):
            lines.append(f"{LABELS[finding.level]}: {finding.what}")
            lines.append(f"  detail  {finding.detail}.")
            label = "hint"
            for line in finding.hint.splitlines():
                called = re.sub("^brain ", lambda _: f"{program} ", line)
                lines.append(f"  {label:6}  {called}")
                label = ""
            lines.append("")
        conclusion = {
            "none": f"Brain cannot follow {self.table} as it is.",
            "poll": f"Brain follows {self.table} by polling.",
            "replication": f"Brain streams {self.table}.",
        }
        lines.append(conclusion[self.source])
        if self.log and not self.broken:
            lines.append(f"It shares the table with other nodes by the stream {self.log} of NATS.")
        return "\n".join(lines)
