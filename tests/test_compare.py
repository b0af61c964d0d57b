"""The paired bootstrap: its statistics are the measures, it finds planted differences, and its intervals cover."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import v_measure_score
from tiny_results import TOY, bitext_of, retrieval_of, share_of, toy, write_toy

from training.compare import compare, describe, two_sided
from training.errors import BadResult, TrainingError
from training.protocol import PROTOCOLS
from training.resampling import (
    drawings,
    mean_statistic,
    resampled_difference,
    spearman_statistic,
    v_measure_statistic,
)
from training.result import read_result


def test_statistics_of_a_drawing_are_the_measures_of_the_texts_that_were_drawn() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 6, 150)  # many equal values
    second = first + rng.integers(0, 5, 150)
    for counts in next(drawings(150, 20, rng)):
        drawn = np.repeat(np.arange(150), counts.astype(int))
        one, other = first[drawn], second[drawn]
        row = counts[None]
        assert mean_statistic(first)(row)[0] == pytest.approx(np.mean(one))
        assert spearman_statistic(first, second)(row)[0] == pytest.approx(spearmanr(one, other).statistic)
        assert v_measure_statistic(first, second)(row)[0] == pytest.approx(v_measure_score(one, other))


def test_a_drawing_has_as_many_examples_as_there_are_and_each_as_often_as_any() -> None:
    counts = np.concatenate(list(drawings(40, 3000, np.random.default_rng(1))))
    assert counts.shape == (3000, 40)
    assert set(counts.sum(axis=1)) == {40}
    # 120,000 draws, 3,000 expected for each example with a standard deviation of 54.
    np.testing.assert_allclose(counts.sum(axis=0), 3000, atol=250)


def test_intervals_cover_the_true_difference_and_p_is_small_only_where_there_is_one() -> None:
    rng = np.random.default_rng(2)
    covered, found, false_alarms, worlds, true = 0, 0, 0, 200, 0.1
    for _ in range(worlds):
        hard = rng.normal(0, 1, 80)  # shared by both systems: what pairing takes away
        before, same, better = (hard + rng.normal(gain, 0.2, 80) for gain in (0, 0, true))
        drawn = {
            name: resampled_difference(
                {"de": mean_statistic(before)},
                {"de": mean_statistic(after)},
                {"de": 80},
                parallel=False,
                resamples=400,
                rng=rng,
            )
            for name, after in (("same", same), ("better", better))
        }
        low, high = np.quantile(drawn["better"], [0.025, 0.975])
        covered += low <= true <= high
        found += two_sided(drawn["better"]) < 0.05
        false_alarms += two_sided(drawn["same"]) < 0.05
    # 95 %, with a standard deviation of 1.5 % over 200 worlds; a percentile interval of 80 is a little narrow.
    assert 0.90 <= covered / worlds <= 0.99
    assert false_alarms / worlds <= 0.10
    # A difference of 3.2 standard errors is found in about 88 %; unpaired it would be 0.6 and be found in 8 %.
    assert found / worlds >= 0.75


def test_parallel_languages_share_the_drawing_and_others_do_not() -> None:
    rng = np.random.default_rng(3)
    gains = rng.normal(0, 1, 200)
    width = {}
    for parallel in (True, False):
        drawn = resampled_difference(
            {lang: mean_statistic(np.zeros(200)) for lang in "abcd"},
            {lang: mean_statistic(gains) for lang in "abcd"},
            dict.fromkeys("abcd", 200),
            parallel=parallel,
            resamples=2000,
            rng=np.random.default_rng(4),
        )
        width[parallel] = float(np.std(drawn))
    # The same gains in four languages are no more evidence than in one.
    assert width[True] == pytest.approx(np.std(gains) / np.sqrt(200), rel=0.1)
    assert width[False] == pytest.approx(width[True] / 2, rel=0.1)


def test_a_planted_difference_is_found_and_chance_is_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    values = rng.uniform(0, 1, 300)
    before = {"jsquad": {"ja": retrieval_of(values)}, "iapp": {"th": retrieval_of(values)}}
    shuffled = values + rng.choice([-0.1, 0.1], 300)
    after = {
        "jsquad": {"ja": retrieval_of(values + rng.normal(0.05, 0.1, 300))},
        "iapp": {"th": retrieval_of(shuffled)},
    }
    planted, chance = compare(toy(tmp_path / "a", before), toy(tmp_path / "b", after)).differences
    assert planted.value == pytest.approx(0.05, abs=0.02)
    assert planted.low > 0.02
    assert planted.p < 0.001
    assert chance.low < 0 < chance.high
    assert chance.p > 0.05


def test_the_same_result_twice_differs_in_nothing(tmp_path: Path) -> None:
    result = toy(tmp_path / "a", {"flores": {"deu_Latn": share_of(0.7), "fra_Latn": share_of(0.8)}})
    (same,) = compare(result, result).differences
    assert (same.first, same.value, same.low, same.high, same.p) == (pytest.approx(0.75), 0, 0, 0, 1)


def test_a_comparison_repeats_to_the_last_digit(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    one, other = (
        toy(tmp_path / name, {"flores": {"deu_Latn": bitext_of(list(rng.random(90) < 0.6))}}) for name in "ab"
    )
    assert compare(one, other) == compare(one, other)


def test_results_on_other_data_or_languages_are_refused(tmp_path: Path) -> None:
    scored = {"flores": {"deu_Latn": share_of(0.5), "fra_Latn": share_of(0.5)}}
    result = toy(tmp_path / "a", scored)
    elsewhere = toy(tmp_path / "b", scored, data={"eval/bitext_flores200.jsonl.gz": "another"})
    with pytest.raises(BadResult, match="flores: measured on other data, eval/bitext_flores200.jsonl.gz"):
        compare(result, elsewhere)
    fewer = toy(tmp_path / "c", {"flores": {"deu_Latn": share_of(0.5)}})
    with pytest.raises(BadResult, match="only one of the two has fra_Latn"):
        compare(result, fewer)
    with pytest.raises(BadResult, match="no set in common"):
        compare(result, toy(tmp_path / "d", {"tatoeba": {"deu": share_of(0.5)}}))


def test_what_the_figures_do_not_have_in_common_is_said(tmp_path: Path) -> None:
    flores, tatoeba, xquad = {"deu_Latn": share_of(0.5)}, {"deu": share_of(0.5)}, {"de": retrieval_of([1.0, 0.5])}
    one = toy(tmp_path / "a", {"flores": flores, "tatoeba": tatoeba})
    quantised = replace(TOY, dtype="int8", max_tokens=256)
    other = toy(tmp_path / "b", {"flores": flores, "xquad": xquad}, quantised, protocol=PROTOCOLS["mteb-current"])
    text = describe(compare(one, other), "one", "other")
    assert "warning: protocol differs: paper and mteb-current" in text
    assert "warning: dtype differs: fp32 and int8" in text
    assert "warning: longest text in tokens differs: 512 and 256" in text
    assert "only in A: tatoeba" in text
    assert "only in B: xquad" in text
    assert "warning" not in describe(compare(one, one), "one", "one")


def test_a_result_comes_back_as_it_was_written(tmp_path: Path) -> None:
    hits = [True, False, True]
    result = toy(tmp_path / "a", {"tatoeba": {"deu": bitext_of(hits), "fra": share_of(0.3)}})
    examples = result.sets["tatoeba"].examples
    assert examples["deu"]["found"].tolist() == [0, 2, 2]
    assert len(examples["fra"]["found"]) == 100
    assert result.sets["tatoeba"].values == {"deu": pytest.approx(2 / 3), "fra": 0.3}
    assert result.system == TOY


def test_a_file_that_is_no_result_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "a", {"tatoeba": {"deu": share_of(0.5)}})
    document = json.loads(path.read_text(encoding="utf-8"))
    damaged = {
        "not a result of format 2": {**document, "format": 1},
        "is damaged": {**document, "examples": document["examples"][:-40]},
        "ValueError tatoeba/found holds 100 examples": {
            **document,
            "sets": {"tatoeba": {**document["sets"]["tatoeba"], "counts": {"deu": 99}}},
        },
    }
    for reason, content in damaged.items():
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(BadResult, match=reason):
            read_result(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(BadResult, match="can be read"):
        read_result(path)
    with pytest.raises(BadResult, match="can be read"):
        read_result(tmp_path / "absent.json")


def test_a_result_that_can_not_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="can't be written"):
        write_toy(tmp_path / "absent" / "a.json", {"tatoeba": {"deu": share_of(0.5)}})
    (tmp_path / "folder").mkdir()
    with pytest.raises(TrainingError, match="can't be written"):
        write_toy(tmp_path / "folder", {"tatoeba": {"deu": share_of(0.5)}})
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
