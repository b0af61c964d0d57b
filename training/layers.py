"""One optimisation step of the encoder: InfoNCE over the batch, and distillation of an English teacher.

The teacher embeds the English side of every pair and says how near the texts of the batch are to each other: the
student learns that nearness for the texts in the other languages as well.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import BertModel

from training.batches import Texts, batch_pairs_of, choose_roles, negatives_of, read_prefixes, token_rows
from training.bootstrap_config import LayersConfig
from training.data import Corpus
from training.encoder import TokenRows, distinct_ids, embed_rows
from training.loss import distillation, info_nce_both_ways
from training.mixture import Mixture, draw_batch
from training.row_adam import RowAdam
from training.starting_model import StartingModel
from training.token_store import TokenStore
from training.token_vectors import NO_TARGET, find_targets

TEACHER_ROWS = 32


class TrainerState(TypedDict):
    """What an exact continuation needs."""

    steps_done: int
    pairs_seen: int
    bert: dict[str, torch.Tensor]
    table_optimizer: dict[str, torch.Tensor]
    layer_optimizer: dict[str, Any]


@dataclass(frozen=True)
class StepReport:
    """What one step did, for the log."""

    source: str
    pairs: int
    tokens: int
    loss: float


def learning_rate_at(step: int, steps: int, warmup_steps: int) -> float:
    """Return the share of the peak learning rate: up in a line over warmup_steps, then in a line to 0 at `steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (steps - step) / max(steps - warmup_steps, 1))


class LayersTrainer:
    """The encoder with its optimisers; `step(n)` is a function of the state, the corpus and n alone."""

    def __init__(
        self,
        bert: BertModel,
        tokenizer: Tokenizer,
        corpus: Corpus,
        mixture: Mixture,
        store: TokenStore,
        teacher: StartingModel,
        teacher_store: TokenStore,
        config: LayersConfig,
        seed: int,
    ) -> None:
        self.bert = bert
        self.corpus = corpus
        self.mixture = mixture
        self.store = store
        self.teacher = teacher
        self.teacher_store = teacher_store
        self.config = config
        self.seed = seed
        self.prefixes = read_prefixes(tokenizer)
        self.targets = find_targets(corpus)
        cut_lengths = np.minimum(store.lengths(), config.max_tokens)
        self.batch_pairs = batch_pairs_of(corpus, cut_lengths, config.tokens_per_batch, config.batch_pairs_max)
        self.table_optimizer = RowAdam(bert.embeddings.word_embeddings.weight)
        trained = [parameter for parameter in bert.parameters() if parameter.requires_grad]
        self.layer_optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.01, fused=True)

    def step(self, number: int) -> StepReport:
        """Draw batch `number`, move the weights once."""
        rng = np.random.default_rng([self.seed, number, 1])
        rows = draw_batch(self.corpus, self.mixture, self.batch_pairs, self.seed, number)
        source = self.corpus.sources[self.corpus.pair_source[rows[0]]]
        roles = choose_roles(source, rng)
        asks_teacher = rng.random() < self.config.teacher_share
        sides = [Texts(self.corpus.pairs[rows, side], roles[side]) for side in (0, 1)]
        negatives = Texts(negatives_of(self.corpus, rows), roles[1])
        flat = [
            row
            for texts in (*sides, negatives)
            for row in token_rows(self.store, self.prefixes, texts, self.config.max_tokens)
        ]
        ids = distinct_ids(flat)
        table = TokenRows(ids, self.table_optimizer.gather(ids))
        vectors = embed_rows(self.bert, flat, table, self.config.chunk_tokens)
        left, right, wrong = vectors.split([len(rows), len(rows), len(negatives.numbers)])
        teacher_scores = self.teacher_scores(self.targets[rows]) if asks_teacher else None
        loss = self.loss(left, right, wrong, teacher_scores)
        loss.backward()
        self.move(number, table)
        return StepReport(source, len(rows), sum(len(row) for row in flat), loss.item())

    def loss(
        self, left: torch.Tensor, right: torch.Tensor, negatives: torch.Tensor, teacher_scores: torch.Tensor | None
    ) -> torch.Tensor:
        """Add to InfoNCE, where the teacher was asked, the distance from its ranking of the batch.

        left, right: [B, H].  negatives: [M, H], M may be 0.  teacher_scores: [B, B] or None.
        """
        same_meaning = None
        if teacher_scores is not None:
            near = teacher_scores > self.config.same_meaning_cosine
            same_meaning = near & near.T
        wrong = negatives if len(negatives) else None
        loss = info_nce_both_ways(left, right, self.config.temperature, wrong, same_meaning)
        if teacher_scores is None:
            return loss
        temperature = self.config.distillation_temperature
        scores = left @ right.T
        forth = distillation(scores, teacher_scores, temperature)
        back = distillation(scores.T, teacher_scores.T, temperature)
        return loss + self.config.distillation_weight * 0.5 * (forth + back)

    def teacher_scores(self, targets: np.ndarray) -> torch.Tensor | None:
        """Score every query of a batch against every passage as the teacher does, by their English texts.

        targets: int[B, 2].  Returns [B, B]; None where a text has no English counterpart.
        """
        if (targets == NO_TARGET).any():
            return None
        numbers, places = np.unique(targets, return_inverse=True)
        order = np.argsort(self.teacher_store.lengths()[numbers], kind="stable")
        vectors = torch.empty(len(numbers), self.teacher.bert.config.hidden_size)
        for chunk in np.array_split(order, max(1, len(order) // TEACHER_ROWS)):
            vectors[torch.from_numpy(chunk)] = self.teacher.embed(
                self.teacher_store, numbers[chunk], self.config.max_tokens
            )
        left, right = torch.from_numpy(places.reshape(targets.shape)).T
        return vectors[left] @ vectors[right].T

    def move(self, number: int, table: TokenRows) -> None:
        """Apply the gradients of one step with the learning rates of its number."""
        share = learning_rate_at(number, self.config.steps, self.config.warmup_steps)
        torch.nn.utils.clip_grad_norm_(self.bert.parameters(), self.config.gradient_norm_max)
        for group in self.layer_optimizer.param_groups:
            group["lr"] = self.config.learning_rate * share
        self.layer_optimizer.step()
        self.layer_optimizer.zero_grad(set_to_none=True)
        assert table.vectors.grad is not None
        with torch.no_grad():
            self.table_optimizer.step(table.ids, table.vectors.grad, self.config.token_learning_rate * share)

    def state(self, steps_done: int, pairs_seen: int) -> TrainerState:
        """Return what load() needs for an exact continuation."""
        return {
            "steps_done": steps_done,
            "pairs_seen": pairs_seen,
            "bert": self.bert.state_dict(),
            "table_optimizer": self.table_optimizer.state_dict(),
            "layer_optimizer": self.layer_optimizer.state_dict(),
        }

    def load(self, state: TrainerState) -> tuple[int, int]:
        """Take back what state() gave; returns the steps done and the pairs seen."""
        self.bert.load_state_dict(state["bert"])
        self.table_optimizer.load_state_dict(state["table_optimizer"])
        self.layer_optimizer.load_state_dict(state["layer_optimizer"])
        return state["steps_done"], state["pairs_seen"]
