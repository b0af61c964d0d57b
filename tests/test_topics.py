"""Topics across languages: groups, words and pictures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from parallel_sentences import LANGUAGES, SENTENCES, TOPICS
from sklearn.metrics import adjusted_rand_score
from tokenizers import Tokenizer
from typer.testing import CliRunner

from service.applications.languages import chief_language, languages_of
from service.applications.topic_map import draw_map, label_of
from service.applications.topics import (
    NOISE,
    Topic,
    by_density,
    by_kmeans,
    centred,
    characteristic_words,
    lay_out,
)
from service.applications.words import words_of
from service.commands import app
from service.errors import InvalidInput
from service.recipe.pooling import l2_normalize
from service.recipe.tokens import load_tokenizer

CLI = CliRunner()


@pytest.fixture(scope="module")
def tokenizer(shipped: Path) -> Tokenizer:
    return load_tokenizer(shipped / "tokenizer.json")


def planted(
    topics: int = 6, each: int = 40, languages: int = 4, accent: float = 0.0
) -> tuple[NDArray[np.float32], ...]:
    """Unit vectors [N, 32] of planted topics, each row's topic, and each row's language, which adds an accent."""
    rng = np.random.default_rng(0)
    kind = np.repeat(np.arange(topics), each)
    language = np.arange(len(kind)) % languages
    rows = rng.standard_normal((topics, 32))[kind] + accent * rng.standard_normal((languages, 32))[language]
    return l2_normalize((rows + 0.4 * rng.standard_normal(rows.shape)).astype(np.float32)), kind, language


def test_kmeans_finds_planted_topics_and_their_number() -> None:
    vectors, kind, _ = planted()
    found = by_kmeans(vectors, None)
    assert adjusted_rand_score(kind, found) > 0.99
    assert len(set(found.tolist())) == 6


def test_density_finds_planted_topics_and_leaves_out_what_fits_nowhere() -> None:
    vectors, kind, _ = planted(each=25)
    places = lay_out(vectors)
    # One far from everything in each of four directions.
    lone = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]]) * 10 * np.abs(places).max()
    found = by_density(np.concatenate([places, lone]), 15)
    assert adjusted_rand_score(kind, found[:150]) > 0.95
    assert (found[150:] == NOISE).all()


def test_without_their_language_texts_come_together_by_topic() -> None:
    vectors, kind, language = planted(accent=3.0)
    spoken = [str(each) for each in language]
    before, after = by_kmeans(vectors, 6), by_kmeans(centred(vectors, spoken), 6)
    assert adjusted_rand_score(kind, before) < 0.5
    assert adjusted_rand_score(kind, after) > 0.95


def test_languages_with_few_texts_share_a_mean_and_lengths_stay_one() -> None:
    vectors, _, _ = planted(each=10)
    found = centred(vectors, [str(row) for row in range(60)])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found, centred(vectors, ["en"] * 60), atol=1e-6)


def test_languages_are_told_by_their_letters() -> None:
    asked = [(language, text) for language in LANGUAGES for text in SENTENCES[language]]
    right = [found == language for (language, _), found in zip(asked, languages_of([t for _, t in asked]), strict=True)]
    assert np.mean(right) > 0.95
    assert chief_language(SENTENCES["de"]) == "de"
    assert chief_language(SENTENCES["de"] + SENTENCES["ru"]) is None


def test_words_are_whole_in_spaced_scripts_and_pieces_in_others(tokenizer: Tokenizer) -> None:
    texts = [
        "Unbelievably, the télévision’s 42 antennas WORK!",
        "电视塔有三百六十八米高。",
        "मेरा घर बहुत बड़ा है",
        "... 123 !!",
    ]
    found = list(words_of(tokenizer, texts))
    assert {"unbelievably", "the", "télévision", "antennas", "work"} <= set(found[0])
    assert not any(sign.isdigit() for words in found for word in words for sign in word)
    assert len(found[1]) >= 1
    assert all(len(word) < 8 for word in found[1])
    assert {"मेरा", "घर", "बहुत", "बड़ा"} <= set(found[2])
    assert found[3] == []


def test_a_topics_words_are_those_the_others_lack() -> None:
    words = [["the", "train", "rails"], ["the", "train"], ["the", "soup", "salt"], ["the", "soup"], ["the", "noise"]]
    found = characteristic_words(words, np.array([0, 0, 1, 1, NOISE]), 2)
    assert found[0][:2] == ["train", "rails"]
    assert found[1][:2] == ["soup", "salt"]
    assert found[0][-1] == "the"


def test_texts_without_words_get_topics_without_words() -> None:
    assert characteristic_words([[], [], []], np.array([0, 1, 0]), 2) == [[], []]


@pytest.mark.parametrize("count", [0, 1, 300])
def test_an_impossible_number_of_topics_is_refused(count: int) -> None:
    with pytest.raises(InvalidInput, match=f"--topics {count}: it must be from 2"):
        by_kmeans(planted()[0], count)


def test_what_density_can_not_do_is_refused() -> None:
    with pytest.raises(InvalidInput, match="--method kmeans"):
        by_density(np.zeros((8001, 2)), 10)
    with pytest.raises(InvalidInput, match="no topic of 50 texts or more"):
        by_density(np.random.default_rng(0).random((100, 2)), 50)


def test_the_same_places_give_the_same_picture_and_its_letters_are_text(tmp_path: Path) -> None:
    numbers = np.arange(60) % 3
    topics = [Topic(n, [n], [f"word{n}", "電車"]) for n in range(3)]
    places = np.random.default_rng(0).random((60, 2))
    for name in ("a.svg", "b.svg", "c.png"):
        draw_map(tmp_path / name, places, numbers, topics, "60 texts")
    drawn = (tmp_path / "a.svg").read_bytes()
    assert drawn == (tmp_path / "b.svg").read_bytes()
    assert "word2, 電車" in drawn.decode("utf-8")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_word_that_no_font_draws_is_left_out_of_a_png() -> None:
    assert label_of(Topic(0, [0], ["train", "電車", "Zug"]), set(range(128))) == "train, Zug"


def test_the_command_brings_translations_into_one_topic(tmp_path: Path) -> None:
    source, to, picture = tmp_path / "texts.jsonl", tmp_path / "topics.json", tmp_path / "map.svg"
    rows = [(language, place) for language in LANGUAGES for place in range(len(TOPICS))]
    lines = [json.dumps({"lang": lang, "text": SENTENCES[lang][place]}) for lang, place in rows]
    source.write_text("\n".join(lines), encoding="utf-8")
    asked = [
        "cluster",
        str(source),
        "--topics",
        "3",
        "--language-field",
        "lang",
        "--to",
        str(to),
        "--map",
        str(picture),
    ]
    done = CLI.invoke(app, asked)
    assert done.exit_code == 0, done.output
    found = json.loads(to.read_text(encoding="utf-8"))
    assert sum(topic["texts"] for topic in found["topics"]) == len(rows)
    assert all(topic["words"] for topic in found["topics"])
    by_sentence: dict[int, list[int]] = {}
    for (_, place), row in zip(rows, found["texts"], strict=True):
        by_sentence.setdefault(place, []).append(row["topic"])
    together = np.mean([Counter(topics).most_common(1)[0][1] / len(LANGUAGES) for topics in by_sentence.values()])
    # Three topics by chance: the commonest of five has 0.54 of them.
    assert together > 0.75
    assert b"75 texts, 3 topics" in picture.read_bytes()


def test_a_map_without_a_known_ending_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    done = CLI.invoke(app, ["cluster", str(tmp_path / "none.txt"), "--map", str(tmp_path / "map.bmp")])
    assert done.exit_code == 2
    assert ".svg, .png, .pdf" in done.output
