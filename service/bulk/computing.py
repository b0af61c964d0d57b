"""Vectorizer: the Protocol behind which a job's vectors are computed, here or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.api.encoding import Vectors
from service.bulk.records import BadRecord, Record


@dataclass(frozen=True, slots=True)
class Prepared:
    """A text ready to be computed. ids: int32[n], empty where another machine tokenises.   tokens: as the model reads
    them, 0 where that is not known here.   text: None once nobody needs it any more."""

    id: str
    line: int
    ids: NDArray[np.int32]
    tokens: int
    truncated: bool
    text: str | None


@dataclass(frozen=True)
class Computed:
    """A batch's vectors [N, D], in the type asked for; those of refused texts are zeros.

    tokens: of all its texts.   truncated, refused: places in the batch; of refused texts, why.
    """

    vectors: Vectors
    tokens: int
    truncated: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)


class Vectorizer(Protocol):
    """What a job computes with. dimension: D.   in_flight: batches that may run at a time.   scale: of int8 vectors.

    exact: whether a batch gives the same bytes each time it is computed.
    """

    dimension: int
    in_flight: int
    scale: float
    exact: bool

    def about(self) -> Mapping[str, object]:
        """The model, and what computes it: all that vectors depend on besides the texts."""

    def prepare(self, records: Sequence[Record], *, keep_text: bool) -> list[Prepared | BadRecord]:
        """Records as `run` takes them, in order. Called in a thread of its own, and by no two at a time."""

    def batches(self, prepared: Sequence[Prepared]) -> list[list[int]]:
        """The places of texts that are computed together: a pure function of the texts."""

    async def run(self, batch: Sequence[Prepared]) -> Computed:
        """The vectors of a batch. Raises a Me5Error where there will be none."""
