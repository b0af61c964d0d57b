"""The search index in a folder: what it holds, what it refuses, and what it finds."""

from __future__ import annotations

import fcntl
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gateway_process import MODEL_REPO, SHIPPED_MODEL
from numpy.typing import NDArray
from parallel_sentences import LANGUAGES, SENTENCES
from tokenizers import Tokenizer
from typer.testing import CliRunner

from service.applications.passage_index import MANIFEST, PassageIndex, adding, publish
from service.applications.searching import Kind, Searcher, fuse, with_nearest, with_words
from service.applications.words import pieces_of
from service.commands import app
from service.errors import IndexUnusable
from service.model import Model, read_model
from service.recipe.pooling import l2_normalize

CLI = CliRunner()
DIMENSION = 768


@pytest.fixture(scope="module")
def model() -> Model:
    return read_model(SHIPPED_MODEL, MODEL_REPO)


@pytest.fixture(scope="module")
def tokenizer(model: Model) -> Tokenizer:
    return model.tokenizer


def rows(seed: int, count: int) -> NDArray[np.float32]:
    """Unit vectors around twenty places."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(99).standard_normal((20, DIMENSION))
    spread = middles[rng.integers(20, size=count)] + rng.standard_normal((count, DIMENSION))
    return l2_normalize(spread.astype(np.float32))


def fill(folder: Path, model: Model, vectors: NDArray[np.float32], kind: Kind = "all", first: int = 0) -> PassageIndex:
    """Add passages named by their numbers, in force at once."""
    names = [f"p{number}" for number in range(first, first + len(vectors))]
    with adding(folder, model) as addition:
        addition.add(names, [f"text of {name}" for name in names], vectors)
        found, _ = with_nearest(addition.finish(), kind)
        publish(found)
    return PassageIndex.open(folder)


def ids(searcher: Searcher, vectors: NDArray[np.float32], count: int = 10) -> list[list[str]]:
    """What a searcher finds, by id."""
    return [[hit.passage.id for hit in hits] for hits in searcher.search(vectors, [[]] * len(vectors), count)]


def test_what_is_added_in_two_steps_is_found_as_if_added_in_one(tmp_path: Path, model: Model) -> None:
    vectors = rows(1, 300)
    whole = fill(tmp_path / "whole", model, vectors)
    fill(tmp_path / "steps", model, vectors[:120])
    steps = fill(tmp_path / "steps", model, vectors[120:], first=120)
    assert steps.manifest == whole.manifest
    asked = rows(2, 20)
    assert ids(Searcher(steps), asked) == ids(Searcher(whole), asked)
    hits = Searcher(whole).search(asked[:1], [[]], 3)[0]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert hits[0].score == pytest.approx(float((vectors @ asked[0]).max()), abs=1e-5)
    assert hits[0].passage.text == f"text of {hits[0].passage.id}"


@pytest.mark.parametrize("kind", ["graph", "cells"])
def test_a_graph_or_cells_find_nearly_all_and_take_additions(tmp_path: Path, model: Model, kind: Kind) -> None:
    vectors, asked = rows(3, 6000), rows(4, 100)
    fill(tmp_path / "near", model, vectors[:5000], kind)
    near = fill(tmp_path / "near", model, vectors[5000:], kind, first=5000)
    assert near.manifest.nearest == f"nearest-{kind}-6000.faiss"
    assert [path.name for path in near.folder.glob("nearest-*")] == [near.manifest.nearest]
    exact = Searcher(PassageIndex(near.folder, replace(near.manifest, nearest=None)))
    shares = [len(set(a) & set(b)) / 10 for a, b in zip(ids(Searcher(near), asked), ids(exact, asked), strict=True)]
    # The bound that building holds them to, on a sample of the passages, is 0.98.
    assert np.mean(shares) > 0.93
    assert any(name.startswith("p5") for found in ids(Searcher(near), asked) for name in found)


def test_an_addition_that_was_cut_short_is_as_if_it_never_was(tmp_path: Path, model: Model) -> None:
    vectors = rows(5, 60)
    before = fill(tmp_path, model, vectors[:40])
    with adding(tmp_path, model) as addition:
        addition.add(["lost"], ["a text"], vectors[40:41])
        # Safe on disk, and killed before the manifest says so.
        addition.finish()
    assert PassageIndex.open(tmp_path).manifest == before.manifest
    assert ids(Searcher(PassageIndex.open(tmp_path)), vectors[40:41], 50)[0].count("lost") == 0
    after = fill(tmp_path, model, vectors[40:], first=40)
    assert after.manifest.count == 60
    np.testing.assert_array_equal(after.vectors(), vectors)
    assert [passage.id for passage in after.passages([39, 40, 59])] == ["p39", "p40", "p59"]


def test_an_addition_that_fails_leaves_nothing_behind(tmp_path: Path, model: Model) -> None:
    before = fill(tmp_path, model, rows(6, 10))
    with pytest.raises(sqlite3.IntegrityError), adding(tmp_path, model) as addition:
        addition.add(["new", "p3"], ["a", "b"], rows(7, 2))
    assert PassageIndex.open(tmp_path).manifest == before.manifest
    assert fill(tmp_path, model, rows(7, 2), first=10).manifest.count == 12


def test_two_do_not_add_at_the_same_time(tmp_path: Path, model: Model) -> None:
    fill(tmp_path, model, rows(6, 10))
    with (tmp_path / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(IndexUnusable, match="another process adds"), adding(tmp_path, model):
            pass


def test_an_index_of_another_model_is_neither_searched_nor_added_to(tmp_path: Path, model: Model) -> None:
    found = fill(tmp_path, model, rows(6, 10))
    publish(PassageIndex(tmp_path, replace(found.manifest, spec_sha256="0" * 64, model="me5_small/1")))
    with pytest.raises(IndexUnusable, match="vectors of me5_small/1 .*ME5_MODEL=me5_small/1"):
        PassageIndex.open(tmp_path).check_model(model)
    with pytest.raises(IndexUnusable, match="me5_small/1"), adding(tmp_path, model):
        pass


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / MANIFEST).unlink(), "holds no index"),
        (lambda folder: (folder / MANIFEST).write_text("{}"), "can't read"),
        (lambda folder: (folder / MANIFEST).write_text('{"format": 9}'), "not of format 1"),
        (lambda folder: (folder / "vectors.f32").write_bytes(b"1234"), "is damaged"),
        (lambda folder: (folder / "passages.db").unlink(), "is damaged"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, model: Model, spoil, says: str) -> None:  # type: ignore[no-untyped-def]
    fill(tmp_path, model, rows(6, 10))
    spoil(tmp_path)
    with pytest.raises(IndexUnusable, match=says):
        PassageIndex.open(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, model: Model) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(IndexUnusable, match="other files"), adding(tmp_path, model):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_words_find_what_vectors_miss(tmp_path: Path, model: Model, tokenizer: Tokenizer) -> None:
    vectors = rows(8, 50)
    with adding(tmp_path, model) as addition:
        texts = [f"passage {'about xylophones' if row == 33 else 'about nothing'}" for row in range(50)]
        addition.add([str(row) for row in range(50)], texts, vectors)
        publish(with_words(with_nearest(addition.finish(), "all")[0], tokenizer))
    searcher = Searcher(PassageIndex.open(tmp_path), hybrid=True)
    # Its vector points away from passage 33.
    asked = -vectors[33:34]
    assert searcher.search(asked, [next(pieces_of(tokenizer, ["Xylophones?"]))], 3)[0][0].passage.id == "33"
    assert searcher.search(asked, [[]], 3)[0][0].passage.id != "33"
    with pytest.raises(IndexUnusable, match="has no words"):
        Searcher(PassageIndex(tmp_path, replace(PassageIndex.open(tmp_path).manifest, words=None)), hybrid=True)


def test_fused_ranks_are_sums_of_reciprocals() -> None:
    scores, numbers = fuse([np.array([7, 3, 9]), np.array([3, 8])], 3)
    assert numbers.tolist() == [3, 7, 8]
    assert scores == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])


def write_passages(path: Path, languages: tuple[str, ...]) -> Path:
    lines = [
        json.dumps({"name": f"{language}-{place}", "text": text}, ensure_ascii=False)
        for language in languages
        for place, text in enumerate(SENTENCES[language])
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_commands_index_and_search_across_languages(tmp_path: Path) -> None:
    first, second = (
        write_passages(tmp_path / "a.jsonl", LANGUAGES[1:3]),
        write_passages(tmp_path / "b.jsonl", LANGUAGES),
    )
    folder = str(tmp_path / "index")
    done = CLI.invoke(app, ["index", str(first), "--to", folder, "--id-field", "name", "--words"])
    assert done.exit_code == 0, done.output
    again = CLI.invoke(app, ["index", str(second), "--to", folder, "--id-field", "name"])
    assert again.exit_code == 2
    assert "line 16: id 'de-0' is in the index" in again.output
    more = CLI.invoke(app, ["index", str(second), "--to", folder, "--id-field", "name", "--skip-known"])
    assert more.exit_code == 0, more.output
    assert "75 passages" in more.output
    assert "45 of them new" in more.output
    questions = [SENTENCES["en"][place] for place in (1, 6, 13)]
    for asked, extra in ((questions, []), ([], ["--hybrid"])):
        lines = "" if asked else "\n".join(questions)
        found = CLI.invoke(app, ["search", folder, *asked, "-k", "5", "--json", *extra], input=lines)
        assert found.exit_code == 0, found.output
        answers = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
        assert [answer["question"] for answer in answers] == questions
        for answer, place in zip(answers, (1, 6, 13), strict=True):
            assert answer["hits"][0]["id"] == f"en-{place}"
            # Words bring other sentences of the question's own language to the front.
            assert extra or sum(hit["id"].endswith(f"-{place}") for hit in answer["hits"]) >= 3


@pytest.mark.parametrize(
    ("lines", "arguments", "says"),
    [
        ("", [], "holds no text"),
        ('{"text": "a"}\n{"text": ""}\n', [], "line 2: the text is empty"),
        ('{"text": "a", "id": 1}\n{"text": "b", "id": 1}\n', ["--id-field", "id"], "line 2: id '1'"),
        ('{"body": "a"}\n', [], "'text' is missing"),
    ],
)
def test_what_can_not_be_indexed_is_refused_and_leaves_no_index(
    tmp_path: Path, lines: str, arguments: list[str], says: str
) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(lines, encoding="utf-8")
    done = CLI.invoke(app, ["index", str(source), "--to", str(tmp_path / "index"), *arguments])
    assert done.exit_code == 2
    assert says in done.output
    search = CLI.invoke(app, ["search", str(tmp_path / "index"), "why"])
    assert search.exit_code == 2
    assert "holds no index" in search.output
