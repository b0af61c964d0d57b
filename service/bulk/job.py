"""What a bulk job is asked for, and what it must be the same in to be continued."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

from service.api.encoding import Dtype
from service.bulk.reading import STDIN, form_of, open_records
from service.bulk.records import Fields
from service.errors import InvalidInput
from service.recipe.spec import file_sha256

Kind = Literal["parquet", "npy", "safetensors"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# What a file of vectors may say of a text besides its id.
Column = Literal["text", "tokens", "truncated"]
COLUMNS: tuple[Column, ...] = get_args(Column)
# What is lost by a kill at most, twice; and enough texts that neighbours in length have little padding: 3.9 % of the
# tokens in OpenVINO's shapes, where 8192 would leave 3.4, 2048 5.2, and all of 20,000 texts sorted at once 3.0.
WINDOW = 4096
# All there are: what passing over records stops at is their end.
_ALL = 1 << 62

# Packages that a vector's last bits may depend on.
_PACKAGES = ("me5", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tokenizers", "tritonclient", "pyarrow")


@dataclass(frozen=True)
class Wish:
    """What vectors are asked for. role_name: the role as it was given.   truncate: None is the settings' default."""

    role: Literal["query", "passage"]
    role_name: str
    instruction: str | None = None
    truncate: bool | None = None
    dimensions: int | None = None
    dtype: Dtype = "float32"


@dataclass(frozen=True)
class Job:
    """A file of texts to a file of vectors. window: records that are sorted by length, computed and stored together.

    shard: (number from 0, how many).   columns: what is written beside id and vector.
    """

    source: str
    output: Path
    wish: Wish
    fields: Fields = field(default_factory=Fields)
    form: str | None = None
    columns: tuple[Column, ...] = ()
    window: int = WINDOW
    shard: tuple[int, int] | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        kind_of(self.output)
        form_of(self.source, self.form)
        if self.window < 1:
            raise InvalidInput(f"window {self.window}: it holds at least one record")
        if self.shard is not None and self.source == STDIN:
            raise InvalidInput("shards are parts of a file; standard input has no length before it ends")

    @property
    def target(self) -> Path:
        """The file that is written: of shard 3 of 16, vectors-00003-of-00016.parquet."""
        return self.output if self.shard is None else shard_file(self.output, *self.shard)


@dataclass(frozen=True)
class Source:
    """What is known of the input before it is read. records, sha256, bytes: None of standard input."""

    name: str
    records: int | None = None
    sha256: str | None = None
    bytes: int | None = None


def kind_of(path: Path) -> Kind:
    """The format of a file of vectors, by its name."""
    suffix = path.suffix.removeprefix(".")
    for kind in KINDS:
        if suffix == kind:
            return kind
    raise InvalidInput(f"output {path}: its name must end with .{', .'.join(KINDS)}")


def columns_of(text: str) -> tuple[Column, ...]:
    """ "text,tokens" → ("text", "tokens")."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    found = tuple(name for name in COLUMNS if name in names)
    if len(found) < len(set(names)):
        raise InvalidInput(f"--with {text}: there are {', '.join(COLUMNS)}")
    return found


def dtype_of(text: str) -> Dtype:
    """The components' type by its name."""
    for dtype in get_args(Dtype):
        if text == dtype:
            found: Dtype = dtype
            return found
    raise InvalidInput(f"dtype {text}: there are {', '.join(get_args(Dtype))}")


def shard_file(output: Path, shard: int, shards: int) -> Path:
    """vectors.parquet → vectors-00003-of-00016.parquet, the name that readers of sharded data sets know."""
    return output.with_name(f"{output.stem}-{shard:05d}-of-{shards:05d}{output.suffix}")


def survey(job: Job) -> Source:
    """Count and hash the input. Raises InvalidInput where it can't be read."""
    if job.source == STDIN:
        return Source(STDIN)
    path = Path(job.source)
    with open_records(path, job.fields, form=job.form) as records:
        count = records.skip(_ALL)
    return Source(path.name, count, file_sha256(path), path.stat().st_size)


def identity_of(job: Job, source: Source, model: Mapping[str, object]) -> dict[str, object]:
    """Everything that the bytes of the output follow from, as JSON."""
    kind, compression = form_of(job.source, job.form)
    return {
        "input": {
            "bytes": source.bytes,
            "sha256": source.sha256,
            "format": kind if compression is None else f"{kind}.{compression}",
            "fields": None if kind == "txt" else asdict(job.fields),
        },
        "role": job.wish.role,
        "input_type": job.wish.role_name,
        "instruction": job.wish.instruction,
        "truncate": job.wish.truncate,
        "dimensions": job.wish.dimensions,
        "dtype": job.wish.dtype,
        "output": kind_of(job.output),
        "columns": list(job.columns),
        "window": job.window,
        "shard": None if job.shard is None else list(job.shard),
        "model": dict(model),
        "versions": _versions(),
    }


def differences(before: object, now: object, name: str = "") -> list[str]:
    """Where two identities differ: "role was passage, is query"."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        return [
            line
            for key in keys
            for line in differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if before == now else [f"{name} was {before}, is {now}"]


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
