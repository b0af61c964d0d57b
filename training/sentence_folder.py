"""A checkpoint in the Sentence Transformers layout: what its files say about texts and vectors. Reads no weights.

The layout is what the whole ecosystem loads: config.json and model.safetensors (the transformer), tokenizer.json,
sentence_bert_config.json and tokenizer_config.json (the longest input), config_sentence_transformers.json (the
prompts), modules.json and 1_Pooling/config.json. Only mean pooling is understood: anything else would be measured and
exported as something it is not, so it is refused.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.recipe.prompts import Prompts
from service.recipe.spec import TOKENIZER_FILE, file_sha256
from service.recipe.tokens import load_tokenizer
from training.errors import CheckpointError

LONGEST_INPUT_TOKENS = 512
WEIGHTS_FILE = "model.safetensors"
# The second path of models that have one, see static_path.py.
STATIC_FILE = "2_StaticPath/model.safetensors"
# And the third, see lexical_path.py.
LEXICAL_FILE = "3_LexicalPath/model.safetensors"
WEIGHT_FILES = (WEIGHTS_FILE, STATIC_FILE, LEXICAL_FILE)
INSTRUCT_HEAD, INSTRUCT_TAIL = "Instruct: ", "\nQuery: "


@dataclass(frozen=True)
class SentenceFolder:
    """dimension: length of a vector.   states_dimension: of a token's state, the layers' width.   max_tokens: longest
    input, prompt and special tokens counted."""

    path: Path
    prompts: Prompts
    dimension: int
    states_dimension: int
    max_tokens: int
    pad_id: int


def weights_identity(hashes: Mapping[str, str]) -> str | None:
    """What tells a checkpoint's weights from all others: the hash of their file, or one of the hashes of all paths.

    hashes: SHA-256 by file within the checkpoint; other files than weights may be among them. None without any.
    """
    found = [hashes[name] for name in WEIGHT_FILES if name in hashes]
    return hashlib.sha256("".join(found).encode()).hexdigest() if len(found) > 1 else next(iter(found), None)


def weight_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of weights that a checkpoint has."""
    return {name: file_sha256(folder / name) for name in WEIGHT_FILES if (folder / name).is_file()}


def checkpoint_identity(folder: Path) -> str:
    """What tells a checkpoint from all others. Raises CheckpointError where it has no weights."""
    identity = weights_identity(weight_hashes(folder))
    if identity is None:
        raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}; name a checkpoint with weights")
    return identity


def read_sentence_folder(path: Path) -> SentenceFolder:
    """Read and check the folder; CheckpointError names the file and what it should say."""
    config = _Json(path / "config.json")
    _check_pooling(_Json(path / "1_Pooling" / "config.json"))
    folder = SentenceFolder(
        path=path,
        prompts=_prompts(_Json(path / "config_sentence_transformers.json")),
        dimension=config.number("hidden_size") + _lexical_width(path),
        states_dimension=config.number("hidden_size"),
        max_tokens=min(LONGEST_INPUT_TOKENS, _position_rows(config), *_stated_max_tokens(path)),
        pad_id=config.number("pad_token_id"),
    )
    tokenizer = load_tokenizer(path / TOKENIZER_FILE)
    if tokenizer.get_vocab_size() > config.number("vocab_size"):
        raise CheckpointError(
            f"{path / TOKENIZER_FILE} has {tokenizer.get_vocab_size()} tokens, the model has vectors for "
            f"{config.number('vocab_size')}; they are not of the same training"
        )
    if tokenizer.id_to_token(folder.pad_id) is None:
        raise CheckpointError(f"{config.path} says pad_token_id {folder.pad_id}, the tokenizer has no such token")
    return folder


def has_static_path(checkpoint: str | Path) -> bool:
    """Whether a checkpoint's folder holds a second path beside the layers; a name on the hub holds none."""
    return (Path(checkpoint) / STATIC_FILE).is_file()


def _lexical_width(path: Path) -> int:
    """How many numbers of a vector the third path adds, if there is one."""
    file = path / LEXICAL_FILE
    return _Json(file.with_name("config.json")).number("width") if file.is_file() else 0


class _Json:
    """A JSON object in a file; its values are asked for by type."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.values: dict[str, object] = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"can't read {path}: {error}; a checkpoint is a folder in the Sentence Transformers layout"
            ) from error

    def number(self, key: str) -> int:
        value = self.values.get(key)
        if not isinstance(value, int):
            raise CheckpointError(f"{self.path} says {key} = {value!r}; it must be a whole number")
        return value


def _position_rows(config: _Json) -> int:
    """How many tokens the position table holds."""
    rows = config.number("max_position_embeddings")
    match config.values.get("model_type"):
        case "bert":
            return rows
        case "xlm-roberta":
            # XLM-R numbers positions from pad_id + 1, so 514 position rows hold 512 tokens.
            return rows - config.number("pad_token_id") - 1
        case other:
            raise CheckpointError(f"{config.path} says model_type {other!r}; known here are bert and xlm-roberta")


def _stated_max_tokens(path: Path) -> list[int]:
    """The limit that the checkpoint states, if it does."""
    # Sentence Transformers wrote max_seq_length up to version 5 and leaves it to the tokenizer since.
    for file, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if (path / file).is_file() and (stated := _Json(path / file)).values.get(key) is not None:
            return [stated.number(key)]
    return []


def _prompts(config: _Json) -> Prompts:
    stated = config.values.get("prompts")
    texts: dict[str, str] = stated if isinstance(stated, dict) else {}
    if "query" not in texts or not ("passage" in texts or "document" in texts):
        raise CheckpointError(
            f"{config.path} names no prompts for both roles; write the ones of the training, "
            'for E5 {"prompts": {"query": "query: ", "passage": "passage: "}}'
        )
    query, passage = texts["query"], texts.get("passage") or texts.get("document") or ""
    instructions = {
        name: text.removeprefix(INSTRUCT_HEAD).removesuffix(INSTRUCT_TAIL)
        for name, text in texts.items()
        if text.startswith(INSTRUCT_HEAD) and text.endswith(INSTRUCT_TAIL)
    }
    if "query" in instructions:
        return Prompts(query="", passage=passage, instruct=True, instructions=instructions)
    return Prompts(query=query, passage=passage)


def _check_pooling(config: _Json) -> None:
    # Up to version 5 of Sentence Transformers one flag for each mode, since then the mode by name.
    mode = config.values.get("pooling_mode") or sorted(
        name for name, on in config.values.items() if name.startswith("pooling_mode_") and on is True
    )
    if mode not in ("mean", ["mean"], ["pooling_mode_mean_tokens"]):
        raise CheckpointError(f"{config.path} asks for {mode} pooling; only the mean over tokens is known here")
