"""GET /metrics: the counts of the parts, read when Prometheus scrapes.

Only the latency is recorded here, once for each plan of a lane. No label names a client, a run or
an agent: their number has no bound.
"""

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from brain import __version__
from brain.access.rejections import REJECTION_CODES
from brain.contract.families import Family, Merge
from brain.contract.include import SourceName, SourceReport
from brain.contract.nodes import ALONE, ROLES, NodeReport
from brain.delivery.board import Board
from brain.delivery.hub import Hub
from brain.postgres.decoder import Decoder
from brain.postgres.records import Records
from brain.postgres.source_state import SourceState
from brain.postgres.unavailable import UnavailableCode

SOURCES: tuple[SourceName, ...] = get_args(SourceName)
UNAVAILABLE_CODES: tuple[UnavailableCode, ...] = get_args(UnavailableCode)

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds."""


MERGED: Final[Mapping[str, Merge]] = {
    "brain_commit_to_socket_seconds": "sum",
    "brain_build_info": "max",
    "brain_clients": "sum",
    "brain_clients_lagging": "sum",
    "brain_connections": "sum",
    "brain_changes": "most",
    "brain_changes_conflated": "most",
    "brain_flushes": "sum",
    "brain_deliveries": "sum",
    "brain_catch_up_writes": "sum",
    "brain_lags": "sum",
    "brain_gaps": "sum",
    "brain_client_failures": "sum",
    "brain_pending_bytes": "sum",
    "brain_runs": "max",
    "brain_tombstones": "max",
    "brain_board_bytes": "sum",
    "brain_rows_rejected": "sum",
    "brain_values_corrected": "sum",
    "brain_source": "max",
    "brain_source_code": "max",
    "brain_lag_seconds": "max",
    "brain_node_role": "max",
    "brain_node_epoch": "max",
    "brain_node_position": "max",
    "brain_node_lag_seconds": "max",
    "brain_node_foreign": "most",
    "brain_since_seconds": "min",
    "brain_resume_seconds": "min",
    "brain_resume_voids": "most",
    "brain_database_connects": "sum",
    "brain_streams": "sum",
    "brain_streams_lost": "sum",
    "brain_corrections": "most",
    "brain_rejections": "sum",
}
"""How those of several workers become one."""


@dataclass(frozen=True)
class Parts:
    """What /metrics reads. `clock` is the clock of SourceState.heard."""

    board: Board
    hub: Hub
    state: SourceState
    records: Records
    connections: Callable[[], int]
    decoder: Decoder
    rejections: Mapping[str, int]
    clock: Callable[[], float]
    node: Callable[[], NodeReport] = lambda: ALONE

    def lag(self) -> float:
        """How late the newest state is, in seconds: 0 if nothing newer is known to exist."""
        return self.state.lateness.seconds(self.clock())

    def report(self) -> SourceReport:
        """What clients that include `source` receive. Its lag is the age of a proof: see
        "The sign of freshness" in docs/explanation/decisions.md.
        """
        age = self.clock() - self.state.heard if self.board.begun else math.inf
        return SourceReport(self.state.source, self.state.code, self.state.detail, age)

    def since(self, now: float) -> float:
        """Seconds that `since` reaches back, at the wall clock's `now`."""
        return max(0.0, now - self.board.floor_time / 1e6) if self.board.begun else 0.0

    def resume(self, now: float) -> float:
        """The same, if Brain was restarted now; 0 if nothing outlives a restart."""
        return max(0.0, now - self.records.oldest.time / 1e6) if len(self.records) else 0.0


class Metrics:
    content_type = CONTENT_TYPE_LATEST

    def __init__(self, now: Callable[[], float]) -> None:
        """`now` is the wall clock in seconds. The database, whose commit times it is compared with,
        may be on a machine with another clock.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._now = now
        self._registry = CollectorRegistry()
        self._latency = Histogram(
            "brain_commit_to_socket_seconds",
            "Time from the oldest commit of what a group of clients is sent together, by the "
            "database's clock, to the write to its last client's socket.",
            buckets=BUCKETS,
            registry=self._registry,
        )

    def observe(self, commit: int) -> None:
        """Record what clients were sent together. `commit` is the time of its oldest change, in
        microseconds.
        """
        self._latency.observe(max(0.0, self._now() - commit / 1e6))

    def read(self, parts: Parts) -> None:
        self._registry.register(_Reader(parts, self._now))

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def families(self) -> list[Family]:
        return [
            Family(
                name=metric.name,
                type=metric.type,
                help=metric.documentation,
                merge=MERGED[metric.name],
                samples=[(each.name, each.labels, each.value) for each in metric.samples],
            )
            for metric in self._registry.collect()
        ]


class _Families:
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family["name"], family["help"], family["type"])
            for name, labels, value in family["samples"]:
                metric.add_sample(name, labels, value)
            yield metric


def exposition(families: Iterable[Family]) -> bytes:
    """The same text as that of `Metrics.text`."""
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return generate_latest(registry)


_BUILD: Final = {
    "version": __version__,
    "python": platform.python_version(),
    "platform": f"{platform.system()}-{platform.machine()}".lower(),
}


class _Reader:
    def __init__(self, parts: Parts, now: Callable[[], float]) -> None:
        self._parts = parts
        self._now = now

    def collect(self) -> Iterator[Metric]:
        parts = self._parts
        hub, counts, state, board = parts.hub, parts.hub.counts, parts.state, parts.board
        build = GaugeMetricFamily(
            "brain_build_info", "1; its labels say what runs.", labels=list(_BUILD)
        )
        build.add_metric(list(_BUILD.values()), 1)
        yield build
        yield _gauge("brain_clients", "Connected WebSocket clients.", hub.clients)
        yield _gauge(
            "brain_clients_lagging",
            "Clients whose write buffer is full at the moment.",
            hub.lagging,
        )
        yield _gauge(
            "brain_connections",
            "Open connections, HTTP and WebSocket.",
            parts.connections(),
        )
        yield _counter("brain_changes", "Changes to push.", counts.changes)
        yield _counter(
            "brain_changes_conflated",
            "Changes that kept the status and were not sent because a later one replaced them.",
            counts.conflated,
        )
        yield _counter(
            "brain_flushes",
            "Flushes: rounds in which every client is sent what it lacks.",
            counts.flushes,
        )
        yield _counter(
            "brain_deliveries", "Messages written to client sockets by flushes.", counts.deliveries
        )
        yield _counter(
            "brain_catch_up_writes",
            "Writes that brought a lagging or new client up to date.",
            counts.pieces,
        )
        yield _counter(
            "brain_lags",
            "Times a client missed a flush because its write buffer was full.",
            counts.lags,
        )
        yield _counter(
            "brain_gaps",
            "Clients closed with 4410 because Brain's memory did not reach back far enough.",
            counts.gaps,
        )
        yield _counter(
            "brain_client_failures",
            "Clients disconnected after an error in the server.",
            counts.failures,
        )
        yield _gauge("brain_pending_bytes", "Bytes waiting for the next flush.", hub.pending_bytes)
        yield _gauge("brain_runs", "Runs in memory.", len(board))
        yield _gauge(
            "brain_tombstones",
            "Deleted runs in memory, so that clients that include deletes can catch up.",
            board.tombstones,
        )
        yield _gauge(
            "brain_board_bytes",
            "Memory used by these runs, as estimated for BRAIN_BOARD_MEMORY.",
            board.size,
        )
        yield _counter(
            "brain_rows_rejected",
            "Rows rejected because they do not fit the message contract.",
            parts.decoder.rejected,
        )
        yield _counter(
            "brain_values_corrected",
            "Values omitted or clamped because they do not fit the message contract.",
            parts.decoder.corrected,
        )
        yield _one_of(
            "brain_source",
            "1 for the source in use, 0 for the others.",
            "source",
            SOURCES,
            state.source,
        )
        yield _one_of(
            "brain_source_code",
            "1 for the reason why a better source is not in use, 0 for the others.",
            "code",
            UNAVAILABLE_CODES,
            state.code,
        )
        yield _gauge(
            "brain_lag_seconds",
            "How late the newest state is: 0 while Brain holds the newest that there is.",
            parts.lag(),
        )
        node = parts.node()
        yield _one_of(
            "brain_node_role",
            "1 for what this node is, 0 for the others: `alone` without a log of nodes.",
            "role",
            ROLES,
            node.role,
        )
        yield _gauge(
            "brain_node_epoch",
            "The place in the log of the claim of the node that leads; 0 without a log.",
            node.epoch,
        )
        yield _gauge(
            "brain_node_position",
            "Up to where this node has read the log; 0 without a log.",
            node.position,
        )
        yield _gauge(
            "brain_node_lag_seconds",
            "For how long this node has not been at the end of the log; 0 without a log.",
            node.lag,
        )
        yield _counter(
            "brain_node_foreign",
            "Messages in the log that are none of a node's, and that were skipped.",
            node.foreign,
        )
        now = self._now()
        yield _gauge("brain_since_seconds", "How far `since` reaches back.", parts.since(now))
        yield _gauge(
            "brain_resume_seconds",
            "How far `since` would reach back after a restart of Brain.",
            parts.resume(now),
        )
        yield _counter(
            "brain_resume_voids",
            "Times that clients from before had to start over, because the records did not count.",
            parts.records.voids,
        )
        yield _counter(
            "brain_database_connects", "Connections opened to follow the database.", state.connects
        )
        yield _counter("brain_streams", "Replication streams joined.", state.streams)
        yield _counter("brain_streams_lost", "Replication streams lost.", state.losses)
        yield _counter(
            "brain_corrections",
            "Runs corrected after a comparison of the table with the stream.",
            board.corrections,
        )
        rejections = CounterMetricFamily(
            "brain_rejections",
            "Rejected requests and disconnected clients, by reason.",
            labels=["code"],
        )
        for code in REJECTION_CODES:
            rejections.add_metric([code], parts.rejections.get(code, 0))
        yield rejections


def _one_of(
    name: str, text: str, label: str, words: Iterable[str], chosen: str | None
) -> GaugeMetricFamily:
    """1 for the word that is chosen, 0 for the others."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for word in words:
        family.add_metric([word], float(word == chosen))
    return family


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, what, value=value)


def _counter(name: str, what: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, what, value=value)
