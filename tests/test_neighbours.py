"""Nearest neighbours by faiss, and groups of near duplicates, against NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from parallel_sentences import LANGUAGES, SENTENCES
from typer.testing import CliRunner

from service.applications.duplicates import find_groups, groups_of, joined
from service.applications.neighbours import RECALL_MIN, nearest, pairs_in_cells, pairs_within, recall_of
from service.applications.origins import check_alike, check_model
from service.commands import app
from service.errors import InvalidInput
from service.recipe.pooling import l2_normalize
from service.recipe.spec import ModelSpec

CLI = CliRunner()


def vectors(seed: int, rows: int, dimension: int = 32, places: int = 40) -> NDArray[np.float32]:
    """Unit vectors around some places, as texts lie around topics."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(99).standard_normal((places, dimension))
    return l2_normalize(
        (middles[rng.integers(places, size=rows)] + rng.standard_normal((rows, dimension))).astype("f4")
    )


def test_exact_neighbours_are_those_of_a_matrix_product() -> None:
    queries, base = vectors(1, 70), vectors(2, 500)
    products = queries @ base.T
    found = nearest(queries, base, 5, "exact")
    np.testing.assert_array_equal(found.numbers, np.argsort(-products, axis=1)[:, :5])
    # float32 sums in another order.
    np.testing.assert_allclose(found.scores, -np.sort(-products, axis=1)[:, :5], atol=1e-5)


def test_cells_find_what_they_promise_and_measure_it() -> None:
    queries, base = vectors(3, 3000), vectors(4, 20_000)
    exact, cells = nearest(queries, base, 4, "exact"), nearest(queries, base, 4, "cells")
    assert (cells.numbers >= 0).all()
    true = recall_of(cells.numbers, exact.numbers)
    # Measured on a thousand queries, 4 neighbours each: a standard error of 0.2 %.
    assert cells.recall >= RECALL_MIN
    assert true == pytest.approx(cells.recall, abs=0.01)
    assert cells.index.split(" ")[0] != cells.index.split(" ")[2], "every cell is looked into"


def test_cells_are_the_same_each_time() -> None:
    queries, base = vectors(3, 200), vectors(4, 5000)
    first, second = nearest(queries, base, 4, "cells"), nearest(queries, base, 4, "cells")
    np.testing.assert_array_equal(first.numbers, second.numbers)


def test_few_rows_in_cells_give_all_neighbours() -> None:
    found = nearest(vectors(1, 5), vectors(2, 90), 80, "cells")
    assert (np.sort(found.numbers, axis=1)[:, 0] >= 0).all()
    assert all(len(set(row)) == 80 for row in found.numbers.tolist())


@pytest.mark.parametrize(("piece_rows", "block_rows"), [(65_536, 256), (64, 16), (100, 37), (7, 300)])
def test_pairs_within_are_found_once_however_the_rows_are_cut(piece_rows: int, block_rows: int) -> None:
    rows = vectors(5, 300)
    products = np.triu(rows @ rows.T, 1)
    expected = {(int(a), int(b)) for a, b in np.argwhere(products > 0.6)}
    found = [
        pair
        for lower, higher in pairs_within(rows, 0.6, piece_rows=piece_rows, block_rows=block_rows)
        for pair in zip(lower.tolist(), higher.tolist(), strict=True)
    ]
    assert len(found) == len(set(found))
    # Products within a rounding of the threshold may fall on either side.
    assert {pair for pair in set(found) ^ expected if abs(products[pair] - 0.6) > 1e-5} == set()
    assert len(expected) > 50


def test_pairs_in_cells_are_nearly_all_and_no_others() -> None:
    rows = vectors(7, 6000)
    exact, cells = (
        {(int(a), int(b)) for part in found for a, b in zip(*part, strict=True)}
        for found in (pairs_within(rows, 0.75), pairs_in_cells(rows, 0.75))
    )
    assert cells <= exact
    assert len(cells) >= 0.97 * len(exact) > 100


@pytest.mark.parametrize("most_held", [1, 10, 10_000])
def test_groups_are_the_connected_parts_however_few_pairs_are_held(most_held: int) -> None:
    rng = np.random.default_rng(6)
    pairs = rng.integers(200, size=(150, 2))
    groups = joined([(part[:, 0], part[:, 1]) for part in np.split(pairs, 15)], 200, most_held=most_held)
    # By hand: take the smaller name over until nothing changes.
    names = np.arange(200)
    for _ in range(200):
        for a, b in pairs.tolist():
            names[a] = names[b] = min(names[a], names[b])
    assert len(set(groups.tolist())) == len(set(names.tolist()))
    assert len(set(zip(groups.tolist(), names.tolist(), strict=True))) == len(set(names.tolist()))


def test_a_group_keeps_its_first_text_or_its_longest() -> None:
    numbers, texts = np.array([4, 0, 4, 0, 9, 4]), ["ab", "x", "abc", "x", "alone", "abd"]
    assert [(g.kept, g.rows) for g in groups_of(numbers, texts, "first")] == [(0, [0, 2, 5]), (1, [1, 3])]
    assert [(g.kept, g.rows) for g in groups_of(numbers, texts, "longest")] == [(2, [0, 2, 5]), (1, [1, 3])]


def test_rows_far_from_each_other_are_no_group() -> None:
    assert groups_of(find_groups(np.eye(20, dtype=np.float32), 0.5), [""] * 20, "first") == []


def test_the_command_finds_translations_as_duplicates_and_writes_what_stays(tmp_path: Path) -> None:
    rows = [(language, place, text) for language in LANGUAGES for place, text in enumerate(SENTENCES[language])]
    source, kept = tmp_path / "texts.jsonl", tmp_path / "kept.jsonl"
    lines = [json.dumps({"id": f"{lang}-{place}", "text": text}) for lang, place, text in rows]
    # Word for word what line 1 says.
    lines.append(json.dumps({"id": "again", "text": rows[0][2]}))
    source.write_text("\n".join(lines), encoding="utf-8")
    asked = ["dedup", str(source), "--id-field", "id", "--threshold", "0.6", "--to", str(kept)]
    done = CLI.invoke(app, asked)
    assert done.exit_code == 0, done.output
    table = [line.split("\t") for line in done.stdout.splitlines() if line.count("\t") == 5][1:]
    groups: dict[str, list[str]] = {}
    for group, _verdict, _cosine, _line, name, _text in table:
        groups.setdefault(group, []).append(name)
    across = [names for names in groups.values() if len({name.split("-")[0] for name in names}) >= 3]
    assert len(across) >= 5
    mixed = [names for names in groups.values() if len({name.split("-")[1] for name in names if name != "again"}) > 1]
    assert len(mixed) <= 1, "texts that say different things are one group"
    assert any("again" in names for names in groups.values())
    verdicts = [row[1] for row in table]
    assert verdicts.count("keep") == len(groups)
    stays = [json.loads(line)["id"] for line in kept.read_text(encoding="utf-8").splitlines()]
    assert len(stays) == len(lines) - verdicts.count("drop")
    assert "again" not in stays


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--threshold", "1"], "between 0 and 1"),
        (["--to", "x.csv"], ".txt or .jsonl"),
        (["--text-field", "txt"], "txt"),
    ],
)
def test_what_can_not_be_deduplicated_is_refused_in_a_sentence(arguments: list[str], says: str, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "one"}\n', encoding="utf-8")
    done = CLI.invoke(app, ["dedup", str(source), *arguments])
    assert done.exit_code == 2
    assert says in done.output


def test_vectors_that_embed_wrote_give_what_the_texts_give(tmp_path: Path) -> None:
    source = tmp_path / "texts.txt"
    source.write_text("\n".join(SENTENCES["en"] + SENTENCES["de"]), encoding="utf-8")
    asked = ["dedup", str(source), "--threshold", "0.6"]
    tables = [CLI.invoke(app, asked).stdout]
    for name in ("v.npy", "v.parquet"):
        done = CLI.invoke(
            app,
            [
                "embed",
                "--input",
                str(source),
                "--output",
                str(tmp_path / name),
                "--role",
                "query",
                "--dtype",
                "float16",
            ],
        )
        assert done.exit_code == 0, done.output
        tables.append(CLI.invoke(app, [*asked, "--vectors", str(tmp_path / name)]).stdout)
    groups = [
        [line.split("\t")[:2] + line.split("\t")[3:] for line in table.splitlines() if line.count("\t") == 5]
        for table in tables
    ]
    # float16 and batches of other lengths move a cosine by less than 0.01; none is that near to the threshold here.
    assert groups[0] == groups[1] == groups[2]
    assert len(groups[0]) > 10
    refused = CLI.invoke(app, ["index", str(source), "--to", str(tmp_path / "i"), "--vectors", str(tmp_path / "v.npy")])
    assert refused.exit_code == 2
    assert "was embedded with --role query; this takes vectors of --role passage" in refused.output


def manifest(path: Path, role: str, source: str) -> Path:
    """A vectors file's manifest, with what is read of it."""
    model = {"name": "m", "version": "1", "source": source, "tokenizer_sha256": "0"}
    path.with_name(f"{path.name}.manifest.json").write_text(json.dumps({"job": {"role": role, "model": model}}))
    return path


def test_vectors_of_another_model_are_refused(tmp_path: Path, spec: ModelSpec) -> None:
    one, other, unknown = (tmp_path / name for name in ("a.npy", "b.npy", "c.npy"))
    manifest(one, "query", "x")
    manifest(other, "query", "y")
    with pytest.raises(InvalidInput, match="two|can't be compared"):
        check_alike(one, other)
    with pytest.raises(InvalidInput, match="set ME5_MODEL=m/1"):
        check_model(one, spec)
    check_alike(one, unknown)
    check_model(unknown, spec)
    (tmp_path / "c.npy.manifest.json").write_text("[]")
    with pytest.raises(InvalidInput, match="can't read"):
        check_model(unknown, spec)
