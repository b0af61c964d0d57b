"""Bitext mining: margins, retrieval, thresholds, and the command on files."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from parallel_sentences import SENTENCES, STRAYS
from typer.testing import CliRunner

from service.applications.mining import Pairs, best_threshold, mine, quality
from service.applications.neighbours import nearest
from service.commands import app
from service.recipe.pooling import l2_normalize
from training.scores import nearest_by_margin

Vectors = NDArray[np.float32]
CLI = CliRunner()


def sides(seed: int, rows: int = 300, noise: float = 1.2, extra: int = 0) -> tuple[Vectors, Vectors]:
    """Unit vectors of sources and their targets, row by row, with noise; and `extra` targets more of nobody."""
    rng = np.random.default_rng(seed)
    sources = rng.standard_normal((rows, 48)).astype(np.float32)
    # A shift that all share: some hubs are near to everything, as in real vectors.
    shift = rng.standard_normal(48).astype(np.float32)
    targets = np.concatenate(
        [
            sources + noise * rng.standard_normal(sources.shape).astype(np.float32),
            rng.standard_normal((extra, 48)).astype(np.float32),
        ]
    )
    return l2_normalize(sources + shift), l2_normalize(targets.astype(np.float32) + shift)


@pytest.mark.parametrize("seed", range(4))
def test_the_ratio_margin_finds_what_trainings_evaluation_finds(seed: int) -> None:
    sources, targets = sides(seed, extra=50)
    _, expected = nearest_by_margin([sources @ targets.T], k=4)
    found = mine(nearest(sources, targets, 4), nearest(targets, sources, 4), "ratio", "forward")
    ours = found.targets[np.argsort(found.sources)]
    # Products are summed in another order: two candidates within a rounding of each other may change places.
    assert np.mean(ours == expected) >= 0.997
    assert np.mean(expected == np.arange(300)) < 0.99, "too easy to tell"


@pytest.mark.parametrize(("margin", "of"), [("ratio", lambda c, m: c / m), ("distance", lambda c, m: c - m)])
def test_a_margin_is_the_cosine_against_the_mean_of_both_neighbourhoods(margin: str, of) -> None:  # type: ignore[no-untyped-def]
    sources, targets = sides(9, rows=40)
    cosines = sources.astype(np.float64) @ targets.T.astype(np.float64)
    found = mine(nearest(sources, targets, 4), nearest(targets, sources, 4), margin, "max")  # type: ignore[arg-type]
    for source, target, score in zip(found.sources, found.targets, found.scores, strict=True):
        usual = (np.sort(cosines[source])[-4:].mean() + np.sort(cosines[:, target])[-4:].mean()) / 2
        # float32 products of 48 components.
        assert score == pytest.approx(of(cosines[source, target], usual), abs=1e-5)


def test_intersect_is_what_forward_and_backward_agree_on() -> None:
    forward, backward = (nearest(a, b, 4) for a, b in (sides(3, extra=30), sides(3, extra=30)[::-1]))
    found = {way: mine(forward, backward, "ratio", way) for way in ("forward", "backward", "intersect", "max")}  # type: ignore[arg-type]
    pairs = {way: set(zip(p.sources.tolist(), p.targets.tolist(), strict=True)) for way, p in found.items()}
    assert pairs["intersect"] == pairs["forward"] & pairs["backward"]
    assert pairs["intersect"] <= pairs["max"] <= pairs["forward"] | pairs["backward"]


def test_max_uses_each_sentence_once_and_ranks_the_best_first() -> None:
    sources, targets = sides(5, extra=100)
    found = mine(nearest(sources, targets, 4), nearest(targets, sources, 4), "ratio", "max")
    assert len(set(found.sources.tolist())) == len(found.sources)
    assert len(set(found.targets.tolist())) == len(found.targets)
    assert (np.diff(found.scores) <= 0).all()


def test_margins_are_better_than_cosines_where_some_sentences_are_near_to_everything() -> None:
    gold = {row: row for row in range(300)}
    better = 0.0
    for seed in range(4):
        sources, targets = sides(seed, noise=1.5)
        forward, backward = nearest(sources, targets, 4), nearest(targets, sources, 4)
        by_margin, by_cosine = (quality(mine(forward, backward, way), gold).recall for way in ("ratio", "absolute"))
        better += by_margin - by_cosine
    assert better > 0


def test_the_chosen_threshold_has_the_best_f1_of_all() -> None:
    rng = np.random.default_rng(0)
    scores = -np.sort(-rng.normal(1.1, 0.1, 200).round(2))
    targets = np.where(rng.random(200) < (scores - 0.8) / 0.6, np.arange(200), 999)
    pairs = Pairs(np.arange(200), targets, scores)
    gold: dict[int, int | None] = {row: row if row % 5 else None for row in range(220)}
    chosen = best_threshold(pairs, gold)
    best = max(quality(pairs.above(least), gold).f1 for least in np.unique(scores))
    assert quality(pairs.above(chosen), gold).f1 == pytest.approx(best)


def test_more_neighbours_than_there_are_sentences_are_all_of_them() -> None:
    sources, targets = sides(1, rows=3)
    found = mine(nearest(sources, targets, 10), nearest(targets, sources, 10))
    assert found.sources.tolist() == found.targets.tolist()
    assert len(found.sources) <= 3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[int, int | None]]:
    """German and English sentences shuffled, with strays and a repeated line; and for each German line its English."""
    folder = tmp_path_factory.mktemp("mine")
    english, german = [*SENTENCES["en"], *STRAYS], list(SENTENCES["de"])
    order = random.Random(7).sample(range(len(english)), len(english))
    # Line 1 of the source again at its end.
    (folder / "de.txt").write_text("\n".join([*german, german[0]]) + "\n", encoding="utf-8")
    (folder / "en.txt").write_text("\n".join(english[row] for row in order) + "\n", encoding="utf-8")
    return folder / "de.txt", folder / "en.txt", {row + 1: order.index(row) + 1 for row in range(len(german))}


def test_the_command_mines_translations_among_strays(files: tuple[Path, Path, dict[int, int | None]]) -> None:
    source, target, gold = files
    done = CLI.invoke(app, ["mine", str(source), str(target)])
    assert done.exit_code == 0, done.output
    rows = [line.split("\t") for line in done.stdout.splitlines() if line.count("\t") == 4]
    assert rows[0] == ["score", "source_line", "target_line", "source", "target"]
    right = [gold.get(int(row[1])) == int(row[2]) for row in rows[1:]]
    # One line a distinct sentence at most: the repeated one is not there twice.
    assert len({row[3] for row in rows[1:]}) == len(right) <= 15
    assert sum(right) >= 14
    assert [float(row[0]) for row in rows[1:]] == sorted((float(row[0]) for row in rows[1:]), reverse=True)


def test_a_gold_file_chooses_the_threshold(files: tuple[Path, Path, dict[int, int | None]], tmp_path: Path) -> None:
    source, target, gold = files
    known = tmp_path / "gold.tsv"
    # From the other side, where five lines have no partner.
    partner = {there: here for here, there in gold.items()}
    lines = [f"{line}\t{partner.get(line, '')}" for line in range(1, 21)]
    known.write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "pairs.tsv"
    done = CLI.invoke(app, ["mine", str(target), str(source), "--gold", str(known), "--to", str(out)])
    assert done.exit_code == 0, done.output
    rows = [line.split("\t") for line in out.read_text(encoding="utf-8").splitlines()[1:]]
    assert "precision" in done.output
    assert len(rows) >= 13
    assert np.mean([partner.get(int(row[1])) == int(row[2]) for row in rows]) >= 0.9


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--k", "0"], "--k 0: it must be 1 or more"),
        (["--threshold", "-1"], "0 or more"),
        (["--threshold", "1.5", "--margin", "distance"], "from 0 to 1"),
        (["--threshold", "1", "--gold", "GOLD"], "give one of them"),
        (["--gold", "GOLD"], "is there twice"),
        (["--source-vectors", "SHORT"], "has 2 vectors"),
        (["--source-vectors", "ZERO"], "vector 1 is zero or not finite"),
        (["--source-vectors", "GOLD"], "can't read vectors"),
    ],
)
def test_what_can_not_be_mined_is_refused_in_a_sentence(
    arguments: list[str], says: str, files: tuple[Path, Path, dict[int, int | None]], tmp_path: Path
) -> None:
    source, target, _ = files
    gold, short, zero = tmp_path / "GOLD", tmp_path / "SHORT.npy", tmp_path / "ZERO.npy"
    gold.write_text("1\t2\n1\t3\n", encoding="utf-8")
    np.save(short, np.ones((2, 768), dtype=np.float32))
    np.save(zero, np.array([[1.0, 0.0]] + [[0.0, 0.0]] * 15, dtype=np.float32))
    names = {"GOLD": str(gold), "SHORT": str(short), "ZERO": str(zero)}
    done = CLI.invoke(app, ["mine", str(source), str(target), *(names.get(item, item) for item in arguments)])
    assert done.exit_code == 2
    assert says in done.output


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n", encoding="utf-8")
    done = CLI.invoke(app, ["mine", str(tmp_path / "a.txt"), str(tmp_path / "a.txt")])
    assert done.exit_code == 2
    assert "holds no text" in done.output


def test_vectors_of_other_lengths_and_types_are_brought_to_length_one(
    files: tuple[Path, Path, dict[int, int | None]], tmp_path: Path
) -> None:
    source, target, _ = files
    rng = np.random.default_rng(0)
    made = {"a": rng.standard_normal((16, 8)), "b": rng.standard_normal((20, 8))}
    answers = []
    for kind, scale in (("float32", 1.0), ("float16", 3.0)):
        for name, rows in made.items():
            np.save(tmp_path / f"{name}.npy", (rows * scale).astype(kind))
        arguments = ["--source-vectors", str(tmp_path / "a.npy"), "--target-vectors", str(tmp_path / "b.npy")]
        done = CLI.invoke(app, ["mine", str(source), str(target), *arguments, "--to", str(tmp_path / "out.tsv")])
        assert done.exit_code == 0, done.output
        assert "paraphrases" not in done.output
        answers.append(
            {tuple(line.split("\t")[1:3]) for line in (tmp_path / "out.tsv").read_text("utf-8").splitlines()}
        )
    assert answers[0] == answers[1]


def test_two_files_of_one_language_are_pointed_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("\n".join(SENTENCES["en"]), encoding="utf-8")
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).standard_normal((15, 8)))
    files = [str(tmp_path / name) for name in ("a.txt", "b.txt", "a.npy", "b.npy")]
    done = CLI.invoke(app, ["mine", *files[:2], "--source-vectors", files[2], "--target-vectors", files[3]])
    assert done.exit_code == 0, done.output
    assert "both files seem to be in en: what is found are paraphrases" in done.output
