"""The story of one request: prompt → tokens → admission → batch → engine → vectors."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.admission import Promises, guess_tokens, overloaded, refusal
from service.asking import (
    Answer,
    Ask,
    Read,
    answer_of,
    check_weight,
    parts_of,
    role_label,
    tokens_of,
    without_panic,
)
from service.batching import LANES, Lane, lane_of
from service.engine import Choice, EngineConfig, EngineHost, Widths
from service.engine_process import EngineProcess
from service.errors import (
    DeadlineExceeded,
    EngineFailed,
    EngineLost,
    GoldenMismatch,
    InvalidInput,
    Me5Error,
    ModelFileError,
    StartupError,
    TextTooLong,
)
from service.jobs import Job
from service.memory import Predicted, check_memory, check_remote_memory, memory_limit
from service.metrics import Metrics, UpstreamMetrics
from service.model import read_model
from service.opening import candidates_for, check_triton, config_of, limits_of, prove_host
from service.recipe.golden import prove
from service.recipe.spec import GRAPH_FILES, graph_files, verify_files
from service.recipe.tokens import Tokens
from service.scheduler import REOPEN_PAUSE_MAX_S, Scheduler
from service.settings import Settings

if TYPE_CHECKING:
    # Its package is there only where Triton is the engine.
    from service.engine_triton import TritonPool
    from service.tracing import Tracing

log = logging.getLogger("me5.embedder")

T = TypeVar("T")

# Texts up to this many characters are tokenised on the event loop: it takes less time than handing them to a thread.
INLINE_CHARS_MAX = 1000

# A Triton that is back is to be used within two seconds.
RECONNECT_PAUSE_S = 0.25
# What a command waits for one: it has to be proved, which may take as long as this.
READY_WAIT_S = 40.0

OpenHost = Callable[[EngineConfig, Widths], Awaitable[EngineHost]]


async def open_process(config: EngineConfig, widths: Widths) -> EngineHost:
    """Engines in a process of their own."""
    return await EngineProcess.open(config, widths=widths)


class Embedder:
    """One model version behind one scheduler. Built without computing anything; `start` opens and proves the engine.

    open_host: opens the engines of a config, which give vectors and states of these widths.
    """

    def __init__(self, settings: Settings, metrics: Metrics, *, open_host: OpenHost = open_process) -> None:
        self.settings = settings
        self.metrics = metrics
        self.model = read_model(settings.model, settings.model_repo)
        self.engine: EngineHost | None = None
        self.proof_cosine = 0.0
        # What the gateway and its engine may take at their worst.
        self.memory: Predicted | None = None
        self.draining = False
        self._open_host = open_host
        self._choice: Choice | None = None
        # Of a gateway whose engine is elsewhere.
        self._pool: TritonPool | None = None
        self._upstreams = UpstreamMetrics(metrics.registry) if settings.engine == "triton" else None
        if self._upstreams is not None:
            check_triton(settings, self.model)
        self._tokenizers = ThreadPoolExecutor(2, "tokenize")
        self._promises = {lane: Promises() for lane in LANES}
        self._scheduler = Scheduler(
            self._open_again,
            # Two Tritons may be tried, and each has this long.
            engine_timeout_s=settings.engine_timeout_s * 2 + 1 if self._upstreams else settings.engine_timeout_s,
            engine_failures=settings.engine_failures,
            metrics=metrics,
            # Asking whether a Triton is back costs nothing; opening a model of its own does.
            reopen_pause_max_s=RECONNECT_PAUSE_S if self._upstreams else REOPEN_PAUSE_MAX_S,
        )

    async def start(self) -> None:
        """Begin to serve on the best engine that passes the golden proof. Raises StartupError where none does."""
        if self._scheduler.state != "starting":
            return
        folder, spec = self.model.folder, self.model.spec
        # The graph is checked by the process that opens it.
        large = graph_files(spec, *GRAPH_FILES)
        verify_files(folder, spec, [name for name in spec.files if name not in large])
        if self._upstreams is not None:
            await self._start_elsewhere()
            return
        candidates = candidates_for(self.settings, spec)
        for left, choice in enumerate(candidates, start=1 - len(candidates)):
            host: EngineHost | None = None
            try:
                host = self.engine = await self._open_while_reading(*self._config(choice))
                self._scheduler.start(host, limits_of(self.settings, spec, host))
                cosine = prove(self.model.golden, await self._golden_vectors(), host.precision)
            except (GoldenMismatch, ModelFileError, EngineFailed, EngineLost) as error:
                if host is not None:
                    await host.close()
                # One that ended over a damaged file says less of it than its hash does.
                await asyncio.to_thread(verify_files, folder, spec)
                # Another engine would not read the tokenizer any better.
                if left == 0 or self.model.reading.exception() is not None:
                    raise error if isinstance(error, StartupError) else GoldenMismatch(error.message) from error
                log.warning("%s is not used: %s", choice, error)
            else:
                self._choice, self.proof_cosine = choice, cosine
                break
        self._scheduler.state = "ready"
        self._announce()

    async def _start_elsewhere(self) -> None:
        """Begin to serve on Triton; while there is none, /readyz is red and says so."""
        from service.opening_triton import remote_limits

        limits = remote_limits(self.settings, self.model)
        tokenizer = await asyncio.wrap_future(self.model.reading)
        self.memory = check_remote_memory(
            self.settings,
            self.model.spec,
            limits,
            vocabulary=tokenizer.get_vocab_size(),
            limit_bytes=memory_limit(),
        )
        try:
            host = await self._open_again()
        except EngineLost as error:
            log.warning("%s; /readyz is red until there is one", error)
            self._scheduler.wait_for_host(limits, error.message)
        else:
            self._scheduler.start(host, limits)
            self._scheduler.state = "ready"

    def _announce(self) -> None:
        about = self.about()
        self.metrics.model.clear()
        self.metrics.model.info(about)
        log.info("serving %(name)s/%(version)s on %(engine)s %(precision)s (%(device)s)", about)

    def about(self) -> dict[str, str]:
        """What is served and what computes it, for /info, metrics and the log."""
        engine = self.engine
        return {
            "name": self.model.spec.name,
            "version": self.model.version,
            "source": self.model.spec.source,
            "engine": engine.name if engine else self.settings.engine,
            "precision": engine.precision if engine else self.settings.precision,
            "device": engine.device if engine else "none",
            "golden_source": self.model.golden.source,
        }

    def trace_with(self, tracing: Tracing) -> None:
        """Have the batches traced that carry traced requests."""
        self._scheduler.trace_batch = tracing.batch

    def refuse_all(self) -> None:
        """Answer every request that waits, and every one that comes, with ShuttingDown."""
        self._scheduler.refuse_all()

    async def stop(self) -> None:
        """End the scheduler and the threads; requests that still wait get ShuttingDown."""
        await self._scheduler.stop()
        if self._pool is not None:
            await self._pool.close()
        self._tokenizers.shutdown(wait=False, cancel_futures=True)

    def not_ready(self) -> str | None:
        """Why /readyz is red, or None while it is green."""
        if self.draining:
            return "draining: the process got the signal to end"
        return None if self._scheduler.state == "ready" else f"engine {self._scheduler.state}"

    async def wait_until_ready(self) -> None:
        """Return once requests would be answered. Raises EngineLost where Triton is not ready in READY_WAIT_S."""
        give_up = time.monotonic() + READY_WAIT_S
        while self.not_ready() is not None:
            if time.monotonic() > give_up:
                assert self._pool is not None
                raise EngineLost(f"no Triton is ready: {self._pool.reasons()}")
            await asyncio.sleep(0.05)

    async def embed(self, ask: Ask) -> Answer:
        """Vectors for a request. Raises a Me5Error that says what the caller, or the operator, can do."""
        parts = self._check(ask)
        started = time.monotonic()
        guess = sum(guess_tokens(part.inputs, self.model.spec.max_tokens) for part in parts)
        if ask.caller is not None:
            ask.caller.expect(sum(len(part.inputs) for part in parts), guess, started)
        lane = ask.lane or lane_of(ask.role or self.settings.default_role, guess)
        self._admit(ask, lane, guess)
        if sum(len(item) for part in parts for item in part.inputs) <= INLINE_CHARS_MAX:
            read = without_panic(lambda: tokens_of(self.model, self.settings.default_role, parts))
        else:
            read = await self._tokenize_in_thread(ask, parts, lane, guess)
        tokens, roles = read.tokens, read.roles
        tokenize_s = time.monotonic() - started
        self.metrics.tokenize_duration_s.labels(lane).observe(tokenize_s)
        if ask.trace is not None:
            ask.trace.tokenised(
                started,
                tokenize_s,
                role=role_label(roles),
                tokens=[len(item.ids) for item in tokens],
                truncated=sum(item.truncated for item in tokens),
            )
        total = sum(len(item.ids) for item in tokens)
        try:
            self._check_lengths(ask, tokens)
        except TextTooLong:
            if ask.caller is not None:
                ask.caller.penalise(total, time.monotonic())
            raise
        lane = ask.lane or lane_of(role_label(roles), total)
        self._admit(ask, lane, total)
        starts = None if ask.hold_states is None else np.cumsum([0, *(len(item.ids) for item in tokens[:-1])])
        rows = len(tokens) if starts is None else total
        spec = self.model.spec
        width = spec.dimension if ask.hold_states is None else spec.states_dimension
        if ask.hold_states is not None:
            ask.hold_states(rows * width * 4)
        job = Job(
            lane=lane,
            client=ask.client,
            tokens=total,
            deadline=started + (ask.timeout_s or self._default_timeout_s(total)),
            unit=ask.normalize,
            vectors=np.empty((rows, width), dtype=np.float32),
            done=asyncio.get_running_loop().create_future(),
            remaining=len(tokens),
            trace=ask.trace,
            starts=starts,
        )
        if ask.caller is not None:
            ask.caller.charge(total, time.monotonic())
        try:
            self._scheduler.submit(job, [item.ids for item in tokens])
            if ask.trace is not None:
                ask.trace.queued(time.monotonic(), lane, len(tokens))
            await job.done
        except Me5Error as error:
            # The job holds the error, and the error this frame: a ring that would keep every text.
            del job
            if ask.caller is not None:
                ask.caller.refund(total, error, time.monotonic())
            raise

        return answer_of(
            ask,
            read,
            job.vectors,
            lane=lane,
            tokenize_s=tokenize_s,
            queue_s=job.queue_s / len(tokens),
            engine_s=job.engine_s / len(tokens),
        )

    async def beside_the_loop(self, work: Callable[[], T]) -> T:
        """Do what takes long in a tokenizer's thread: as many at once as there are such threads, and no more."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizers, without_panic, work)

    async def _tokenize_in_thread(self, ask: Ask, parts: list[Ask], lane: Lane, guess: int) -> Read:
        # Counted as queued meanwhile: a crowd can't slip in between the guess and the count.
        self._scheduler.reserve(lane, ask.client, guess)
        try:
            async with asyncio.timeout(ask.timeout_s or self._default_timeout_s(guess)):
                return await self.beside_the_loop(lambda: tokens_of(self.model, self.settings.default_role, parts))
        except TimeoutError as error:
            self.metrics.rejected_requests.labels("deadline").inc()
            raise DeadlineExceeded(waiting=len(ask.inputs), total=len(ask.inputs)) from error
        finally:
            self._scheduler.reserve(lane, ask.client, -guess)

    def _check(self, ask: Ask) -> list[Ask]:
        """The request's parts, if what can be known of it without tokens is within its limits."""
        spec, limit, default_role = self.model.spec, self.settings.max_inputs, self.settings.default_role
        count = len(ask.inputs) + (len(ask.also.inputs) if ask.also else 0)
        if count > limit:
            raise InvalidInput(
                f"batch size {count} > maximum allowed batch size {limit}; split the request, or raise ME5_MAX_INPUTS"
            )
        if ask.dimensions is not None and not 0 < ask.dimensions <= spec.dimension:
            raise InvalidInput(f"`dimensions` is {ask.dimensions}, this model has 1 to {spec.dimension}")
        if not ask.normalize and spec.pooling == "graph" and spec.raw_output is None:
            raise InvalidInput("this model's graph gives vectors of length one only; leave `normalize` out")
        if ask.hold_states is not None and self.engine is not None and not self.engine.gives_states:
            raise InvalidInput(
                f"{spec.name} on {self.engine.name} gives vectors alone, no token states; serve it with "
                "ME5_ENGINE=onnx or openvino, or a version whose graph ends in token states (pooling: mean)"
            )
        check_weight(ask, spec.prompts, default_role)
        parts = parts_of(ask, default_role)
        for part in parts:
            # Refused here, before a thread is asked.
            spec.prompts.prefix(part.role or default_role, part.instruction, part.input_type)
        return parts

    def _check_lengths(self, ask: Ask, tokens: list[Tokens]) -> None:
        truncate = self.settings.truncate if ask.truncate is None else ask.truncate
        long = [index for index, item in enumerate(tokens) if item.truncated]
        if long and not truncate:
            rows = len(ask.inputs) if ask.instruction_weight is not None else len(tokens)
            raise TextTooLong(
                tokens=tokens[long[0]].counted,
                limit=min(self.model.spec.max_tokens, ask.max_tokens or self.model.spec.max_tokens),
                indices=sorted({index % rows for index in long}),
                status=int(self.settings.too_long_status),
            )

    def _admit(self, ask: Ask, lane: Lane, tokens: int) -> None:
        queued, rate = self._scheduler.queued[lane], self._scheduler.rates[lane]
        refused = refusal(
            queued,
            ask.client,
            tokens,
            limit=self.settings.max_queued_tokens,
            tokens_per_s=rate.tokens_per_s if rate.is_settled else 0.0,
            timeout_s=ask.timeout_s or self._default_timeout_s(tokens),
        )
        if not queued:
            self._promises[lane].forget()
        if refused is not None:
            self.metrics.rejected_requests.labels("overloaded").inc()
            wait_s = self._promises[lane].retry_after_s(refused.excess, tokens, rate.tokens_per_s, time.monotonic())
            raise overloaded(lane, queued.total(), tokens, refused, wait_s)

    def _default_timeout_s(self, tokens: int) -> float:
        return self.settings.deadline_s + tokens / self.settings.deadline_tokens_per_s

    def _config(self, choice: Choice) -> tuple[EngineConfig, Widths]:
        spec = self.model.spec
        return config_of(self.settings, self.model.folder, choice), Widths(spec.dimension, spec.states_dimension)

    async def _open_while_reading(self, config: EngineConfig, widths: Widths) -> EngineHost:
        """Open the engine's host beside the tokenizer, whose size says what memory the gateway will take."""
        opening = asyncio.ensure_future(self._open_host(config, widths))
        # Its process is under way before the tokenizer's thread keeps this one from everything else.
        await asyncio.sleep(0)
        try:
            tokenizer = await asyncio.wrap_future(self.model.reading)
            self.memory = check_memory(
                self.settings,
                self.model.spec,
                config,
                vocabulary=tokenizer.get_vocab_size(),
                limit_bytes=memory_limit(),
            )
            return await opening
        except BaseException:
            opening.cancel()
            await asyncio.wait({opening})
            if not opening.cancelled() and opening.exception() is None:
                await opening.result().close()
            raise

    async def _open_again(self) -> EngineHost:
        """A fresh engine in place of one that was lost, proved without the scheduler, which waits for it."""
        if self._upstreams is not None:
            from service.opening_triton import open_host, open_pool

            self._pool = self._pool or await open_pool(self.settings, self.model, self._upstreams)
            remote = await open_host(self._pool)
            self.engine, self.proof_cosine = remote, self._pool.cosine
            self._announce()
            return remote
        assert self._choice is not None
        host = await self._open_host(*self._config(self._choice))
        try:
            async with asyncio.timeout(self.settings.engine_timeout_s):
                await prove_host(host, self.model)
        except BaseException as error:
            await host.close()
            if isinstance(error, TimeoutError):
                raise EngineLost("the engine hung on the golden texts") from error
            raise
        self.engine = host
        return host

    async def _golden_vectors(self) -> NDArray[np.float32]:
        """The golden texts through the whole path, [N, D]: one request per role and instruction, one after another.

        The queue is empty before each, so no limit can refuse it.
        """
        items = self.model.golden.items
        vectors = np.empty((len(items), self.model.spec.dimension), dtype=np.float32)
        for role, instruction in dict.fromkeys((item.role, item.instruction) for item in items):
            rows = [row for row, item in enumerate(items) if (item.role, item.instruction) == (role, instruction)]
            for start in range(0, len(rows), self.settings.max_inputs):
                part = rows[start : start + self.settings.max_inputs]
                ask = Ask([items[row].text for row in part], role=role, instruction=instruction, truncate=True)
                vectors[part] = (await self.embed(ask)).vectors
        return vectors
