"""spec.json: what a model version was trained with. Written once beside the weights; nothing overrides it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from service.errors import ModelFileError
from service.recipe.prompts import E5_INSTRUCT_PROMPTS, E5_PROMPTS, Prompts

SPEC_FILE = "spec.json"
MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
GOLDEN_FILE = "golden.json"
# Graphs that compute in int8, where the version has them; each engine is fast on its own kind.
INT8_FILES: dict[Literal["onnx", "openvino"], str] = {
    "onnx": "model_int8.onnx",
    "openvino": "model_int8_openvino.onnx",
}
# What the int8 graphs lost against fp32, by language.
INT8_REPORT_FILE = "int8.json"
# Graphs for GPUs, where the version has them: float16 with LayerNorm and pooling in float32, in operators that every
# reader knows, and the same with ONNX's own Attention operator.
FP16_FILE = "model_fp16.onnx"
FP16_ATTENTION_FILE = "model_fp16_opset23.onnx"
# All of a version's graphs that it may have.
GRAPH_FILES = (MODEL_FILE, *INT8_FILES.values(), FP16_FILE, FP16_ATTENTION_FILE)
# What people read: no vector depends on it, and it is written anew when a model is measured.
UNHASHED_FILES = ("README.md", "evaluation.json")

FORMAT = 1


@dataclass(frozen=True)
class ModelSpec:
    """A model version.

    source: where the weights come from, for people.   pooling: "graph" where the graph gives vectors [B, D], "mean"
    where it gives token states [B, T, H] that the gateway pools.   dimension: D.   max_tokens: longest input, prompt
    and special tokens counted.   inputs, output: the graph's tensor names.   raw_output: the name of the vector before
    it is scaled to length one, where a pooling graph gives that too.   weights: how they are stored.   table_bits: of a
    token vector's number in model.onnx, where those are stored otherwise.   hidden_size: H, where it is not D.   files:
    the SHA-256 of each file of the version.
    """

    name: str
    source: str
    prompts: Prompts
    dimension: int
    pooling: Literal["graph", "mean"] = "graph"
    max_tokens: int = 512
    pad_id: int = 1
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    output: str = "sentence_embedding"
    raw_output: str | None = None
    weights: Literal["float32", "int8"] = "float32"
    table_bits: Literal[4] | None = None
    hidden_size: int | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def states_dimension(self) -> int:
        """H, the length of a token's state."""
        return self.dimension if self.hidden_size is None else self.hidden_size

    @property
    def int8_engines(self) -> list[Literal["onnx", "openvino"]]:
        """The engines for which this version has an int8 graph."""
        return [engine for engine, name in INT8_FILES.items() if name in self.files]


# XLM-R numbers positions from pad_id + 1, so its 514 position rows hold 512 tokens. mE5-small is a BertModel with 512
# rows and XLM-R's tokenizer; its published graph wants token_type_ids too. Source: config.json of each repository.
_PUBLISHED_STATES = ModelSpec(
    name="", source="", prompts=E5_PROMPTS, dimension=0, pooling="mean", output="last_hidden_state"
)
PUBLISHED: dict[str, ModelSpec] = {
    "intfloat/multilingual-e5-small": replace(
        _PUBLISHED_STATES,
        name="me5_small",
        source="intfloat/multilingual-e5-small",
        dimension=384,
        inputs=("input_ids", "attention_mask", "token_type_ids"),
    ),
    "intfloat/multilingual-e5-base": replace(
        _PUBLISHED_STATES, name="me5_base", source="intfloat/multilingual-e5-base", dimension=768
    ),
    "intfloat/multilingual-e5-large": replace(
        _PUBLISHED_STATES, name="me5_large", source="intfloat/multilingual-e5-large", dimension=1024
    ),
    "intfloat/multilingual-e5-large-instruct": replace(
        _PUBLISHED_STATES,
        name="me5_large_instruct",
        source="intfloat/multilingual-e5-large-instruct",
        dimension=1024,
        prompts=E5_INSTRUCT_PROMPTS,
    ),
}


def save_spec(folder: Path, spec: ModelSpec) -> ModelSpec:
    """Hash every file beside it but UNHASHED_FILES, and write spec.json. Returns the spec with these hashes."""
    unhashed = {SPEC_FILE, *UNHASHED_FILES}
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in unhashed)
    spec = replace(spec, files={name: file_sha256(folder / name) for name in names})
    text = json.dumps({"format": FORMAT, **asdict(spec)}, ensure_ascii=False, indent=2)
    (folder / SPEC_FILE).write_text(text + "\n", encoding="utf-8")
    return spec


def load_spec(folder: Path, *, verify: bool = True) -> ModelSpec:
    """Read spec.json and, with verify, check the SHA-256 of every file it names."""
    path = folder / SPEC_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(f"{path} is missing; {folder} is no model version: export or pull the model") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelFileError(f"can't read {path}: {error}; export or pull the model again") from error
    if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
        raise ModelFileError(f"{path} is not of format {FORMAT}, the one this version reads; export the model again")
    try:
        prompts = Prompts(**raw.pop("prompts"))
        spec = ModelSpec(prompts=prompts, inputs=tuple(raw.pop("inputs")), **raw)
        numbers = (spec.dimension, spec.states_dimension, spec.max_tokens)
        if not (isinstance(spec.files, dict) and all(type(n) is int and n > 0 for n in numbers)):
            raise TypeError("dimension, hidden_size and max_tokens must be whole numbers above 0, files an object")
    except (KeyError, TypeError) as error:
        raise ModelFileError(f"{path} does not describe a model: {error}; export the model again") from error
    if verify:
        verify_files(folder, spec)
    return spec


def graph_file(folder: Path, spec: ModelSpec, engine: Literal["onnx", "openvino"], precision: str) -> Path:
    """The graph that an engine opens for a precision. Raises ModelFileError where it takes one of its own that is not
    there."""
    if precision == "int8":
        path, how = folder / INT8_FILES[engine], f"quantize {spec.name}"
    elif precision == "fp16" and engine == "onnx":
        path, how = folder / FP16_FILE, f"export CHECKPOINT --name {spec.name} --fp16"
    else:
        return folder / MODEL_FILE
    if not path.is_file():
        raise ModelFileError(f"{path} is missing; make it by `python -m training {how}`, or set ME5_PRECISION=fp32")
    return path


def graph_files(spec: ModelSpec, *graphs: str) -> list[str]:
    """These graphs' files, and those beside them that hold their weights."""
    return [name for name in spec.files if name.startswith(graphs)]


def verify_files(folder: Path, spec: ModelSpec, names: Sequence[str] | None = None) -> None:
    """Refuse a version of which a file is missing or is not the one the spec was written with.

    names: all, unless given.
    """
    for name in (MODEL_FILE, TOKENIZER_FILE, GOLDEN_FILE):
        if name not in spec.files:
            raise ModelFileError(f"{folder / SPEC_FILE} names no {name}; export or pull the model again")
    for name in spec.files if names is None else names:
        expected = spec.files[name]
        try:
            found = file_sha256(folder / name)
        except OSError as error:
            raise ModelFileError(f"can't read {folder / name}: {error}; export or pull the model again") from error
        if found != expected:
            raise ModelFileError(
                f"{folder / name} is damaged or was edited: its SHA-256 is {found[:16]}…, "
                f"spec.json says {expected[:16]}…; restore the file, or export or pull the model again"
            )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
