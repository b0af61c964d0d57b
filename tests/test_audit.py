"""The audit of languages finds what was planted; averages over named languages are the published ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_checkpoint import write_tiny_checkpoint
from tiny_results import TOY, retrieval_of, share_of, toy

from service.recipe.tokens import load_tokenizer
from training.audit import audit, describe_audit, describe_drops, drops, tokens_per_character
from training.errors import BadResult
from training.languages import language_of
from training.result import summary

# nDCG@10 and recall@100 on MIRACL's dev questions, in per cent: the results that mteb publishes for both models.
MIRACL = {
    "small": "ar 71.4/96.2 bn 68.3/97.4 en 48.0/85.3 es 51.2/87.6 fa 53.3/90.4 fi 73.4/96.3 fr 47.6/89.5 hi 55.1/91.0 "
    "id 50.7/86.1 ja 63.6/95.3 ko 61.2/92.0 ru 59.0/92.2 sw 68.5/94.7 te 81.3/97.6 th 74.9/98.2 zh 45.9/87.9 "
    "de 48.8/86.9 yo 45.3/77.8",
    "base": "ar 71.6/95.9 bn 70.2/96.6 en 51.2/86.4 es 51.5/88.5 fa 57.5/91.2 fi 74.3/96.8 fr 49.6/90.1 hi 58.3/92.6 "
    "id 51.0/87.4 ja 64.7/96.0 ko 62.3/91.6 ru 61.6/92.7 sw 71.1/95.6 te 75.1/98.0 th 75.3/98.0 zh 51.5/92.1 "
    "de 52.0/88.1 yo 70.6/93.4",
}


# Table 4 of the mE5 paper, over 16 languages; and the average over all 18 that mteb shows.
@pytest.mark.parametrize(("model", "of_16", "of_18"), [("small", (60.8, 92.4), 59.30), ("base", (62.3, 93.1), 62.20)])
def test_published_averages_of_miracl_come_out_of_the_rows_by_language(
    model: str, of_16: tuple[float, float], of_18: float
) -> None:
    words = MIRACL[model].split()
    scores = {
        language: dict(zip(("ndcg@10", "recall@100"), map(float, values.split("/")), strict=True))
        for language, values in zip(words[::2], words[1::2], strict=True)
    }
    found = summary({"miracl": scores})
    # The rows are rounded to 0.1, their mean is right to 0.05; so is the published figure.
    assert (found["miracl-16"]["ndcg@10"], found["miracl-16"]["recall@100"]) == pytest.approx(of_16, abs=0.1)
    assert round(found["miracl-16"]["ndcg@10"], 1) == of_16[0]
    assert round(found["miracl-16"]["recall@100"], 1) == of_16[1]
    assert found["miracl"]["ndcg@10"] == pytest.approx(of_18, abs=0.05)


def test_an_average_over_languages_of_which_one_is_missing_is_not_made() -> None:
    assert "miracl-16" not in summary({"miracl": {"ar": {"ndcg@10": 0.7}, "en": {"ndcg@10": 0.5}}})


def test_a_planted_bias_is_named(tmp_path: Path) -> None:
    shares = dict.fromkeys(("deu_Latn", "fra_Latn", "spa_Latn", "rus_Cyrl", "ukr_Cyrl", "yor_Latn"), 0.9)
    shares |= {"amh_Ethi": 0.3, "tha_Thai": 0.4, "sun_Latn": 0.6}
    (found,) = audit(toy(tmp_path / "a", {"flores": {lang: share_of(value) for lang, value in shares.items()}}))
    assert (found.worst, found.gap) == ("amh_Ethi", pytest.approx(0.6))
    assert found.badly_served == ["amh_Ethi", "tha_Thai"]
    assert found.mean == pytest.approx((6 * 0.9 + 1.3) / 9)
    # Nine values: the 10 % point lies at 0.8 of the way from the first to the second.
    assert found.worst_decile == pytest.approx(0.3 + 0.8 * 0.1)
    scripts = {group.name: (group.mean, group.languages) for group in found.scripts}
    assert scripts["Latn"] == (pytest.approx((4 * 0.9 + 0.6) / 5), 5)
    assert [group.name for group in found.scripts[:2]] == ["Ethi", "Thai"]
    resources = {group.name: group.mean for group in found.resources}
    # amh and sun are low; yor is in no list of CC-100.
    assert resources == {"low": pytest.approx(0.45), "high": pytest.approx(4.9 / 6), "unlisted": pytest.approx(0.9)}
    text = describe_audit([found])
    assert "below 0.5: 2 (amh_Ethi, tha_Thai)" in text
    assert "gap 0.6000 (" in text


def test_a_language_that_quantisation_broke_is_found_behind_an_average_that_rose(tmp_path: Path) -> None:
    before = {"de": share_of(0.80), "en": share_of(0.80), "th": share_of(0.80)}
    after = {"de": share_of(0.90), "en": share_of(0.90), "th": share_of(0.65)}
    int8 = replace(TOY, dtype="int8")
    (found,) = drops(toy(tmp_path / "a", {"flores": before}), toy(tmp_path / "b", {"flores": after}, int8))
    assert found.mean == pytest.approx(0.05 / 3)
    assert next(iter(found.change.items())) == ("th", pytest.approx(-0.15))
    assert describe_drops([found]).startswith("flores, accuracy: mean +0.0167, worst th -0.1500")


def test_changes_between_results_on_other_data_are_refused(tmp_path: Path) -> None:
    scored = {"flores": {"deu_Latn": share_of(0.5)}}
    elsewhere = toy(tmp_path / "b", scored, data={"eval/bitext_flores200.jsonl.gz": "another"})
    with pytest.raises(BadResult, match="flores: measured on other data"):
        drops(toy(tmp_path / "a", scored), elsewhere)


def test_a_result_without_languages_has_nothing_to_audit(tmp_path: Path) -> None:
    with pytest.raises(BadResult, match="no set with more than one language"):
        audit(toy(tmp_path / "a", {"jsquad": {"ja": retrieval_of([1.0])}}))


@pytest.mark.parametrize(
    ("subset", "script", "resource"),
    [
        ("deu_Latn", "Latn", "high"),
        ("deu", "Latn", "high"),
        ("de", "Latn", "high"),
        ("cmn", "Hans", "high"),
        ("zh-Hant", "Hant", "high"),
        ("srp_Latn", "Latn", "mid"),
        ("sundanese", "Latn", "low"),
        ("toba_batak", "Latn", "unlisted"),
        ("tzl", None, "unlisted"),
        ("yor_Latn", "Latn", "unlisted"),
    ],
)
def test_a_language_is_known_by_all_the_names_that_sets_use(subset: str, script: str | None, resource: str) -> None:
    found = language_of(subset)
    assert (found.script, found.resource) == (script, resource)


def test_tokens_per_character_are_counted_without_prompt_and_special_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tiny_checkpoint(tmp_path / "model") / "tokenizer.json")
    texts = {"eng": ["boats", "the sea"], "tha": ["เรือ"]}
    found = tokens_per_character(tokenizer, texts)
    for language, characters in (("eng", 12), ("tha", 4)):
        pieces = [tokenizer.encode(text, add_special_tokens=False).tokens for text in texts[language]]
        assert found[language] == pytest.approx(sum(map(len, pieces)) / characters)
    assert list(found.values()) == sorted(found.values(), reverse=True)
