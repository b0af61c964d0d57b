"""What is known of a file of vectors: the manifest that `python -m service embed --output` writes beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from service.errors import InvalidInput
from service.recipe.prompts import Role
from service.recipe.spec import TOKENIZER_FILE, ModelSpec


@dataclass(frozen=True)
class Origin:
    """model: NAME/VERSION.   source: of its weights.   tokenizer_sha256: of its tokenizer.   role: the texts' one."""

    model: str
    source: str
    tokenizer_sha256: str | None
    role: str


def origin_of(path: Path) -> Origin | None:
    """What a vectors file's manifest says of it, or None where it has none, as files made elsewhere."""
    beside = path.with_name(f"{path.name}.manifest.json")
    if not beside.is_file():
        return None
    try:
        job = json.loads(beside.read_text(encoding="utf-8"))["job"]
        model = job["model"]
        name = f"{model['name']}/{model['version']}"
        return Origin(name, model["source"], model["tokenizer_sha256"], job["role"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"can't read {beside}: {error!r}; embed the texts again, or remove it") from error


def check_role(path: Path, role: Role) -> None:
    """Raises InvalidInput where the vectors of a file are known to be of the other role."""
    origin = origin_of(path)
    if origin is not None and origin.role != role:
        raise InvalidInput(f"{path} was embedded with --role {origin.role}; this takes vectors of --role {role}")


def check_model(path: Path, spec: ModelSpec) -> None:
    """Raises InvalidInput where the vectors of a file are known to be another model's."""
    origin = origin_of(path)
    ours = (spec.source, spec.files.get(TOKENIZER_FILE))
    if origin is not None and (origin.source, origin.tokenizer_sha256) != ours:
        raise InvalidInput(f"{path} holds vectors of {origin.model}, not of {spec.name}; set ME5_MODEL={origin.model}")


def check_alike(first: Path, second: Path) -> None:
    """Raises InvalidInput where the vectors of two files are known to be of two models."""
    one, other = origin_of(first), origin_of(second)
    if one and other and (one.source, one.tokenizer_sha256) != (other.source, other.tokenizer_sha256):
        raise InvalidInput(f"{first} holds vectors of {one.model}, {second} of {other.model}; they can't be compared")
