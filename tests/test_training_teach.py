"""The teacher: a cross-encoder that learns to rank, and whose scores are read once, kept, and learnt from."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoint import tiny_tokenizer, write_tiny_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, XLMRobertaForSequenceClassification

from training.config import FilterConfig, FinetuneConfig, ModelConfig, SourceConfig, TeachConfig
from training.cross_encoder import (
    CrossEncoder,
    PairTokens,
    begin_cross_encoder,
    identity_of,
    open_cross_encoder,
    with_pair_template,
)
from training.errors import BadTrainConfig, BadTrainingData, SettingsChanged, StartingModelMissing
from training.pair_store import PairRow, PairStore, open_stores
from training.prepare import prepare
from training.score import pairs_of, score_pairs, score_store
from training.score_cache import open_cache
from training.stages import train_stage
from training.teach import train_teacher
from training.teach_step import hardest_of, ranking_loss

CPU = torch.device("cpu")
THINGS = ["boats", "bread", "harbour", "lantern", "violin", "garden", "bridge", "kettle"]
TEACH = TeachConfig(
    batch_queries=16,
    epochs=8,
    learning_rate=3e-3,
    negatives=3,
    forward_factor=1,
    r_drop=0.0,
    max_tokens=48,
    warmup_steps=4,
    precision="fp32",
    save_every_steps=1000,
    log_every_steps=5,
)


def question(number: int) -> dict[str, object]:
    """Where and when are answered by the same passages the other way round: a query has to be read with them."""
    thing = THINGS[number % 8]
    places = [f"{thing} {number} is behind the old mill", f"{thing} {number} is on the square"]
    times = [f"{thing} {number} came late in winter", f"{thing} {number} came early in spring"]
    right, wrong = (places, times) if number % 2 else (times, places)
    return {
        "query": f"{'where' if number % 2 else 'when'} is {thing} {number}?",
        "positive": right[number // 2 % 2],
        "negative": wrong + [f"{wrong[0]} of course"],
        "lang": "en",
    }


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    (data / "train").mkdir()
    for name, numbers in (("taught", range(240)), ("unseen", range(500, 564))):
        lines = "".join(json.dumps(question(number)) + "\n" for number in numbers)
        (data / "train" / f"{name}.jsonl").write_text(lines)
        source = SourceConfig(path=f"train/{name}.jsonl")
        prepare({name: source}, FilterConfig(), data=data, out=data / f"prepared-{name}")
    return data


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("backbone") / "tiny", "xlm-roberta", spread=0.05)


@pytest.fixture(scope="module")
def config(backbone: Path) -> ModelConfig:
    return ModelConfig(name="toy", backbone=str(backbone), teach=TEACH)


@pytest.fixture(scope="module")
def whole(config: ModelConfig, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("teach") / "whole"
    assert train_teacher(config, pairs=pairs / "prepared-taught", out=run, should_stop=lambda: False)
    return run


def ranks_right(folder: Path, store: PairStore) -> float:
    """The share of the queries whose positive is scored above every negative; chance is 1 in 4."""
    encoder = open_cross_encoder(str(folder), CPU, 48)
    rows = store.rows(np.arange(store.shape.rows))
    with torch.inference_mode():
        tokens = encoder.tokenize([pair for row in rows for pair in pairs_of(row)])
        scores = encoder.logits(tokens, "fp32").unflatten(0, (len(rows), 4))
    return float((scores.argmax(dim=1) == 0).float().mean())


def test_the_teacher_ranks_the_right_passage_of_questions_it_has_not_seen_first(whole: Path, pairs: Path) -> None:
    found = ranks_right(whole / "latest", open_stores(pairs / "prepared-unseen")[0])
    print(f"\nranked first: {found:.3f}")
    assert found > 0.75
