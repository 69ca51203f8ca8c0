"""/metrics: read from the parts when Prometheus asks. Nothing is counted here but the latency, once a flush.

No label names a client, a run or an agent: their number has no bound.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from brain.access.limits import ConnectionLimiter
from brain.access.rejections import REJECTION_CODES
from brain.delivery.board import Board
from brain.delivery.hub import Hub
from brain.postgres.decoder import Decoder
from brain.postgres.publication import UnavailableCode
from brain.postgres.source_state import SourceState

SOURCES = ("none", "poll", "replication")
UNAVAILABLE_CODES: tuple[UnavailableCode, ...] = get_args(UnavailableCode)

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds."""


@dataclass(frozen=True)
class Parts:
    """What is read. `clock` is the one by which SourceState.heard was taken."""

    board: Board
    hub: Hub
    state: SourceState
    limiter: ConnectionLimiter
    decoder: Decoder
    rejections: Mapping[str, int]
    clock: Callable[[], float]

    def lag(self) -> float:
        """Seconds since the database was last known to have been read to its end."""
        return self.clock() - self.state.heard


class Metrics:
    content_type = CONTENT_TYPE_LATEST

    def __init__(self, now: Callable[[], float]) -> None:
        """`now` is the wall clock, in seconds: what a commit's time is compared with. The database's may differ."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._now = now
        self._registry = CollectorRegistry()
        self._latency = Histogram(
            "brain_commit_to_socket_seconds",
            "From a commit, by the database's clock, to its handing over to the last client's socket: the oldest of each flush.",
            buckets=BUCKETS,
            registry=self._registry,
        )

    def observe(self, commit: int) -> None:
        """A flush has been handed over; `commit` is the time of its oldest change, in microseconds."""
        self._latency.observe(max(0.0, self._now() - commit / 1e6))

    def read(self, parts: Parts) -> None:
        self._registry.register(_Reader(parts))

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Reader:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        parts = self._parts
        hub, counts, state, board = parts.hub, parts.hub.counts, parts.state, parts.board
        yield _gauge("brain_clients", "WebSocket clients.", hub.clients)
        yield _gauge("brain_clients_lagging", "Clients whose transport is full now.", hub.lagging)
        yield _gauge(
            "brain_connections",
            "Connections by any address, HTTP and WebSocket.",
            sum(parts.limiter.connections.values()),
        )
        yield _counter("brain_changes", "Changes that were to be pushed.", counts.changes)
        yield _counter(
            "brain_changes_conflated",
            "Changes of progress that a later one replaced before it was sent.",
            counts.conflated,
        )
        yield _counter("brain_flushes", "Batches of changes.", counts.flushes)
        yield _counter(
            "brain_deliveries", "Messages handed to clients' sockets by flushes.", counts.deliveries
        )
        yield _counter(
            "brain_catch_up_writes", "Writes that brought a client up to date.", counts.pieces
        )
        yield _counter(
            "brain_lags",
            "Times that a client missed a flush, and was brought up to date.",
            counts.lags,
        )
        yield _counter(
            "brain_gaps",
            "Clients told to load GET /api/runs, as memory did not reach back.",
            counts.gaps,
        )
        yield _counter(
            "brain_client_failures", "Clients ended because serving them failed.", counts.failures
        )
        yield _gauge(
            "brain_pending_bytes", "Bytes that wait for the next flush.", hub.pending_bytes
        )
        yield _gauge("brain_runs", "Runs in memory.", len(board))
        yield _gauge("brain_board_bytes", "Memory charged for them.", board.size)
        yield _counter(
            "brain_rows_rejected", "Rows that the contract has no place for.", parts.decoder.refused
        )
        yield _counter(
            "brain_values_corrected",
            "Values left out or brought into range.",
            parts.decoder.corrected,
        )
        source = GaugeMetricFamily("brain_source", "1 for the source in use.", labels=["source"])
        for name in SOURCES:
            source.add_metric([name], float(state.source == name))
        yield source
        codes = GaugeMetricFamily(
            "brain_source_code", "1 for why the source in use is not a better one.", labels=["code"]
        )
        for word in UNAVAILABLE_CODES:
            codes.add_metric([word], float(state.code == word))
        yield codes
        yield _gauge(
            "brain_lag_seconds",
            "Since the database was last known to have been read to its end.",
            parts.lag(),
        )
        yield _counter(
            "brain_database_connects", "Connections made to follow the database.", state.connects
        )
        yield _counter("brain_streams", "Streams joined.", state.streams)
        yield _counter("brain_streams_lost", "Streams lost.", state.losses)
        yield _counter(
            "brain_corrections",
            "Runs that a comparison found to differ from the stream.",
            board.corrections,
        )
        rejections = CounterMetricFamily(
            "brain_rejections",
            "Requests that were refused, and clients that were cut off.",
            labels=["code"],
        )
        for code in REJECTION_CODES:
            rejections.add_metric([code], parts.rejections.get(code, 0))
        yield rejections


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, what, value=value)


def _counter(name: str, what: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, what, value=value)
