"""The batches of a contrastive stage, as one process gets them: its rows of each global batch, tokenised ahead."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from service.recipe.prompts import E5_INSTRUCT_PROMPTS, E5_PROMPTS, Prompts
from training.ahead import made_ahead
from training.backbone import Backbone
from training.collate import Collated, Collator
from training.config import FinetuneConfig, InstructConfig, StageConfig
from training.instructions import choose_instruction
from training.pair_store import PairRow, PairStore
from training.permutation import key_of, permuted
from training.processes import Processes
from training.sampling import sampler_of

# Where a batch's rows come from several sources.
MIXED = "mixed"


@dataclass(frozen=True)
class Batch:
    """teacher: [b, 1 + K] scores of this process's rows, or None where nobody was asked.   source: or MIXED."""

    collated: Collated
    teacher: torch.Tensor | None
    source: str


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
        shapes = [store.shape for store in stores]
        self._sampler = sampler_of(stage.mixture, shapes, weights, stage.batch_pairs, steps=steps, seed=seed)
        self._collator = Collator(
            backbone.tokenizer,
            prompts_of(stage),
            pad_id=backbone.pad_id,
            max_tokens=stage.max_tokens,
            chunk_tokens=stage.chunk_tokens,
        )

    def of(self, step: int) -> Batch:
        """This process's rows of the step's batch."""
        drawn, mine = self._sampler.batch(step), self._rows
        # Of the whole batch, so that every process's rows are alike.
        stores = [self._stores[source] for source in np.unique(drawn.sources)]
        count = min(negatives_of(self._stage, store) for store in stores)
        taught = count > 0 and all(store.about.scored for store in stores)
        keys = key_of(self._seed, step, np.arange(mine.start, mine.stop)).tolist()
        chosen, roles = [], []
        picked = slice(mine.start, mine.stop)
        for source, number, key in zip(drawn.sources[picked], drawn.rows[picked, None], keys, strict=True):
            store = self._stores[source]
            chosen.append(self._instructed(choose_negatives(store.rows(number)[0], count, key), store, key))
            roles.append((store.about.query_role, store.about.positive_role))
        collated = self._collator.collate(chosen, roles)
        scores = torch.tensor([row.scores for row in chosen], device=self._device) if taught else None
        return Batch(collated, scores, stores[0].about.name if len(stores) == 1 else MIXED)

    def _instructed(self, row: PairRow, store: PairStore, key: int) -> PairRow:
        """The row with this visit's instruction, in the stage that has them."""
        if not isinstance(self._stage, InstructConfig):
            return row
        source = self._stage.sources.get(store.about.name)
        return choose_instruction(row, source.instruction if source else [], key, self._stage.generic_instruction_share)

    def ahead(self, steps: range) -> Iterator[Batch]:
        """The batches of the steps."""
        return made_ahead(self.of, steps)


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
