"""Roles and the prompts E5 was trained with.

Sources: the model cards of intfloat/multilingual-e5-*, and unilm/e5/utils.py for the instruct template.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from service.errors import InvalidInput

Role = Literal["query", "passage"]
ROLES: tuple[Role, ...] = get_args(Role)

InputType = Literal[
    "query", "passage", "document", "search_query", "search_document", "classification", "clustering", "similarity"
]
INPUT_TYPES: tuple[InputType, ...] = get_args(InputType)

# E5's author uses the query prefix for everything that is not the passage side of retrieval (microsoft/unilm#1325).
_ROLE_OF_INPUT_TYPE: dict[str, Role] = {
    "query": "query",
    "search_query": "query",
    "passage": "passage",
    "document": "passage",
    "search_document": "passage",
    "classification": "query",
    "clustering": "query",
    "similarity": "query",
}

_INSTRUCT_HEAD = "Instruct: "
_INSTRUCT_TAIL = "\nQuery: "


@dataclass(frozen=True)
class Prompts:
    """The prompts a model was trained with.

    query, passage: put before the text as they stand.   instruct: whether the query side takes
    ``Instruct: {instruction}`` newline ``Query: `` instead of `query`.   instructions: the sentence for each input
    type that has one of its own; the one under "query" is the default.
    """

    query: str
    passage: str
    instruct: bool = False
    instructions: dict[str, str] = field(default_factory=dict)

    def prefix(
        self, role: Role, instruction: str | None = None, input_type: str | None = None, *, plain: bool = False
    ) -> str:
        """The characters put before a text of this role. An instruction on a model without one is refused.

        plain: of a query without an instruction, on a model that takes them.
        """
        if instruction is not None and not self.instruct:
            raise InvalidInput(
                f"this model takes no instruction (given: {instruction[:80]!r}); leave it out, "
                "or serve an instruct model such as multilingual-e5-large-instruct"
            )
        if role == "passage":
            return self.passage
        if plain or not self.instruct:
            return self.query
        chosen = instruction or self.instructions.get((input_type or "query").lower()) or self.instructions["query"]
        return f"{_INSTRUCT_HEAD}{chosen}{_INSTRUCT_TAIL}"


E5_PROMPTS = Prompts(query="query: ", passage="passage: ")

# Instructions of unilm/e5/utils.py where the paper fixes one; classification and clustering name no data set there.
E5_INSTRUCT_PROMPTS = Prompts(
    query="",
    passage="",
    instruct=True,
    instructions={
        "query": "Given a web search query, retrieve relevant passages that answer the query",
        "similarity": "Retrieve semantically similar text.",
        "classification": "Classify the text",
        "clustering": "Identify the topic or theme of the text",
    },
)


@dataclass(frozen=True)
class PromptedText:
    """A text as the tokenizer gets it.

    prompt_chars: how many of its characters are the prompt.   brought: whether the text came with its prompt.
    """

    text: str
    role: Role
    prompt_chars: int
    brought: bool = False


def role_of(input_type: str) -> Role:
    """The E5 role behind an input type or one of its aliases; unknown names are refused with the list of known ones."""
    role = _ROLE_OF_INPUT_TYPE.get(input_type.lower())
    if role is None:
        raise InvalidInput(f"unknown input_type {input_type[:80]!r}; use one of {', '.join(INPUT_TYPES)}")
    return role


def format_text(
    text: str,
    prompts: Prompts,
    role: Role | None = None,
    *,
    default_role: Role = "query",
    instruction: str | None = None,
    input_type: str | None = None,
    plain: bool = False,
) -> PromptedText:
    """Put the role's prompt before a text, once.

    Without a role, a text that begins with any of the model's prompts is taken as it stands and the default role
    applies to the rest. With a role, only that role's own prompt counts as already there: "query: what is it" as a
    passage is a passage that begins with these words.

    plain: a query without an instruction; one that the text brings is taken off.
    """
    if plain and role == "query":
        text = text[_instruct_chars(text) :]
        return PromptedText(prompts.query + text, role, len(prompts.query))
    if role is None and instruction is None:
        found = _prompt_of(text, prompts)
        if found is not None:
            return found
    role = role or default_role
    if prompts.instruct and role == "query" and instruction is None and (size := _instruct_chars(text)):
        return PromptedText(text, role, size, brought=True)
    prefix = prompts.prefix(role, instruction, input_type)
    if prefix and text.startswith(prefix):
        return PromptedText(text, role, len(prefix), brought=True)
    return PromptedText(prefix + text, role, len(prefix))


def _prompt_of(text: str, prompts: Prompts) -> PromptedText | None:
    if prompts.instruct:
        size = _instruct_chars(text)
        return PromptedText(text, "query", size, brought=True) if size else None
    for role in ROLES:
        prefix = prompts.prefix(role)
        if prefix and text.startswith(prefix):
            return PromptedText(text, role, len(prefix), brought=True)
    return None


def _instruct_chars(text: str) -> int:
    """Length of ``Instruct: …`` newline ``Query: `` at the start of a text, 0 where there is none."""
    if not text.startswith(_INSTRUCT_HEAD):
        return 0
    at = text.find(_INSTRUCT_TAIL)
    return at + len(_INSTRUCT_TAIL) if at >= 0 else 0
