"""All tasks with systems of all kinds: labels and topics, pairs of languages, instructions, blocks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eval_files import THINGS, write_eval_files, write_lines, write_parallel_questions
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from tiny_checkpoint import write_tiny_checkpoint
from word_counts import WordCounts

from service.recipe.prompts import E5_INSTRUCT_PROMPTS, E5_PROMPTS, Role
from training.collection import Recipe
from training.errors import DataError, UnknownSystem
from training.eval_reading import read_across, read_all_languages, read_flores_matrix, read_labelled, read_topics
from training.eval_sets import EVAL_SETS
from training.eval_shapes import MAIN_MEASURE, Bitext, Retrieval
from training.evaluate import choose_sets, evaluate, open_model, questions, score, score_set
from training.label_scores import classification_scores, clustering_scores, drawn_samples
from training.protocol import PROTOCOLS, default_protocol
from training.result import as_json
from training.system import Identity, Side
from training.vectors import VectorSystem, prompts_by_role

Vectors = NDArray[np.float32]
PAPER = PROTOCOLS["paper"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eval_files(tmp_path_factory.mktemp("data"))


def test_each_experiment_draws_eight_of_a_label_from_what_the_last_one_shuffled() -> None:
    labels = ["a"] * 30 + ["b"] * 5 + ["c"] * 20
    drawn = drawn_samples(labels)
    assert len(drawn) == 10
    assert all(Counter(labels[row] for row in rows) == {"a": 8, "b": 5, "c": 8} for rows in drawn)
    # A permutation of the same seed, once and then of itself: what mteb's shuffling in place amounts to.
    once = np.random.RandomState(42).permutation(len(labels))
    for rows, order in zip(drawn, (once, once[once]), strict=False):
        first = {name: [int(row) for row in order if labels[row] == name][:8] for name in "abc"}
        assert {name: [row for row in rows if labels[row] == name] for name in "abc"} == first


def test_classification_of_labels_apart_is_perfect_and_of_noise_is_chance() -> None:
    rng = np.random.default_rng(0)
    labels = [str(row % 4) for row in range(400)]
    apart = np.eye(4, dtype=np.float32)[np.arange(400) % 4]
    noise = rng.standard_normal((400, 16)).astype(np.float32)
    perfect = classification_scores(apart, labels, drawn_samples(labels), apart, labels)
    assert perfect.measures == {"accuracy": 1.0, "macro f1": 1.0}
    chance = classification_scores(noise[:200], labels[:200], drawn_samples(labels[:200]), noise[200:], labels[200:])
    # Ten experiments of 200 texts share those texts: a standard deviation of 0.03.
    assert chance.measures["accuracy"] == pytest.approx(0.25, abs=0.09)
    assert np.mean(chance.examples["hits"]) == pytest.approx(chance.measures["accuracy"])


def test_macro_f1_gives_a_rare_label_the_weight_of_a_common_one() -> None:
    train = np.array([[1, 0], [1, 0], [1, 0]], dtype=np.float32)  # nothing to tell b by
    scores = classification_scores(
        train, ["a", "a", "b"], [[0, 1, 2]], np.repeat(train[:1], 10, axis=0), ["a"] * 9 + ["b"]
    )
    # a: precision 9/10, recall 1; b is never found.
    assert scores.measures == {"accuracy": pytest.approx(0.9), "macro f1": pytest.approx((18 / 19 + 0) / 2)}


def test_sparse_and_dense_features_are_classified_and_clustered_alike() -> None:
    rng = np.random.default_rng(1)
    labels = [str(row % 3) for row in range(90)]
    dense = rng.poisson(0.3, (90, 12)).astype(np.float32) + 2 * np.eye(3, 12, dtype=np.float32)[np.arange(90) % 3]
    for give in (
        lambda rows: classification_scores(rows, labels, drawn_samples(labels), rows, labels),
        lambda rows: clustering_scores(rows, labels),
    ):
        sparse = give(csr_matrix(dense)).measures
        assert sparse == pytest.approx(give(dense).measures, abs=0.02)  # solvers round, a text at the border may move
        assert min(sparse.values()) > 0.5


def test_clustering_finds_clouds_that_lie_apart_and_nothing_in_noise() -> None:
    rng = np.random.default_rng(2)
    labels = [str(row % 5) for row in range(300)]
    clouds = 5 * np.eye(5)[np.arange(300) % 5] + rng.normal(0, 0.1, (300, 5))
    assert clustering_scores(clouds.astype(np.float32), labels).measures["v-measure"] == pytest.approx(1)
    assert clustering_scores(rng.normal(size=(300, 5)).astype(np.float32), labels).measures["v-measure"] < 0.1


def test_a_label_or_topic_alone_is_refused() -> None:
    rows = np.eye(4, dtype=np.float32)
    with pytest.raises(DataError, match="fewer than two topics"):
        clustering_scores(rows, ["a"] * 4)
    with pytest.raises(DataError, match="fewer than two labels"):
        classification_scores(rows, ["a"] * 4, [[0, 1]], rows, ["a"] * 4)


def test_labelled_texts_are_read_by_split_and_topics_whole(data: Path) -> None:
    banking = read_labelled(data, file="eval/classification_banking77.jsonl.gz")["en"]
    assert (len(banking.train_texts), len(banking.texts)) == (60, 20)
    assert (banking.texts[0], banking.labels[0]) == ("boats number 0 of test", "boats")
    assert set(read_topics(data, file="eval/clustering_stackoverflow.jsonl.gz")["en"].labels) == set(THINGS)


def test_the_matrix_has_a_cell_for_each_ordered_pair_of_languages(data: Path) -> None:
    cells = read_flores_matrix(data, ["eng_Latn", "deu_Latn", "sun_Latn"])
    assert len(cells) == 6
    assert cells["deu_Latn→sun_Latn"].sources[1] == "bread deu_Latn"
    assert cells["deu_Latn→sun_Latn"].targets[1] == "bread sun_Latn"


def test_questions_are_searched_in_another_language_or_in_all(tmp_path: Path) -> None:
    write_parallel_questions(tmp_path, ["de", "th"])
    across = read_across(tmp_path, folder="eval/retrieval_xquad")
    assert across.keys() == {"de→th", "th→de"}
    assert (across["de→th"].queries[0], across["de→th"].documents[0]) == ("which 0 de", "boats th")
    assert across["de→th"].relevant == [{0: 1}, {1: 1}, {0: 1}]
    pool = read_all_languages(tmp_path, folder="eval/retrieval_xquad")["th"]
    assert pool.documents == ["boats de", "bread de", "boats th", "bread th"]
    assert pool.relevant[1] == {1: 1, 3: 1}


def test_languages_that_are_not_parallel_are_not_searched_across(tmp_path: Path) -> None:
    write_parallel_questions(tmp_path, ["de", "th"])
    with (tmp_path / "eval/retrieval_xquad/corpus.jsonl.gz").open("ab") as file:
        extra = tmp_path / "extra.gz"
        write_lines(extra, [{"lang": "th", "doc_id": "th-2", "title": "", "text": "one more"}])
        file.write(extra.read_bytes())
    with pytest.raises(DataError, match="th has other questions or paragraphs than de"):
        read_across(tmp_path, folder="eval/retrieval_xquad")


def test_a_system_of_word_counts_is_scored_on_every_kind_of_task(data: Path) -> None:
    sets = choose_sets(["flores", "stsb", "xquad", "banking77", "stackoverflow"], quick=False)
    result = evaluate(WordCounts(), data, sets, PAPER)
    values = {
        each.name: [scored.measures[MAIN_MEASURE[each.task]] for scored in result.scored[each.name].values()]
        for each in sets
    }
    # Words tell these sentences apart in all "languages", for only the language's own word differs.
    assert values["flores"] == [1.0] * 14
    assert values["xquad"] == [1.0]
    assert values["banking77"] == [1.0]
    assert values["stackoverflow"][0] > 0.5
    json.loads(as_json(result))


def test_texts_that_search_in_blocks_find_the_same() -> None:
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(60)]
    texts = [" ".join(rng.choice(words, 6)) for _ in range(90)]
    relevant = [{row % 40: 1} if row % 3 else {} for row in range(50)]
    for subset, count in ((Retrieval(texts[:50], texts[50:], relevant), 1), (Bitext(texts[:45], texts[45:]), 2)):
        whole, blocks = (questions(subset, PAPER, cells=cells) for cells in (10**6, 7 * 45))
        assert [len(each) for each in whole] == [2] * count
        assert all(len(each) >= 8 for each in blocks)  # seven texts at a time, and all that is searched
        reading = WordCounts().read([side for each in (*whole, *blocks) for side in each])
        one, other = score(subset, reading, whole), score(subset, reading, blocks)
        assert one.measures == other.measures
        for name, values in one.examples.items():
            np.testing.assert_array_equal(values, other.examples[name])


def test_a_set_without_any_answer_names_itself(tmp_path: Path) -> None:
    write_parallel_questions(tmp_path, ["de"])
    write_lines(tmp_path / "eval/retrieval_xquad/qrels.tsv.gz", [])
    with pytest.raises(DataError, match="xquad, de: no query has an answer among its documents"):
        score_set(WordCounts(), tmp_path, EVAL_SETS["xquad"], PAPER)
    write_lines(tmp_path / "eval/sts_stsb_multi.jsonl.gz", [])
    with pytest.raises(DataError, match="stsb: .*holds nothing"):
        score_set(WordCounts(), tmp_path, EVAL_SETS["stsb"], PAPER)


def test_a_language_without_documents_is_named(tmp_path: Path) -> None:
    write_parallel_questions(tmp_path, ["de"])
    write_lines(tmp_path / "eval/retrieval_xquad/corpus.jsonl.gz", [])
    with pytest.raises(DataError, match="xquad, de: no texts in eval/retrieval_xquad/corpus.jsonl.gz"):
        score_set(WordCounts(), tmp_path, EVAL_SETS["xquad"], PAPER)


def test_a_line_without_its_fields_is_an_error_of_the_data(tmp_path: Path) -> None:
    write_lines(tmp_path / "eval/sts_stsb_multi.jsonl.gz", [{"lang": "de", "split": "test", "sentence1": "boats"}])
    with pytest.raises(DataError, match="stsb: a line of eval/sts_stsb_multi.jsonl.gz lacks the field 'sentence2'"):
        score_set(WordCounts(), tmp_path, EVAL_SETS["stsb"], PAPER)


@pytest.mark.parametrize("protocol", ["paper", "mteb-current"])
@pytest.mark.parametrize(
    ("set_name", "asked_with"),
    [
        ("stsb", {("query", "Retrieve semantically similar text.")}),
        ("flores", {("query", "Retrieve parallel sentences.")}),
        ("banking77", {("query", "Given a online banking query, find the corresponding intents")}),
        (
            "xquad",
            {
                ("query", "Given a question, retrieve Wikipedia passages that answer the question"),
                ("passage", None),
            },
        ),
    ],
)
def test_an_instruct_model_is_told_the_task_on_both_sides_of_all_but_retrieval(
    data: Path, protocol: str, set_name: str, asked_with: set[tuple[Role | None, str | None]]
) -> None:
    asked: set[tuple[Role | None, str | None]] = set()

    def embed(texts: Sequence[str], role: Role | None, instruction: str | None = None) -> Vectors:
        asked.add((role, instruction))
        return np.eye(len(texts), dtype=np.float32)

    system = VectorSystem(Identity("toy", "none", "fp32", prompts_by_role(E5_INSTRUCT_PROMPTS), 512), embed)
    score_set(system, data, EVAL_SETS[set_name], PROTOCOLS[protocol])
    assert asked == asked_with


def test_the_instruction_stands_before_the_text_of_an_instruct_model_only(tmp_path: Path) -> None:
    opened = open_model(write_tiny_checkpoint(tmp_path / "model"))
    recipe = opened.embed.args[1]
    assert isinstance(recipe, Recipe)
    instruct = replace(recipe, prompts=E5_INSTRUCT_PROMPTS)
    told, plain = instruct.rows(["boats"], "query", "Find the sea."), recipe.rows(["boats"], "query", "Find the sea.")
    passage = instruct.rows(["boats"], "passage", "Find the sea.")
    as_it_stands = [
        recipe.rows([text], None)[0]
        for text in ("Instruct: Find the sea.\nQuery: boats", f"{E5_PROMPTS.query}boats", "boats")
    ]
    for found, wanted in zip((told, plain, passage), as_it_stands, strict=True):
        np.testing.assert_array_equal(found[0], wanted)


def test_miracl_is_run_only_when_named() -> None:
    assert "miracl" not in [each.name for each in choose_sets([], quick=False)]
    assert [each.name for each in choose_sets(["miracl"], quick=False)] == ["miracl"]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("query: ", "paper"),
        ("", "paper"),
        ("Instruct: {instruction}\nQuery: ", "paper"),
        ("Represent this sentence for searching relevant passages: ", "mteb-current"),
    ],
)
def test_a_prompt_for_retrieval_alone_is_not_put_before_other_tasks(query: str, name: str) -> None:
    assert default_protocol(Identity("toy", "none", "fp32", {"query": query, "passage": ""}, 512)).name == name


def test_vectors_that_are_not_finite_are_refused_with_the_remedy() -> None:
    def overflowed(texts: Sequence[str], *_prompt: object) -> NDArray[np.float32]:
        return np.full((len(texts), 2), np.nan, dtype=np.float32)

    system = VectorSystem(Identity("toy", "none", "fp16", {}, 512), overflowed)
    with pytest.raises(UnknownSystem, match="not finite numbers.*fp16.*compute it in fp32"):
        system.read([Side(["a"], "query")])


def test_a_text_of_an_earlier_set_is_not_embedded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def embed(texts: Sequence[str], *_prompt: object) -> NDArray[np.float32]:
        asked.extend(texts)
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)

    system = VectorSystem(Identity("toy", "none", "fp32", {}, 512), embed, "dot")
    first, second = Side(["a", "bb", "a"], "query"), Side(["ccc", "bb"], "query")
    system.read([first])
    np.testing.assert_array_equal(system.read([second]).features(second), [[3, 1], [2, 1]])
    # In another role it is another text.
    passages = Side(["bb"], "passage")
    system.read([passages])
    assert asked == ["a", "bb", "ccc", "bb"]
    # Where they would take too much memory, the older ones are forgotten.
    monkeypatch.setattr("training.vectors.KNOWN_BYTES", 16)
    third = Side(["dddd", "bb"], "query")
    np.testing.assert_array_equal(system.read([third]).features(third), [[4, 1], [2, 1]])
    system.read([second])
    assert asked[4:] == ["dddd", "ccc"]
