"""Preparing pairs: every column, filter and fault of a source, and rows found by their numbers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pair_files import sentence, write_pairs

from training.config import FilterConfig, SourceConfig
from training.errors import BadTrainingData
from training.pair_store import ABOUT_FILE, OFFSETS_FILE, PAIRS_FILE, PairRow, PairStore, open_stores, text_key
from training.prepare import kept, prepare, why_not

QUESTIONS = SourceConfig(path="train/questions.jsonl", pair="question, answer")
TRANSLATION = SourceConfig(path="train/*.jsonl.gz", query_role="query", positive_role="query", pairs_max=100)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = write_pairs(tmp_path_factory.mktemp("data"))
    out = data / "prepared"
    prepare({"questions": QUESTIONS, "translation": TRANSLATION}, FilterConfig(), data=data, out=out)
    return out


def lines(folder: Path, *rows: object) -> Path:
    (folder / "train").mkdir(exist_ok=True)
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    (folder / "train" / "questions.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_rows_lie_language_by_language_and_are_found_by_number(prepared: Path) -> None:
    questions, translation = open_stores(prepared)
    assert (questions.about.name, questions.shape.rows) == ("questions", 300)
    assert (questions.about.query_role, questions.about.positive_role) == ("query", "passage")
    assert translation.shape.languages == {"en-de": 75, "en-sw": 25}
    assert [row.positive[:2] for row in translation.rows(np.array([99, 0]))] == ["ku", "xb"]
    row = questions.rows(np.array([5]))[0]
    assert "number 5 " in row.query
    assert row.negatives == [sentence(6), sentence(7)]


@pytest.mark.parametrize(
    ("row", "symmetric", "reason"),
    [
        (PairRow("a question", "its answer"), False, None),
        (PairRow("a", "b" * 500), False, "short"),
        (PairRow("Same", "same"), False, "identical"),
        (PairRow("short one", "long " * 40), True, "length ratio"),
        (PairRow("short one", "long " * 40), False, None),
    ],
)
def test_a_pair_is_dropped_for_its_reason(row: PairRow, symmetric: bool, reason: str | None) -> None:
    assert why_not("en", row, FilterConfig(), symmetric=symmetric) == reason


@pytest.mark.parametrize(
    ("language", "query", "positive", "reason"),
    [
        ("ru", "Где находится порт?", "Порт находится в Мурманске", None),
        ("ru", "Где находится порт?", "Port lezhit v Murmanske", "script"),
        ("en-ru", "Where is the harbour?", "Где находится порт?", None),
        ("en-ru", "Где находится порт?", "Where is the harbour?", "script"),
        # Names and terms in other scripts are no other language.
        ("zh", "iPhone 12 Pro Max 价格多少", "苹果 iPhone 12 Pro Max 售价 9299 元起", None),
        ("zh-Hant", "港口在哪裡", "The harbour is behind the old mill", "script"),
        ("ja", "港はどこですか", "ミナトミライ", None),
        ("ko", "항구는 어디에 있습니까", "Где находится порт?", "script"),
        ("es-AR", "¿Dónde está el puerto?", "El puerto está detrás del molino", None),
        ("hi", "बंदरगाह कहाँ है", "1984", None),
        ("tlh", "nuqDaq 'oH puchpa''e'", "πού είναι", None),
    ],
)
def test_a_text_in_a_script_that_its_language_does_not_have_is_dropped(
    language: str, query: str, positive: str, reason: str | None
) -> None:
    assert why_not(language, PairRow(query, positive), FilterConfig(), symmetric=False) == reason
    unchecked = FilterConfig(script_share_min=0)
    assert why_not(language, PairRow(query, positive), unchecked, symmetric=False) is None


def test_answers_come_along_as_one_text_or_several(tmp_path: Path) -> None:
    rows = [
        {"query": f"who {n}", "positive": f"she {n}", "answers": found, "lang": "en"}
        for n, found in enumerate([["a", "b"], "c", None])
    ]
    lines(tmp_path, *rows, {"query": "who else", "positive": "nobody", "lang": "en"})
    prepare({"questions": QUESTIONS}, FilterConfig(), data=tmp_path, out=tmp_path / "out")
    store = PairStore(tmp_path / "out" / "questions")
    assert [row.answers for row in store.rows(np.arange(4))] == [["a", "b"], ["c"], [], []]


def test_languages_that_are_not_asked_for_are_counted_and_left_out() -> None:
    dropped: Counter[str] = Counter()
    records = iter(
        [(f"line {n}", {"query": f"q {n}", "positive": f"p {n}", "lang": lang}) for n, lang in enumerate("aab")]
    )
    found = list(kept(records, QUESTIONS, FilterConfig(languages=["b"]), dropped))
    assert [language for language, _ in found] == ["b"]
    assert dropped == {"language": 2}


def test_columns_are_joined_and_the_language_may_be_fixed() -> None:
    source = SourceConfig(path="x", query=["title"], positive=["head", "body"], language="=fr", negatives="hard")
    records = iter([("line 1", {"title": "un", "head": "deux", "body": "trois", "hard": "quatre"})])
    assert list(kept(records, source, FilterConfig(), Counter())) == [("fr", PairRow("un", "deux trois", ["quatre"]))]


def test_parquet_files_and_streamed_data_sets_give_what_lines_give(prepared: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path)
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = datasets.load_dataset("json", data_files=str(data / "train" / "questions.jsonl"), split="train")
    rows.to_parquet(data / "train" / "questions.parquet")
    (tmp_path / "hub").mkdir()
    rows.to_parquet(tmp_path / "hub" / "train.parquet")
    sources = {
        "parquet": SourceConfig(path="train/*.parquet"),
        "streamed": SourceConfig(dataset=str(tmp_path / "hub")),
    }
    for about in prepare(sources, FilterConfig(), data=data, out=tmp_path / "out"):
        assert about.pairs_sha256 == PairStore(prepared / "questions").about.pairs_sha256


def test_a_pair_that_comes_again_is_dropped_and_counted(tmp_path: Path) -> None:
    row = {"query": "One question", "positive": "one answer", "lang": "en"}
    again = {"query": "one  QUESTION", "positive": "one answer", "lang": "en"}
    lines(tmp_path, row, again, {"query": "another", "positive": "one answer", "lang": "en"})
    (about,) = prepare({"questions": QUESTIONS}, FilterConfig(), data=tmp_path, out=tmp_path / "out")
    assert (about.languages, about.dropped["duplicate"]) == ({"en": 2}, 1)
    assert text_key("One question") == text_key("one  QUESTION") != text_key("one question?")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"query": "a b", "lang": "en"}], r"line 1 has no column 'positive'; there are 'query', 'lang'"),
        ([{"query": "a b", "positive": "c d", "lang": "en"}, "{half"], r"questions.jsonl, line 2 is no JSON"),
        (["[1]\n"], r"line 1 is no JSON object"),
        ([], r"the source questions has no pairs left"),
        (
            [{"query": "a b", "positive": "c d", "negative": ["e"], "scores": [1.0], "lang": "en"}],
            r"line 1 has 1 scores and 1 negatives",
        ),
        ([{"query": "a", "positive": "c d", "lang": "en"}], r"no pairs left; dropped: {'short': 1}"),
    ],
)
def test_a_bad_source_names_file_line_and_column_and_leaves_nothing(
    tmp_path: Path, rows: list[object], says: str
) -> None:
    lines(tmp_path, *rows)
    with pytest.raises(BadTrainingData, match=says):
        prepare({"questions": QUESTIONS}, FilterConfig(), data=tmp_path, out=tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_a_half_written_archive_is_named(tmp_path: Path) -> None:
    data = write_pairs(tmp_path)
    file = data / "train" / "translation.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-2000])
    source = TRANSLATION.model_copy(update={"pairs_max": None})
    with pytest.raises(
        BadTrainingData, match=r"translation.jsonl.gz can't be read behind line \d+: .*; fetch it again"
    ):
        prepare({"translation": source}, FilterConfig(), data=data, out=tmp_path / "out")


def test_a_file_that_is_not_there_and_a_licence_that_forbids_it(tmp_path: Path) -> None:
    with pytest.raises(BadTrainingData, match=r"no file in .* matches 'train/questions.jsonl'"):
        prepare({"questions": QUESTIONS}, FilterConfig(), data=tmp_path, out=tmp_path / "out")
    closed = QUESTIONS.model_copy(update={"licence": "CC BY-NC 4.0"})
    with pytest.raises(BadTrainingData, match="could not be given away; remove the source"):
        prepare({"questions": closed}, FilterConfig(), data=tmp_path, out=tmp_path / "out")


def test_a_source_that_is_not_prepared_is_named_and_others_in_the_folder_are_left_alone(prepared: Path) -> None:
    assert [store.about.name for store in open_stores(prepared, ["translation"])] == ["translation"]
    with pytest.raises(BadTrainingData, match="lacks nllb, xp3; prepare them"):
        open_stores(prepared, ["translation", "xp3", "nllb"])


@pytest.mark.parametrize("file", [PAIRS_FILE, OFFSETS_FILE, ABOUT_FILE])
def test_a_half_written_store_is_refused_as_it_is_opened(tmp_path: Path, file: str) -> None:
    data = write_pairs(tmp_path)
    prepare({"questions": QUESTIONS}, FilterConfig(), data=data, out=tmp_path / "out")
    path = tmp_path / "out" / "questions" / file
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadTrainingData, match="prepare it again"):
        PairStore(tmp_path / "out" / "questions")


def test_a_damaged_row_is_named_by_its_number(tmp_path: Path) -> None:
    data = write_pairs(tmp_path)
    prepare({"questions": QUESTIONS}, FilterConfig(), data=data, out=tmp_path / "out")
    path = tmp_path / "out" / "questions" / PAIRS_FILE
    content = bytearray(path.read_bytes())
    content[0] = ord("#")
    path.write_bytes(content)
    with pytest.raises(BadTrainingData, match=r"row 0 of .*pairs.jsonl is damaged"):
        PairStore(tmp_path / "out" / "questions").rows(np.array([0]))


def test_a_source_prepared_with_other_settings_is_not_taken_for_this_one(prepared: Path, tmp_path: Path) -> None:
    other = QUESTIONS.model_copy(update={"pairs_max": 7})
    with pytest.raises(BadTrainingData, match=r"other settings \(pairs_max\); prepare it again with --again"):
        prepare({"questions": other}, FilterConfig(), data=tmp_path, out=prepared)


def test_a_damaged_table_and_a_damaged_archive_are_named(tmp_path: Path) -> None:
    data = write_pairs(tmp_path)
    archive = data / "train" / "translation.jsonl.gz"
    content = bytearray(archive.read_bytes())
    content[2000:2050] = bytes(50)
    archive.write_bytes(content)
    (data / "train" / "table.parquet").write_bytes(b"PAR1 nothing PAR1")
    for path in ("train/*.gz", "train/*.parquet"):
        with pytest.raises(BadTrainingData, match="can't be read behind|is no JSON"):
            prepare({"bad": SourceConfig(path=path)}, FilterConfig(), data=data, out=tmp_path / "out")


def test_a_source_of_many_files_is_cut_evenly_and_empty_fields_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for language in ("aa", "zz"):
        rows = [
            {"query": f"{language} {number}", "positive": f"it is {number}", "lang": language} for number in range(3000)
        ]
        rows[0]["positive"] = None
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "train" / f"{language}.jsonl").write_text(text)
    source = SourceConfig(path="train/*.jsonl", pairs_max=2500)
    (about,) = prepare({"both": source}, FilterConfig(), data=tmp_path, out=tmp_path / "out")
    assert about.languages == {"aa": 1501, "zz": 999}
    assert about.dropped == {"short": 2, "duplicate": 0}


def test_a_source_that_is_there_stays_unless_asked_again(prepared: Path, tmp_path: Path) -> None:
    before = (prepared / "questions" / ABOUT_FILE).stat().st_mtime_ns
    assert prepare({"questions": QUESTIONS}, FilterConfig(), data=tmp_path, out=prepared) == []
    assert (prepared / "questions" / ABOUT_FILE).stat().st_mtime_ns == before


def test_answers_with_places_are_refused_and_empty_negatives_are_none(tmp_path: Path) -> None:
    row = {"query": "who found radium?", "positive": "Curie found it in 1898.", "lang": "en"}
    squad = {**row, "answers": {"text": ["Curie"], "answer_start": [0]}}
    with pytest.raises(BadTrainingData, match=r"column 'answers' holds 'text', 'answer_start'; name a column of texts"):
        prepare({"questions": QUESTIONS}, FilterConfig(), data=lines(tmp_path, squad), out=tmp_path / "out")
    # A blank line is nothing, and so is an empty negative.
    lines(tmp_path, {**row, "negative": ""}, "\n", {**row, "query": "when?", "negative": ["", "Nobody."]})
    (about,) = prepare({"questions": QUESTIONS}, FilterConfig(), data=tmp_path, out=tmp_path / "out")
    found = PairStore(tmp_path / "out" / "questions").rows(np.arange(2))
    assert sorted(len(one.negatives) for one in found) == [0, 1]
    assert about.negatives == 0


def test_a_language_may_say_its_script() -> None:
    row = PairRow("gde biblioteka", "biblioteka nakhoditsya za rynkom")
    assert why_not("ru-Latn", row, FilterConfig(), symmetric=False) is None
    assert why_not("ru", row, FilterConfig(), symmetric=False) == "script"
