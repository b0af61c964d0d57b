"""A report says what the results say, and is the same bytes each time."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
from eval_files import write_eval_files
from tiny_checkpoint import write_tiny_checkpoint
from tiny_results import TOY, Sets, retrieval_of, share_of, toy, write_toy
from typer.testing import CliRunner

from training.__main__ import cli
from training.errors import BadResult
from training.report import labels, write_report
from training.result import read_result

LANGUAGES = ("deu_Latn", "tha_Thai", "amh_Ethi")


def some_sets(right: float) -> Sets:
    pairs = {f"{a}→{b}": share_of(right / 2 + place / 20) for place, (a, b) in enumerate(permutations(LANGUAGES, 2))}
    return {
        "flores": {lang: share_of(right - place / 10) for place, lang in enumerate(LANGUAGES)},
        "tatoeba": {"deu": share_of(right), "tha": share_of(right - 0.2)},
        "xquad": {"de": retrieval_of([right, 1.0]), "th": retrieval_of([right, 0.0])},
        "flores-matrix": pairs,
    }


def test_the_tables_numbers_are_those_of_the_results(tmp_path: Path) -> None:
    one, other = write_toy(tmp_path / "a", some_sets(0.8)), write_toy(tmp_path / "b", some_sets(0.6))
    page = write_report([read_result(one), read_result(other)], tmp_path / "out").read_text(encoding="utf-8")
    rows = {cells[0]: cells for cells in re.findall(r"^\| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", page, re.MULTILINE)}
    stated = [json.loads(path.read_text(encoding="utf-8")) for path in (one, other)]
    for name in stated[0]["sets"]:
        _, measure, *cells = rows[name]
        assert [float(cell.strip("*")) for cell in cells] == [
            pytest.approx(document["means"][name][measure], abs=5e-5) for document in stated
        ]
    # The better one in bold.
    assert rows["flores"][2] == "**0.7000**"
    assert rows["flores"][3] == "0.5000"


def test_a_report_has_the_audit_and_what_changed_by_language(tmp_path: Path) -> None:
    int8 = replace(TOY, dtype="int8", engine="onnx int8")
    results = [toy(tmp_path / "a", some_sets(0.8)), toy(tmp_path / "b", some_sets(0.6), int8)]
    page = write_report(results, tmp_path / "out").read_text(encoding="utf-8")
    assert "toy/1, onnx int8 against toy/1, onnx fp32: dtype differs: fp32 and int8." in page
    assert "gap 0.2000 (deu_Latn 0.8000, amh_Ethi 0.6000)" in page
    assert "flores, accuracy: mean -0.2000" in page
    assert page.count("below 0.5: 1 (amh_Ethi)") == 1


def test_a_model_card_shows_every_language_and_keeps_what_people_wrote(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("before\n<!-- evaluation:start -->\nold\n<!-- evaluation:end -->\nafter\n", encoding="utf-8")
    better, worse = (toy(tmp_path / name, some_sets(right)) for name, right in (("a", 0.8), ("b", 0.6)))
    write_report([better, worse], tmp_path / "out", card=card)
    text = card.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "<summary>flores: accuracy by language</summary>" in text
    for language, value in better.sets["flores"].values.items():
        assert f"| {language} | **{value:.4f}** | {worse.sets['flores'].values[language]:.4f} |" in text
    # Pairs of languages are no languages.
    assert "flores-matrix: accuracy by language" not in text
    card.write_text("no place for it", encoding="utf-8")
    with pytest.raises(BadResult, match="evaluation:start"):
        write_report([better], tmp_path / "other", card=card)
    assert not (tmp_path / "other").exists()


def test_every_figure_on_the_page_is_there_and_no_other(tmp_path: Path) -> None:
    sized = [
        replace(TOY, name=name, details={"bytes": size}) for name, size in (("small", "20000000"), ("big", "400000000"))
    ]
    results = [toy(tmp_path / each.name, some_sets(0.7), each) for each in sized]
    page = write_report(results, tmp_path / "out").read_text(encoding="utf-8")
    figures = set(re.findall(r"\]\((.+?\.svg)\)", page))
    assert figures == {path.name for path in (tmp_path / "out").glob("*.svg")}
    assert figures == {"flores.svg", "tatoeba.svg", "flores-matrix-1.svg", "flores-matrix-2.svg", "size.svg"}


def test_a_report_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    results = [toy(tmp_path / "a", some_sets(0.8))]
    for name in ("one", "two"):
        write_report(results, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "flores.svg" in files
    for file in files:
        content = (tmp_path / "one" / file).read_bytes()
        assert content == (tmp_path / "two" / file).read_bytes()
        assert b"<dc:date>" not in content


def test_results_of_one_set_only_leave_the_others_cell_empty(tmp_path: Path) -> None:
    results = [
        toy(tmp_path / "a", {"tatoeba": {"deu": share_of(0.5)}}),
        toy(tmp_path / "b", {"jsquad": {"ja": retrieval_of([1.0])}}),
    ]
    page = write_report(results, tmp_path / "out").read_text(encoding="utf-8")
    assert "| tatoeba | accuracy | **0.5000** | – |" in page
    assert "| jsquad | ndcg@10 | – | **1.0000** |" in page


def test_results_are_told_apart_by_as_much_as_it_takes(tmp_path: Path) -> None:
    first = toy(tmp_path / "a", some_sets(0.8))
    int8 = toy(tmp_path / "b", some_sets(0.8), replace(TOY, engine="onnx int8"))
    other = toy(tmp_path / "c", some_sets(0.8), replace(TOY, name="other/1"))
    assert labels([first, other]) == ["toy/1", "other/1"]
    assert labels([first, int8]) == ["toy/1, onnx fp32", "toy/1, onnx int8"]
    assert labels([first, first]) == ["toy/1, 1", "toy/1, 2"]
    assert labels([first, replace(first, protocol={"name": "mteb-current"})]) == ["toy/1, paper", "toy/1, mteb-current"]


def run(*arguments: str) -> str:
    """What a command prints. In this process: what it imports is imported already."""
    done = CliRunner().invoke(cli, arguments)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    return done.stdout


def test_evaluate_compare_report_and_audit_are_one_road(tmp_path: Path) -> None:
    data = write_eval_files(tmp_path / "data")
    model = write_tiny_checkpoint(tmp_path / "model")
    results = [str(tmp_path / f"{protocol}.json") for protocol in ("paper", "mteb-current")]
    for protocol, file in zip(("paper", "mteb-current"), results, strict=True):
        asked = ("--data", str(data), "--tasks", "flores,xquad,banking77", "--protocol", protocol, "--json", file)
        assert "mean of 13" in run("evaluate", str(model), *asked)
    compared = run("compare", *results)
    assert "warning: protocol differs: paper and mteb-current" in compared
    assert [line.split()[0] for line in compared.splitlines()[-3:]] == ["flores", "xquad", "banking77"]
    assert run("report", *results, "--out", str(tmp_path / "report")) == f"{tmp_path / 'report' / 'report.md'}\n"
    audited = run("audit", results[0], "--before", results[1], "--model", str(model), "--data", str(data))
    assert "flores, accuracy, 14 languages" in audited
    assert "flores, tokens per character, median" in audited


def test_a_json_file_in_no_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    file = tmp_path / "absent" / "a.json"
    done = CliRunner().invoke(cli, ["evaluate", "nowhere", "--data", str(tmp_path), "--json", str(file)])
    assert done.exit_code == 2
    assert done.stderr == f"error: {file} can't be written; give --json a file in a folder that is there\n"


def test_another_page_takes_the_table_and_the_figures_between_its_marks(tmp_path: Path) -> None:
    result, readme = read_result(write_toy(tmp_path / "a", some_sets(0.8))), tmp_path / "docs" / "README.md"
    readme.parent.mkdir()
    start, end = "<!-- evaluation:start -->", "<!-- evaluation:end -->"
    readme.write_text(f"before\n{start}\nold\n{end}\nafter\n", encoding="utf-8")
    write_report([result], tmp_path / "out", readme)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{start}\n| set |")
    assert text.endswith(f"{end}\nafter\n")
    assert "old" not in text
    for image in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (readme.parent / image).is_file()
    readme.write_text("no marks\n", encoding="utf-8")
    with pytest.raises(BadResult, match="evaluation:start"):
        write_report([result], tmp_path / "out", readme)
