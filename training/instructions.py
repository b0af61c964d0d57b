"""Which instruction a visit of a pair gets: its own, one of its source's, or the generic one of its input type."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from training.pair_store import PairRow
from training.permutation import key_of, permuted

_WORDING_KEY, _GENERIC_KEY = 1, 2
_CHANCES = 1 << 20


def choose_instruction(row: PairRow, wordings: Sequence[str], key: int, generic_share: float = 0.0) -> PairRow:
    """The row with the instruction of this visit; "" stands for the generic one, which the prompts know.

    wordings: of the row's source; one is drawn where the row has none of its own.   key: of the visit.
    generic_share: of all visits, those that get the generic one whatever there is.
    """
    if generic_share and permuted(np.zeros(1, np.int64), _CHANCES, key_of(key, _GENERIC_KEY))[0] < (
        generic_share * _CHANCES
    ):
        return replace(row, instruction="")
    if row.instruction or not wordings:
        return row
    place = permuted(np.zeros(1, np.int64), len(wordings), key_of(key, _WORDING_KEY))[0]
    return replace(row, instruction=wordings[place])
