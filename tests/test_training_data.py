"""Sources, licences, languages and the numbered corpus."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from training.data import (
    NO_TEXT,
    BadTrainingData,
    is_licence_open,
    keep_open_sources,
    read_corpus,
    read_sources,
    split_languages,
)

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(
    ("lang", "sides"),
    [
        ("ja", ("ja", "ja")),
        ("en-ko", ("en", "ko")),
        ("en-zh-Hant", ("en", "zh-Hant")),
        ("zh-Hant", ("zh-Hant", "zh-Hant")),
        ("zh-Hant-ja", ("zh-Hant", "ja")),
        ("en-sr_Latn", ("en", "sr_Latn")),
        ("ru-Latn", ("ru-Latn", "ru-Latn")),
        ("pt-BR-en", ("pt-BR", "en")),
    ],
)
def test_a_language_pair_is_split_where_the_second_language_begins(lang, sides):
    assert split_languages(lang) == sides


@pytest.mark.parametrize(
    ("licence", "is_open"),
    [
        ("CC BY-SA 4.0", True),
        ("MIT (repository)", True),
        ("Public domain", True),
        ("free for research use", False),
        ("CC BY-NC 4.0", False),
        ("non-commercial only", False),
    ],
)
def test_a_licence_for_research_or_non_commercial_use_is_not_open(licence, is_open):
    assert is_licence_open(licence) is is_open


def test_a_restricted_source_is_left_out_and_logged(caplog):
    kept = keep_open_sources(read_sources(DATA))
    assert "translation_toy_restricted" not in {source.name for source in kept}
    assert "translation_toy_restricted" in caplog.text


def test_the_same_text_has_one_number_wherever_it_stands():
    corpus = read_corpus(keep_open_sources(read_sources(DATA)))
    assert len(set(corpus.texts)) == len(corpus.texts)
    assert len(corpus.pairs) == sum(source.pair_count for source in keep_open_sources(read_sources(DATA)))


def test_only_lines_with_a_negative_have_one():
    corpus = read_corpus(keep_open_sources(read_sources(DATA)))
    with_negative = np.unique(corpus.pair_source[corpus.negatives != NO_TEXT])
    assert [corpus.sources[source] for source in with_negative] == ["nli_toy"]


def test_held_out_pairs_and_training_pairs_share_no_query():
    sources = keep_open_sources(read_sources(DATA))
    trained, held_out = read_corpus(sources, 200), read_corpus(sources, 200, only_held_out=True)
    queries = [{corpus.texts[number] for number in corpus.pairs[:, 0]} for corpus in (trained, held_out)]
    assert queries[1]
    assert queries[0].isdisjoint(queries[1])


def test_a_file_that_is_not_the_one_of_the_manifest_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    for path in DATA.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(DATA)).write_bytes(path.read_bytes())
    (tmp_path / "train" / "qa_toy.jsonl.gz").write_bytes(b"another file")
    with pytest.raises(BadTrainingData, match="qa_toy"):
        read_corpus(keep_open_sources(read_sources(tmp_path)))


def test_a_folder_without_a_manifest_is_named_in_the_error(tmp_path):
    with pytest.raises(BadTrainingData, match="MANIFEST.json"):
        read_sources(tmp_path)


def write_similarity_set(data: Path, languages: tuple[str, ...] = ("de", "en", "fr")) -> None:
    """Ten rows of development in three languages, in the same order, and one of the test part."""
    rows = [
        {"lang": lang, "split": "dev", "sentence1": f"{lang} a{place}", "sentence2": f"{lang} b{place}", "score": 1.0}
        for lang in languages
        for place in range(10)
    ]
    rows.append({"lang": "en", "split": "test", "sentence1": "sealed", "sentence2": "sealed too", "score": 5.0})
    content = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (data / "eval").mkdir(parents=True)
    (data / "eval" / "sts_toy.jsonl.gz").write_bytes(content)
    entry = {"file": "eval/sts_toy.jsonl.gz", "licence": "CC0 1.0", "lines": len(rows)}
    entry["sha256"] = hashlib.sha256(content).hexdigest()
    (data / "MANIFEST.json").write_text(json.dumps({"train": [], "eval": [entry]}), encoding="utf-8")


def test_a_development_set_gives_translations_and_leaves_two_rows_of_five_to_measure_with(tmp_path):
    write_similarity_set(tmp_path)
    (source,) = read_sources(tmp_path, ["sts_toy"])
    corpus = read_corpus([source])
    assert source.name == "translation_dev_sts_toy"
    assert source.pair_count == len(corpus.pairs) == 2 * 2 * 6
    texts = [tuple(corpus.texts[number] for number in pair) for pair in corpus.pairs]
    assert texts[:4] == [("en a2", "de a2"), ("en b2", "de b2"), ("en a3", "de a3"), ("en b3", "de b3")]
    used = {text[-1] for text in corpus.texts}
    assert used == set("234789")
    assert not any("sealed" in text for text in corpus.texts)


def test_a_development_set_that_is_not_there_is_named_with_those_that_are(tmp_path):
    write_similarity_set(tmp_path)
    with pytest.raises(BadTrainingData, match="no evaluation file 'sts_other'; it has sts_toy"):
        read_sources(tmp_path, ["sts_other"])


def test_a_damaged_development_set_is_refused_before_it_is_read(tmp_path):
    write_similarity_set(tmp_path)
    (tmp_path / "eval" / "sts_toy.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(BadTrainingData, match="sts_toy.jsonl.gz has SHA-256"):
        read_sources(tmp_path, ["sts_toy"])


@pytest.mark.parametrize("languages", [("de", "fr"), ("en", "de", "de")])
def test_a_development_set_without_english_or_of_unequal_length_is_refused(tmp_path, languages):
    write_similarity_set(tmp_path, languages)
    with pytest.raises(BadTrainingData, match="the same rows in English and in other languages"):
        read_sources(tmp_path, ["sts_toy"])
