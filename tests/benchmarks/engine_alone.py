"""The engine without a gateway: texts tokenised beforehand, batches by the gateway's own policy, the same streams.

    python tests/benchmarks/engine_alone.py FOLDER --engine onnx --precision int8 --clients 1,8,64 --seconds 4

For N clients there are always N texts: those that wait for a batch to choose from, and those being computed. A stream
that has finished takes the next batch at once and hands back as many new texts as it answered. Two ways are measured,
as the gateway has two, one batch at a time with all threads, and one stream for each core; each with small and with
large batches. What the gateway is held to is the fastest of them. Prints one line of JSON: {clients: texts a second}.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
from load import read_texts
from numpy.typing import NDArray

from service.batching import Limits, share, take_batch
from service.engine import Engine, open_engine, usable_cores, vectors_of
from service.recipe.prompts import format_text
from service.recipe.spec import TOKENIZER_FILE, load_spec
from service.recipe.tokens import load_tokenizer, pad, tokenize
from service.shapes import shapes_of

# Padded tokens a batch: about what fits a core's cache, and up to four times as many.
MAX_TOKENS = (256, 512, 1024)


@dataclass(eq=False, slots=True)
class Row:
    """A tokenised text. ids: int32[n]."""

    ids: NDArray[np.int32]
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.ids)


class Work:
    """The texts of N clients, shared by the streams."""

    def __init__(self, rows: list[Row], clients: int, limits: Limits) -> None:
        self._rng, self._rows, self._limits = random.Random(0), rows, limits
        self._waiting = self._new(clients)
        self._free = limits.streams
        self._lock = threading.Lock()
        self.done = 0

    def take(self) -> list[Row]:
        """The next batch; empty while nothing waits."""
        with self._lock:
            if not self._waiting:
                return []
            waiting_tokens = sum(row.length for row in self._waiting)
            batch = take_batch(self._waiting, share(self._limits, waiting_tokens, self._free))
            taken = set(map(id, batch))
            self._waiting = [row for row in self._waiting if id(row) not in taken]
            self._free -= 1
            return batch

    def answer(self, batch: list[Row]) -> None:
        """A batch is computed: its clients send anew."""
        with self._lock:
            self._waiting += self._new(len(batch))
            self._free += 1
            self.done += len(batch)

    def _new(self, count: int) -> list[Row]:
        # Copies: the same text may wait twice.
        return [Row(row.ids) for row in self._rng.choices(self._rows, k=count)]


def rate(engine: Engine, rows: list[Row], clients: int, seconds: float, limits: Limits, pad_id: int) -> float:
    """Texts a second."""
    work = Work(rows, clients, limits)
    started = time.perf_counter()

    def stream() -> None:
        while time.perf_counter() - started < seconds:
            batch = work.take()
            if not batch:
                time.sleep(0.0005)
                continue
            width = limits.shapes.width(max(row.length for row in batch))
            tokens = pad([row.ids for row in batch], pad_id, width)
            vectors_of(engine.run(tokens), tokens)
            work.answer(batch)

    threads = [threading.Thread(target=stream) for _ in range(min(limits.streams, clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return work.done / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a model version")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    spec = load_spec(args.folder, verify=False)
    prompted = [format_text("query: " + text, spec.prompts) for text in read_texts(args.data).queries[:3000]]
    tokenizer = load_tokenizer(args.folder / TOKENIZER_FILE)
    rows = [Row(tokens.ids) for tokens in tokenize(tokenizer, prompted, spec.max_tokens)]
    random.Random(0).shuffle(rows)
    counts = [int(count) for count in args.clients.split(",")]
    best = dict.fromkeys(counts, 0.0)
    cores, shapes = usable_cores(), shapes_of(args.engine, spec.max_tokens)
    for streams in sorted({1, cores}):
        engine = open_engine(
            args.folder, spec, engine=args.engine, precision=args.precision, threads=cores, streams=streams
        )
        rate(engine, rows, max(counts), min(1.0, args.seconds), Limits(max(MAX_TOKENS), streams, shapes), spec.pad_id)
        for clients in counts:
            # A lone text makes a batch of one, whatever the limit.
            for max_tokens in MAX_TOKENS[: 1 if clients == 1 else None]:
                limits = Limits(max_tokens, streams, shapes)
                best[clients] = max(best[clients], rate(engine, rows, clients, args.seconds, limits, spec.pad_id))
        engine.close()
    print(json.dumps(best))


if __name__ == "__main__":
    main()
