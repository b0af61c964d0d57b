"""/metrics: every series from the first scrape, none added by traffic, and numbers that add up."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import psutil
import pytest
from gateway_process import Gateway, start_gateway
from metric_series import Series, scrape, series, total, wait_until_queue_is_empty

from service.recipe.spec import ModelSpec

LANES = ("interactive", "bulk")
ROLES = ("query", "passage")
EMBEDDING_ROUTES = ("/embed", "/", "/embed_all", "/similarity", "/v1/embeddings", "/v2/embed", "/api/embed")

# Before any other test: a gateway that nobody has asked for a vector.
Fresh = tuple[Gateway, httpx.Client, dict[Series, float]]


@pytest.fixture(scope="module")
def fresh() -> Iterator[Fresh]:
    """A gateway, a client, and the gateway's very first scrape."""
    with start_gateway() as gateway, gateway.client() as client:
        yield gateway, client, scrape(client)


@pytest.fixture
def own(fresh: Fresh) -> httpx.Client:
    """The client of this file's own gateway, which is otherwise idle."""
    return fresh[1]


def grown(before: dict[Series, float], after: dict[Series, float]) -> dict[Series, float]:
    """The series that changed, and by how much."""
    return {key: after[key] - before.get(key, 0.0) for key in after if after[key] != before.get(key, 0.0)}


def test_every_series_is_there_at_the_first_scrape(fresh: Fresh) -> None:
    first = fresh[2]
    wanted = [series("me5_ready"), series("me5_foreign_model_names_total"), series("me5_buffered_bytes")]
    wanted += [
        series("me5_event_loop_lag_seconds_count"),
        series("me5_event_loop_tasks"),
        series("me5_open_connections"),
    ]
    wanted += [series("me5_engine_restarts_total", reason=reason) for reason in ("died", "hung", "failed")]
    for reason in ("header_timeout", "headers_too_large", "too_many", "not_reading"):
        wanted.append(series("me5_refused_connections_total", reason=reason))
    for lane in LANES:
        wanted += [series(name, lane=lane) for name in ("me5_queue_requests", "me5_queue_tokens")]
        wanted += [
            series(f"{name}_count", lane=lane)
            for name in (
                "me5_tokenize_duration_seconds",
                "me5_queue_duration_seconds",
                "me5_engine_duration_seconds",
                "me5_batch_size",
                "me5_batch_tokens",
                "me5_batch_padding_ratio",
            )
        ]
    for role in ROLES:
        names = ("me5_truncated_inputs_total", "me5_inputs_total", "me5_tokens_total")
        wanted += [series(name, role=role) for name in names]
    for reason in ("overloaded", "buffered_bytes", "deadline", "abandoned", "engine_lost", "shutting_down"):
        wanted.append(series("me5_rejected_requests_total", reason=reason))
    for route in EMBEDDING_ROUTES:
        wanted.append(series("me5_unknown_fields_total", route=route))
        wanted += [
            series("me5_request_duration_seconds_count", route=route, role=role, lane=lane, code="200")
            for role in ROLES
            for lane in LANES
        ]
        wanted += [
            series("me5_request_duration_seconds_count", route=route, role="none", lane="none", code=code)
            for code in ("400", "408", "413", "422", "429", "499", "500", "503", "504")
        ]
    missing = [key for key in wanted if key not in first]
    assert not missing
    assert first[series("me5_ready")] == 1


def test_nothing_is_counted_before_the_first_request(fresh: Fresh) -> None:
    first = fresh[2]
    for name in ("me5_request_duration_seconds_count", "me5_rejected_requests_total", "me5_queue_requests"):
        assert total(first, name) == 0
    # The golden texts have been through the engine by then.
    assert total(first, "me5_engine_duration_seconds_count") > 0


def test_memory_is_that_of_both_processes_and_below_the_limit(fresh: Fresh) -> None:
    gateway, client, _ = fresh
    process = psutil.Process(gateway.process.pid)
    resident = [one.memory_info().rss for one in (process, *process.children())]
    now = scrape(client)
    assert len(resident) == 2
    # What an idle gateway still allocates or gives back between the two looks.
    assert now[series("me5_memory_bytes")] == pytest.approx(sum(resident), rel=0.1)
    assert now[series("me5_memory_bytes")] > 1.2 * max(resident)
    assert now[series("me5_memory_limit_bytes")] > now[series("me5_memory_bytes")]


def test_the_served_model_is_named(own: httpx.Client, spec: ModelSpec) -> None:
    labels = [dict(key[1]) for key in scrape(own) if key[0] == "me5_model_info"]
    info = own.get("/info").json()
    assert len(labels) == 1
    for label, field in (("version", "model_version"), ("engine", "engine"), ("precision", "precision")):
        assert labels[0][label] == info[field]
    assert labels[0]["name"] == spec.name


def test_a_request_is_counted_once_everywhere(own: httpx.Client) -> None:
    before = scrape(own)
    response = own.post("/embed", json={"inputs": ["one", "two words", "many words " * 600], "input_type": "passage"})
    changed = grown(before, scrape(own))
    tokens = int(response.headers["x-compute-tokens"])
    lane = response.headers["x-me5-lane"]
    labels = {"route": "/embed", "role": "passage", "lane": lane, "code": "200"}
    assert changed[series("me5_request_duration_seconds_count", **labels)] == 1
    assert changed[series("me5_inputs_total", role="passage")] == 3
    assert changed[series("me5_tokens_total", role="passage")] == tokens
    assert changed[series("me5_truncated_inputs_total", role="passage")] == 1
    assert changed[series("me5_tokenize_duration_seconds_count", lane=lane)] == 1
    assert changed[series("me5_queue_duration_seconds_count", lane=lane)] == 3
    assert changed[series("me5_batch_size_sum", lane=lane)] == 3
    assert changed[series("me5_batch_tokens_sum", lane=lane)] == tokens
    batches = changed[series("me5_engine_duration_seconds_count", lane=lane)]
    assert 1 <= batches <= 3
    assert changed[series("me5_batch_size_count", lane=lane)] == batches
    assert not any(dict(key[1]).get("role") == "query" for key in changed)
    assert series("me5_rejected_requests_total", reason="overloaded") not in changed


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/embed", {"inputs": ""}, "400"),
        ("/embed", {"inputs": "a", "input_type": "title"}, "422"),
        ("/v1/embeddings", {"input": [1, 2]}, "400"),
        ("/similarity", {"inputs": {}}, "422"),
        ("/", {}, "422"),
    ],
)
def test_a_refused_request_is_counted_with_its_code_alone(
    own: httpx.Client, path: str, body: dict[str, object], code: str
) -> None:
    before = scrape(own)
    own.post(path, json=body)
    changed = grown(before, scrape(own))
    labels = {"route": path, "role": "none", "lane": "none", "code": code}
    counted = {key: value for key, value in changed.items() if key[0] == "me5_request_duration_seconds_count"}
    assert counted == {series("me5_request_duration_seconds_count", **labels): 1}
    assert total(changed, "me5_inputs_total") == 0
    assert total(changed, "me5_engine_duration_seconds_count") == 0


def test_traffic_of_every_kind_adds_no_series(fresh: Fresh) -> None:
    _, own, first = fresh
    info = own.get("/info").json()
    body_limit = info["max_body_bytes"]
    bodies: list[dict[str, object]] = [
        {"inputs": "a"},
        {"inputs": ["a"] * 40, "input_type": "passage"},
        {"inputs": "a", "surprise": 1},
        {"inputs": "b " * 3000},
        {"inputs": ""},
        {"inputs": 5},
        {"inputs": "a", "input_type": "nobody"},
        {"input": "a", "model": "of another house", "surprise": 1},
        {"input": [[1]]},
        {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "surprise": 1},
        {"ids": [5], "surprise": 1},
    ]
    for path in (*EMBEDDING_ROUTES, "/tokenize", "/decode", "/nope", "/v1/nope", "/embed/", "/info"):
        for body in bodies:
            own.post(path, json=body)
        own.post(path, content=b"{")
        own.post(path, json={"inputs": "a"}, headers={"content-encoding": "br"})
        own.post(path, json={"inputs": "a"}, headers={"x-me5-lane": "odd"})
        for method in ("GET", "PUT", "HEAD", "OPTIONS"):
            own.request(method, path)
    own.post("/embed", content=b"a" * (body_limit + 1))
    own.post("/embed", json={"inputs": ["a few words"] * 500}, headers={"x-me5-timeout-ms": "1"})
    wait_until_queue_is_empty(own)
    added = sorted({(name, *sorted(labels)) for name, labels in scrape(own).keys() - first.keys()})
    assert not added


def test_the_queue_is_empty_again_after_all_that(own: httpx.Client) -> None:
    wait_until_queue_is_empty(own)
    now = scrape(own)
    for lane in LANES:
        assert now[series("me5_queue_requests", lane=lane)] == 0
        assert now[series("me5_queue_tokens", lane=lane)] == 0
