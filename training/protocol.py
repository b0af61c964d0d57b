"""Which prompt each side of a task gets."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from service.recipe.prompts import E5_PROMPTS, Role
from training.eval_shapes import Bitext, Classification, Clustering, EvalSet, Retrieval, Similarity, Subset
from training.label_scores import drawn_samples
from training.system import Identity, Side
from training.vectors import takes_instructions


@dataclass(frozen=True)
class Protocol:
    """Which role each side of a task has; None is a text without any prompt.

    An instruct model has the query role on both sides of all tasks but retrieval, told the same sentence (report,
    unilm/e5/utils.py), whatever the protocol.
    """

    name: str
    bitext: Role | None
    similarity: Role | None
    question: Role
    document: Role
    classification: Role | None
    clustering: Role | None


PROTOCOLS = {
    # The mE5 paper and unilm/e5: "query: " on both sides for everything but retrieval. In one thing ours is mteb's: it
    # classifies by vectors of length one, unilm/e5 by the means before that.
    "paper": Protocol("paper", "query", "query", "query", "passage", "query", "query"),
    # mteb's present registration of mE5: prompts for retrieval only. Published figures of both kinds are about.
    "mteb-current": Protocol("mteb-current", None, None, "query", "passage", None, None),
}


def default_protocol(system: Identity) -> Protocol:
    """The one that shows what a system can: E5's prompts belong to every task, others' to retrieval alone."""
    query = system.prompts.get("query", "")
    retrieval_only = query not in ("", E5_PROMPTS.query) and not takes_instructions(system)
    return PROTOCOLS["mteb-current" if retrieval_only else "paper"]


def sides(subset: Subset, protocol: Protocol, instruction: str | None = None) -> list[Side]:
    """The lists of texts of a subset, each with its role: two, or the one list of a clustering.

    instruction: the set's, for a system that takes one, and None for any other.   Of the texts to learn from, only
    those are read that an experiment draws, in their own order.
    """
    match subset:
        case Bitext(sources, targets):
            role = protocol.bitext if instruction is None else "query"
            return [Side(sources, role, instruction), Side(targets, role, instruction)]
        case Similarity(firsts, seconds, _):
            role = protocol.similarity if instruction is None else "query"
            return [Side(firsts, role, instruction), Side(seconds, role, instruction)]
        case Retrieval(queries, documents, _):
            return [Side(queries, protocol.question, instruction), Side(documents, protocol.document)]
        case Classification(train_texts, _, texts, _):
            role = protocol.classification if instruction is None else "query"
            learned = [train_texts[row] for row in drawn_rows(subset)]
            return [Side(learned, role, instruction), Side(texts, role, instruction)]
        case Clustering(texts, _):
            return [Side(texts, protocol.clustering if instruction is None else "query", instruction)]


def drawn_rows(subset: Classification) -> list[int]:
    """The rows that any experiment learns from, in order."""
    return sorted({row for rows in drawn_samples(subset.train_labels) for row in rows})


def protocol_block(protocol: Protocol, system: Identity, sets: Sequence[EvalSet]) -> dict[str, object]:
    """The protocol as a result states it, with a hash over all that decides what a text looks like to the model.

    sets: all that there are, so that the hash does not depend on which were run.
    """
    instructions = {each.name: each.instruction for each in sets} if takes_instructions(system) else {}
    stated: dict[str, object] = {**asdict(protocol), "prompts": dict(system.prompts), "instructions": instructions}
    hashed = {**stated, "dtype": system.dtype, "max_tokens": system.max_tokens}
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
    return {**stated, "sha256": digest}
