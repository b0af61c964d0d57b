"""The batches of a contrastive stage, as one process gets them: its rows of each global batch, tokenised ahead."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from service.recipe.prompts import E5_INSTRUCT_PROMPTS, E5_PROMPTS, Prompts
from training.backbone import Backbone
from training.collate import Collated, Collator
from training.config import FinetuneConfig, InstructConfig, StageConfig
from training.instructions import choose_instruction
from training.pair_store import PairRow, PairStore
from training.permutation import key_of, permuted
from training.processes import Processes
from training.sampling import Sampler, source_odds

# Batches that are tokenised ahead of the one that is trained on.
AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """teacher: [b, 1 + K] scores of this process's rows, or None where nobody was asked."""

    collated: Collated
    teacher: torch.Tensor | None


class StageBatches:
    """A batch is a function of its step: nothing here remembers what came before."""

    def __init__(
        self,
        stage: StageConfig,
        stores: Sequence[PairStore],
        weights: Mapping[str, float],
        backbone: Backbone,
        *,
        steps: int,
        seed: int,
        processes: Processes,
    ) -> None:
        """weights: of the sources, by name.   steps: of the whole stage."""
        self._stage, self._stores, self._seed, self._device = stage, stores, seed, processes.device
        self._rows = processes.share(stage.batch_pairs)
        shapes, mixture = [store.shape for store in stores], stage.mixture
        self._sampler = Sampler(
            shapes,
            source_odds(shapes, exponent=mixture.source_exponent, cap=mixture.source_cap, weights=weights),
            batch_pairs=stage.batch_pairs,
            steps=steps,
            language_exponent=mixture.language_exponent,
            seed=seed,
        )
        self._collator = Collator(
            backbone.tokenizer,
            prompts_of(stage),
            pad_id=backbone.pad_id,
            max_tokens=stage.max_tokens,
            chunk_tokens=stage.chunk_tokens,
        )

    def of(self, step: int) -> Batch:
        """This process's rows of the step's batch."""
        drawn = self._sampler.batch(step)
        store = self._stores[drawn.source]
        count, mine = negatives_of(self._stage, store), self._rows
        keys = key_of(self._seed, step, np.arange(mine.start, mine.stop)).tolist()
        rows = store.rows(drawn.rows[mine.start : mine.stop])
        chosen = [choose_negatives(row, count, key) for row, key in zip(rows, keys, strict=True)]
        if isinstance(self._stage, InstructConfig):
            source = self._stage.sources.get(store.about.name)
            wordings, share = source.instruction if source else [], self._stage.generic_instruction_share
            chosen = [choose_instruction(row, wordings, key, share) for row, key in zip(chosen, keys, strict=True)]
        collated = self._collator.collate(chosen, (store.about.query_role, store.about.positive_role))
        if not (count and store.about.scored):
            return Batch(collated, None)
        return Batch(collated, torch.tensor([row.scores for row in chosen], device=self._device))

    def ahead(self, steps: range) -> Iterator[Batch]:
        """The batches of the steps, made in a thread while others are trained on."""
        with ThreadPoolExecutor(1, "collate") as thread:
            waiting = [thread.submit(self.of, step) for step in steps[:AHEAD]]
            for step in steps:
                if step + AHEAD < steps.stop:
                    waiting.append(thread.submit(self.of, step + AHEAD))
                yield waiting.pop(0).result()


def prompts_of(stage: StageConfig) -> Prompts:
    """What a stage's texts begin with, and those of whoever uses its model."""
    return E5_INSTRUCT_PROMPTS if isinstance(stage, InstructConfig) else E5_PROMPTS


def negatives_of(stage: StageConfig, store: PairStore) -> int:
    """How many hard negatives a source's queries get: as many as are wanted, and every row has."""
    return min(stage.hard_negatives, store.about.negatives) if isinstance(stage, FinetuneConfig) else 0


def choose_negatives(row: PairRow, count: int, key: int) -> PairRow:
    """`count` of a row's negatives with their scores, others at every visit."""
    if count == 0:
        return replace(row, negatives=[], scores=[])
    total = len(row.negatives)
    chosen = permuted(np.arange(count), total, key_of(key)).tolist()
    scores = [row.scores[0], *(row.scores[1 + place] for place in chosen)] if row.scores else []
    return replace(row, negatives=[row.negatives[place] for place in chosen], scores=scores)
