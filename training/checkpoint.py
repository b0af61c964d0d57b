"""Checkpoints in the Sentence Transformers layout, with the run's manifest and what an exact resume needs."""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from service.recipe.prompts import E5_PROMPTS, Prompts
from training.bootstrap_config import TrainConfig
from training.card_facts import MANIFEST_FILE
from training.data import Source
from training.model_card import write_checkpoint_card

MAX_TOKENS = 512
STATE_FILE = "training_state.pt"
LATEST = "latest"
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")


def write_json(path: Path, content: dict[str, object] | list[dict[str, object]]) -> None:
    """Write JSON for people and machines alike, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def write_sentence_transformers_files(folder: Path, dimension: int, prompts: Prompts = E5_PROMPTS) -> None:
    """Write what `SentenceTransformer(folder)` reads besides the model: pooling, normalisation, prompts, tokens."""
    write_json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
    )
    pooling = folder / "1_Pooling"
    pooling.mkdir()
    write_json(
        pooling / "config.json",
        {
            "word_embedding_dimension": dimension,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    (folder / "2_Normalize").mkdir()
    write_json(folder / "2_Normalize" / "config.json", {})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": MAX_TOKENS, "do_lower_case": False})
    # No default prompt: a text is embedded as it stands unless the caller names one.
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": prompts_by_name(prompts), "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    marks = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    marks |= {"pad_token": "<pad>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", dict(marks))
    write_json(
        folder / "tokenizer_config.json",
        {
            **marks,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": MAX_TOKENS,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
        },
    )


def prompts_by_name(prompts: Prompts) -> dict[str, str]:
    """Both roles' prompts, and of an instruct model those of every input type that has an instruction of its own."""
    named = {name: prompts.prefix("query", input_type=name) for name in prompts.instructions}
    return {"query": prompts.prefix("query"), "passage": prompts.prefix("passage"), **named}


def describe_run(
    config: TrainConfig, sources: list[Source], begins_with: str, step: int, pairs_seen: int
) -> dict[str, object]:
    """Say what a checkpoint was made from: data with hashes, settings with seeds, versions, steps.

    begins_with: the name of the model whose weights it had in the beginning.
    """
    return {
        "begin_with": {"model": begins_with},
        "steps": step,
        "pairs_seen": pairs_seen,
        "finished": step >= config.distil.steps,
        "settings": config.model_dump(),
        "data": {source.name: {"sha256": source.sha256} for source in sources},
        "sources": {source.name: {"pairs": source.pair_count, "licence": source.licence} for source in sources},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }


def save_checkpoint(
    out: Path,
    step: int,
    bert: PreTrainedModel,
    tokenizer: Tokenizer,
    manifest: dict[str, object],
    state: Mapping[str, object],
    write_layout: Callable[[Path], None] | None = None,
) -> Path:
    """Write `out/step_NNNNNN` whole or not at all, point `out/latest` at it, drop the state of older ones.

    write_layout: what other libraries read beside model and tokenizer; by default that of Sentence Transformers.
    """
    folder = out / f"step_{step:06d}"
    unfinished = out / f".{folder.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    bert.save_pretrained(unfinished)
    tokenizer.save(str(unfinished / "tokenizer.json"), pretty=False)
    if write_layout is None:
        write_sentence_transformers_files(unfinished, bert.config.hidden_size)
    else:
        write_layout(unfinished)
    weights = hashlib.sha256((unfinished / "model.safetensors").read_bytes()).hexdigest()
    write_json(unfinished / MANIFEST_FILE, {**manifest, "weights_sha256": weights})
    # A re-ranker has no pooling, and no card of an embedding model.
    if (unfinished / "1_Pooling").is_dir():
        write_checkpoint_card(unfinished)
    torch.save(state, unfinished / STATE_FILE)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    point_latest_at(folder)
    for older in out.glob(f"step_*/{STATE_FILE}"):
        # The moments are three times as large as the model and only the newest are ever read.
        if older.parent != folder:
            older.unlink()
    return folder


def point_latest_at(folder: Path) -> None:
    """Replace the link `latest` in one step, so that it always names a whole checkpoint."""
    link = folder.parent / f".{LATEST}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    os.replace(link, folder.parent / LATEST)


def load_state(out: Path) -> tuple[Path, dict[str, object]] | None:
    """Return the newest checkpoint folder and its training state; None where a run has written none yet."""
    folder = out / LATEST
    if not (folder / STATE_FILE).is_file():
        return None
    return folder.resolve(), torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
