"""Find a model version on disk and read what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from service.errors import ModelNotFound
from service.recipe.golden import Golden, load_golden
from service.recipe.spec import GOLDEN_FILE, SPEC_FILE, TOKENIZER_FILE, ModelSpec, load_spec
from service.recipe.tokens import load_tokenizer


@dataclass(frozen=True)
class Model:
    """A model version, weights aside: the folder, the version's name, and the three small files read."""

    folder: Path
    version: str
    spec: ModelSpec
    tokenizer: Tokenizer
    golden: Golden


def find_version(model: str, model_repo: Path) -> Path:
    """The folder of a model version, from NAME (its highest version), NAME/VERSION, or a folder's path."""
    for folder in (Path(model), model_repo / model):
        if (folder / SPEC_FILE).is_file():
            return folder
    versions = version_numbers(model_repo / model)
    if versions:
        return model_repo / model / str(versions[-1])
    there = sorted(path.parent.parent.name for path in model_repo.glob(f"*/*/{SPEC_FILE}"))
    raise ModelNotFound(
        f"no model {model!r} in {model_repo} (there: {', '.join(dict.fromkeys(there)) or 'none'}); "
        "set ME5_MODEL to one of these, or fetch one: python -m service pull intfloat/multilingual-e5-small"
    )


def version_numbers(folder: Path) -> list[int]:
    """The complete versions in a model's folder, ascending: sub-folders with a whole number as name and a spec.json."""
    return sorted(int(path.parent.name) for path in folder.glob(f"*/{SPEC_FILE}") if path.parent.name.isdecimal())


def load_model(model: str, model_repo: Path, *, verify: bool = True) -> Model:
    """Find and read a version and, with verify, check every file's hash. The weights are the engine's to read."""
    folder = find_version(model, model_repo)
    spec = load_spec(folder, verify=verify)
    return Model(
        folder=folder,
        version=folder.name,
        spec=spec,
        tokenizer=load_tokenizer(folder / TOKENIZER_FILE),
        golden=load_golden(folder / GOLDEN_FILE),
    )
