"""What an ablation says of its parts: effects with intervals that are as wide as seeds and examples make them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from scipy.stats import t
from tiny_results import retrieval_of, share_of, write_toy

from training.ablate import ARMS, EFFECTS
from training.ablation_report import effect_of, effects_of, markdown
from training.config import FinetuneConfig, ModelConfig
from training.result import Result, SetResult, read_result


def result(path: Path, right: float) -> Result:
    ndcg = [right, 1.0, right, 0.5] * 10
    return read_result(write_toy(path, {"flores": {"deu_Latn": share_of(right)}, "xquad": {"de": retrieval_of(ndcg)}}))


def sets(folder: Path, values: list[float], name: str) -> list[SetResult]:
    return [result(folder / f"{name}{place}", value).sets["xquad"] for place, value in enumerate(values)]


def test_an_effect_is_the_mean_over_seeds_and_its_interval_holds_both_kinds_of_chance(tmp_path: Path) -> None:
    before, after = sets(tmp_path, [0.4, 0.4, 0.4], "a"), sets(tmp_path, [0.5, 0.6, 0.7], "b")
    found = effect_of("a part", before, after)
    # Half of the examples gain 0.1, 0.2 and 0.3.
    assert found.for_each_seed == pytest.approx((0.05, 0.1, 0.15))
    assert found.value == pytest.approx(0.1)
    of_seeds = 0.05 / math.sqrt(3) * float(t.ppf(0.975, 2))
    assert (found.high - found.low) / 2 > of_seeds
    assert found.low < 0 < found.value


def test_without_a_spread_of_seeds_examples_alone_make_the_interval(tmp_path: Path) -> None:
    found = effect_of("a part", sets(tmp_path, [0.4, 0.4], "a"), sets(tmp_path, [0.6, 0.6], "b"))
    assert 0.06 < found.low < found.value < found.high < 0.14


def test_the_tables_have_every_arm_and_every_part(tmp_path: Path) -> None:
    results = {
        arm.name: [result(tmp_path / f"{arm.name}{seed}", 0.3 + 0.1 * place) for seed in range(2)]
        for place, arm in enumerate(ARMS)
    }
    page = markdown(results, effects_of(results))
    for title in (*(arm.title for arm in ARMS), *(part for part, _, _ in EFFECTS)):
        assert f"| {title} |" in page
    assert "Means of 2 seeds" in page


def test_an_arm_changes_its_one_switch_and_the_seed() -> None:
    config = ModelConfig(name="toy", backbone="b", finetune=FinetuneConfig(hard_negatives=4))
    by_name = {arm.name: arm.settings(config, 7) for arm in ARMS}
    assert {settings.seed for settings in by_name.values()} == {7}
    assert not by_name["mixed"].pretrain.mixture.one_source_a_batch
    assert by_name["single"].pretrain == config.pretrain
    assert by_name["pairs"].finetune.hard_negatives == 0
    assert by_name["negatives"].finetune == by_name["teacher"].finetune == config.finetune
    # Of stage 2's mixture nothing else changes.
    assert by_name["pairs"].finetune.mixture == config.finetune.mixture
