"""The story of one request: prompt → tokens → admission → batch → engine → vectors."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from service.admission import guess_tokens, refusal
from service.batching import Lane, Limits, lane_of
from service.engine import (
    Choice,
    Engine,
    choices,
    cpu_has_bf16,
    gpu_installed,
    open_engine,
    openvino_installed,
    vectors_of,
)
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
from service.metrics import MIXED_ROLES, Metrics
from service.model import load_model
from service.recipe.golden import prove
from service.recipe.pooling import l2_normalize
from service.recipe.prompts import PromptedText, Role, format_text
from service.recipe.tokens import Direction, Tokens, pad, take_ids, tokenize
from service.scheduler import Job, Scheduler
from service.settings import Settings

log = logging.getLogger("me5.embedder")

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """What a request wants. inputs: texts, or ids that this model's tokenizer gave. None: the server's default."""

    inputs: list[str | list[int]]
    role: Role | None = None
    input_type: str | None = None
    instruction: str | None = None
    truncate: bool | None = None
    direction: Direction = "right"
    normalize: bool = True
    dimensions: int | None = None
    lane: Lane | None = None
    timeout_s: float | None = None


@dataclass(frozen=True)
class Answer:
    """vectors: float32[N, D].   tokens: per input, as the model read it.   truncated: indices of inputs that were cut.

    queue_s and engine_s are means over the inputs.
    """

    vectors: NDArray[np.float32]
    tokens: list[int]
    truncated: list[int]
    roles: list[Role]
    lane: Lane
    characters: int
    tokenize_s: float
    queue_s: float
    engine_s: float


class Embedder:
    """One model version behind one scheduler. Built without computing anything; `start` opens and proves the engine.

    engine: an open engine to use in place of those the settings choose from (it is proved all the same).
    on_hang: called once when the engine hangs, after every waiting request has been answered.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        engine: Engine | None = None,
        on_hang: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.model = load_model(settings.model, settings.model_repo)
        self.engine: Engine | None = engine
        self.proof_cosine = 0.0
        self.draining = False
        self._choice: Choice | None = None
        self._tokenizers = ThreadPoolExecutor(2, "tokenize")
        self._scheduler = Scheduler(
            self._open_again,
            limits=Limits(settings.max_batch_tokens),
            pad_id=self.model.spec.pad_id,
            engine_timeout_s=settings.engine_timeout_s,
            engine_failures=settings.engine_failures,
            metrics=metrics,
            on_hang=on_hang,
        )

    async def start(self) -> None:
        """Begin to serve on the best engine that passes the golden proof. Raises StartupError where none does."""
        if self._scheduler.state != "starting":
            return
        candidates = [None] if self.engine is not None else self._candidates()
        for left, choice in enumerate(candidates, start=1 - len(candidates)):
            try:
                engine = self.engine if choice is None else await asyncio.to_thread(self._open, choice)
                assert engine is not None
                self._scheduler.start(engine)
                cosine = prove(self.model.golden, await self._golden_vectors(), engine.precision)
            except (GoldenMismatch, ModelFileError, EngineFailed, EngineLost) as error:
                if left == 0 or self.hung:
                    raise error if isinstance(error, StartupError) else GoldenMismatch(error.message) from error
                log.warning("%s is not used: %s", choice, error)
            else:
                self.engine, self._choice, self.proof_cosine = engine, choice, cosine
                break
        self._scheduler.state = "ready"
        about = self.about()
        self.metrics.model.info(about)
        log.info("serving %(name)s/%(version)s on %(engine)s %(precision)s (%(device)s)", about)

    def about(self) -> dict[str, str]:
        """What is served and what computes it, for /info, metrics and the log."""
        assert self.engine is not None
        return {
            "name": self.model.spec.name,
            "version": self.model.version,
            "source": self.model.spec.source,
            "engine": self.engine.name,
            "precision": self.engine.precision,
            "device": self.engine.device,
            "golden_source": self.model.golden.source,
        }

    def refuse_all(self) -> None:
        """Answer every request that waits, and every one that comes, with ShuttingDown."""
        self._scheduler.refuse_all()

    async def stop(self) -> None:
        """End the scheduler and the threads; requests that still wait get ShuttingDown."""
        await self._scheduler.stop()
        self._tokenizers.shutdown(wait=False, cancel_futures=True)

    @property
    def busy(self) -> bool:
        """Whether the engine's thread is in the middle of something."""
        return self._scheduler.busy

    @property
    def hung(self) -> bool:
        """Whether the engine was given up; its thread can't be ended."""
        return self._scheduler.state == "hung"

    def not_ready(self) -> str | None:
        """Why /readyz is red, or None while it is green."""
        if self.draining:
            return "draining: the process got the signal to end"
        return None if self._scheduler.state == "ready" else f"engine {self._scheduler.state}"

    async def embed(self, ask: Ask) -> Answer:
        """Vectors for a request. Raises a Me5Error that says what the caller, or the operator, can do."""
        self._check(ask)
        started = time.monotonic()
        guess = guess_tokens(ask.inputs, self.model.spec.max_tokens)
        lane = ask.lane or lane_of(ask.role or self.settings.default_role, guess, self._scheduler.limits)
        self._admit(lane, guess, ask.timeout_s)
        # Counted as queued while they are tokenised: a crowd can't slip in between the guess and the count.
        self._scheduler.queued_tokens[lane] += guess
        try:
            async with asyncio.timeout(ask.timeout_s or self._default_timeout_s(guess)):
                tokens, roles = await asyncio.get_running_loop().run_in_executor(self._tokenizers, self._tokenize, ask)
        except TimeoutError as error:
            self.metrics.rejected_requests.labels("deadline").inc()
            raise DeadlineExceeded(waiting=len(ask.inputs), total=len(ask.inputs)) from error
        finally:
            self._scheduler.queued_tokens[lane] -= guess
        tokenize_s = time.monotonic() - started
        self.metrics.tokenize_duration_s.observe(tokenize_s)
        self._check_lengths(ask, tokens)

        total = sum(len(item.ids) for item in tokens)
        lane = ask.lane or lane_of(role_label(roles), total, self._scheduler.limits)
        self._admit(lane, total, ask.timeout_s)
        job = Job(
            lane=lane,
            tokens=total,
            deadline=started + (ask.timeout_s or self._default_timeout_s(total)),
            unit=ask.normalize,
            vectors=np.empty((len(tokens), self.model.spec.dimension), dtype=np.float32),
            done=asyncio.get_running_loop().create_future(),
            remaining=len(tokens),
        )
        self._scheduler.submit(job, [item.ids for item in tokens])
        await job.done

        return Answer(
            vectors=_shape(job.vectors, ask),
            tokens=[len(item.ids) for item in tokens],
            truncated=[index for index, item in enumerate(tokens) if item.truncated],
            roles=roles,
            lane=lane,
            characters=sum(len(item) for item in ask.inputs if isinstance(item, str)),
            tokenize_s=tokenize_s,
            queue_s=job.queue_s / len(tokens),
            engine_s=job.engine_s / len(tokens),
        )

    async def beside_the_loop(self, work: Callable[[], T]) -> T:
        """Do what takes long in a tokenizer's thread: as many at once as there are such threads, and no more."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizers, work)

    def prompted(self, ask: Ask) -> list[PromptedText]:
        """The texts of a request with their prompts; ids are not texts and must not be among the inputs."""
        return [
            format_text(
                text,
                self.model.spec.prompts,
                ask.role,
                default_role=self.settings.default_role,
                instruction=ask.instruction,
                input_type=ask.input_type,
            )
            for text in ask.inputs
            if isinstance(text, str)
        ]

    def _tokenize(self, ask: Ask) -> tuple[list[Tokens], list[Role]]:
        """In a tokenizer thread: the tokens of each input, and its role."""
        spec, tokenizer = self.model.spec, self.model.tokenizer
        vocabulary = tokenizer.get_vocab_size()
        explicit = ask.role is not None or ask.instruction is not None
        rows: list[Tokens | None] = [None] * len(ask.inputs)
        texts: list[tuple[int, str]] = []
        for index, item in enumerate(ask.inputs):
            if isinstance(item, str):
                texts.append((index, item))
            elif explicit and not _begins_with(item, self._prompt_ids(ask)):
                # TEI's rule: with a prompt, ids become text again, and the text gets the prompt.
                take_ids(item, len(item), vocabulary, index=index)
                texts.append((index, tokenizer.decode(item, skip_special_tokens=True)))
            else:
                rows[index] = take_ids(item, spec.max_tokens, vocabulary, ask.direction, index=index)
        roles = [ask.role or self.settings.default_role] * len(ask.inputs)
        if texts:
            prompted = self.prompted(Ask([text for _, text in texts], ask.role, ask.input_type, ask.instruction))
            found = tokenize(tokenizer, prompted, spec.max_tokens, ask.direction)
            for (index, _), tokens, text in zip(texts, found, prompted, strict=True):
                rows[index], roles[index] = tokens, text.role
        return [row for row in rows if row is not None], roles

    def _prompt_ids(self, ask: Ask) -> list[int]:
        """The ids of the prompt that the request's role puts before a text."""
        prompts = self.model.spec.prompts
        prefix = prompts.prefix(ask.role or self.settings.default_role, ask.instruction, ask.input_type)
        found: list[int] = self.model.tokenizer.encode(prefix.rstrip(), add_special_tokens=False).ids
        return found

    def _check(self, ask: Ask) -> None:
        spec, limit = self.model.spec, self.settings.max_inputs
        if len(ask.inputs) > limit:
            raise InvalidInput(
                f"batch size {len(ask.inputs)} > maximum allowed batch size {limit}; "
                "split the request, or raise ME5_MAX_INPUTS"
            )
        if ask.dimensions is not None and not 0 < ask.dimensions <= spec.dimension:
            raise InvalidInput(f"`dimensions` is {ask.dimensions}, this model has 1 to {spec.dimension}")
        if not ask.normalize and spec.pooling == "graph" and spec.raw_output is None:
            raise InvalidInput("this model's graph gives vectors of length one only; leave `normalize` out")
        # Refused here, before a thread is asked.
        spec.prompts.prefix(ask.role or self.settings.default_role, ask.instruction, ask.input_type)

    def _check_lengths(self, ask: Ask, tokens: list[Tokens]) -> None:
        truncate = self.settings.truncate if ask.truncate is None else ask.truncate
        long = [index for index, item in enumerate(tokens) if item.truncated]
        if long and not truncate:
            raise TextTooLong(tokens=tokens[long[0]].counted, limit=self.model.spec.max_tokens, indices=long)

    def _admit(self, lane: Lane, tokens: int, timeout_s: float | None) -> None:
        refused = refusal(
            lane,
            queued=self._scheduler.queued_tokens[lane],
            tokens=tokens,
            limit=self.settings.max_queued_tokens,
            tokens_per_s=self._scheduler.tokens_per_s,
            timeout_s=timeout_s,
        )
        if refused is not None:
            self.metrics.rejected_requests.labels("overloaded").inc()
            raise refused

    def _default_timeout_s(self, tokens: int) -> float:
        return self.settings.deadline_s + tokens / self.settings.deadline_tokens_per_s

    def _candidates(self) -> list[Choice]:
        settings = self.settings
        return choices(
            settings.engine,
            settings.precision,
            device=settings.device,
            cpu_has_bf16=cpu_has_bf16(),
            openvino_installed=openvino_installed(),
            gpu_installed=gpu_installed(),
        )

    def _open(self, choice: Choice) -> Engine:
        return open_engine(
            self.model.folder,
            self.model.spec,
            engine=choice.engine,
            precision=choice.precision,
            device=self.settings.device,
            threads=self.settings.threads,
        )

    def _open_again(self) -> Engine:
        """In the engine's thread: a fresh engine in place of one that failed, proved without the scheduler."""
        if self._choice is None:
            raise Me5Error("this engine was handed in open, there is nothing to open it from")
        engine = self._open(self._choice)
        spec, golden = self.model.spec, self.model.golden
        prompted = [
            format_text(item.text, spec.prompts, item.role, instruction=item.instruction) for item in golden.items
        ]
        batches = [pad([row.ids], spec.pad_id) for row in tokenize(self.model.tokenizer, prompted, spec.max_tokens)]
        try:
            prove(golden, [vectors_of(engine.run(batch), batch)[0] for batch in batches], engine.precision)
        except BaseException:
            engine.close()
            raise
        self.engine = engine
        return engine

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


def role_label(roles: list[Role]) -> str:
    """The role that all inputs of a request share, or "mixed"."""
    return roles[0] if len(set(roles)) == 1 else MIXED_ROLES


def _begins_with(ids: list[int], prompt_ids: list[int]) -> bool:
    """Whether ids hold the prompt already, at their start or behind the opening special token."""
    size = len(prompt_ids)
    return size > 0 and prompt_ids in (ids[:size], ids[1 : size + 1])


def _shape(vectors: NDArray[np.float32], ask: Ask) -> NDArray[np.float32]:
    if ask.dimensions is None:
        return vectors
    # Cut first, then scale: cutting unit vectors would leave them shorter than one.
    cut = np.ascontiguousarray(vectors[:, : ask.dimensions])
    return l2_normalize(cut) if ask.normalize else cut
