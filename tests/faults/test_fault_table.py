"""README's fault matrix is the tests' own."""

from __future__ import annotations

import ast
from pathlib import Path

from evidence import END, GREEN, README, ROWS, START, Evidence, replaced, rows_of, table

TWO_RUNS = [
    Evidence("test_engine_hangs", {200: 10, 503: 2}, 2.0, "it hung", 'me5_x{reason="hung"}', "again", 0.8),
    Evidence("test_engine_hangs", {200: 20}, 2.2, "it hung", 'me5_x{reason="hung"}', "again", 1.0),
    Evidence("test_gzip_bombs", {200: 7}, GREEN, "", "", "at once"),
]


def test_every_row_of_the_matrix_is_a_test_and_the_other_way_round() -> None:
    tests = {
        node.name
        for file in Path(__file__).parent.glob("test_*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and "saw" in {argument.arg for argument in node.args.args}
        if node.name.startswith("test_")
    }
    assert tests == set(ROWS)


def test_the_readme_names_exactly_these_rows() -> None:
    assert rows_of(README.read_text(encoding="utf-8")) == list(ROWS.values())


def test_the_table_holds_medians_over_the_runs_of_a_row() -> None:
    _, _, hangs, bombs = table(TWO_RUNS).splitlines()
    assert hangs == (
        f'| {ROWS["test_engine_hangs"]} | 15 × 200, 1 × 503 | 2.1 s | `it hung` | `me5_x{{reason="hung"}}` '
        "| again after 900 ms |"
    )
    assert bombs == f"| {ROWS['test_gzip_bombs']} | 7 × 200 | stays green |  |  | at once |"


def test_the_table_replaces_the_one_before_and_nothing_else() -> None:
    readme = f"before\n{START}\n| old |\n{END}\nafter\n"
    once = replaced(readme, TWO_RUNS)
    assert once.startswith(f"before\n{START}\n")
    assert once.endswith(f"{END}\nafter\n")
    assert "old" not in once
    assert rows_of(once) == [ROWS["test_engine_hangs"], ROWS["test_gzip_bombs"]]
    assert replaced(once, TWO_RUNS) == once
