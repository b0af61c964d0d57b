"""From a batch's pair numbers to token rows with prefix and special tokens, and the roles of its two sides."""

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from service.recipe.prompts import E5_PROMPTS, Role
from training.data import Corpus
from training.token_store import TokenStore
from training.tokenizer import BOS_ID, EOS_ID

# Sources whose positive is a passage that answers or describes the query; all others are symmetric.
RETRIEVAL_SOURCES = ("qa_", "sections_", "title_abstract_", "dictionary_")
# How often a symmetric batch is read as passages, so that the passage side meets every language too.
PASSAGE_SHARE = 0.3


@dataclass(frozen=True)
class Texts:
    """One side of a batch: text numbers and the role they are read in."""

    numbers: np.ndarray
    role: Role


@dataclass(frozen=True)
class PrefixIds:
    """The tokens of the two prefixes."""

    query: np.ndarray
    passage: np.ndarray

    def of(self, role: Role) -> np.ndarray:
        """Return the prefix of a role, int32."""
        return self.query if role == "query" else self.passage


def read_prefixes(tokenizer: Tokenizer) -> PrefixIds:
    """Tokenise the prefixes once; the pre-tokenizer splits at the space behind them, so text tokens do not change."""
    query, passage = (
        np.array(tokenizer.encode(E5_PROMPTS.prefix(role), add_special_tokens=False).ids, dtype=np.int32)
        for role in ("query", "passage")
    )
    return PrefixIds(query, passage)


def choose_roles(source: str, rng: np.random.Generator) -> tuple[Role, Role]:
    """Give the two sides of a batch their roles."""
    if source.startswith(RETRIEVAL_SOURCES):
        return "query", "passage"
    return ("passage", "passage") if rng.random() < PASSAGE_SHARE else ("query", "query")


def token_rows(store: TokenStore, prefixes: PrefixIds, texts: Texts, max_tokens: int) -> list[np.ndarray]:
    """Build `<s> prefix text </s>` for every text, cut at max_tokens altogether. Returns int32 rows."""
    prefix = prefixes.of(texts.role)
    room = room_for_text(prefix, max_tokens)
    return [with_prefix(prefix, store.row(number, room)) for number in texts.numbers]


def room_for_text(prefix: np.ndarray, max_tokens: int) -> int:
    """How many tokens of a text fit beside the prefix and the special tokens."""
    return max_tokens - len(prefix) - 2


def with_prefix(prefix: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """`<s> prefix text </s>`, int32."""
    return np.concatenate([[BOS_ID], prefix, tokens, [EOS_ID]]).astype(np.int32)


def batch_pairs_of(corpus: Corpus, lengths: np.ndarray, tokens_per_batch: int, batch_pairs_max: int) -> list[int]:
    """Choose for every source how many pairs make one batch of about tokens_per_batch tokens.

    lengths: int[T], tokens of every text. Returns one number per source, at least 2: one pair has no negatives.
    """
    result = []
    for source in range(len(corpus.sources)):
        pairs = corpus.pairs[corpus.pair_source == source]
        mean_tokens = lengths[pairs].sum(axis=1).mean() if len(pairs) else 1.0
        result.append(int(np.clip(tokens_per_batch / max(mean_tokens, 1.0), 2, batch_pairs_max)))
    return result
