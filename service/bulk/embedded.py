"""The gateway's own engine, without a gateway: the same model, proof, prompts and tokens as `serve`."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from service.api.encoding import convert, int8_scale
from service.asking import Ask, shape, without_panic
from service.batching import LANES, Lane
from service.bulk.computing import Computed, Prepared
from service.bulk.job import Wish
from service.bulk.records import BadRecord, Record
from service.bulk.windows import batches_by_tokens
from service.embedder import Embedder
from service.engine import EngineHost, usable_cores
from service.errors import EngineFailed, EngineLost, InvalidInput
from service.opening import GPU_BATCH_TOKENS
from service.recipe.prompts import PromptedText, format_text
from service.recipe.spec import MODEL_FILE, TOKENIZER_FILE, graph_file
from service.recipe.tokens import Tokens, tokenize
from service.settings import EngineName
from service.shapes import shapes_of

log = logging.getLogger("me5.bulk")

# Nobody waits behind a batch of bulk work: larger ones than the gateway's spare what each costs. me5_nano in bf16 on
# two cores, texts a second by padded tokens a batch: 384 1278, 1024 1359, 4096 1305.
CPU_BATCH_TOKENS = 1024
# As many as Triton's own limit on a batch.
REMOTE_BATCH_TOKENS = 2048
# An engine may have been killed for somebody else's memory; a batch that it dies of each time is at fault.
TRIES = 3
CACHED_WORDS = 100_000
REOPEN_WAIT_S = 120.0


class Embedded:
    """A Vectorizer of an embedder that is ready. Its batches go past the scheduler, which forms them by time."""

    exact = True

    def __init__(self, embedder: Embedder, wish: Wish) -> None:
        """Raises InvalidInput where the model can't do what is wished for."""
        self._embedder, self.model, self.wish = embedder, embedder.model, wish
        settings, spec, host = embedder.settings, embedder.model.spec, self._host()
        if wish.dimensions is not None and not 0 < wish.dimensions <= spec.dimension:
            raise InvalidInput(f"dimensions {wish.dimensions}: this model has 1 to {spec.dimension}")
        spec.prompts.prefix(wish.role, wish.instruction, wish.role_name)
        self._truncate = settings.truncate if wish.truncate is None else wish.truncate
        self._shapes = shapes_of(host.name, spec.max_tokens)
        ours = REMOTE_BATCH_TOKENS if host.remote else CPU_BATCH_TOKENS
        default = ours if host.remote or host.device.startswith("CPU") else GPU_BATCH_TOKENS
        self._max_tokens = settings.max_batch_tokens or default
        golden = np.stack([item.vector for item in self.model.golden.items])
        self.scale = int8_scale(golden, wish.dimensions) if wish.dtype == "int8" else 1.0
        self.dimension = wish.dimensions or spec.dimension
        # The slots of both lanes lead to the same engine: while it computes as many batches as it has streams, as many
        # wait at its door, so that it never waits for this process.
        lanes: Sequence[Lane] = ("bulk",) if host.remote else LANES
        _tokenize_beside_the_engine(self.model.tokenizer, on_cpu=host.device.startswith("CPU") and not host.remote)
        self._lanes = [lane for lane in lanes for _ in range(host.streams)]
        self.in_flight = len(self._lanes)

    def about(self) -> Mapping[str, object]:
        """As Vectorizer says."""
        spec, host = self.model.spec, self._host()
        graph = MODEL_FILE
        if not host.remote:
            engine: EngineName = "onnx" if host.name == "onnx" else "openvino"
            graph = graph_file(self.model.folder, spec, engine, host.precision).name
        prefix = spec.prompts.prefix(self.wish.role, self.wish.instruction, self.wish.role_name)
        return {
            "name": spec.name,
            "version": self.model.version,
            "source": spec.source,
            "graph_sha256": spec.files.get(graph),
            "tokenizer_sha256": spec.files.get(TOKENIZER_FILE),
            "prompt": prefix,
            "dimension": self.dimension,
            "int8_scale": self.scale if self.wish.dtype == "int8" else None,
            "engine": host.name,
            "precision": host.precision,
            "device": host.device,
            "batch_tokens": self._max_tokens,
            # Sums are taken in another order where several threads share one.
            "threads_a_batch": None if host.remote else max(1, self._threads() // host.streams),
            "truncate": self._truncate,
        }

    def prepare(self, records: Sequence[Record], *, keep_text: bool) -> list[Prepared | BadRecord]:
        """As Vectorizer says."""
        wish, spec = self.wish, self.model.spec
        texts = [
            format_text(record.text, spec.prompts, wish.role, instruction=wish.instruction, input_type=wish.role_name)
            for record in records
        ]
        found: list[Prepared | BadRecord] = []
        for record, tokens in zip(records, self._tokenize(texts), strict=True):
            if tokens.truncated and not self._truncate:
                found.append(BadRecord(record.line, f"{tokens.counted} tokens, the model reads {spec.max_tokens}"))
                continue
            text = record.text if keep_text else None
            found.append(Prepared(record.id, record.line, tokens.ids, len(tokens.ids), tokens.truncated, text))
        return found

    def batches(self, prepared: Sequence[Prepared]) -> list[list[int]]:
        """As Vectorizer says."""
        return batches_by_tokens([item.tokens for item in prepared], self._max_tokens, self._shapes)

    async def run(self, batch: Sequence[Prepared]) -> Computed:
        """As Vectorizer says. A batch whose engine was lost is computed by the next one, the same as before."""
        lane = self._lanes.pop()
        try:
            vectors = await self._compute([item.ids for item in batch], lane)
        finally:
            self._lanes.append(lane)
        if not np.isfinite(vectors).all():
            raise EngineFailed(f"the engine gave a vector that is not finite, near line {batch[0].line}")
        wished = shape(vectors, Ask([], dimensions=self.wish.dimensions))
        return Computed(convert(wished, self.wish.dtype, self.scale), sum(item.tokens for item in batch))

    async def _compute(self, rows: list[NDArray[np.int32]], lane: Lane) -> NDArray[np.float32]:
        for left in reversed(range(TRIES)):
            host = self._host()
            try:
                async with asyncio.timeout(self._embedder.settings.engine_timeout_s):
                    return await host.run(rows, lane=lane)
            except TimeoutError:
                host.kill("it hung")
                lost = EngineLost("the engine hung on a batch")
            except EngineLost as error:
                lost = error
            if not left:
                raise lost
            log.warning("a batch is computed again: %s", lost)
            await self._another(host)
        raise AssertionError("the last try returns or raises")

    async def _another(self, host: EngineHost) -> None:
        """Wait until the embedder has opened an engine in place of the one that was lost."""
        try:
            async with asyncio.timeout(REOPEN_WAIT_S):
                while self._host() is host or self._embedder.not_ready() is not None:
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise EngineLost(f"the engine was lost and not opened again in {REOPEN_WAIT_S:g} s") from error

    def _tokenize(self, texts: Sequence[PromptedText]) -> list[Tokens]:
        return without_panic(lambda: tokenize(self.model.tokenizer, texts, self.model.spec.max_tokens))

    def _threads(self) -> int:
        return self._embedder.settings.threads or usable_cores()

    def _host(self) -> EngineHost:
        host = self._embedder.engine
        assert host is not None
        return host


def _tokenize_beside_the_engine(tokenizer: Tokenizer, *, on_cpu: bool) -> None:
    """Have texts tokenised with the least CPU time where the engine takes every core, else as fast as may be."""
    if on_cpu:
        # Read by the library at every batch. One thread tokenises ten times what the engine computes; more of them
        # would only look for work in each other's queues: 141 in place of 156 µs a text, all that a job does counted.
        os.putenv("TOKENIZERS_PARALLELISM", "false")
    # Of words whose tokens are known already: it keeps the first so many that it meets. 200,000 texts, many languages,
    # µs a text: 0 words 105, the library's own 10,000 87, 50,000 72, 200,000 66. Memory grows by 6 MiB while it fills
    # with 50,000, 20 with 100,000, 52 with 200,000. There is no public name for it.
    words = tokenizer.model
    if hasattr(words, "_resize_cache"):
        words._resize_cache(CACHED_WORDS)
        tokenizer.model = words
