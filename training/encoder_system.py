"""An encoder as a system: nearness is the cosine of vectors, and the vectors are the features."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.recipe.prompts import Prompts, Role
from training.collection import Embed, Vectors
from training.system import Identity, Nearness, Side

Part = tuple[Role | None, str | None]  # texts of one role and instruction have one prompt


@dataclass(frozen=True)
class EncoderSystem:
    """A function from texts to unit vectors, and what identifies it."""

    identity: Identity
    embed: Embed

    def read(self, sides: Sequence[Side]) -> "EncoderReading":
        """Embed all texts of a prompt together, so that texts of like length meet across the sides."""
        places: dict[Part, dict[str, int]] = defaultdict(dict)
        for side in sides:
            known = places[side.role, side.instruction]
            for text in side.texts:
                known.setdefault(text, len(known))
        vectors = {part: self.embed(list(known), *part) for part, known in places.items()}
        return EncoderReading(places, vectors)


@dataclass(frozen=True)
class EncoderReading:
    """The vectors of a set.   places: for each prompt, text → row.   vectors: for each prompt, float32[N, D]."""

    places: Mapping[Part, Mapping[str, int]]
    vectors: Mapping[Part, Vectors]

    def nearness(self, queries: Side, documents: Side) -> Nearness:
        """Cosines, float32[Q, D]."""
        return self.features(queries) @ self.features(documents).T

    def pair_nearness(self, firsts: Side, seconds: Side) -> NDArray[np.float64]:
        """Cosines of the rows, float64[N]."""
        return np.einsum("nd,nd->n", self.features(firsts), self.features(seconds), dtype=np.float64)

    def features(self, side: Side) -> Vectors:
        """The texts' vectors, float32[N, D]."""
        part = (side.role, side.instruction)
        places = self.places[part]
        return self.vectors[part][[places[text] for text in side.texts]]


def prompt_texts(prompts: Prompts) -> dict[str, str]:
    """What stands before a text of each role; `{instruction}` where the task's sentence goes."""
    marked = "{instruction}" if prompts.instruct else None
    return {"query": prompts.prefix("query", marked), "passage": prompts.prefix("passage")}
