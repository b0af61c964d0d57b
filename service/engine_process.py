"""The gateway's side of the engine's process: start it, hand it batches, notice its end.

A process of its own, because native code fails in ways that no `except` sees: it crashes, hangs, or is killed for the
memory it took. The gateway outlives all three, answers who waited, and starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from service import errors
from service.batching import LANES, Lane
from service.engine import EngineConfig, Widths
from service.engine_start import WORKER, Started, start_worker
from service.engine_worker import ANSWER, DESCRIPTORS_MAX, ERROR_BYTES_MAX, REQUEST, STATES, UNIT, WIDE
from service.errors import EngineFailed, EngineLost, ModelFileError, StartupError
from service.recipe.golden import Precision

log = logging.getLogger("me5.engine_process")

# A model of two gigabytes is read and compiled in far less.
OPEN_TIMEOUT_S = 300.0
# Killed processes go at once; one in an uninterruptible read of a dead disk does not, and is not waited for.
END_TIMEOUT_S = 5.0
# Holds the vectors of any batch of short texts, so that a slot is not kept waiting for the event loop.
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Ordered:
    """An engine's process that was told what to open, and the gateway's ends of its slots."""

    config: EngineConfig
    started: Started
    slots: dict[Lane, list[socket.socket]]


def order(config: EngineConfig, started: Started) -> Ordered:
    """Tell a process that was started which engines to open. Doesn't wait: EngineProcess.opened does.

    Raises EngineLost, and ends the process, where there are no descriptors for its slots.
    """
    slots: dict[Lane, list[socket.socket]] = {lane: [] for lane in LANES}
    theirs: list[socket.socket] = []
    try:
        for lane in LANES:
            for _ in range(config.streams):
                here, there = socket.socketpair()
                slots[lane].append(here)
                theirs.append(there)
                for end in (here, there):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
                here.setblocking(False)
        _send_order(config, started.control, theirs)
    except OSError as error:
        started.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.process.wait(END_TIMEOUT_S)
        for channel in (started.control, *(slot for found in slots.values() for slot in found)):
            channel.close()
        raise EngineLost(f"the engine's process can't be given its slots: {error}") from error
    finally:
        for end in theirs:
            end.close()
    started.control.setblocking(False)
    return Ordered(config, started, slots)


def _send_order(config: EngineConfig, control: socket.socket, slots: Sequence[socket.socket]) -> None:
    lanes = [lane for lane in LANES for _ in range(config.streams)]
    parts = [slots[first : first + DESCRIPTORS_MAX] for first in range(0, len(slots), DESCRIPTORS_MAX)]
    words = [json.dumps({"config": asdict(config), "slots": lanes}).encode(), *(b" " for _ in parts[1:])]
    words[-1] += b"\n"
    # One that has ended is noticed by whoever waits for its answer.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for said, ends in zip(words, parts, strict=True):
            socket.send_fds(control, [said], [end.fileno() for end in ends])


class EngineProcess:
    """An EngineHost: one child process with `streams` slots for each lane."""

    remote = False

    def __init__(self, ordered: Ordered, *, widths: Widths) -> None:
        config = ordered.config
        self.name: str = config.engine
        self.precision: Precision = config.precision
        self.device: str = config.device
        self.gives_states = False
        self.streams = config.streams
        self.pid = ordered.started.process.pid
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._process = ordered.started.process
        self._control = ordered.started.control
        self._free = {lane: list(found) for lane, found in ordered.slots.items()}
        self._slots = [slot for found in ordered.slots.values() for slot in found]
        self._widths = widths
        self._killed_for: str | None = None
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, config: EngineConfig, *, widths: Widths, command: Sequence[str] = WORKER) -> EngineProcess:
        """Start the process and wait until its engines are open. Raises as `opened`, and EngineLost where none starts.

        On the thread that is to keep it: the process ends with it.
        """
        try:
            started = start_worker(command)
        except OSError as error:
            raise EngineLost(f"the engine's process can't be started: {error}") from error
        return await cls.opened(order(config, started), widths=widths)

    @classmethod
    async def opened(cls, ordered: Ordered, *, widths: Widths) -> EngineProcess:
        """Wait until the engines of a process are open.

        Raises ModelFileError or SettingsError as the engine does, and EngineLost where the process ends or hangs.
        """
        host = cls(ordered, widths=widths)
        try:
            await host._begin()
        except BaseException:
            host.kill("it did not open")
            await host.close()
            raise
        return host

    async def run(
        self,
        rows: Sequence[NDArray[np.int32]],
        *,
        lane: Lane,
        unit: bool = True,
        wide: bool = False,
        deadline: float | None = None,  # noqa: ARG002
        traceparent: str | None = None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        """As EngineHost says. A batch that runs is not stopped for its deadline."""
        flags = (UNIT if unit else 0) | (WIDE if wide else 0)
        return await self._ask(rows, lane, flags, len(rows), self._widths.vector)

    async def states(
        self,
        rows: Sequence[NDArray[np.int32]],
        *,
        lane: Lane,
        deadline: float | None = None,  # noqa: ARG002
        traceparent: str | None = None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        """As EngineHost says."""
        return await self._ask(rows, lane, STATES, sum(map(len, rows)), self._widths.state)

    async def _ask(
        self, rows: Sequence[NDArray[np.int32]], lane: Lane, flags: int, expected: int, dimension: int
    ) -> NDArray[np.float32]:
        """The engine's answer to a batch: `expected` rows of `dimension` numbers."""
        loop = asyncio.get_running_loop()
        slot = self._free[lane].pop()
        lengths = np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))
        frame = b"".join((REQUEST.pack(flags, len(rows), dimension), lengths.tobytes(), np.concatenate(rows).tobytes()))
        try:
            await loop.sock_sendall(slot, frame)
            failed, count, width = ANSWER.unpack(await self._receive(slot, ANSWER.size))
            if failed:
                words = await self._receive(slot, min(count, ERROR_BYTES_MAX))
                self._free[lane].append(slot)
                raise EngineFailed(words.decode("utf-8", "replace"))
            if (count, width) != (expected, dimension):
                raise EngineLost(f"the engine's process answered {count} × {width}, not {expected} × {dimension}")
            vectors = np.empty((count, width), dtype=np.float32)
            await self._receive_into(slot, vectors.data.cast("B"))
        except (OSError, ValueError) as error:
            raise EngineLost(f"the engine's process is gone ({self._killed_for or error})") from error
        self._free[lane].append(slot)
        return vectors

    def kill(self, reason: str) -> None:
        """As EngineHost says."""
        self._killed_for = self._killed_for or reason
        self._process.kill()

    async def close(self) -> None:
        """As EngineHost says."""
        self.kill("closed")
        end: asyncio.Task[None] | asyncio.Task[str] = self._watch or asyncio.create_task(self._how_it_ended())
        await asyncio.wait({end}, timeout=END_TIMEOUT_S)
        end.cancel()
        for channel in (self._control, *self._slots):
            channel.close()

    async def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        reply = b""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                while not reply.endswith(b"\n"):
                    part = await loop.sock_recv(self._control, 65536)
                    if not part:
                        raise EngineLost(f"the engine's process {await self._how_it_ended()} while it opened the model")
                    reply += part
        except TimeoutError as error:
            raise EngineLost(f"the engine did not open in {OPEN_TIMEOUT_S:g} s") from error
        except OSError as error:
            raise EngineLost(f"the engine's process {await self._how_it_ended()} ({error})") from error
        about = json.loads(reply)
        if "error" in about:
            kind = getattr(errors, about["error"], ModelFileError)
            raise (kind if issubclass(kind, StartupError) else ModelFileError)(about["message"])
        self.name, self.precision, self.device = about["name"], about["precision"], about["device"]
        self.gives_states = about["gives_states"]
        self._watch = asyncio.create_task(self._watch_end(), name="engine process")

    async def _watch_end(self) -> None:
        """The control channel says nothing more; its end is the process's."""
        try:
            await asyncio.get_running_loop().sock_recv(self._control, 1)
        except OSError as error:
            log.debug("control channel: %s", error)
        how = await self._how_it_ended()
        if not self.lost.done():
            self.lost.set_result(self._killed_for or how)

    async def _how_it_ended(self) -> str:
        try:
            code = await asyncio.to_thread(self._process.wait, END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return "closed its channel and did not end"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"

    async def _receive(self, slot: socket.socket, size: int) -> bytes:
        received = bytearray(size)
        await self._receive_into(slot, memoryview(received))
        return bytes(received)

    async def _receive_into(self, slot: socket.socket, view: memoryview) -> None:
        loop = asyncio.get_running_loop()
        while view:
            count = await loop.sock_recv_into(slot, view)
            if not count:
                raise ConnectionResetError("its channel closed")
            view = view[count:]
