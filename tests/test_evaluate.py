"""Evaluation: which texts are asked with which prompts, and a whole run over a small data folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eval_files import write_eval_files
from numpy.typing import NDArray
from tiny_checkpoint import write_tiny_checkpoint

from service.recipe.prompts import Role
from training.collection import batches_by_length
from training.errors import CheckpointError, DataError
from training.eval_reading import FLORES_20, FLORES_CORE, read_flores, read_retrieval, read_sts, read_tatoeba
from training.eval_sets import EVAL_SETS
from training.evaluate import MeasuredModel, choose_sets, evaluate, open_model, score_set
from training.protocol import PROTOCOLS
from training.result import as_json, summary, table
from training.system import Identity
from training.vectors import VectorSystem

Vectors = NDArray[np.float32]


def test_batches_hold_neighbours_in_length_within_the_token_budget() -> None:
    batches = batches_by_length([3, 50, 4, 200, 5, 49], tokens_max=100, rows_max=2)
    assert batches == [[3], [1, 5], [4, 2], [0]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eval_files(tmp_path_factory.mktemp("data"))


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

    def embed(texts: Sequence[str], role: Role | None, instruction: str | None = None) -> Vectors:
        assert instruction is None
        asked[role] = texts
        return np.eye(len(texts), dtype=np.float32)

    system = VectorSystem(Identity("toy", "none", "fp32", {"query": "query: ", "passage": "passage: "}, 512), embed)
    score_set(system, data, EVAL_SETS[set_name], PROTOCOLS[protocol])
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
    document = json.loads(as_json(evaluate(model.system, data, sets, PROTOCOLS["paper"])))
    assert document["system"]["name"] == "runs/step_000001"
    assert document["system"]["engine"] == "torch fp32"
    assert set(document["system"]["files"]) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert document["system"]["details"].keys() == {"parameters", "bytes"}
    assert document["protocol"]["name"] == "paper"
    file = "eval/bitext_flores200.jsonl.gz"
    assert document["data"][file] == hashlib.sha256((data / file).read_bytes()).hexdigest()
    assert (document["system"]["dtype"], document["system"]["max_tokens"]) == ("fp32", 512)
    assert document["sets"]["xquad"]["scores"]["ar"].keys() == {"ndcg@10", "recall@100", "mrr@10"}
    # The mean over all 14 languages is another than over the 13 core ones.
    assert document["means"].keys() == {"flores", "flores-core", "stsb", "xquad"}


def test_the_protocol_hash_covers_prompts_precision_and_length(data: Path, model: MeasuredModel) -> None:
    result = evaluate(model.system, data, choose_sets(["stsb"], quick=False), PROTOCOLS["paper"])
    system = result.system
    others = [
        replace(result, protocol=PROTOCOLS["mteb-current"]),
        replace(result, system=replace(system, prompts={**system.prompts, "query": "ask: "})),
        replace(result, system=replace(system, prompts={**system.prompts, "query": "{instruction} "})),
        replace(result, system=replace(system, dtype="int8")),
        replace(result, system=replace(system, max_tokens=32)),
    ]
    hashes = {json.loads(as_json(each))["protocol"]["sha256"] for each in (result, *others)}
    assert len(hashes) == 1 + len(others)
    named_elsewhere = replace(result, system=replace(system, name="the same, moved"))
    assert json.loads(as_json(named_elsewhere))["protocol"]["sha256"] in hashes


def test_the_core_mean_leaves_the_other_languages_out() -> None:
    scores = {"flores": {lang: {"accuracy": 1.0} for lang in FLORES_CORE} | {"sun_Latn": {"accuracy": 0.0}}}
    assert summary(scores)["flores-core"] == {"accuracy": 1.0}
    assert summary(scores)["flores"] == {"accuracy": pytest.approx(13 / 14)}
    assert "mean of 13" in table(EVAL_SETS["flores"], scores["flores"])
    assert "flores-20" not in summary(scores)
    scores["flores"] |= {lang: {"accuracy": 0.5} for lang in set(FLORES_20) - set(FLORES_CORE)}
    assert len(set(FLORES_20)) == 20
    assert summary(scores)["flores-20"] == {"accuracy": pytest.approx((13 + 7 * 0.5) / 20)}


def test_quick_takes_three_sets_and_flores_in_the_core_languages(data: Path) -> None:
    quick = choose_sets([], quick=True)
    assert [each.name for each in quick] == ["flores", "stsb", "xquad"]
    assert tuple(quick[0].read(data)) == FLORES_CORE


def test_an_unknown_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match="no evaluation set named mteb; there are flores, tatoeba"):
        choose_sets(["mteb"], quick=False)


def test_a_missing_file_is_named_before_anything_is_embedded(data: Path, model: MeasuredModel) -> None:
    def embed(texts: Sequence[str], role: Role | None, instruction: str | None = None) -> Vectors:
        raise AssertionError(f"embedded {len(texts)} texts as {role}, {instruction}")

    with pytest.raises(DataError, match=r"sts_sick\.jsonl\.gz is missing"):
        evaluate(
            replace(model, embed=embed).system, data, choose_sets(["stsb", "sick"], quick=False), PROTOCOLS["paper"]
        )


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a model version"):
        open_model(tmp_path)
