"""Gateways elsewhere: the same job, computed over HTTP by one or several of them.

A gateway forms its batches by time, of all its clients' texts: vectors differ in their last bits from run to run.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import numpy as np

from service.api.encoding import Vectors
from service.bulk.computing import Computed, Prepared
from service.bulk.job import Wish
from service.bulk.records import BadRecord, Record
from service.bulk.windows import batches_by_characters
from service.errors import GatewayRefused

log = logging.getLogger("me5.bulk")

# A request is small enough to be admitted beside others, and answered in seconds.
TEXTS_A_REQUEST, CHARACTERS_A_REQUEST = 64, 64 * 1024
# A text's fault, or a request's that is too large: found out by asking for its halves.
_REFUSALS = {400, 413, 422}
_RETRIES = {408, 429, 502, 503, 504}
PAUSE_S, PAUSE_MAX_S = 0.5, 60.0
TIMEOUT_S = 600.0
_NO_IDS = np.empty(0, dtype=np.int32)
_DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "|i1"}


@dataclass(frozen=True)
class Fleet:
    """Where the gateways are. key: sent as a bearer token.   in_flight: requests at a time to each.

    patience_s: how long a batch is offered again and again before the job ends.
    """

    urls: Sequence[str]
    key: str | None = None
    in_flight: int = 4
    patience_s: float = 600.0


class Gateways:
    """A Vectorizer of gateways that serve one and the same model."""

    exact = False

    def __init__(
        self, clients: Sequence[httpx.AsyncClient], fleet: Fleet, wish: Wish, info: Mapping[str, object]
    ) -> None:
        self._fleet, self._wish, self._info = fleet, wish, info
        self._slots: asyncio.Queue[httpx.AsyncClient] = asyncio.Queue()
        for _ in range(fleet.in_flight):
            for client in clients:
                self._slots.put_nowait(client)
        self.in_flight = fleet.in_flight * len(clients)
        self.dimension, self.scale = 0, 1.0

    async def begin(self) -> None:
        """Ask for one vector: whether a gateway takes what is wished for, and what size and scale it answers in."""
        found = await self._ask(["a"])
        if isinstance(found, str):
            raise GatewayRefused(f"the gateway refuses this job: {found}")
        self.dimension = int(found.vectors.shape[1])

    def about(self) -> Mapping[str, object]:
        """As Vectorizer says."""
        info, wish = self._info, self._wish
        return {
            "name": info["model_id"],
            "version": info["model_version"],
            "source": info["model_source"],
            "graph_sha256": info["model_sha"],
            "dimension": self.dimension,
            "int8_scale": self.scale if wish.dtype == "int8" else None,
            "engine": f"gateway ({info['engine']})",
            "precision": info["precision"],
            "device": info["device"],
        }

    def prepare(self, records: Sequence[Record], *, keep_text: bool) -> list[Prepared | BadRecord]:  # noqa: ARG002
        """As Vectorizer says: a gateway tokenises by itself."""
        return [Prepared(item.id, item.line, _NO_IDS, 0, False, item.text) for item in records]

    def batches(self, prepared: Sequence[Prepared]) -> list[list[int]]:
        """As Vectorizer says."""
        lengths = [len(item.text or "") for item in prepared]
        most = self._info["max_client_batch_size"]
        assert isinstance(most, int)
        return batches_by_characters(lengths, min(TEXTS_A_REQUEST, most), CHARACTERS_A_REQUEST)

    async def run(self, batch: Sequence[Prepared]) -> Computed:
        """As Vectorizer says. Texts that a gateway will not have are found by halving the request."""
        found = await self._ask([item.text or "" for item in batch])
        if isinstance(found, Computed):
            return found
        if len(batch) == 1:
            zeros = np.zeros((1, self.dimension), dtype=_DTYPES[self._wish.dtype])
            return Computed(zeros, 0, refused={0: f"the gateway refused it: {found}"})
        half = len(batch) // 2
        first, second = await self.run(batch[:half]), await self.run(batch[half:])
        return Computed(
            np.concatenate([first.vectors, second.vectors]),
            first.tokens + second.tokens,
            first.truncated | {half + place for place in second.truncated},
            first.refused | {half + place: reason for place, reason in second.refused.items()},
        )

    async def _ask(self, texts: list[str]) -> Computed | str:
        """What a gateway answers, or why it refuses these texts. Goes from one to another while they are busy."""
        give_up, pause_s, last = time.monotonic() + self._fleet.patience_s, PAUSE_S, ""
        while time.monotonic() < give_up:
            client = await self._slots.get()
            wait_s = 0.0
            try:
                answer = await client.post("embed", json=self._body(texts))
            except httpx.TransportError as error:
                last, wait_s = f"{client.base_url}: {error or type(error).__name__}", pause_s
            else:
                if answer.status_code == 200:
                    return self._read(answer, len(texts))
                last = f"{client.base_url} answers {answer.status_code}: {_message(answer)}"
                if answer.status_code in _REFUSALS:
                    return _message(answer)
                if answer.status_code not in _RETRIES:
                    raise GatewayRefused(last)
                wait_s = _retry_after_s(answer) or pause_s
            finally:
                # A gateway that is busy, or gone, is left alone for as long as it says; another may be free meanwhile.
                asyncio.get_running_loop().call_later(min(wait_s, PAUSE_MAX_S), self._slots.put_nowait, client)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)
        raise GatewayRefused(f"no gateway took a request in {self._fleet.patience_s:g} s; the last one: {last}")

    def _body(self, texts: list[str]) -> dict[str, object]:
        wish = self._wish
        body = {
            "inputs": texts,
            "input_type": wish.role_name,
            "instruction": wish.instruction,
            "truncate": wish.truncate,
            "dimensions": wish.dimensions,
            "output_dtype": wish.dtype,
        }
        return {name: value for name, value in body.items() if value is not None}

    def _read(self, answer: httpx.Response, count: int) -> Computed:
        wish = self._wish
        rows, dimension = map(int, answer.headers["x-me5-shape"].split(","))
        if rows != count or answer.headers["x-me5-dtype"] != wish.dtype:
            raise GatewayRefused(f"{answer.url} answered {rows} rows of {answer.headers['x-me5-dtype']}, not {count}")
        if wish.dtype == "int8":
            self.scale = float(answer.headers["x-me5-scale"])
        vectors: Vectors = np.frombuffer(answer.content, dtype=_DTYPES[wish.dtype]).reshape(rows, dimension)
        truncated = places_of(answer.headers.get("x-me5-truncated-inputs", ""))
        return Computed(vectors, int(answer.headers["x-compute-tokens"]), truncated)


@asynccontextmanager
async def opened_gateways(fleet: Fleet, wish: Wish) -> AsyncIterator[Gateways]:
    """The gateways of a fleet. Raises GatewayRefused where they can't be reached, or serve different models."""
    headers = {"accept": "application/octet-stream", "x-me5-lane": "bulk"}
    if fleet.key is not None:
        headers["authorization"] = f"Bearer {fleet.key}"
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=f"{url.rstrip('/')}/", headers=headers, timeout=TIMEOUT_S)
            )
            for url in fleet.urls
        ]
        infos = [await _info(client) for client in clients]
        names = ("model_id", "model_version", "model_sha")
        if len({tuple(info[name] for name in names) for info in infos}) > 1:
            served = ", ".join(
                f"{url}: {info['model_id']}/{info['model_version']}"
                for url, info in zip(fleet.urls, infos, strict=True)
            )
            raise GatewayRefused(f"the gateways serve different models ({served}); name those of one model")
        gateways = Gateways(clients, fleet, wish, infos[0])
        await gateways.begin()
        yield gateways


def places_of(text: str) -> set[int]:
    """ "0-2,7" → {0, 1, 2, 7}: the inputs that a gateway's header names."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found.update(range(int(first), int(last or first) + 1))
    return found


async def _info(client: httpx.AsyncClient) -> dict[str, object]:
    try:
        answer = await client.get("info", headers={"accept": "application/json"})
    except httpx.TransportError as error:
        raise GatewayRefused(f"no gateway at {client.base_url}: {error or type(error).__name__}") from error
    if answer.status_code != 200:
        raise GatewayRefused(f"{client.base_url}info answers {answer.status_code}: {_message(answer)}")
    found: dict[str, object] = answer.json()
    return found


def _message(answer: httpx.Response) -> str:
    """The gateway's own sentence."""
    try:
        found = answer.json()
        return str(found.get("error", found) if isinstance(found, dict) else found)[:500]
    except ValueError:
        return answer.text[:500] or answer.reason_phrase


def _retry_after_s(answer: httpx.Response) -> float | None:
    try:
        seconds = float(answer.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
