"""NVIDIA Triton as an EngineHost: one or several of them, found by name, proved one by one, asked over gRPC."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from service.batching import Lane
from service.errors import (
    DeadlineExceeded,
    EngineFailed,
    EngineLost,
    Me5Error,
    Overloaded,
    SettingsError,
    UpstreamFailed,
)
from service.metrics import UpstreamMetrics
from service.recipe.golden import Precision
from service.triton_client import BatchFailed, RemoteModel
from service.triton_errors import Outcome, goes_elsewhere
from service.triton_upstream import Upstream

log = logging.getLogger("me5.triton")

# How often names are looked up again while a Triton is ready: one that was added is asked after this at most.
RESOLVE_EVERY_S = 5.0
# What refused requests are told; Triton says nothing of when its queue has room.
RETRY_AFTER_S = 1
DEFAULT_PORT = 8001

Proof = Callable[[Upstream], Awaitable[float]]


@dataclass(frozen=True)
class Target:
    """Where Tritons are: a name or an address, which may stand for many.   tls: whether they speak it."""

    host: str
    port: int
    tls: bool = False


def targets_of(urls: str) -> list[Target]:
    """ME5_TRITON_URLS as targets: `host:port`, `grpc://host:port` or `grpcs://host:port`, separated by commas."""
    found = []
    for url in filter(None, (part.strip() for part in urls.split(","))):
        try:
            parts = urlsplit(url if "://" in url else f"grpc://{url}")
            port = DEFAULT_PORT if parts.port is None else parts.port
        except ValueError:
            parts, port = urlsplit(""), 0
        if parts.scheme not in ("grpc", "grpcs") or not parts.hostname or port == 0 or parts.path or parts.username:
            raise SettingsError(
                f"ME5_TRITON_URLS: {url!r} is not host:port, grpc://host:port or grpcs://host:port (an IPv6 address in "
                "brackets); Triton's gRPC port is 8001 unless it was started otherwise"
            )
        found.append(Target(parts.hostname, port, parts.scheme == "grpcs"))
    if not found:
        raise SettingsError("ME5_ENGINE=triton needs ME5_TRITON_URLS=host:8001, or several, separated by commas")
    return found


async def addresses_of(target: Target) -> list[str]:
    """Every address behind a name, as `address:port`; none where it can't be looked up now.

    IPv4 alone where there is any: one server that has both would be counted twice.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                target.host, target.port, family=family, type=socket.SOCK_STREAM
            )
        except socket.gaierror as error:
            # Only where there is no such address: a name server that fails says nothing of IPv6 either.
            if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY):
                continue
            return []
        except (OSError, UnicodeError) as error:
            log.warning("%s can't be looked up: %s", target.host, error)
            return []
        hosts = dict.fromkeys(str(entry[4][0]) for entry in found)
        return [f"[{host}]:{target.port}" if ":" in host else f"{host}:{target.port}" for host in hosts]
    return []


class TritonPool:
    """The Tritons that some names stand for now, each asked again and again whether it is ready.

    It outlives its hosts: a proof takes the time it takes, however often the gateway asks for a host meanwhile.
    """

    def __init__(
        self, targets: Sequence[Target], model: RemoteModel, streams: int, metrics: UpstreamMetrics, proof: Proof
    ) -> None:
        self.precision: Precision = model.precision
        self.streams = streams
        self.retries = metrics.retries
        # The host that is told when none is ready any more.
        self.on_none_ready: Callable[[str], None] | None = None
        self._targets, self._model, self._metrics, self._proof = targets, model, metrics, proof
        self._upstreams: dict[str, Upstream] = {}
        self._found: dict[str, Target] = {}
        self._leaving: dict[str, tuple[Upstream, asyncio.Task[None]]] = {}
        self._turned = asyncio.Event()
        self._turn = 0
        self._resolving = asyncio.create_task(self._resolve_for_ever(), name="resolve")

    @property
    def cosine(self) -> float:
        """The smallest that a Triton was proved with."""
        return min((upstream.cosine for upstream in self._upstreams.values() if upstream.ready), default=0.0)

    async def wait_until_ready(self, wait_s: float) -> None:
        """Return once a Triton is ready. Raises EngineLost where none is in `wait_s`."""
        try:
            async with asyncio.timeout(wait_s):
                while not self.ready():
                    self._turned.clear()
                    await self._turned.wait()
        except TimeoutError as error:
            raise EngineLost(f"no Triton is ready: {self.reasons()}") from error

    def ready(self, besides: set[str] | None = None) -> list[Upstream]:
        """Those that may be asked."""
        return [each for name, each in self._upstreams.items() if each.ready and name not in (besides or ())]

    def choose(self, tried: set[str]) -> Upstream | None:
        """The one with the least to do, by turns among equals; one that was tried only where there is no other."""
        self._turn += 1
        found = self.ready(tried) or self.ready()
        return min(
            (found[(self._turn + place) % len(found)] for place in range(len(found))),
            key=lambda upstream: upstream.in_flight,
            default=None,
        )

    def reasons(self) -> str:
        """Why each is not ready, for the log."""
        if not self._upstreams:
            names = ", ".join(f"{target.host}:{target.port}" for target in self._targets)
            return f"{names} has no address yet; is ME5_TRITON_URLS right?"
        return "; ".join(f"{name}: {each.reason or 'ready'}" for name, each in sorted(self._upstreams.items()))

    async def close(self) -> None:
        """Let go of all of them."""
        self._resolving.cancel()
        await asyncio.wait({self._resolving})
        upstreams = list(self._upstreams.values())
        self._upstreams.clear()
        upstreams += [upstream for upstream, _ in self._leaving.values()]
        for _, retiring in self._leaving.values():
            retiring.cancel()
        await asyncio.gather(*(upstream.close() for upstream in upstreams))

    async def _retire(self, name: str, upstream: Upstream) -> None:
        await upstream.retire()
        del self._leaving[name]

    def _on_change(self) -> None:
        self._turned.set()
        if self.on_none_ready is not None and not self.ready():
            self.on_none_ready(f"no Triton is ready: {self.reasons()}")

    async def _resolve_for_ever(self) -> None:
        while True:
            try:
                await self._resolve()
            except Exception:
                # Whatever it is, names have to be looked up again.
                log.exception("looking up ME5_TRITON_URLS failed")
            # One that is started again may have another address, and all wait for it.
            await asyncio.sleep(RESOLVE_EVERY_S if self.ready() else RESOLVE_EVERY_S / 10)

    async def _resolve(self) -> None:
        found: dict[str, Target] = {}
        for target in self._targets:
            addresses = await addresses_of(target)
            if not addresses:
                # A name server that fails for a moment takes no Triton away.
                found |= {name: target for name, one in self._found.items() if one == target}
            found |= dict.fromkeys(addresses, target)
        self._take(found)

    def _take(self, found: dict[str, Target]) -> None:
        """Begin with what is new, and let go of what is gone."""
        self._found = found
        for name in set(self._upstreams) - set(found):
            log.info("%s is gone from its name", name)
            upstream = self._upstreams.pop(name)
            self._leaving[name] = upstream, asyncio.create_task(self._retire(name, upstream), name=f"retire {name}")
        # One that returns while it is let go of is taken when that is done.
        for name in sorted(set(found) - set(self._upstreams) - set(self._leaving)):
            self._upstreams[name] = Upstream(
                name,
                self._model,
                self._metrics,
                tls_host=found[name].host if found[name].tls else None,
                proof=self._proof,
                changed=self._on_change,
            )
        self._on_change()


class TritonHost:
    """An EngineHost that spreads batches over a pool's Tritons. `lost` resolves when none is ready."""

    name = "triton"
    device = "remote"
    remote = True
    # What Triton sends are vectors: its configuration names no other output.
    gives_states = False

    def __init__(self, pool: TritonPool) -> None:
        self.precision = pool.precision
        self.streams = pool.streams
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._pool = pool
        pool.on_none_ready = self.kill

    async def run(
        self,
        rows: Sequence[NDArray[np.int32]],
        *,
        lane: Lane,
        unit: bool = True,
        wide: bool = False,  # noqa: ARG002
        deadline: float | None = None,
        traceparent: str | None = None,
    ) -> NDArray[np.float32]:
        """As EngineHost says.

        Also raises Overloaded, DeadlineExceeded, and UpstreamFailed where two were lost and there are more.
        """
        tried: set[str] = set()
        while True:
            upstream = self._pool.choose(tried)
            if upstream is None:
                raise EngineLost(f"no Triton is ready: {self._pool.reasons()}")
            tried.add(upstream.name)
            try:
                return await upstream.run(rows, lane=lane, unit=unit, deadline=deadline, traceparent=traceparent)
            except BatchFailed as failed:
                outcome, message = failed.outcome, failed.message
            level = logging.DEBUG if outcome in ("rejected", "deadline") else logging.WARNING
            log.log(level, "%s: %d texts are %s: %s", upstream.name, len(rows), outcome, message)
            if len(tried) > 1 or not goes_elsewhere(outcome) or not self._pool.ready(tried):
                # Not from within the handler: an error that holds another's traceback is a ring.
                raise self._error_of(outcome, message, len(rows))
            self._pool.retries.inc()

    async def states(
        self,
        rows: Sequence[NDArray[np.int32]],  # noqa: ARG002
        *,
        lane: Lane,  # noqa: ARG002
        deadline: float | None = None,  # noqa: ARG002
        traceparent: str | None = None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        """Never asked, see `gives_states`."""
        raise EngineFailed("Triton gives no token states")

    def kill(self, reason: str) -> None:
        """Nothing more is asked through this; Triton goes on, and so does what it has."""
        if not self.lost.done():
            self.lost.set_result(reason)

    async def close(self) -> None:
        """The pool goes on looking, and a batch under way may still be answered."""
        self._pool.on_none_ready = None
        if not self.lost.done():
            self.lost.cancel()

    def _error_of(self, outcome: Outcome, message: str, rows: int) -> Me5Error:
        if outcome == "rejected":
            return Overloaded(
                f"Model is overloaded: Triton's queue is full; try again in {RETRY_AFTER_S} s",
                retry_after_s=RETRY_AFTER_S,
            )
        if outcome == "deadline":
            return DeadlineExceeded(waiting=rows, total=rows)
        if outcome == "lost":
            if self._pool.ready():
                return UpstreamFailed("the Triton that had this request was lost; send the request again")
            return EngineLost(f"no Triton is ready: {self._pool.reasons()}")
        return EngineFailed(message)
