"""What published models must be given to show what they can: pooling, prompts, length, and how vectors are compared.

Prompts are of the retrieval roles. Models other than E5 take none outside retrieval, so they are measured by the
protocol "mteb-current"; E5 takes "query: " there, and is measured by "paper".
"""

from dataclasses import dataclass
from typing import Literal

from service.recipe.prompts import E5_INSTRUCT_PROMPTS, E5_PROMPTS, Prompts
from training.vectors import Similarity

Pooling = Literal["mean", "cls", "last"]
NO_PROMPTS = Prompts(query="", passage="")


@dataclass(frozen=True)
class KnownModel:
    """pooling: for a copy without modules.json, which says it otherwise.   max_tokens: prompt and marks counted."""

    prompts: Prompts
    max_tokens: int
    pooling: Pooling | None = None
    similarity: Similarity = "cosine"


# Sources: model cards, and modules.json, 1_Pooling/config.json and sentence_bert_config.json of each repository.
_BGE_ENGLISH = KnownModel(
    # Card, "Usage": the instruction goes before short queries that look for long passages, never before passages.
    Prompts(query="Represent this sentence for searching relevant passages: ", passage=""),
    max_tokens=512,
    pooling="cls",
)
KNOWN_MODELS = {
    # Cards of intfloat/multilingual-e5-*; unilm/e5/utils.py for the instruct template.
    "intfloat/multilingual-e5-small": KnownModel(E5_PROMPTS, 512, "mean"),
    "intfloat/multilingual-e5-base": KnownModel(E5_PROMPTS, 512, "mean"),
    "intfloat/multilingual-e5-large": KnownModel(E5_PROMPTS, 512, "mean"),
    "intfloat/multilingual-e5-large-instruct": KnownModel(E5_INSTRUCT_PROMPTS, 512, "mean"),
    # modules.json: the [CLS] state through a dense layer with tanh, then length one; 256 tokens.
    "sentence-transformers/LaBSE": KnownModel(NO_PROMPTS, 256),
    # sentence_bert_config.json: 256 and 128 tokens; the multilingual ones do not scale to length one themselves.
    "sentence-transformers/all-MiniLM-L6-v2": KnownModel(NO_PROMPTS, 256),
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": KnownModel(NO_PROMPTS, 128),
    "sentence-transformers/paraphrase-multilingual-mpnet-base-v2": KnownModel(NO_PROMPTS, 128),
    # Card: dense vectors are the [CLS] state at length one, no instruction, 8,192 tokens.
    "BAAI/bge-m3": KnownModel(NO_PROMPTS, 8192, "cls"),
    "BAAI/bge-small-en-v1.5": _BGE_ENGLISH,
    "BAAI/bge-base-en-v1.5": _BGE_ENGLISH,
    "BAAI/bge-large-en-v1.5": _BGE_ENGLISH,
    # facebookresearch/contriever, src/contriever.py: mean over the mask, compared by products, not scaled.
    "facebook/mcontriever-msmarco": KnownModel(NO_PROMPTS, 512, "mean", "dot"),
    # pyserini/encode/_auto.py as its MIRACL runs call it: the [CLS] state of one encoder for both sides, products of
    # vectors that are not scaled, documents up to 256 tokens.
    "castorini/mdpr-tied-pft-msmarco": KnownModel(NO_PROMPTS, 256, "cls", "dot"),
}
