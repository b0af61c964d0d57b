"""Every Prometheus collector of the gateway, declared once."""

from __future__ import annotations

from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from service.batching import LANES
from service.recipe.prompts import ROLES
from service.triton_errors import Outcome

# A route's label; where one has a second address, both are counted as one.
ROUTE_LABELS = {
    "/embed": "/embed",
    "/": "/",
    "/invocations": "/",
    "/embed_all": "/embed_all",
    "/similarity": "/similarity",
    "/v1/embeddings": "/v1/embeddings",
    "/embeddings": "/v1/embeddings",
    "/v2/embed": "/v2/embed",
    "/v1/embed": "/v2/embed",
    "/api/embed": "/api/embed",
    "/api/embeddings": "/api/embed",
    "/tokenize": "/tokenize",
    "/decode": "/decode",
}
# Those that compute vectors.
ROUTES = tuple(dict.fromkeys(label for label in ROUTE_LABELS.values() if label not in ("/tokenize", "/decode")))
ERROR_CODES = ("400", "401", "403", "404", "405", "408", "413", "415", "422", "429", "499", "500", "503", "504")
RESTART_REASONS = ("died", "hung", "failed")
REASONS = ("overloaded", "buffered_bytes", "deadline", "abandoned", "engine_lost", "shutting_down")
KEY_REASONS = ("rate_limit", "over_burst", "forbidden", "expired", "disabled")
UNAUTHORIZED_REASONS = ("missing", "unknown", "expired", "disabled")
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
CONNECTION_REASONS = ("header_timeout", "headers_too_large", "too_many", "not_reading", "tls_handshake")

_SECONDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_LAG_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_RATIO = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)

NO_LABEL = "none"
MIXED_ROLES = "mixed"


class Metrics:
    """The collectors, on a registry of their own so that two gateways in one process don't meet.

    Every series exists from the first scrape: a rate over a series that springs into being misses its first event.
    A request that fails before its role is known has role and lane "none", and so have all refused ones.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        on = self.registry
        ProcessCollector(registry=on)
        PlatformCollector(registry=on)
        self.request_duration_s = Histogram(
            "me5_request_duration_seconds",
            "Time from the request's headers to its answer.",
            ("route", "role", "lane", "code"),
            buckets=_SECONDS,
            registry=on,
        )
        self.queue_duration_s = Histogram(
            "me5_queue_duration_seconds", "Time a text waited for its batch.", ("lane",), buckets=_SECONDS, registry=on
        )
        self.tokenize_duration_s = Histogram(
            "me5_tokenize_duration_seconds",
            "Time to tokenise the texts of a request.",
            ("lane",),
            buckets=_SECONDS,
            registry=on,
        )
        self.engine_duration_s = Histogram(
            "me5_engine_duration_seconds", "Time the engine took for a batch.", ("lane",), buckets=_SECONDS, registry=on
        )
        self.queue_requests = Gauge("me5_queue_requests", "Requests without an answer.", ("lane",), registry=on)
        self.queue_tokens = Gauge("me5_queue_tokens", "Tokens of requests without an answer.", ("lane",), registry=on)
        self.batch_size = Histogram("me5_batch_size", "Texts a batch.", ("lane",), buckets=_ROWS, registry=on)
        self.batch_tokens = Histogram(
            "me5_batch_tokens", "Tokens a batch, padding excluded.", ("lane",), buckets=_TOKENS, registry=on
        )
        self.batch_padding_ratio = Histogram(
            "me5_batch_padding_ratio", "Share of a batch that is padding.", ("lane",), buckets=_RATIO, registry=on
        )
        self.inputs = Counter("me5_inputs_total", "Texts turned into vectors.", ("role",), registry=on)
        self.tokens = Counter("me5_tokens_total", "Tokens turned into vectors.", ("role",), registry=on)
        self.truncated_inputs = Counter("me5_truncated_inputs_total", "Texts that were cut.", ("role",), registry=on)
        self.rejected_requests = Counter("me5_rejected_requests_total", "Requests given up.", ("reason",), registry=on)
        self.unknown_fields = Counter(
            "me5_unknown_fields_total", "Request fields that were ignored.", ("route",), registry=on
        )
        self.foreign_model_names = Counter(
            "me5_foreign_model_names_total", "Requests that named another model than the one served.", registry=on
        )
        self.engine_restarts = Counter(
            "me5_engine_restarts_total", "Times the engine was lost and started again.", ("reason",), registry=on
        )
        self.event_loop_lag_s = Histogram(
            "me5_event_loop_lag_seconds",
            "How late the event loop is for a call every 100 ms.",
            buckets=_LAG_SECONDS,
            registry=on,
        )
        self.event_loop_tasks = Gauge(
            "me5_event_loop_tasks", "Tasks on the event loop, this scrape's own too.", registry=on
        )
        self.open_connections = Gauge("me5_open_connections", "Connections of clients.", registry=on)
        self.refused_connections = Counter(
            "me5_refused_connections_total", "Connections cut for what their clients did.", ("reason",), registry=on
        )
        self.buffered_bytes = Gauge(
            "me5_buffered_bytes", "Bytes of request bodies that are read or wait for their answer.", registry=on
        )
        self.memory_bytes = Gauge("me5_memory_bytes", "Resident memory of the gateway and its engine.", registry=on)
        self.memory_limit_bytes = Gauge(
            "me5_memory_limit_bytes", "Memory that the cgroup, else the machine, gives them.", registry=on
        )
        self.ready = Gauge("me5_ready", "1 while /readyz says ready.", registry=on)
        self.model = Info("me5_model", "The model served and what computes it.", registry=on)
        self._create_all()

    def observe_request(self, route: str, role: str, lane: str, code: str, spent_s: float) -> None:
        """Count a request of an embedding route."""
        self._durations[route, role, lane, code].observe(spent_s)

    def count_inputs(self, role: str, inputs: int, tokens: int, truncated: int) -> None:
        """Count what a request had turned into vectors."""
        counted, counted_tokens, cut = self._by_role[role]
        counted.inc(inputs)
        counted_tokens.inc(tokens)
        if truncated:
            cut.inc(truncated)

    def _create_all(self) -> None:
        # Kept at hand: looking a child up by its labels costs more than counting.
        self._durations: dict[tuple[str, str, str, str], Histogram] = {}
        self._by_role: dict[str, tuple[Counter, Counter, Counter]] = {}
        for route in ROUTE_LABELS.values():
            self.unknown_fields.labels(route)
        for route in ROUTES:
            keys = [(route, NO_LABEL, NO_LABEL, code) for code in ERROR_CODES]
            keys += [(route, role, lane, "200") for role in (*ROLES, MIXED_ROLES) for lane in LANES]
            self._durations |= {key: self.request_duration_s.labels(*key) for key in keys}
        # Ollama's clients ask for a model to be loaded, with no text.
        nothing = ("/api/embed", NO_LABEL, NO_LABEL, "200")
        self._durations[nothing] = self.request_duration_s.labels(*nothing)
        for lane in LANES:
            for collector in (
                self.tokenize_duration_s,
                self.queue_duration_s,
                self.engine_duration_s,
                self.queue_requests,
                self.queue_tokens,
                self.batch_size,
                self.batch_tokens,
                self.batch_padding_ratio,
            ):
                collector.labels(lane)
        for role in ROLES:
            counters = (self.inputs, self.tokens, self.truncated_inputs)
            self._by_role[role] = (counters[0].labels(role), counters[1].labels(role), counters[2].labels(role))
        for reason in CONNECTION_REASONS:
            self.refused_connections.labels(reason)
        for reason in REASONS:
            self.rejected_requests.labels(reason)
        for reason in RESTART_REASONS:
            self.engine_restarts.labels(reason)


class KeyMetrics:
    """Collectors of a gateway whose requests need keys; a label `key` is a name in the file, never a secret."""

    def __init__(self, on: CollectorRegistry) -> None:
        self.keys = Gauge("me5_keys", "Keys in force.", registry=on)
        self.file_valid = Gauge(
            "me5_keys_file_valid",
            "1 while what the file of keys says is in force; 0: an older version is.",
            registry=on,
        )
        self.unauthorized = Counter(
            "me5_unauthorized_requests_total", "Requests without a valid key.", ("reason",), registry=on
        )
        self.tokens = Counter("me5_key_tokens_total", "Tokens turned into vectors, by key.", ("key",), registry=on)
        self.rejected = Counter(
            "me5_key_rejected_total", "Requests refused for what their key may do.", ("key", "reason"), registry=on
        )
        for reason in UNAUTHORIZED_REASONS:
            self.unauthorized.labels(reason)

    def of(self, key: str) -> OneKey:
        """The children of one key; every series exists from now on."""
        return OneKey(self, key)


class OneKey:
    """One key's children of the collectors, looked up once.   rejected: by reason."""

    def __init__(self, metrics: KeyMetrics, name: str) -> None:
        self.tokens = metrics.tokens.labels(name)
        self.rejected = {reason: metrics.rejected.labels(name, reason) for reason in KEY_REASONS}
        self._metrics, self._name = metrics, name

    def forget(self) -> None:
        """There is no such key any more."""
        self._metrics.tokens.remove(self._name)
        for reason in KEY_REASONS:
            self._metrics.rejected.remove(self._name, reason)


class UpstreamMetrics:
    """Collectors of a gateway whose engine is Triton; a label `upstream` is one Triton's address."""

    def __init__(self, on: CollectorRegistry) -> None:
        self.ready = Gauge("me5_upstream_ready", "1 while batches are sent to it.", ("upstream",), registry=on)
        self.in_flight = Gauge("me5_upstream_in_flight", "Batches without an answer.", ("upstream",), registry=on)
        self.batches = Counter(
            "me5_upstream_batches_total", "Batches by what became of them.", ("upstream", "outcome"), registry=on
        )
        self.duration_s = Histogram(
            "me5_upstream_duration_seconds",
            "Time from sending a batch to its answer.",
            ("upstream",),
            buckets=_SECONDS,
            registry=on,
        )
        self.retries = Counter("me5_upstream_retries_total", "Batches sent to a second Triton.", registry=on)

    def of(self, upstream: str) -> OneUpstream:
        """The children of one Triton; every series exists from now on."""
        return OneUpstream(self, upstream)


class OneUpstream:
    """One Triton's children of the collectors, looked up once.   batches: by outcome."""

    def __init__(self, metrics: UpstreamMetrics, name: str) -> None:
        self.ready = metrics.ready.labels(name)
        self.in_flight = metrics.in_flight.labels(name)
        self.duration_s = metrics.duration_s.labels(name)
        self.batches = {outcome: metrics.batches.labels(name, outcome) for outcome in OUTCOMES}
        self._metrics, self._name = metrics, name

    def forget(self) -> None:
        """Its address stands for no Triton any more: pods come and go, their series should not stay."""
        for outcome in OUTCOMES:
            self._metrics.batches.remove(self._name, outcome)
        for collector in (self._metrics.ready, self._metrics.in_flight, self._metrics.duration_s):
            collector.remove(self._name)
