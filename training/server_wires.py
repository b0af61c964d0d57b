"""What is sent to a server that embeds, and what its answer means; one wire for each of the contracts.

Contracts: this project's POST /embed; huggingface/text-embeddings-inference, router/src/http/{server,types}.rs, 1.9;
OpenAI API reference, "Create embeddings"; Cohere API reference, "Embed API (v2)".
"""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.recipe.prompts import Prompts, Role
from training.errors import UnknownSystem
from training.vectors import Vectors, prompted

WireName = Literal["me5", "tei", "openai", "cohere"]
Json = object
# Texts, role, instruction → the request's body.
Write = Callable[[Sequence[str], Role | None, str | None], dict[str, Json]]


@dataclass(frozen=True)
class Wire:
    """path: behind the address.   batch_texts: the most that one request may hold.   read: answer → vectors."""

    name: WireName
    path: str
    batch_texts: int
    write: Write
    read: Callable[[Json], Vectors]


def me5_wire(prompts: Prompts, batch_texts: int, *, normalize: bool) -> Wire:
    """This project's gateway: it puts the prompts."""

    def write(texts: Sequence[str], role: Role | None, instruction: str | None) -> dict[str, Json]:
        body: dict[str, Json] = {"inputs": list(texts), "input_type": own_role(role), "truncate": True}
        body |= {"normalize": normalize, "encoding_format": "base64"}
        if instruction is not None and prompts.instruct and role == "query":
            body |= {"instruction": instruction}
        return body

    return Wire("me5", "/embed", batch_texts, write, read_rows)


def tei_wire(prompts: Prompts | None, batch_texts: int, *, normalize: bool) -> Wire:
    """Text Embeddings Inference. prompts: put here; None: the server has prompts of these names and puts them."""

    def write(texts: Sequence[str], role: Role | None, instruction: str | None) -> dict[str, Json]:
        body: dict[str, Json] = {"truncate": True, "normalize": normalize}
        if prompts is not None:
            return body | {"inputs": prompted(texts, prompts, role, instruction)}
        return body | {"inputs": list(texts)} | ({} if role is None else {"prompt_name": role})

    return Wire("tei", "/embed", batch_texts, write, read_rows)


def openai_wire(model: str, prompts: Prompts | None) -> Wire:
    """OpenAI's. prompts: put here; None: this project's gateway, where the model's name says the role."""

    def write(texts: Sequence[str], role: Role | None, instruction: str | None) -> dict[str, Json]:
        if prompts is None:
            body: dict[str, Json] = {"input": list(texts), "model": f"{model}-{own_role(role)}"}
            body |= {"truncate": True}
            if instruction is not None and role == "query":
                body |= {"instruction": instruction}
        else:
            body = {"input": prompted(texts, prompts, role, instruction), "model": model}
        return body | {"encoding_format": "base64"}

    return Wire("openai", "/embeddings", 256, write, read_openai)


def cohere_wire(model: str) -> Wire:
    """Cohere's second version: at most 96 texts, and an input_type with each request."""

    def write(texts: Sequence[str], role: Role | None, _instruction: str | None) -> dict[str, Json]:
        return {
            "model": model,
            "texts": list(texts),
            # Without a role as mteb does it (models/model_implementations/cohere_models.py): there has to be one.
            "input_type": "search_query" if role == "query" else "search_document",
            "embedding_types": ["float"],
            "truncate": "END",
        }

    return Wire("cohere", "/v2/embed", 96, write, read_cohere)


def own_role(role: Role | None) -> Role:
    """The role that this project's gateway is told; it has none that means "no prompt"."""
    if role is None:
        raise UnknownSystem(
            "a me5 server puts a prompt before every text, and this task wants texts without one; "
            "measure it by the protocol paper, or name the model's folder instead of the server"
        )
    return role


def read_rows(answer: Json) -> Vectors:
    """[[0.1, …], …], or a base64 text of float32 for each row."""
    return _stack(answer)


def read_openai(answer: Json) -> Vectors:
    """{"data": [{"index": 0, "embedding": …}, …]}, in any order."""
    rows = answer["data"] if isinstance(answer, dict) else []
    return _stack([row["embedding"] for row in sorted(rows, key=lambda row: row["index"])])


def read_cohere(answer: Json) -> Vectors:
    """{"embeddings": {"float": [[…], …]}, …}."""
    return _stack(answer["embeddings"]["float"] if isinstance(answer, dict) else None)


def _stack(rows: Json) -> Vectors:
    if not isinstance(rows, list) or not rows:
        raise ValueError("no rows in it")
    return np.stack([_row(row) for row in rows])


def _row(row: Json) -> Vectors:
    if isinstance(row, str):
        return np.frombuffer(base64.b64decode(row), dtype="<f4")
    return np.asarray(row, dtype=np.float32)
