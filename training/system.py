"""What can be evaluated: anything that says how near texts are to each other.

An encoder does by its vectors, BM25 by the words that texts share, a hybrid by both; the tasks ask all of them alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from service.recipe.prompts import Role

Nearness: TypeAlias = NDArray[np.float32]
Features: TypeAlias = NDArray[np.float32] | csr_matrix


@dataclass(frozen=True)
class Side:
    """Texts that play one part in a task.

    role: None is a text as it stands, without a prompt.   instruction: what an instruct model is told on its query
    side; others ignore it.
    """

    texts: Sequence[str]
    role: Role | None
    instruction: str | None = None


@dataclass(frozen=True)
class Identity:
    """What a figure depends on beside the data and the protocol.

    engine: what computed it, and in what precision.   prompts: by role.   max_tokens: of a text, None where there is no
    limit.   files: name → SHA-256 where there are files.   details: whatever else identifies it (pooling, address, …).
    """

    name: str
    engine: str
    dtype: str
    prompts: Mapping[str, str]
    max_tokens: int | None
    files: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)


class Reading(Protocol):
    """A system that has read the texts of one set. Only sides that it has read may be asked about."""

    def nearness(self, queries: Side, documents: Side) -> Nearness:
        """How near each document is to each query, float32[Q, D]; the larger, the nearer."""
        ...

    def pair_nearness(self, firsts: Side, seconds: Side) -> NDArray[np.float64]:
        """How near the texts of each row are, float64[N]."""
        ...

    def features(self, side: Side) -> Features:
        """The texts as rows [N, H], to classify or cluster them by."""
        ...


class System(Protocol):
    """What is evaluated."""

    @property
    def identity(self) -> Identity:
        """What identifies it in a result."""
        ...

    def read(self, sides: Sequence[Side]) -> Reading:
        """Read all texts of a set at once: encoders batch them by length, word counts have their statistics."""
        ...
