"""Evaluation: the measures against numbers worked out by hand, and a whole run over a small data folder."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import ndcg_score
from tiny_checkpoint import write_tiny_checkpoint

from service.recipe.prompts import Role
from training.collection import batches_by_length
from training.errors import CheckpointError, DataError
from training.eval_sets import EVAL_SETS, FLORES_CORE, read_flores, read_retrieval, read_sts, read_tatoeba
from training.evaluate import (
    PROTOCOLS,
    MeasuredModel,
    as_json,
    choose_sets,
    evaluate,
    open_model,
    score_set,
    summary,
    table,
)
from training.scores import bitext_scores, ndcg_at, retrieval_scores, similarity_scores

Vectors = NDArray[np.float32]


def at_angles(*degrees: float) -> Vectors:
    """Unit vectors in the plane: the nearer two angles, the larger the cosine."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_bitext_f1_is_below_accuracy_when_one_target_attracts_too_many() -> None:
    # Sources 0 and 1 both find target 0; source 2 finds its own.
    scores = bitext_scores(at_angles(0, 10, 90), at_angles(0, 40, 90))
    assert scores["accuracy"] == pytest.approx(2 / 3)
    # Classes: target 0 precision 1/2, recall 1, F1 2/3; target 1 never found, 0; target 2 F1 1. Mean of the three.
    assert scores["f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_similarity_is_the_correlation_of_ranks_and_not_of_values() -> None:
    firsts, seconds = at_angles(0, 0, 0, 0), at_angles(1, 2, 3, 80)
    assert similarity_scores(firsts, seconds, [5, 4, 3, 2])["spearman"] == pytest.approx(1)
    # One swap of neighbours in four ranks: 1 - 6 * 2 / (4 * 15).
    assert similarity_scores(firsts, seconds, [4, 5, 3, 2])["spearman"] == pytest.approx(0.8)


def test_ndcg_of_a_single_answer_falls_with_the_logarithm_of_its_place() -> None:
    assert ndcg_at(10, [7, 8, 9], {7: 1}) == 1
    assert ndcg_at(10, [8, 9, 7], {7: 1}) == pytest.approx(1 / math.log2(4))
    assert ndcg_at(2, [8, 9, 7], {7: 1}) == 0


def test_ndcg_agrees_with_scikit_learn_on_graded_answers() -> None:
    rng = np.random.default_rng(0)
    grades = rng.integers(0, 4, 40)
    similarity = rng.standard_normal(40)
    ranking = np.argsort(-similarity).tolist()
    ours = ndcg_at(10, ranking, {place: int(grade) for place, grade in enumerate(grades) if grade})
    assert ours == pytest.approx(ndcg_score(grades[None], similarity[None], k=10))


def test_retrieval_averages_over_the_queries_that_have_an_answer() -> None:
    documents = at_angles(0, 30, 60, 90)
    scores = retrieval_scores(at_angles(0, 90, 45), documents, [{0: 1}, {2: 1}, {}])
    assert scores["ndcg@10"] == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert scores["recall@100"] == 1


def test_recall_counts_only_the_first_hundred_documents() -> None:
    documents = at_angles(*np.linspace(0, 90, 150))
    assert retrieval_scores(at_angles(0), documents, [{99: 1, 100: 1}])["recall@100"] == 0.5


def test_batches_hold_neighbours_in_length_within_the_token_budget() -> None:
    batches = batches_by_length([3, 50, 4, 200, 5, 49], tokens_max=100, rows_max=2)
    assert batches == [[3], [1, 5], [4, 2], [0]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with one small file of each kind."""
    root = tmp_path_factory.mktemp("data")
    things = ("boats", "bread", "the sea", "a line", "the book")
    write_lines(
        root / "eval/bitext_flores200.jsonl.gz",
        [
            {"id": number, "lang": lang, "text": f"{thing} {lang}"}
            for lang in ("eng_Latn", "sun_Latn", *FLORES_CORE)
            for number, thing in enumerate(things)
        ],
    )
    write_lines(root / "eval/bitext_tatoeba.jsonl.gz", [{"lang": "afr", "src": f"{t} af", "tgt": t} for t in things])
    write_lines(
        root / "eval/sts_stsb_multi.jsonl.gz",
        [
            {"task": "STSB", "lang": "en", "split": split, "sentence1": "boats", "sentence2": thing, "score": score}
            for split in ("dev", "test")
            for score, thing in enumerate(things)
        ],
    )
    for lang, folder in (("ar", "retrieval_xquad"), ("en", "retrieval_afriqa")):
        write_lines(
            root / f"eval/{folder}/corpus.jsonl.gz",
            [
                {"lang": lang, "doc_id": "d0", "title": "Boats", "text": "they float"},
                {"lang": lang if folder == "retrieval_xquad" else "fr", "doc_id": "d1", "title": "", "text": "bread"},
            ],
        )
        asks = lang if folder == "retrieval_xquad" else "ibo"
        write_lines(
            root / f"eval/{folder}/queries.jsonl.gz",
            [{"lang": asks, "query_id": "q0", "text": "what is bread"}, {"lang": asks, "query_id": "q1", "text": "?"}],
        )
        with gzip.open(root / f"eval/{folder}/qrels.tsv.gz", "wt") as file:
            file.write(f"lang\tquery_id\tdoc_id\tscore\n{asks}\tq0\td1\t1\n{asks}\tq0\td0\t0\n")
    return root


def write_lines(path: Path, lines: Sequence[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MeasuredModel:
    return open_model(write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "runs" / "step_000001"))


def test_flores_pairs_each_language_with_the_same_english_sentence(data: Path) -> None:
    subsets = read_flores(data)
    assert len(subsets) == 1 + len(FLORES_CORE)
    assert subsets["sun_Latn"].sources[2] == "the sea sun_Latn"
    assert subsets["sun_Latn"].targets[2] == "the sea eng_Latn"


def test_tatoeba_searches_from_the_language_into_english(data: Path) -> None:
    pairs = read_tatoeba(data)["afr"]
    assert (pairs.sources[0], pairs.targets[0]) == ("boats af", "boats")


def test_sts_takes_only_the_wanted_split(data: Path) -> None:
    pairs = read_sts(data, file="eval/sts_stsb_multi.jsonl.gz", splits=frozenset({"test"}), subset="lang")["en"]
    assert pairs.judged == [0, 1, 2, 3, 4]


def test_a_title_stands_before_the_text_and_grade_zero_is_no_answer(data: Path) -> None:
    subset = read_retrieval(data, folder="eval/retrieval_xquad")["ar"]
    assert subset.documents == ["Boats they float", "bread"]
    assert subset.relevant == [{1: 1}, {}]


def test_a_cross_lingual_set_is_searched_in_one_pool(data: Path) -> None:
    subset = read_retrieval(data, folder="eval/retrieval_afriqa", one_pool=True)["ibo"]
    assert len(subset.documents) == 2
    assert subset.relevant[0] == {1: 1}


@pytest.mark.parametrize(
    ("protocol", "set_name", "roles"),
    [
        ("paper", "flores", {"query"}),
        ("paper", "stsb", {"query"}),
        ("paper", "xquad", {"query", "passage"}),
        ("mteb-current", "flores", {None}),
        ("mteb-current", "stsb", {None}),
        ("mteb-current", "xquad", {"query", "passage"}),
    ],
)
def test_a_protocol_says_which_prompts_a_task_gets(
    data: Path, protocol: str, set_name: str, roles: set[Role | None]
) -> None:
    asked: dict[Role | None, Sequence[str]] = {}

    def embed(texts: Sequence[str], role: Role | None) -> Vectors:
        asked[role] = texts
        return at_angles(*range(len(texts)))

    score_set(embed, data, EVAL_SETS[set_name], PROTOCOLS[protocol])
    assert asked.keys() == roles
    if set_name == "xquad":
        assert (asked["query"][0], asked["passage"][0]) == ("what is bread", "Boats they float")


def test_a_text_without_a_role_gets_no_prompt(model: MeasuredModel) -> None:
    bare, prompted = model.embed(["query: boats", "boats"], None), model.embed(["boats"], "query")
    np.testing.assert_allclose(bare[0], prompted[0], atol=1e-6)  # float32 sums in another order
    assert not np.allclose(bare[1], prompted[0], atol=1e-3)


def test_equal_texts_get_equal_vectors_in_the_order_asked(model: MeasuredModel) -> None:
    texts = ["boats", "a line of the book about bread", "boats", "the sea"]
    vectors = model.embed(texts, "passage")
    np.testing.assert_array_equal(vectors[0], vectors[2])
    alone = np.concatenate([model.embed([text], "passage") for text in texts])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)  # float32 sums in another order


def test_a_result_names_everything_its_figures_depend_on(data: Path, model: MeasuredModel) -> None:
    sets = choose_sets(["flores", "stsb", "xquad"], quick=False)
    document = json.loads(as_json(evaluate(model, data, sets, PROTOCOLS["paper"])))
    assert document["model"]["name"] == "runs/step_000001"
    assert document["model"]["engine"] == "torch fp32"
    assert set(document["model"]["files"]) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert document["protocol"]["name"] == "paper"
    file = "eval/bitext_flores200.jsonl.gz"
    assert document["data"][file] == hashlib.sha256((data / file).read_bytes()).hexdigest()
    assert document["scores"]["xquad"]["ar"].keys() == {"ndcg@10", "recall@100"}
    # The mean over all 14 languages is another than over the 13 core ones.
    assert document["means"].keys() == {"flores", "flores-core", "stsb", "xquad"}


def test_protocols_have_different_hashes(data: Path, model: MeasuredModel) -> None:
    result = evaluate(model, data, choose_sets(["stsb"], quick=False), PROTOCOLS["paper"])
    other = replace(result, protocol=PROTOCOLS["mteb-current"])
    hashes = {json.loads(as_json(each))["protocol"]["sha256"] for each in (result, other)}
    assert len(hashes) == 2


def test_the_core_mean_leaves_the_other_languages_out() -> None:
    scores = {"flores": {lang: {"accuracy": 1.0} for lang in FLORES_CORE} | {"sun_Latn": {"accuracy": 0.0}}}
    assert summary(scores)["flores-core"] == {"accuracy": 1.0}
    assert summary(scores)["flores"] == {"accuracy": pytest.approx(13 / 14)}
    assert "mean of 13" in table(EVAL_SETS["flores"], scores["flores"])


def test_quick_takes_three_sets_and_flores_in_the_core_languages(data: Path) -> None:
    quick = choose_sets([], quick=True)
    assert [each.name for each in quick] == ["flores", "stsb", "xquad"]
    assert tuple(quick[0].read(data)) == FLORES_CORE


def test_an_unknown_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match="no evaluation set named mteb; there are flores, tatoeba"):
        choose_sets(["mteb"], quick=False)


def test_a_missing_file_is_named_before_anything_is_embedded(data: Path, model: MeasuredModel) -> None:
    def embed(texts: Sequence[str], role: Role | None) -> Vectors:
        raise AssertionError(f"embedded {len(texts)} texts as {role}")

    with pytest.raises(DataError, match=r"sts_sick\.jsonl\.gz is missing"):
        evaluate(replace(model, embed=embed), data, choose_sets(["stsb", "sick"], quick=False), PROTOCOLS["paper"])


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a model version"):
        open_model(tmp_path)
