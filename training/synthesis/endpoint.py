"""An OpenAI-compatible endpoint: one request, asked again while that may help."""

import asyncio
import email.utils
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from training.errors import EndpointFailed
from training.permutation import key_of

TRIES = 8
WAIT_MAX_S = 60.0
# Longer than any quota's window; a server that says a day is asked again another day.
RETRY_AFTER_MAX_S = 3600.0
# What passes with time; everything else is this request's or this set-up's fault.
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
REMEDIES = {
    401: "set the key's variable, see --key-variable",
    403: "the key may not use this model",
    404: "check --endpoint, which ends with /v1 for most servers, and --model",
}
FILTERED = ("content_filter", "content_policy_violation", "moderation_blocked")


class NoAnswer(EndpointFailed):
    """All tries of one request failed in ways that may pass."""


@dataclass(frozen=True)
class Answer:
    """text: None where the endpoint refused, `refused` says why."""

    text: str | None
    refused: str
    prompt_tokens: int
    answer_tokens: int


class Pace:
    """When the next request may leave: all of a process's share one."""

    def __init__(self, requests_a_minute: float | None) -> None:
        """requests_a_minute: None for as many as there are."""
        self._interval_s = 60 / requests_a_minute if requests_a_minute else 0.0
        self._next_s = 0.0

    async def turn(self) -> None:
        """Wait for the next free moment."""
        now = time.monotonic()
        start = max(now, self._next_s)
        self._next_s = start + self._interval_s
        await asyncio.sleep(start - now)

    def pause(self, seconds: float) -> None:
        """Nobody asks before this is over: the server said so."""
        self._next_s = max(self._next_s, time.monotonic() + seconds)


class Endpoint:
    """One server. Closed by its client's owner."""

    def __init__(self, client: httpx.AsyncClient, url: str, key: str | None, pace: Pace, *, tries: int = TRIES) -> None:
        """url: up to and without the operation, such as https://host/v1.   key: sent as a bearer token."""
        self._client, self._pace, self._tries = client, pace, tries
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.retries = 0

    async def post(self, operation: str, body: Mapping[str, object], seed: int) -> dict[str, Any]:
        """The JSON object that the server answers. seed: of the request, spreads the waiting.

        Raises EndpointFailed where asking again is useless, NoAnswer where it was.
        """
        problem = ""
        for attempt in range(self._tries):
            if attempt:
                self.retries += 1
            await self._pace.turn()
            retry_after: float | None = None
            try:
                response = await self._client.post(f"{self.url}/{operation}", json=body, headers=self._headers)
                content = _object(response)
                if response.is_success and content is not None:
                    return content
                problem = f"{response.status_code} {_message(content, response)}"
                if not response.is_success and response.status_code not in PASSING:
                    if response.status_code == 400 and _code(content) in FILTERED:
                        return {"refused": _code(content)}
                    remedy = REMEDIES.get(response.status_code, "the server does not take such requests")
                    raise EndpointFailed(f"{self.url}/{operation} answers {problem}; {remedy}")
                retry_after = seconds_of(response.headers.get("Retry-After"), time.time())
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise EndpointFailed(f"{self.url!r} is no address: {error}; give one such as http://host/v1") from error
            except httpx.RequestError as error:
                problem = f"{type(error).__name__} {error}".strip()
            if attempt + 1 < self._tries:
                await self._wait(attempt, retry_after, seed)
        raise NoAnswer(f"{self.url}/{operation} gave no answer in {self._tries} tries: {problem}")

    async def _wait(self, attempt: int, retry_after: float | None, seed: int) -> None:
        if retry_after is not None:
            self._pace.pause(retry_after)
        await asyncio.sleep(wait_s(attempt, retry_after, seed))


async def complete(endpoint: Endpoint, body: Mapping[str, object], seed: int) -> Answer:
    """One answer of chat/completions. Raises as `Endpoint.post`."""
    content = await endpoint.post("chat/completions", body, seed)
    if "refused" in content:
        return Answer(None, str(content["refused"]), 0, 0)
    try:
        choice = content["choices"][0]
        message, finished = choice["message"], choice.get("finish_reason")
        usage = content.get("usage") or {}
        tokens = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise EndpointFailed(
            f"{endpoint.url}/chat/completions answers something else than a chat: {type(error).__name__} {error}; "
            "check --endpoint"
        ) from error
    if finished == "content_filter" or message.get("refusal"):
        return Answer(None, "content_filter" if finished == "content_filter" else "refusal", *tokens)
    if finished == "length":
        return Answer(None, "too long", *tokens)
    text = message.get("content")
    return Answer(text, "", *tokens) if isinstance(text, str) else Answer(None, "no text", *tokens)


async def moderate(endpoint: Endpoint, model: str, texts: Sequence[str], seed: int) -> list[str]:
    """The categories for which /moderations flags any of the texts, sorted. Raises as `Endpoint.post`."""
    body = {"input": list(texts), **({"model": model} if model else {})}
    content = await endpoint.post("moderations", body, seed)
    try:
        results = content["results"]
        if len(results) != len(texts):
            raise ValueError(f"{len(results)} results for {len(texts)} texts")
        found: set[str] = set()
        for result in results:
            if result["flagged"]:
                found |= {name for name, on in (result.get("categories") or {}).items() if on} or {"flagged"}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EndpointFailed(f"{endpoint.url}/moderations answers something else than a moderation: {error}") from error
    return sorted(found)


def wait_s(attempt: int, retry_after: float | None, seed: int) -> float:
    """Before the next try: what the server asks for, or twice as long each time, spread over half of it."""
    if retry_after is not None:
        return retry_after
    spread = float(key_of(seed, attempt)[0]) / 2.0**64
    return min(WAIT_MAX_S, 2.0**attempt) * (0.5 + 0.5 * spread)


def seconds_of(retry_after: str | None, now: float) -> float | None:
    """The header as seconds: it holds a number, or a date. now: of the clock, since 1970. None for neither."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - now
        except ValueError:
            return None
    # A NaN passes no comparison.
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S) if seconds == seconds else None


def _object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        content = json.loads(response.content)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _error(content: dict[str, Any] | None) -> dict[str, Any]:
    error = (content or {}).get("error")
    return error if isinstance(error, dict) else {}


def _message(content: dict[str, Any] | None, response: httpx.Response) -> str:
    return str(_error(content).get("message") or response.text or response.reason_phrase)[:300]


def _code(content: dict[str, Any] | None) -> str:
    error = _error(content)
    return str(error.get("code") or error.get("type") or "")
