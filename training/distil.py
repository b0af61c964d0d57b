"""One optimisation step of a grafted encoder: texts of every language are led to the English teacher's vectors.

A translation is led to the vector of its English side, which the teacher gives once (teacher_vectors.py); the teacher's
own texts to their own vectors, so that the new vocabulary and the prompts change nothing. The layers and the static
path (static_path.py) each have a loss of their own (distil_loss.py), and the token table in common.
"""

import copy
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import BertModel

from training.batches import (
    RETRIEVAL_SOURCES,
    Texts,
    batch_pairs_of,
    choose_roles,
    read_prefixes,
    room_for_text,
    token_rows,
)
from training.bootstrap_config import DistilConfig
from training.data import Corpus
from training.distil_loss import Given, GivenPassages, Plan, passage_loss, path_loss, plan
from training.encoder import TokenRows, distinct_ids, embed_rows
from training.loop import StepReport
from training.mixture import Mixture, draw_batch
from training.narrow import onto_subspace
from training.nibbles import rounded
from training.passages import directions, passage_rows, put_together
from training.row_adam import RowAdam
from training.schedule import rate_at
from training.static_path import StaticPath
from training.targets import NO_TARGET, TRANSLATION_SOURCES
from training.teacher_vectors import TeacherVectors
from training.token_store import TokenStore

logger = logging.getLogger(__name__)

# The loss of one path, from its vectors of the rows that were read.
PathLoss = Callable[[torch.Tensor], torch.Tensor]


class DistilState(TypedDict):
    """What an exact continuation needs."""

    steps_done: int
    pairs_seen: int
    recent: torch.Tensor
    bert: dict[str, torch.Tensor]
    averaged: dict[str, torch.Tensor]
    static: dict[str, torch.Tensor]
    table_optimizer: dict[str, torch.Tensor]
    layer_optimizer: dict[str, Any]


class TwoPaths(torch.nn.Module):
    """The layers and the static path as one thing to be averaged and saved."""

    def __init__(self, bert: BertModel, static: StaticPath) -> None:
        super().__init__()
        self.bert, self.static = bert, static


def copy_of(bert: BertModel, static: StaticPath) -> TwoPaths:
    """The weights as they are now."""
    return TwoPaths(copy.deepcopy(bert), copy.deepcopy(static)).requires_grad_(False)


def compiled(bert: BertModel) -> torch.nn.Module:
    """The same weights in code made for them, for batches of every shape; as they are where nothing compiles it."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        logger.warning("compiled = true, but there is no C++ compiler: going on without, a fifth slower")
        return bert
    return cast(torch.nn.Module, torch.compile(bert, dynamic=True))


def remember(recent: NDArray[np.int64], targets: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Put the English texts of a batch, int64[B, 2], behind those of the steps before, and forget the oldest.

    Returns int64[N], N <= size, no text twice.
    """
    newest = np.unique(targets[targets != NO_TARGET])
    kept = np.concatenate([recent[~np.isin(recent, newest)], newest])
    return kept[max(0, len(kept) - size) :]


class DistilTrainer:
    """The encoder with its optimisers; `step(n)` is a function of the state, the corpus and n alone.

    targets: int32[N, 2], see find_targets.   table_width: of how many dimensions the token vectors are, and stay.
    table_bits: 4 where they are read rounded, as they are stored.
    """

    def __init__(
        self,
        bert: BertModel,
        static: StaticPath,
        tokenizer: Tokenizer,
        corpus: Corpus,
        targets: NDArray[np.int32],
        mixture: Mixture,
        store: TokenStore,
        teacher: TeacherVectors,
        config: DistilConfig,
        seed: int,
        table_width: int | None = None,
        table_bits: int = 8,
    ) -> None:
        self.bert, self.static = bert, static
        self.layers = compiled(bert) if config.compiled else bert
        self.corpus, self.mixture, self.store = corpus, mixture, store
        self.teacher, self.config, self.seed = teacher, config, seed
        self.prefixes, self.targets = read_prefixes(tokenizer), targets
        # English texts of the last steps. The teacher stands still, so what it said of them is as good as new, and
        # every text of a batch is told apart from thousands for the price of one matrix product.
        self.recent = np.zeros(0, dtype=np.int64)
        # Only texts of the same language and kind are hard to tell apart from a passage.
        self.retrieval = {n for n, name in enumerate(corpus.sources) if name.startswith(RETRIEVAL_SOURCES)}
        self.translation = {n for n, name in enumerate(corpus.sources) if name.startswith(TRANSLATION_SOURCES)}
        cut = [np.minimum(store.lengths(), tokens) for tokens in (config.max_tokens, config.passage_tokens)]
        short, long = (batch_pairs_of(corpus, of, config.tokens_per_batch, config.batch_pairs_max) for of in cut)
        self.batch_pairs = [long[n] if n in self.retrieval else short[n] for n in range(len(corpus.sources))]
        # Of a pair, one side goes into a passage.
        self.passage_pairs = [2 * pairs if n in self.translation else pairs for n, pairs in enumerate(self.batch_pairs)]
        table = bert.embeddings.word_embeddings.weight
        within = None if table_width is None else onto_subspace(table, table_width)
        self.rounding = rounded if table_bits == 4 else None
        self.table_optimizer = RowAdam(table, projection=within, rounding=self.rounding)
        trained = [parameter for parameter in [*bert.parameters(), static.matrix] if parameter.requires_grad]
        self.layer_optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        # What is saved is made of late weights on average, so that a run may be stopped at any time.
        self.averaged, self.start = copy_of(bert, static), copy_of(bert, static)

    def step(self, number: int) -> StepReport:
        """Draw batch `number`, move the weights once."""
        rng = np.random.default_rng([self.seed, number, 1])
        as_passages = rng.random() < self.config.passage_share
        sizes = self.passage_pairs if as_passages else self.batch_pairs
        one_language = self.retrieval | self.translation if as_passages else self.retrieval
        rows = draw_batch(self.corpus, self.mixture, sizes, self.seed, number, one_language)
        source = int(self.corpus.pair_source[rows[0]])
        read = plan(self.corpus.pairs[rows].astype(np.int64), self.targets[rows], self.config.english_share, rng)
        if as_passages and source in self.translation and len(read.taught):
            flat, loss_of = self.read_passages(read, rng)
        else:
            flat, loss_of = self.read_pairs(read, source, rng)
        ids = distinct_ids(flat)
        table = TokenRows(ids, self.table_optimizer.gather(ids))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bfloat16):
            layers = embed_rows(self.layers, flat, table, self.config.chunk_tokens)
            static = self.static.of_rows(flat, ids, table.vectors)
        loss = loss_of(layers.float()) + loss_of(static.float())
        loss.backward()
        self.move(number, table)
        self.recent = remember(self.recent, read.targets, self.config.recent_texts)
        return StepReport(len(rows), sum(len(row) for row in flat), loss.item())

    def read_pairs(self, read: Plan, source: int, rng: np.random.Generator) -> tuple[list[NDArray[np.int32]], PathLoss]:
        """The token rows of both sides of a batch, and the loss of a path that gives vectors to them."""
        config, roles = self.config, choose_roles(self.corpus.sources[source], rng)
        longest = config.passage_tokens if source in self.retrieval else config.max_tokens
        sides = [Texts(read.left, roles[0]), Texts(read.right[read.read_right], roles[1])]
        flat = [row for texts in sides for row in token_rows(self.store, self.prefixes, texts, longest)]
        of_left, of_right = (self.teacher.of(read.targets[read.taught, side]) for side in (0, 1))
        given = Given(of_left, of_right, self.teacher.of(self.recent))

        def loss_of(path: torch.Tensor) -> torch.Tensor:
            return path_loss(path[: len(read.left)], path[len(read.left) :], read, given, config)

        return flat, loss_of

    def read_passages(self, read: Plan, rng: np.random.Generator) -> tuple[list[NDArray[np.int32]], PathLoss]:
        """The same of a batch whose left sides are put together to passages; behind these lie the questions."""
        config, store = self.config, self.store
        room = room_for_text(self.prefixes.passage, config.passage_tokens)
        made = put_together(read.taught, store.lengths()[read.left[read.taught]], room, rng)
        flat = passage_rows(made, (read.left, read.right), store, self.prefixes, config.passage_tokens, rng)
        sentences = self.teacher.of(read.targets[made.members, 0])
        given = GivenPassages(directions(sentences, made), self.teacher.of(self.recent))

        def loss_of(path: torch.Tensor) -> torch.Tensor:
            return passage_loss(path[: len(made.asked)], path[len(made.asked) :], given, config)

        return flat, loss_of

    def move(self, number: int, table: TokenRows) -> None:
        """Apply the gradients of one step with the learning rates of its number."""
        config = self.config
        share = rate_at(number, config.steps, config.warmup_steps, "warmup_stable_decay", config.decay_share)
        moved = [*self.bert.parameters(), self.static.matrix]
        torch.nn.utils.clip_grad_norm_(moved, self.config.gradient_norm_max)
        for group in self.layer_optimizer.param_groups:
            group["lr"] = self.config.learning_rate * share
        self.layer_optimizer.step()
        self.layer_optimizer.zero_grad(set_to_none=True)
        assert table.vectors.grad is not None
        with torch.no_grad():
            self.table_optimizer.step(table.ids, table.vectors.grad, self.config.token_learning_rate * share)
            newest = 1 / min(self.config.average_steps, 1 + number / 4)
            for mean, weights in zip(self.averaged.parameters(), moved, strict=True):
                mean.lerp_(weights, newest)

    def result(self) -> TwoPaths:
        """The model to be saved: the late weights on average, and a share of those that training began with.

        In between similarity is better than at either end, and translations are found as well as at the late one
        (Wortsman et al. 2022, robust fine-tuning).
        """
        made = copy.deepcopy(self.averaged)
        with torch.no_grad():
            for weights, start in zip(made.parameters(), self.start.parameters(), strict=True):
                weights.lerp_(start, self.config.start_share)
            table = made.bert.embeddings.word_embeddings.weight
            if self.rounding is not None:
                table.copy_(self.rounding(table))
        return made

    def state(self, steps_done: int, pairs_seen: int) -> DistilState:
        """Return what load() needs for an exact continuation."""
        self.teacher.flush()
        return {
            "steps_done": steps_done,
            "pairs_seen": pairs_seen,
            "recent": torch.from_numpy(self.recent),
            "bert": self.bert.state_dict(),
            "averaged": self.averaged.state_dict(),
            "static": self.static.state_dict(),
            "table_optimizer": self.table_optimizer.state_dict(),
            "layer_optimizer": self.layer_optimizer.state_dict(),
        }

    def load(self, state: DistilState) -> tuple[int, int]:
        """Take back what state() gave; returns the steps done and the pairs seen."""
        self.recent = state["recent"].numpy()
        self.bert.load_state_dict(state["bert"])
        self.averaged.load_state_dict(state["averaged"])
        self.static.load_state_dict(state["static"])
        self.table_optimizer.load_state_dict(state["table_optimizer"])
        self.layer_optimizer.load_state_dict(state["layer_optimizer"])
        return state["steps_done"], state["pairs_seen"]
