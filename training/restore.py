"""A finished model of two paths as weights to train further: from a checkpoint, or read back out of a version's graph.

A repository holds versions, not always the checkpoints that they were made of. What rounding to int8 has cost is in
them, and training goes on from there.
"""

from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import BertModel

from service.recipe.spec import MODEL_FILE, TOKENIZER_FILE, file_sha256, load_spec
from service.recipe.tokens import load_tokenizer
from training.errors import ExportError, StartingModelMissing
from training.graft import graft_encoder
from training.graph_weights import Encoder, Linear, Norm, read_encoder
from training.lexical_path import LexicalPath, load_lexical_path
from training.sentence_folder import LEXICAL_FILE, STATIC_FILE, WEIGHTS_FILE, weights_identity
from training.starting_model import StartingModel
from training.static_path import StaticPath, load_static_path


@dataclass(frozen=True)
class Restored:
    """The layers over their token table, the static path beside them, and the lexical one behind, if there is one."""

    bert: BertModel
    static: StaticPath
    lexical: LexicalPath | None = None


def model_files(folder: Path) -> list[Path]:
    """The files that are read, a version's or a checkpoint's; first the one with the layers.

    Raises StartingModelMissing.
    """
    for names in ((MODEL_FILE, TOKENIZER_FILE), (WEIGHTS_FILE, STATIC_FILE, TOKENIZER_FILE)):
        if all((folder / name).is_file() for name in names):
            lexical = [folder / LEXICAL_FILE]
            return [folder / name for name in names] + [path for path in lexical if path.is_file()]
    raise StartingModelMissing(
        f"{folder} can't be trained further: begins_with must name a version in model_repo/, or a checkpoint of two "
        "paths in runs/"
    )


def restored_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of what is trained further. Raises StartingModelMissing."""
    model_files(folder)
    return load_tokenizer(folder / TOKENIZER_FILE)


def restored_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that is read, by its path within the folder. Raises StartingModelMissing."""
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in model_files(folder)}


def restored_name(folder: Path) -> str:
    """The folder without the way to it, and which weights it held: `me5_nano/2, weights 6d47b3e0064f`."""
    hashes = restored_hashes(folder)
    return f"{'/'.join(folder.resolve().parts[-2:])}, weights {(weights_identity(hashes) or hashes[MODEL_FILE])[:12]}"


def restore(folder: Path, start: StartingModel) -> Restored:
    """Read a version or a checkpoint whose layers are of the starting model's shape.

    start: says what a graph doesn't, such as the number of heads. Raises StartingModelMissing where the shapes differ,
    or where there is one path, and ModelFileError where a version's file is not the one that its spec.json names.
    """
    path = model_files(folder)[0]
    if path.name == WEIGHTS_FILE:
        try:
            weights, static, lexical = load_file(path), load_static_path(folder), load_lexical_path(folder)
        except (SafetensorError, KeyError) as error:
            raise StartingModelMissing(f"{folder} can't be read: {error}; take another checkpoint") from error
        assert static is not None
        restored = Restored(_with_weights(start, weights, path), static, lexical)
        _check_rows(restored, folder)
        return restored
    load_spec(folder)
    try:
        encoder = read_encoder(onnx.load(path))
    except ExportError as error:
        raise StartingModelMissing(f"{path} can't be trained further: {error}") from error
    if encoder.static is None:
        raise StartingModelMissing(f"{path} has layers alone; begins_with must name a model of two paths")
    parts = encoder.static
    of_tokens, middle, matrix = (torch.from_numpy(part) for part in (parts.weights, parts.middle, parts.matrix))
    static = StaticPath(of_tokens, middle, matrix, torch.tensor(parts.share))
    return Restored(_with_weights(start, weights_of(encoder), path), static, _lexical_of(encoder))


def _lexical_of(encoder: Encoder) -> LexicalPath | None:
    parts = encoder.lexical
    if parts is None:
        return None
    arrays = parts.weights, parts.low, parts.high, parts.scales, parts.passage_id
    return LexicalPath(*(torch.from_numpy(array.copy()) for array in arrays))


def _check_rows(restored: Restored, folder: Path) -> None:
    rows = len(restored.bert.embeddings.word_embeddings.weight)
    for part, file in ((restored.static, STATIC_FILE), (restored.lexical, LEXICAL_FILE)):
        if part is not None and len(part.weights) != rows:
            raise StartingModelMissing(
                f"{folder / file} is of {len(part.weights)} tokens, the layers are of {rows}: they are not of one "
                "model; take another checkpoint"
            )


def _with_weights(start: StartingModel, weights: dict[str, torch.Tensor], path: Path) -> BertModel:
    try:
        bert = graft_encoder(weights["embeddings.word_embeddings.weight"], start)
        bert.load_state_dict(weights)
    except (RuntimeError, KeyError) as error:
        last = str(error).splitlines()[-1].strip()
        raise StartingModelMissing(f"{path} is not of the starting model's shape: {last}") from error
    return bert


def weights_of(encoder: Encoder) -> dict[str, torch.Tensor]:
    """By the names of a BertModel; the token types are in the positions already."""
    found = {
        "embeddings.word_embeddings.weight": torch.from_numpy(encoder.words),
        "embeddings.position_embeddings.weight": torch.from_numpy(encoder.positions),
        "embeddings.token_type_embeddings.weight": torch.zeros(2, encoder.width),
        **_named("embeddings.LayerNorm", encoder.norm),
    }
    for number, layer in enumerate(encoder.layers):
        name = f"encoder.layer.{number}"
        found |= _named(f"{name}.attention.self.query", layer.query)
        found |= _named(f"{name}.attention.self.key", layer.key)
        found |= _named(f"{name}.attention.self.value", layer.value)
        found |= _named(f"{name}.attention.output.dense", layer.attended)
        found |= _named(f"{name}.attention.output.LayerNorm", layer.attention_norm)
        found |= _named(f"{name}.intermediate.dense", layer.inner)
        found |= _named(f"{name}.output.dense", layer.outer)
        found |= _named(f"{name}.output.LayerNorm", layer.norm)
    return found


def _named(name: str, part: Linear | Norm) -> dict[str, torch.Tensor]:
    if isinstance(part, Norm):
        return {f"{name}.weight": torch.from_numpy(part.gain), f"{name}.bias": torch.from_numpy(part.offset)}
    # torch multiplies by the transposed matrix.
    return {f"{name}.weight": torch.from_numpy(part.weight.T.copy()), f"{name}.bias": torch.from_numpy(part.bias)}
