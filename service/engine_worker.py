"""The engine's own process: python -m service.engine_worker FD, started and ended by service/engine_process.py.

The descriptor is the control channel: a line of JSON comes in, EngineConfig and each slot's lane, and with it the
slots' descriptors; a line with what was opened goes out, and its end means that the gateway is gone. A slot is a thread
that reads a batch, computes it and writes its vectors.

A batch:   REQUEST (flags, rows, dimension), int32 lengths[rows], int32 ids, one row after another.
An answer: ANSWER (failed, rows or bytes, dimension), float32[rows, dimension], or the error's words in UTF-8. With the
           flag STATES the rows are those of the tokens, one text's after another's, and as wide as the layers are.
All in the machine's own byte order: both ends are one program on one machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.engine import Engine, EngineConfig, open_engine, vectors_of
from service.errors import Me5Error, SettingsError
from service.recipe.spec import ModelSpec, graph_file, graph_files, load_spec, verify_files
from service.recipe.tokens import pad
from service.shapes import Shapes, shapes_of

REQUEST = struct.Struct("=III")
ANSWER = struct.Struct("=III")
UNIT, WIDE, STATES = 1, 2, 4

ERROR_BYTES_MAX = 4000
ORDER_BYTES_MAX = 65536
# Linux passes 253 with one message (SCM_MAX_FD); of more slots there are more messages.
DESCRIPTORS_MAX = 250
# prctl(2)
PR_SET_PDEATHSIG = 1
# Bulk work gives way to whoever else wants the cores: the queries' threads, the gateway's loop and its tokenizers.
BULK_NICENESS = 5

Open = Callable[[EngineConfig, ModelSpec], tuple[Engine, Engine]]


def open_engines(config: EngineConfig, spec: ModelSpec) -> tuple[Engine, Engine]:
    """The engine for a lone batch, with every thread, and the one for `streams` batches at a time.

    One and the same where there is one stream: a GPU, or a single core. Raises ModelFileError where the graph's hash
    is not the spec's.
    """
    folder, cache = Path(config.folder), None if config.cache is None else Path(config.cache)
    graph = graph_file(folder, spec, config.engine, config.precision)

    def opened(streams: int) -> Engine:
        return open_engine(
            folder,
            spec,
            engine=config.engine,
            precision=config.precision,
            device=config.device,
            threads=config.threads,
            streams=streams,
            cache=cache,
        )

    # Half a gigabyte takes a third of a second to hash; it is opened meanwhile.
    with ThreadPoolExecutor(1, "verify") as pool:
        verified = pool.submit(verify_files, folder, spec, graph_files(spec, graph.name))
        try:
            wide = opened(1)
            narrow = wide if config.streams == 1 else opened(config.streams)
        except Exception:
            # An engine that can't open a damaged file says less of it than its hash does.
            verified.result()
            raise
        verified.result()
    return wide, narrow


def main(arguments: list[str], open_both: Open = open_engines) -> None:
    """Open the engines the control channel asks for, and serve every slot until the gateway is gone."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # A signal for the whole group (Ctrl-C, a supervisor) is the gateway's to answer: it still needs its engine.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_with_the_parent()
    _offer_to_the_oom_killer()
    control = socket.socket(fileno=int(arguments[0]))
    # Of a gateway that has gone nothing is opened, and nobody is told; it may go without reading what it was told.
    with contextlib.suppress(ConnectionError):
        _serve(control, open_both)
    # A thread may sit in an engine's code for ever; nobody waits for it.
    os._exit(0)


def _serve(control: socket.socket, open_both: Open) -> None:
    """Until the gateway is gone."""
    try:
        ordered = _receive_order(control)
        if ordered is None:
            return
        config, slots = ordered
        spec = load_spec(Path(config.folder), verify=False)
        engines = open_both(config, spec)
    except Exception as error:
        kind = type(error).__name__ if isinstance(error, Me5Error) else "ModelFileError"
        message = error.message if isinstance(error, Me5Error) else f"the engine can't be opened: {error!r}"
        control.sendall(json.dumps({"error": kind, "message": message}).encode() + b"\n")
        return
    about = {name: getattr(engines[1], name) for name in ("name", "precision", "device", "gives_states")}
    shapes = shapes_of(engines[1].name, spec.max_tokens)
    for channel, lane in slots:
        served = _Served(engines, spec.pad_id, shapes, bulk=lane == "bulk")
        threading.Thread(target=_serve_slot_to_its_end, args=(channel, served), daemon=True).start()
    control.sendall(json.dumps(about).encode() + b"\n")
    control.recv(1)


def _receive_order(control: socket.socket) -> tuple[EngineConfig, list[tuple[socket.socket, str]]] | None:
    """What to open, and the slots with their lanes; None where the gateway has gone.

    Raises SettingsError where this process may not have so many descriptors.
    """
    words, descriptors = b"", list[int]()
    while not words.endswith(b"\n"):
        said, more, flags, _ = socket.recv_fds(control, ORDER_BYTES_MAX, DESCRIPTORS_MAX)
        if not said:
            return None
        if flags & socket.MSG_CTRUNC:
            raise SettingsError("the engine's process can't have a descriptor for each slot; raise ulimit -n")
        words += said
        descriptors += more
    # It may have gone between its last word and the moment from which this process ends with it.
    with contextlib.suppress(BlockingIOError):
        if not control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            return None
    order = json.loads(words)
    slots = [socket.socket(fileno=number) for number in descriptors]
    return EngineConfig(**order["config"]), list(zip(slots, order["slots"], strict=True))


@dataclass(frozen=True)
class _Served:
    """What a slot computes with."""

    engines: tuple[Engine, Engine]
    pad_id: int
    shapes: Shapes
    bulk: bool


def _serve_slot_to_its_end(channel: socket.socket, served: _Served) -> None:
    with contextlib.suppress(ConnectionError):
        _serve_slot(channel, served)


def _serve_slot(channel: socket.socket, served: _Served) -> None:
    if served.bulk and sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BULK_NICENESS)
    wide, narrow = served.engines
    while True:
        header = _receive(channel, REQUEST.size)
        if header is None:
            return
        flags, rows, dimension = REQUEST.unpack(header)
        lengths = np.frombuffer(_receive(channel, 4 * rows) or b"", dtype=np.int32)
        ids = np.frombuffer(_receive(channel, 4 * int(lengths.sum())) or b"", dtype=np.int32)
        try:
            batch = pad(np.split(ids, np.cumsum(lengths)[:-1]), served.pad_id, served.shapes.width(int(lengths.max())))
            engine = wide if flags & WIDE else narrow
            unit = bool(flags & UNIT)
            if flags & STATES:
                rows = batch.tokens
                vectors = engine.states(batch)[batch.mask.astype(bool)]
            else:
                vectors = vectors_of(engine.run(batch, unit=unit), batch, unit=unit)
            if vectors.shape != (rows, dimension):
                raise ValueError(f"the engine gave an array of shape {vectors.shape}, wanted {(rows, dimension)}")
        except BaseException as error:
            # Whatever an engine raises, a panic of its native code included: this batch failed, the slot lives on.
            words = repr(error).encode("utf-8", "replace")[:ERROR_BYTES_MAX]
            channel.sendall(ANSWER.pack(1, len(words), 0) + words)
        else:
            channel.sendall(ANSWER.pack(0, rows, dimension))
            channel.sendall(np.ascontiguousarray(vectors, dtype=np.float32).data)


def _receive(channel: socket.socket, size: int) -> bytes | None:
    """Exactly so many bytes, or None where the other end is closed."""
    received = bytearray(size)
    view = memoryview(received)
    while view:
        count = channel.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return bytes(received)


def _end_with_the_parent() -> None:
    """The control channel tells of the gateway's end, but not to an engine that hangs with the interpreter's lock."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _offer_to_the_oom_killer() -> None:
    """Where memory runs out, the engine goes and the gateway stays to start another."""
    try:
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    except OSError:
        return


if __name__ == "__main__":
    main(sys.argv[1:])
