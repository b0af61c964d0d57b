"""Systems whose texts have vectors: every text is embedded once, and nearness is a product of vectors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.recipe.pooling import l2_normalize
from service.recipe.prompts import Prompts, Role, format_text
from training.errors import UnknownSystem
from training.system import Identity, Nearness, Side

Vectors: TypeAlias = NDArray[np.float32]
Similarity = Literal["cosine", "dot"]
# Texts, role and instruction to float32[N, H], not necessarily of length one.
EmbedTexts = Callable[[Sequence[str], Role | None, str | None], Vectors]
# Vectors that are kept for the sets to come.
KNOWN_BYTES = 1 << 29
INSTRUCTION_MARK = "{instruction}"
# How a text is asked about: its role, and the instruction for an instruct model.
Asked: TypeAlias = tuple[Role | None, str | None]


@dataclass(frozen=True)
class VectorSystem:
    """An encoder as a System.

    similarity: what its training compared vectors by; products are of vectors as the model gives them.   raw_features:
    features as the model gives them even where cosines compare; without it, of length one.
    """

    identity: Identity
    embed: EmbedTexts
    similarity: Similarity = "cosine"
    raw_features: bool = False
    _known: dict[Asked, dict[str, Vectors]] = field(default_factory=dict, repr=False, compare=False)

    def read(self, sides: Sequence[Side]) -> "VectorReading":
        """Embed the distinct texts of all sides, those of one role together; those of the sets before are known."""
        rows: dict[Asked, dict[str, int]] = {}
        for side in sides:
            places = rows.setdefault((side.role, side.instruction), {})
            for text in side.texts:
                places.setdefault(text, len(places))
        vectors = {asked: self._embedded(list(places), asked) for asked, places in rows.items() if places}
        return VectorReading(rows, vectors, self.similarity, self.raw_features)

    def _embedded(self, texts: list[str], asked: Asked) -> Vectors:
        """The texts' vectors. Sets that share their texts, such as a matrix of languages, are embedded once."""
        known = self._known.setdefault(asked, {})
        new = [text for text in texts if text not in known]
        if new:
            found = self.embed(new, *asked)
            if not np.isfinite(found).all():
                raise UnknownSystem(
                    f"{self.identity.name} gave vectors that are not finite numbers (as {asked[0] or 'no role'}, in "
                    f"{self.identity.dtype}); compute it in fp32"
                )
            if len(new) == len(texts) and found.nbytes > KNOWN_BYTES:
                return found
            if sum(len(each) for each in self._known.values()) * found[0].nbytes + found.nbytes > KNOWN_BYTES:
                kept = {text: known[text] for text in texts if text in known}
                self._known.clear()
                known = self._known.setdefault(asked, kept)
            known.update(zip(new, found, strict=True))
        return np.stack([known[text] for text in texts])


class VectorReading:
    """The vectors of one set's texts."""

    def __init__(
        self,
        rows: dict[Asked, dict[str, int]],
        vectors: dict[Asked, Vectors],
        similarity: Similarity,
        raw_features: bool,
    ) -> None:
        self._rows = rows
        scaled = vectors if similarity == "dot" else {asked: unit(part) for asked, part in vectors.items()}
        self._compared = scaled
        self._features = vectors if raw_features else scaled

    def nearness(self, queries: Side, documents: Side) -> Nearness:
        """float32[Q, D]: cosines, or products where the model was trained with them."""
        found: Nearness = self._taken(self._compared, queries) @ self._taken(self._compared, documents).T
        return found

    def pair_nearness(self, firsts: Side, seconds: Side) -> NDArray[np.float64]:
        """float64[N], summed in float64."""
        first, second = (self._taken(self._compared, side) for side in (firsts, seconds))
        return np.einsum("nh,nh->n", first, second, dtype=np.float64)

    def features(self, side: Side) -> Vectors:
        """float32[N, H]."""
        return self._taken(self._features, side)

    def _taken(self, vectors: dict[Asked, Vectors], side: Side) -> Vectors:
        asked = (side.role, side.instruction)
        return vectors[asked][[self._rows[asked][text] for text in side.texts]]


def unit(vectors: Vectors) -> Vectors:
    """Each row at length one, float32."""
    return np.asarray(l2_normalize(vectors), dtype=np.float32)


def prompted(texts: Sequence[str], prompts: Prompts, role: Role | None, instruction: str | None) -> list[str]:
    """The texts behind the prompt of their role; without a role, and where the prompt is there already, as they are."""
    if role is None:
        return list(texts)
    given = instruction if prompts.instruct and role == "query" else None
    return [format_text(text, prompts, role, instruction=given).text for text in texts]


def prompts_by_role(prompts: Prompts) -> dict[str, str]:
    """What Identity says of them; `{instruction}` where an instruct model is told the task's sentence."""
    marked = INSTRUCTION_MARK if prompts.instruct else None
    return {"query": prompts.prefix("query", marked), "passage": prompts.prefix("passage")}


def takes_instructions(identity: Identity) -> bool:
    """Whether a prompt of the system, or of a part of it, has a place for the task's sentence."""
    return any(INSTRUCTION_MARK in prompt for prompt in identity.prompts.values())
