"""Find a model version on disk and read what belongs to it."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from service.errors import InvalidInput, ModelNotFound
from service.recipe.golden import Golden, load_golden
from service.recipe.spec import (
    GOLDEN_FILE,
    PUBLISHED,
    SPEC_FILE,
    TOKENIZER_FILE,
    ModelSpec,
    load_spec,
    verify_files,
)
from service.recipe.tokens import load_tokenizer


@dataclass(frozen=True)
class Model:
    """A model version, weights aside: the folder, the version's name, and what is in its small files."""

    folder: Path
    version: str
    spec: ModelSpec
    golden: Golden

    @cached_property
    def reading(self) -> Future[Tokenizer]:
        """The tokenizer, read in a thread of its own from the first look at this on.

        One of 250,000 entries takes a second, in which no other thread of this process gets to run.
        """
        reader = ThreadPoolExecutor(1, "tokenizer")
        reading = reader.submit(load_tokenizer, self.folder / TOKENIZER_FILE)
        reader.shutdown(wait=False)
        return reading

    @property
    def tokenizer(self) -> Tokenizer:
        """Waits until it is read. Raises ModelFileError where it can't be."""
        return self.reading.result()


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


def shelf_of(model: str, model_repo: Path) -> tuple[Path, ModelSpec]:
    """The folder that holds a model's versions, and its spec: of one that is there, or of a published one yet to come.

    Raises ModelNotFound, ModelFileError, and InvalidInput where the folder has another name than the model.
    """
    try:
        version = find_version(model, model_repo)
    except ModelNotFound:
        published = {spec.name: spec for spec in PUBLISHED.values()} | PUBLISHED
        if model not in published:
            raise
        return model_repo / published[model].name, published[model]
    spec = load_spec(version, verify=False)
    # Not resolved: a version may be a link, and the folder that it stands in is the one that Triton reads.
    shelf = version.absolute().parent
    if shelf.name != spec.name:
        raise InvalidInput(f"{version} holds {spec.name}, so the folder {shelf} must be named {spec.name} for Triton")
    return shelf, spec


def version_numbers(folder: Path) -> list[int]:
    """The complete versions in a model's folder, ascending: sub-folders with a whole number as name and a spec.json."""
    return sorted(int(path.parent.name) for path in folder.glob(f"*/{SPEC_FILE}") if path.parent.name.isdecimal())


def load_model(model: str, model_repo: Path) -> Model:
    """Find and read a version, and check every file's hash. The weights are the engine's to read."""
    found = read_model(model, model_repo)
    verify_files(found.folder, found.spec)
    found.reading.result()
    return found


def read_model(model: str, model_repo: Path) -> Model:
    """Find and read a version; no hash is checked, and the tokenizer waits until it is wanted."""
    folder = find_version(model, model_repo)
    spec = load_spec(folder, verify=False)
    return Model(folder, folder.name, spec, load_golden(folder / GOLDEN_FILE))
