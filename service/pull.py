"""Bring a published checkpoint into the model repository: the ONNX graph that others exported, with a spec of ours.

The layout is the one of intfloat/multilingual-e5-*: onnx/model.onnx (and onnx/model.onnx_data where the weights lie
beside the graph), and tokenizer.json in onnx/ or at the top. A local folder of that layout takes the same path.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.engine import open_engine, vectors_of
from service.errors import ModelFileError, ModelNotFound
from service.model import version_numbers
from service.recipe.golden import Golden, GoldenItem, prove, save_golden
from service.recipe.prompts import ROLES, Prompts, format_text
from service.recipe.spec import GOLDEN_FILE, MODEL_FILE, PUBLISHED, TOKENIZER_FILE, ModelSpec, file_sha256, save_spec
from service.recipe.tokens import load_tokenizer, pad, tokenize
from service.triton_config import keep_config

GOLDEN_SOURCE = "onnxruntime-fp32"
GOLDEN_BOUNDS = {"fp32": 0.9999, "bf16": 0.999, "fp16": 0.999, "int8": 0.98}
_PATTERNS = ["onnx/model.onnx", "onnx/model.onnx_data", "onnx/tokenizer.json", "tokenizer.json"]

# All scripts that mE5's tokenizer treats differently, one word, one text that is cut.
GOLDEN_TEXTS = (
    "How tall is the television tower in Berlin?",
    "Der Berliner Fernsehturm ist 368 Meter hoch und damit das höchste Bauwerk Deutschlands.",
    "¿Cuánto tiempo tarda la luz del Sol en llegar a la Tierra?",
    "Свет от Солнца доходит до Земли примерно за восемь минут.",
    "茶为什么会变苦？",
    "お茶は熱すぎる湯で淹れると苦くなります。",
    "차를 너무 오래 우리면 쓴맛이 납니다.",
    "لماذا يصبح الشاي مرا؟",
    "चाय को बहुत देर तक उबालने से वह कड़वी हो जाती है।",
    "ชาที่แช่นานเกินไปจะมีรสขม",
    "Kwa nini chai huwa chungu?",
    "πυξίδα",
    "🙂 3.14 % x² — “quoted”",
    "A long text that is cut. " * 120,
)


def pull(source: str, model_repo: Path, *, published: str | None = None, revision: str | None = None) -> Path:
    """Write model_repo/<name>/<next version>/ from a repository or a local folder. Returns the folder written.

    published: which of the published checkpoints a local folder holds; a repository's own name says it.
    """
    name = published or source
    if name not in PUBLISHED:
        raise ModelNotFound(
            f"{name!r} is not a published checkpoint this version knows ({', '.join(PUBLISHED)}); "
            "for a local folder in their layout, say which one it is by --as"
        )
    origin = Path(source)
    if not origin.is_dir():
        if published is not None:
            raise ModelNotFound(f"no folder {source!r}; --as goes with a local folder")
        origin = _download(source, revision)
    return install(origin, PUBLISHED[name], model_repo)


def install(origin: Path, spec: ModelSpec, model_repo: Path) -> Path:
    """Copy a folder in the published layout into the model repository as the next version of spec.name."""
    graph = origin / "onnx" / MODEL_FILE
    if not graph.is_file():
        raise ModelFileError(
            f"{graph} is missing; the folder must hold onnx/model.onnx as the published checkpoints do"
        )
    tokenizer = next(
        (path for path in (origin / "onnx" / TOKENIZER_FILE, origin / TOKENIZER_FILE) if path.is_file()), None
    )
    if tokenizer is None:
        raise ModelFileError(f"{origin} holds no {TOKENIZER_FILE}, neither in onnx/ nor at its top")
    shelf = model_repo / spec.name
    shelf.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed once it is complete: a half-written version is never seen.
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=shelf) as unfinished:
        folder = Path(unfinished) / "version"
        folder.mkdir()
        shutil.copyfile(tokenizer, folder / TOKENIZER_FILE)
        for path in sorted(graph.parent.glob(f"{MODEL_FILE}*")):
            shutil.copyfile(path, folder / path.name)
        spec = describe(folder, spec)
        save_golden(folder / GOLDEN_FILE, golden_of(folder, spec))
        save_spec(folder, spec)
        place = shelf / str(max(version_numbers(shelf), default=0) + 1)
        folder.rename(place)
    keep_config(shelf, spec)
    return place


def describe(folder: Path, spec: ModelSpec) -> ModelSpec:
    """The spec with the graph's own tensor names and dimension, read from the file."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(folder / MODEL_FILE), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen classes here, none of them public
        raise ModelFileError(f"ONNX Runtime can't load {folder / MODEL_FILE}: {error}") from error
    inputs = tuple(item.name for item in session.get_inputs())
    outputs = {item.name: item.shape for item in session.get_outputs()}
    pooled = "sentence_embedding" in outputs
    output = "sentence_embedding" if pooled else "last_hidden_state"
    if output not in outputs or not {"input_ids", "attention_mask"} <= set(inputs):
        raise ModelFileError(
            f"{folder / MODEL_FILE} takes {', '.join(inputs)} and gives {', '.join(outputs)}; wanted are input_ids, "
            "attention_mask, perhaps token_type_ids, and last_hidden_state or sentence_embedding"
        )
    dimension = outputs[output][-1]
    if isinstance(dimension, int) and dimension != spec.dimension:
        raise ModelFileError(
            f"{folder / MODEL_FILE} gives vectors of {dimension} numbers, {spec.source} has {spec.dimension}; "
            "is --as the right checkpoint?"
        )
    return replace(spec, inputs=inputs, output=output, pooling="graph" if pooled else "mean")


def golden_of(folder: Path, spec: ModelSpec) -> Golden:
    """Golden vectors by fp32 ONNX Runtime: they gate other engines and precisions, and name their source."""
    roles = [ROLES[index % 2] for index in range(len(GOLDEN_TEXTS))]
    vectors = _embed_alone(folder, spec, [(text, role) for text, role in zip(GOLDEN_TEXTS, roles, strict=True)])
    items = tuple(
        GoldenItem(text, role, None, vector) for text, role, vector in zip(GOLDEN_TEXTS, roles, vectors, strict=True)
    )
    golden = Golden(GOLDEN_SOURCE, GOLDEN_BOUNDS, items)
    prove(golden, vectors, "fp32")
    return golden


def _embed_alone(folder: Path, spec: ModelSpec, texts: list[tuple[str, str]]) -> list[NDArray[np.float32]]:
    prompts: Prompts = spec.prompts
    tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
    engine = open_engine(folder, spec, engine="onnx", device="cpu")
    prompted = [format_text(text, prompts, "query" if role == "query" else "passage") for text, role in texts]
    batches = [pad([row.ids], spec.pad_id) for row in tokenize(tokenizer, prompted, spec.max_tokens)]
    vectors = [vectors_of(engine.run(batch), batch)[0] for batch in batches]
    engine.close()
    return vectors


def _download(repository: str, revision: str | None) -> Path:
    """The repository's ONNX files, each checked against the SHA-256 that the hub keeps for it."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        about = HfApi().model_info(repository, revision=revision, files_metadata=True)
        folder = Path(snapshot_download(repository, revision=about.sha, allow_patterns=_PATTERNS))
    except Exception as error:  # the hub's own errors, its HTTP client's, and the system's, none with a common root
        raise ModelFileError(
            f"can't fetch {repository}: {error}; where there is no network, copy the repository's onnx/ folder and "
            f"tokenizer.json by hand and run: python -m service pull FOLDER --as {repository}"
        ) from error
    for item in about.siblings or []:
        path = folder / item.rfilename
        if item.lfs is not None and path.is_file() and file_sha256(path) != item.lfs.sha256:
            raise ModelFileError(f"{path} is not the file {repository} publishes; delete it and pull again")
    return folder
