"""A gateway that was given keys: who gets in, what is said to the others, and what each key may use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from asking import asking
from gateway_process import Gateway, start_gateway
from metric_series import scrape, series
from starlette.requests import Request
from starlette.types import Message
from trace_receiver import QUICK, Receiver, receiver, variables

from service.api.guard import Guard
from service.api.reading import client_of
from service.app import refuse
from service.callers import Callers
from service.errors import TooManyConnections
from service.keys import Key, digest_of, entry_of, new_secret, parse_keys, with_key, without_key
from service.keys_file import write_file
from service.metrics import KeyMetrics, Metrics
from service.settings import Settings

PAGE, STRANGER = "https://app.example.org", "https://other.example.org"
# The text has a dozen tokens; a key that may use few gets four a second.
TEXT, BURST, PER_MINUTE = "how deep is the harbour of Rotterdam?", 60, 240
OPEN = ("/", "/livez", "/readyz", "/health", "/ping", "/docs", "/openapi.json")
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Guarded:
    """A gateway with keys. secrets: by name.   client: with the key `free`, unlimited.   received: its traces."""

    gateway: Gateway
    file: Path
    secrets: dict[str, str]
    client: httpx.Client
    received: Receiver

    def post(self, key: str, texts: int = 1, **headers: str) -> httpx.Response:
        """The text so many times, with this key."""
        sent = {"authorization": f"Bearer {self.secrets[key]}", **headers}
        return self.client.post("/embed", json={"inputs": [TEXT] * texts}, headers=sent)

    def sdk(self, key: str) -> openai.OpenAI:
        """OpenAI's client with this key."""
        return openai.OpenAI(base_url=f"{self.gateway.url}/v1", api_key=key, max_retries=0)

    def count(self, name: str, **labels: str) -> float:
        """A series' value now."""
        return scrape(self.client)[series(name, **labels)]


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether this comes true within a bounded time."""
    give_up = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Keys of every kind, in a file others may write to and in the environment; traces; a page of another origin."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    kinds: dict[str, dict[str, object]] = {
        "free": {},
        "few": {"tokens_per_minute": PER_MINUTE, "burst_tokens": BURST},
        "small": {"tokens_per_minute": PER_MINUTE, "burst_tokens": BURST},
        "long": {"tokens_per_minute": 1, "burst_tokens": 1000},
        "bulky": {"lane": "bulk"},
        "off": {"disabled": True},
        "late": {"expires": "2020-01-31"},
    }
    secrets = {name: new_secret() for name in kinds} | {"api-key": new_secret(), "api-key-2": new_secret()}
    text = ""
    for name, more in kinds.items():
        text = with_key(text, name, entry_of(name, {"sha256": digest_of(secrets[name].encode()).hex(), **more}))
    write_file(file, text)
    file.chmod(0o666)
    with ExitStack() as stack:
        found = stack.enter_context(receiver())
        stack.enter_context(variables(QUICK))
        gateway = stack.enter_context(
            start_gateway(
                keys_file=file,
                api_key=f"{secrets['api-key']},{secrets['api-key-2']}",
                cors_origins=f"{PAGE}, http://localhost:3000",
                metrics_open=False,
                otlp_endpoint=found.url,
                log_level="debug",
                drain_s=0,
            )
        )
        client = stack.enter_context(gateway.client())
        client.headers["authorization"] = f"Bearer {secrets['free']}"
        yield Guarded(gateway, file, secrets, client, found)
        # After every test of this file: whatever happened, nothing secret was written anywhere.
        assert found.spans
        said = gateway.log_text() + client.get("/metrics").text + repr(found.spans)
        assert "Traceback" not in said
        for secret in (*secrets.values(), TEXT, "nobody's key"):
            assert secret not in said


def spend(sdk: openai.OpenAI, requests: int) -> None:
    """The text so many times, one after another: more tokens than come back meanwhile."""
    for _ in range(requests):
        sdk.embeddings.create(model="x", input=TEXT)


def test_every_route_but_probes_and_pages_needs_a_key_and_takes_one(guarded: Guarded) -> None:
    paths = guarded.client.get("/openapi.json").json()["paths"]
    asked = 0
    for path, methods in paths.items():
        for method in methods:
            if method == "get" and path in OPEN:
                continue
            url = path.replace("{model}", "x")
            without = httpx.request(method, guarded.gateway.url + url)
            assert without.status_code == 401, (method, path)
            assert without.headers["www-authenticate"] == 'Bearer realm="me5"'
            assert guarded.client.request(method, url).status_code not in (401, 403), (method, path)
            asked += 1
    assert asked >= 8
    # Nor does it say which paths there are, or answer a method it does not know.
    assert httpx.get(f"{guarded.gateway.url}/nowhere").status_code == 401
    assert httpx.put(f"{guarded.gateway.url}/embed").status_code == 401


@pytest.mark.parametrize("path", OPEN)
def test_probes_and_pages_need_none(guarded: Guarded, path: str) -> None:
    assert httpx.get(guarded.gateway.url + path).status_code == 200
    assert httpx.head(guarded.gateway.url + path).status_code in (200, 405)


def test_the_metrics_can_be_closed_and_prometheus_asks_with_a_bearer_token(guarded: Guarded) -> None:
    assert httpx.get(f"{guarded.gateway.url}/metrics").status_code == 401
    assert guarded.client.get("/metrics").status_code == 200


def test_the_description_of_the_api_says_that_a_key_is_needed(guarded: Guarded) -> None:
    found = httpx.get(f"{guarded.gateway.url}/openapi.json").json()
    assert found["security"] == [{"key": []}]
    assert found["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
@pytest.mark.parametrize("key", ["free", "api-key", "api-key-2"])
def test_a_key_of_the_file_or_the_environment_opens_by_any_of_its_headers(
    guarded: Guarded, header: str, key: str
) -> None:
    secret = guarded.secrets[key]
    sent = {header: f"bearer  {secret}" if header == "authorization" else secret}
    assert httpx.get(f"{guarded.gateway.url}/info", headers=sent).status_code == 200


def test_a_proxys_own_authorization_leaves_x_api_key_its_meaning(guarded: Guarded) -> None:
    sent = {"authorization": "Basic cHJveHk6cHc=", "x-api-key": guarded.secrets["free"]}
    assert httpx.get(f"{guarded.gateway.url}/info", headers=sent).status_code == 200


@pytest.mark.parametrize("given", ["nobody's key", "x" * 20_000, "Ünïcode"])
def test_a_key_of_nobody_gets_401_in_the_routes_own_shape(guarded: Guarded, given: str) -> None:
    sent = {"authorization": f"Bearer {given}".encode("latin-1")}
    plain = httpx.post(f"{guarded.gateway.url}/embed", json={"inputs": TEXT}, headers=sent)
    assert plain.status_code == 401
    assert plain.json()["error_type"] == "Unauthorized"
    nested = httpx.post(f"{guarded.gateway.url}/v1/embeddings", json={"input": TEXT}, headers=sent)
    assert nested.status_code == 401
    assert nested.json()["error"]["code"] == "invalid_api_key"
    assert 'error="invalid_token"' in nested.headers["www-authenticate"]


def test_a_large_body_without_a_key_is_answered_and_not_cut_off(guarded: Guarded) -> None:
    with guarded.gateway.client() as stranger:
        for _ in range(2):
            assert stranger.post("/embed", content=bytes(9_000_000)).status_code == 401
        # The connection goes on, and its next request is read from its own start.
        sent = {"x-api-key": guarded.secrets["free"]}
        assert stranger.post("/embed", json={"inputs": TEXT}, headers=sent).status_code == 200


def test_clients_of_one_key_are_one_client_to_the_queue_wherever_they_come_from() -> None:
    callers = Callers((Key("search", digest_of(b"secret")),), KeyMetrics(Metrics().registry), 0.0)
    guard = Guard(callers, metrics_open=True)
    for address, header in (
        ("10.0.0.1", (b"x-api-key", b"secret")),
        ("10.0.0.2", (b"authorization", b"Bearer secret")),
    ):
        scope = {"type": "http", "method": "POST", "path": "/embed", "headers": [header], "client": (address, 1)}
        assert guard.refusal(scope) is None
        assert client_of(Request(scope)) == "search"


def test_the_metrics_are_open_unless_they_are_closed() -> None:
    callers = Callers((), KeyMetrics(Metrics().registry), 0.0)
    scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": []}
    assert Guard(callers, metrics_open=True).refusal(scope) is None
    assert Guard(callers, metrics_open=False).refusal(scope) is not None


def test_openais_client_raises_its_own_error_for_each_refusal(guarded: Guarded) -> None:
    with pytest.raises(openai.AuthenticationError, match="not known"):
        guarded.sdk("nobody's key").embeddings.create(model="x", input=TEXT)
    with pytest.raises(openai.AuthenticationError, match="late is expired"):
        guarded.sdk(guarded.secrets["late"]).models.list()
    with pytest.raises(openai.AuthenticationError, match="off is disabled"):
        guarded.sdk(guarded.secrets["off"]).models.list()
    with pytest.raises(openai.PermissionDeniedError, match="may only use lane bulk"):
        guarded.sdk(guarded.secrets["bulky"]).embeddings.create(
            model="x", input=TEXT, extra_headers={"x-me5-lane": "interactive"}
        )
    assert len(guarded.sdk(guarded.secrets["free"]).embeddings.create(model="x", input=TEXT).data) == 1


def test_a_key_bound_to_bulk_has_even_its_queries_there(guarded: Guarded) -> None:
    assert guarded.post("bulky").headers["x-me5-lane"] == "bulk"
    assert guarded.post("free").headers["x-me5-lane"] == "interactive"


def test_more_texts_than_a_key_may_ever_send_at_once_are_refused_with_what_to_do(guarded: Guarded) -> None:
    for count in (7, 1000):
        response = guarded.post("small", count)
        assert response.status_code == 413
        assert "send fewer texts" in response.json()["error"]
        assert "retry-after" not in response.headers


def test_what_is_too_long_for_a_key_is_refused_untokenised_and_what_was_tokenised_is_charged(guarded: Guarded) -> None:
    def post(inputs: list[str]) -> httpx.Response:
        sent = {"authorization": f"Bearer {guarded.secrets['long']}"}
        return guarded.client.post("/embed", json={"inputs": inputs, "truncate": False}, headers=sent)

    before = scrape(guarded.client)[series("me5_tokenize_duration_seconds_count", lane="bulk")]
    over = post(["harbour " * 400] * 20)
    assert over.status_code == 413
    assert over.headers["x-ratelimit-remaining-tokens"] == "1000"
    assert scrape(guarded.client)[series("me5_tokenize_duration_seconds_count", lane="bulk")] == before
    # The model reads 512 tokens of it; a minute of this key is a token, so none comes back meanwhile.
    too_long = post(["harbour " * 1000])
    assert too_long.status_code == 422
    assert int(too_long.headers["x-ratelimit-remaining-tokens"]) in (488, 489, 490)


def test_a_keys_tokens_are_limited_over_time_and_the_headers_say_how_it_stands(guarded: Guarded) -> None:
    refused_before = guarded.count("me5_key_rejected_total", key="few", reason="rate_limit")
    counted_before = guarded.count("me5_key_tokens_total", key="few")
    used, refused, number = 0, 0, 0
    started = time.monotonic()
    while time.monotonic() - started < 3 or number < 3:
        # The first two are most of the burst each, so one of them is refused on a machine however slow.
        response = guarded.post("few", 4 if number < 2 else 1)
        number += 1
        assert response.headers["x-ratelimit-limit-tokens"] == str(BURST)
        assert 0 <= int(response.headers["x-ratelimit-remaining-tokens"]) <= BURST
        assert response.headers["x-ratelimit-reset-tokens"].endswith("s")
        if response.status_code == 200:
            used += int(response.headers["x-compute-tokens"])
        else:
            assert response.status_code == 429
            assert 1 <= int(response.headers["retry-after"]) <= BURST * 60 / PER_MINUTE
            assert "few may use 240 tokens a minute" in response.json()["error"]
            refused += 1
    spent_s = time.monotonic() - started
    assert refused > 0
    assert BURST / 2 < used <= BURST + spent_s * PER_MINUTE / 60
    assert guarded.count("me5_key_tokens_total", key="few") == counted_before + used
    assert guarded.count("me5_key_rejected_total", key="few", reason="rate_limit") == refused_before + refused
    with pytest.raises(openai.RateLimitError, match="Rate limit reached") as raised:
        spend(guarded.sdk(guarded.secrets["few"]), 20)
    # Told when, it comes back then and is served.
    time.sleep(int(raised.value.response.headers["retry-after"]))
    spend(guarded.sdk(guarded.secrets["few"]), 1)


def test_a_key_without_a_limit_has_no_headers_of_one(guarded: Guarded) -> None:
    response = guarded.post("free")
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("x-ratelimit")]


def test_a_preflight_needs_no_key_and_allows_what_the_page_wants_to_send(guarded: Guarded) -> None:
    wanted = "authorization,content-type,x-stainless-os"
    sent = {"access-control-request-method": "POST", "access-control-request-headers": wanted}
    for path in ("/embed", "/v1/embeddings", "/info", "/"):
        answer = httpx.options(guarded.gateway.url + path, headers={"origin": PAGE, **sent})
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["access-control-allow-headers"] == wanted
        assert "POST" in answer.headers["access-control-allow-methods"]
        refused = httpx.options(guarded.gateway.url + path, headers={"origin": STRANGER, **sent})
        assert not [name for name in refused.headers if name.startswith("access-control")]


def test_answers_and_refusals_can_be_read_by_pages_of_named_origins_alone(guarded: Guarded) -> None:
    answers = [
        (200, lambda origin: guarded.post("free", origin=origin)),
        (200, lambda origin: guarded.client.get("/info", headers={"origin": origin})),
        (401, lambda origin: httpx.post(f"{guarded.gateway.url}/embed", headers={"origin": origin})),
        (403, lambda origin: guarded.post("bulky", origin=origin, **{"x-me5-lane": "interactive"})),
        (404, lambda origin: guarded.client.get("/nowhere", headers={"origin": origin})),
        (422, lambda origin: guarded.client.post("/embed", json={}, headers={"origin": origin})),
    ]
    for status, ask in answers:
        for origin in (PAGE, "http://localhost:3000"):
            answer = ask(origin)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == origin
            assert "x-ratelimit-remaining-tokens" in answer.headers["access-control-expose-headers"]
        assert not [name for name in ask(STRANGER).headers if name.startswith("access-control")]
        assert "Origin" in ask(STRANGER).headers["vary"]
        # Cookies are never asked for, so there is nothing that a foreign page could borrow.
        assert "access-control-allow-credentials" not in answer.headers


def test_a_refusal_before_any_route_can_be_read_too() -> None:
    sent: list[Message] = []

    async def run() -> None:
        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        headers = [(b"origin", PAGE.encode())]
        scope = {"type": "http", "method": "POST", "path": "/embed", "headers": headers}
        await refuse(TooManyConnections("full"), Settings(cors_origins=PAGE))(scope, receive, send)

    asyncio.run(run())
    assert sent[0]["status"] == 503
    assert (b"access-control-allow-origin", PAGE.encode()) in sent[0]["headers"]


def test_without_named_origins_no_page_is_told_anything(client: httpx.Client) -> None:
    answer = client.post("/embed", json={"inputs": TEXT}, headers={"origin": PAGE})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_keys_come_and_go_under_load_without_a_failed_request(guarded: Guarded) -> None:
    whole = guarded.file.read_text()
    new = new_secret()
    more = with_key(whole, "new", entry_of("new", {"sha256": digest_of(new.encode()).hex()}))

    def opens() -> bool:
        return httpx.get(f"{guarded.gateway.url}/info", headers={"x-api-key": new}).status_code == 200

    with asking(guarded.gateway, headers={"authorization": f"Bearer {guarded.secrets['free']}"}) as statuses:
        assert not opens()
        write_file(guarded.file, more)
        assert eventually(opens)
        assert guarded.count("me5_key_tokens_total", key="new") == 0
        # As an editor that has saved too soon; who has a key keeps it.
        guarded.file.write_text(more + "\n[half")
        assert eventually(lambda: guarded.count("me5_keys_file_valid") == 0)
        assert opens()
        write_file(guarded.file, without_key(more, "new"))
        assert eventually(lambda: guarded.count("me5_keys_file_valid") == 1)
        assert not opens()
        assert series("me5_key_tokens_total", key="new") not in scrape(guarded.client)
        # Those of the file, and two of the environment.
        assert guarded.count("me5_keys") == len(parse_keys(whole)) + 2
    assert set(statuses) == {200}
    assert "not TOML" in guarded.gateway.log_text()


def test_a_file_others_can_write_to_is_warned_of(guarded: Guarded) -> None:
    assert guarded.gateway.log_text().count("has mode 0666: others than its owner can add keys") == 1


def test_whose_requests_are_refused_and_why_is_counted(guarded: Guarded) -> None:
    before = scrape(guarded.client)
    for key in ("off", "late", "off"):
        assert guarded.post(key).status_code == 401
    assert httpx.post(f"{guarded.gateway.url}/embed").status_code == 401
    after = scrape(guarded.client)
    grown = {key: after[key] - before[key] for key in after if "rejected" in key[0] or "unauthorized" in key[0]}
    for name, labels, by in (
        ("me5_unauthorized_requests_total", {"reason": "disabled"}, 2),
        ("me5_unauthorized_requests_total", {"reason": "expired"}, 1),
        ("me5_unauthorized_requests_total", {"reason": "missing"}, 1),
        ("me5_unauthorized_requests_total", {"reason": "unknown"}, 0),
        ("me5_key_rejected_total", {"key": "off", "reason": "disabled"}, 2),
        ("me5_key_rejected_total", {"key": "late", "reason": "expired"}, 1),
    ):
        assert grown[series(name, **labels)] == by


def test_what_is_refused_for_want_of_a_key_leaves_no_trace(guarded: Guarded) -> None:
    sent = {"x-request-id": "who-am-i"}
    assert httpx.post(f"{guarded.gateway.url}/embed", json={"inputs": TEXT}, headers=sent).status_code == 401
    assert guarded.post("free", **{"x-request-id": "its-me"}).status_code == 200
    guarded.received.wait_for_request("its-me")
    assert not [span for span in guarded.received.spans if span.attributes.get("me5.request_id") == "who-am-i"]
