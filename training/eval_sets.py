"""The evaluation sets by name: their files, how they are read, and what an instruct model is told."""

from dataclasses import replace
from functools import partial
from typing import Literal

from training.eval_reading import (
    FLORES,
    FLORES_CORE,
    TATOEBA,
    read_across,
    read_all_languages,
    read_flores,
    read_flores_matrix,
    read_labelled,
    read_retrieval,
    read_sts,
    read_tatoeba,
    read_topics,
)
from training.eval_shapes import EvalSet

# Those of unilm/e5/utils.py where it has one for the task; MIRACL's for questions to Wikipedia, of which all sets are
# but the medical one. The sentence on sentiment is its TweetSentiment one without the tweet.
_PARALLEL_SENTENCES = "Retrieve parallel sentences."
_SIMILAR_TEXT = "Retrieve semantically similar text."
_WIKIPEDIA = "Given a question, retrieve Wikipedia passages that answer the question"
_COVID = "Given a query on COVID-19, retrieve documents that answer the query"
_INTENT = "Given a online banking query, find the corresponding intents"
_SENTIMENT = "Classify the sentiment of a given text as either positive, negative, or neutral"
_TOPIC = "Identify the topic or theme of StackExchange posts based on the titles"


def _sts(
    name: str, file: str, splits: set[str], subset: Literal["lang", "task"] = "lang", *, parallel: bool = False
) -> EvalSet:
    read = partial(read_sts, file=file, splits=frozenset(splits), subset=subset)
    kind: Literal["language", "year"] = "language" if subset == "lang" else "year"
    return EvalSet(name, "similarity", (file,), read, _SIMILAR_TEXT, kind, parallel)


def _retrieval(name: str, folder: str, instruction: str = _WIKIPEDIA, *, one_pool: bool = False) -> EvalSet:
    read = partial(read_retrieval, folder=folder, one_pool=one_pool)
    return EvalSet(name, "retrieval", _retrieval_files(folder), read, instruction)


def _retrieval_files(folder: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{file}" for file in ("corpus.jsonl.gz", "queries.jsonl.gz", "qrels.tsv.gz"))


def _labelled(name: str, file: str, instruction: str, *, parallel: bool = False) -> EvalSet:
    return EvalSet(name, "classification", (file,), partial(read_labelled, file=file), instruction, parallel=parallel)


_FLORES = EvalSet("flores", "bitext", (FLORES,), read_flores, _PARALLEL_SENTENCES, parallel=True)
_XQUAD = "eval/retrieval_xquad"
_STACKOVERFLOW = "eval/clustering_stackoverflow.jsonl.gz"
_ALL = (
    _FLORES,
    EvalSet("tatoeba", "bitext", (TATOEBA,), read_tatoeba, _PARALLEL_SENTENCES),
    _sts("stsb", "eval/sts_stsb_multi.jsonl.gz", {"test"}, parallel=True),
    # mteb's SICK-R is all 9,927 pairs, its JSTS the validation split: the same here, so that figures compare.
    _sts("sick", "eval/sts_sick.jsonl.gz", {"train", "dev", "test"}),
    _sts("jsts", "eval/sts_jsts.jsonl.gz", {"valid"}),
    _sts("sts12-16", "eval/sts_semeval12_16.jsonl.gz", {"test"}, subset="task"),
    replace(_retrieval("xquad", _XQUAD), parallel=True),
    _retrieval("afriqa", "eval/retrieval_afriqa", one_pool=True),
    _retrieval("arcd", "eval/retrieval_arcd_ar"),
    _retrieval("covidqa", "eval/retrieval_covidqa_en", _COVID),
    _retrieval("drcd", "eval/retrieval_drcd_zh_hant"),
    _retrieval("iapp", "eval/retrieval_iapp_th"),
    _retrieval("jsquad", "eval/retrieval_jsquad_ja"),
    _retrieval("persianqa", "eval/retrieval_persianqa_fa"),
    _labelled("banking77", "eval/classification_banking77.jsonl.gz", _INTENT),
    _labelled("nusax", "eval/classification_nusax_sentiment.jsonl.gz", _SENTIMENT, parallel=True),
    EvalSet("stackoverflow", "clustering", (_STACKOVERFLOW,), partial(read_topics, file=_STACKOVERFLOW), _TOPIC),
    EvalSet("flores-matrix", "bitext", (FLORES,), read_flores_matrix, _PARALLEL_SENTENCES, "pair", parallel=True),
    EvalSet(
        "xquad-cross", "retrieval", _retrieval_files(_XQUAD), partial(read_across, folder=_XQUAD), _WIKIPEDIA, "pair",
        parallel=True,
    ),
    EvalSet(
        "xquad-pool", "retrieval", _retrieval_files(_XQUAD), partial(read_all_languages, folder=_XQUAD), _WIKIPEDIA,
        parallel=True,
    ),
)  # fmt: skip
# Run only when named: the data folder has MIRACL's passages only where somebody put them there.
ON_REQUEST = (_retrieval("miracl", "eval/retrieval_miracl"),)
EVAL_SETS = {eval_set.name: eval_set for eval_set in (*_ALL, *ON_REQUEST)}
FLORES_CORE_SET = replace(_FLORES, read=partial(read_flores, languages=FLORES_CORE))
QUICK = (FLORES_CORE_SET, EVAL_SETS["stsb"], EVAL_SETS["xquad"])
