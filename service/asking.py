"""What a request asks, what it is answered, and the tokens of its inputs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.batching import Lane
from service.callers import Caller
from service.errors import TokenizerFailed
from service.metrics import MIXED_ROLES
from service.model import Model
from service.recipe.pooling import l2_normalize
from service.recipe.prompts import PromptedText, Role, format_text
from service.recipe.tokens import Direction, Tokens, take_ids, tokenize

if TYPE_CHECKING:
    from service.tracing import RequestTrace

log = logging.getLogger("me5.asking")

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
    # Whose request it is: clients share the engine fairly.
    client: str = ""
    # Its key, where requests need one: charged for the tokens.
    caller: Caller | None = None
    # Where the request is traced: told what becomes of it.
    trace: RequestTrace | None = None


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


def prompted(model: Model, default_role: Role, ask: Ask) -> list[PromptedText]:
    """The texts of a request with their prompts; ids are not texts and must not be among the inputs."""
    return [
        format_text(
            text,
            model.spec.prompts,
            ask.role,
            default_role=default_role,
            instruction=ask.instruction,
            input_type=ask.input_type,
        )
        for text in ask.inputs
        if isinstance(text, str)
    ]


def tokens_of(model: Model, default_role: Role, ask: Ask) -> tuple[list[Tokens], list[Role]]:
    """The tokens of each input, and its role. Raises InvalidInput for ids and texts that the model can't read."""
    spec, tokenizer = model.spec, model.tokenizer
    vocabulary = tokenizer.get_vocab_size()
    explicit = ask.role is not None or ask.instruction is not None
    rows: list[Tokens | None] = [None] * len(ask.inputs)
    texts: list[tuple[int, str]] = []
    for index, item in enumerate(ask.inputs):
        if isinstance(item, str):
            texts.append((index, item))
        elif explicit and not _begins_with(item, _prompt_ids(model, default_role, ask)):
            # TEI's rule: with a prompt, ids become text again, and the text gets the prompt.
            take_ids(item, len(item), vocabulary, index=index)
            texts.append((index, tokenizer.decode(item, skip_special_tokens=True)))
        else:
            rows[index] = take_ids(item, spec.max_tokens, vocabulary, ask.direction, index=index)
    roles = [ask.role or default_role] * len(ask.inputs)
    if texts:
        alone = Ask([text for _, text in texts], ask.role, ask.input_type, ask.instruction)
        items = prompted(model, default_role, alone)
        found = tokenize(tokenizer, items, spec.max_tokens, ask.direction)
        for (index, _), tokens, text in zip(texts, found, items, strict=True):
            rows[index], roles[index] = tokens, text.role
    return [row for row in rows if row is not None], roles


def without_panic(work: Callable[[], T]) -> T:
    """The tokenizer's work. Its native code panics with an exception that no `except Exception` sees."""
    try:
        return work()
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        log.exception("the tokenizer panicked")
        raise TokenizerFailed("the tokenizer failed on this request; the server's log says how") from error


def role_label(roles: list[Role]) -> str:
    """The role that all inputs of a request share, or "mixed"."""
    return roles[0] if len(set(roles)) == 1 else MIXED_ROLES


def shape(vectors: NDArray[np.float32], ask: Ask) -> NDArray[np.float32]:
    """Vectors [N, D] cut to the components that the request wants; those of length one keep that length."""
    if ask.dimensions is None:
        return vectors
    # Cut first, then scale: cutting unit vectors would leave them shorter than one.
    cut = np.ascontiguousarray(vectors[:, : ask.dimensions])
    return l2_normalize(cut) if ask.normalize else cut


def _prompt_ids(model: Model, default_role: Role, ask: Ask) -> list[int]:
    """The ids of the prompt that the request's role puts before a text."""
    prefix = model.spec.prompts.prefix(ask.role or default_role, ask.instruction, ask.input_type)
    found: list[int] = model.tokenizer.encode(prefix.rstrip(), add_special_tokens=False).ids
    return found


def _begins_with(ids: list[int], prompt_ids: list[int]) -> bool:
    """Whether ids hold the prompt already, at their start or behind the opening special token."""
    size = len(prompt_ids)
    return size > 0 and prompt_ids in (ids[:size], ids[1 : size + 1])
