"""What a request asks, what it is answered, and the tokens of its inputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.batching import Lane
from service.callers import Caller
from service.errors import InvalidInput, TokenizerFailed, name_inputs
from service.metrics import MIXED_ROLES
from service.model import Model
from service.recipe.pooling import l2_normalize
from service.recipe.prompts import PromptedText, Prompts, Role, format_text
from service.recipe.tokens import Direction, Tokens, take_ids, tokenize

if TYPE_CHECKING:
    from service.tracing import RequestTrace

log = logging.getLogger("me5.asking")

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """What a request wants. inputs: texts, or ids that this model's tokenizer gave. None: the server's default.

    instruction_weight: w of the mixture norm((1 − w) · f(text) + w · f(instruction + text)), for queries of a model
    that takes instructions; each text is then computed twice, and counted so.   plain: a query without the
    instruction.   max_tokens: cut at fewer tokens than the model reads.   also: texts of the same request with a role
    of their own; their rows come after these.
    """

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
    instruction_weight: float | None = None
    plain: bool = False
    max_tokens: int | None = None
    also: Ask | None = None
    # For token states in place of vectors: told how many bytes they take before they are there, and may refuse.
    hold_states: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Answer:
    """vectors: float32[N, D]; or token states float32[tokens, H], one input's after another's.

    tokens: per input, as the model read it.   truncated: indices of inputs that were cut.   brought: indices of texts
    that came with their prompt.   queue_s and engine_s are means over the inputs.
    """

    vectors: NDArray[np.float32]
    tokens: list[int]
    truncated: list[int]
    brought: list[int]
    roles: list[Role]
    lane: Lane
    characters: int
    tokenize_s: float
    queue_s: float
    engine_s: float


@dataclass(frozen=True)
class Read:
    """A request's inputs as the model reads them, a row each.   brought: rows whose text came with its prompt."""

    tokens: list[Tokens]
    roles: list[Role]
    brought: list[int]


def parts_of(ask: Ask, default_role: Role) -> list[Ask]:
    """The request as the engine gets it: parts of one prompt each, their rows one part after another."""
    weight = ask.instruction_weight
    if weight is None:
        return [ask] if ask.also is None else [ask, *parts_of(ask.also, default_role)]
    instructed = replace(ask, role=ask.role or default_role, instruction_weight=None)
    plain = replace(instructed, plain=True, instruction=None, input_type=None)
    # At its ends the mixture is one of its two vectors, and is computed as that.
    return [plain] if weight == 0 else [instructed] if weight == 1 else [plain, instructed]


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
            plain=ask.plain,
        )
        for text in ask.inputs
        if isinstance(text, str)
    ]


def tokens_of(model: Model, default_role: Role, parts: Sequence[Ask]) -> Read:
    """The tokens of each input, and its role. Raises InvalidInput for ids and texts that the model can't read."""
    found = [_tokens_of(model, default_role, ask) for ask in parts]
    starts = np.cumsum([0, *(len(read.tokens) for read in found)]).tolist()
    return Read(
        [tokens for read in found for tokens in read.tokens],
        [role for read in found for role in read.roles],
        [start + row for start, read in zip(starts, found, strict=False) for row in read.brought],
    )


def _tokens_of(model: Model, default_role: Role, ask: Ask) -> Read:
    tokenizer = model.tokenizer
    longest = _longest(model, default_role, ask)
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
            rows[index] = take_ids(item, longest, vocabulary, ask.direction, index=index)
    roles = [ask.role or default_role] * len(ask.inputs)
    brought: list[int] = []
    if texts:
        items = prompted(model, default_role, replace(ask, inputs=[text for _, text in texts]))
        found = tokenize(tokenizer, items, longest, ask.direction)
        for (index, _), tokens, text in zip(texts, found, items, strict=True):
            rows[index], roles[index] = tokens, text.role
            if text.brought:
                brought.append(index)
    return Read([row for row in rows if row is not None], roles, brought)


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


def check_weight(ask: Ask, prompts: Prompts, default_role: Role) -> None:
    """Refuse a mixture that the model, or the rest of the request, has no room for."""
    weight = ask.instruction_weight
    if weight is None:
        return
    if not prompts.instruct or prompts.passage:
        raise InvalidInput(
            "`instruction_weight` mixes a query with and without an instruction, against documents without a prompt; "
            "this model is not of that kind: leave it out, or serve one such as multilingual-e5-large-instruct"
        )
    if (ask.role or default_role) != "query":
        raise InvalidInput("`instruction_weight` is for queries; leave it out, or send `input_type` query")
    if ids := [index for index, item in enumerate(ask.inputs) if not isinstance(item, str)]:
        # Whether ids bring an instruction can't be told: the tokenizer makes a space of the line's end in it.
        raise InvalidInput(f"`instruction_weight` is for texts; {name_inputs(ids)} is of token ids")
    if not ask.normalize:
        raise InvalidInput("`instruction_weight` gives vectors of length one; leave `normalize` out")
    if not 0 <= weight <= 1:
        raise InvalidInput(f"`instruction_weight` is {weight:g}; give a number from 0 to 1")


def answer_of(
    ask: Ask,
    read: Read,
    vectors: NDArray[np.float32],
    *,
    lane: Lane,
    tokenize_s: float,
    queue_s: float,
    engine_s: float,
) -> Answer:
    """What a request is answered, from the vectors [rows, D] of its parts' rows."""
    tokens = [len(item.ids) for item in read.tokens]
    rows, roles = len(tokens), read.roles
    if ask.instruction_weight is not None and rows > len(ask.inputs):
        rows = len(ask.inputs)
        vectors, roles = blend(vectors, ask.instruction_weight), roles[:rows]
        # Both readings were computed.
        tokens = [one + other for one, other in zip(tokens[:rows], tokens[rows:], strict=True)]
    inputs = [*ask.inputs, *(ask.also.inputs if ask.also else [])]
    return Answer(
        vectors=shape(vectors, ask),
        tokens=tokens,
        truncated=sorted({row % rows for row, item in enumerate(read.tokens) if item.truncated}),
        brought=sorted({row % rows for row in read.brought}),
        roles=roles,
        lane=lane,
        characters=sum(len(item) for item in inputs if isinstance(item, str)),
        tokenize_s=tokenize_s,
        queue_s=queue_s,
        engine_s=engine_s,
    )


def shape(vectors: NDArray[np.float32], ask: Ask) -> NDArray[np.float32]:
    """Vectors [N, D] cut to the components that the request wants; those of length one keep that length."""
    if ask.dimensions is None:
        return vectors
    # Cut first, then scale: cutting unit vectors would leave them shorter than one.
    cut = np.ascontiguousarray(vectors[:, : ask.dimensions])
    return l2_normalize(cut) if ask.normalize else cut


def blend(vectors: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
    """The mixture of a request's two forms: [2 N, D], plain ones first, to [N, D] of length one."""
    plain, instructed = np.split(vectors, 2)
    return l2_normalize((1 - np.float32(weight)) * plain + np.float32(weight) * instructed)


def _longest(model: Model, default_role: Role, ask: Ask) -> int:
    """The tokens at which an input is cut; what the request asks for has to leave room for some of the text."""
    if ask.max_tokens is None:
        return model.spec.max_tokens
    prefix = model.spec.prompts.prefix(ask.role or default_role, ask.instruction, ask.input_type, plain=ask.plain)
    fixed = len(model.tokenizer.encode(prefix).ids)
    if ask.max_tokens <= fixed:
        raise InvalidInput(
            f"`max_tokens` is {ask.max_tokens}, but the prompt and the special tokens alone are {fixed}; "
            f"ask for {fixed + 1} to {model.spec.max_tokens}, or leave it out"
        )
    return min(ask.max_tokens, model.spec.max_tokens)


def _prompt_ids(model: Model, default_role: Role, ask: Ask) -> list[int]:
    """The ids of the prompt that the request's role puts before a text."""
    prefix = model.spec.prompts.prefix(ask.role or default_role, ask.instruction, ask.input_type, plain=ask.plain)
    found: list[int] = model.tokenizer.encode(prefix.rstrip(), add_special_tokens=False).ids
    return found


def _begins_with(ids: list[int], prompt_ids: list[int]) -> bool:
    """Whether ids hold the prompt already, at their start or behind the opening special token."""
    size = len(prompt_ids)
    return size > 0 and prompt_ids in (ids[:size], ids[1 : size + 1])
