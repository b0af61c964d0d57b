"""The benchmark's report: from measurements to the README's section."""

from __future__ import annotations

import importlib
import math
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent / "benchmarks"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    """tests/benchmarks/report.py: a program's neighbour and no package, so found by its folder."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("report")
    finally:
        sys.path.remove(str(BENCHMARKS))


def step(server: str, work: str, clients: int, round_: int, queries: float, passages: float) -> dict[str, Any]:
    """A measurement of these rates a second."""
    return {
        "server": server,
        "work": work,
        "clients": clients,
        "rate": 0.0,
        "round": round_,
        "errors": {},
        "queries": summary(queries),
        "passages": summary(passages),
    }


def summary(rate: float) -> dict[str, float] | None:
    """One kind of request, whose p50, p95 and p99 are one, two and three times 1000 / rate; None for none."""
    if not rate:
        return None
    return {"per_s": rate, "p50_ms": 1e3 / rate, "p95_ms": 2e3 / rate, "p99_ms": 3e3 / rate}


@pytest.fixture
def bench() -> dict[str, Any]:
    """Two servers, three rounds; me5 is 1, 2 and 6 times as fast as Infinity, so twice in the median."""
    steps = []
    for round_, factor in enumerate((6.0, 1.0, 2.0)):
        for server, speed in (("me5 fp32", 50.0 * factor), ("Infinity", 50.0)):
            steps += [step(server, "queries", clients, round_, speed, 0.0) for clients in (1, 8, 64)]
            steps.append(step(server, "passages", 4, round_, 0.0, speed / 10))
            steps.append(step(server, "mixed", 8, round_, speed / 4, speed / 20))
    engine = [
        {
            "server": "me5 fp32",
            "round": round_,
            "clients": 8,
            "engine_per_s": 100.0,
            "gateway_per_s": 81.0,
            "generator_share": 0.1,
        }
        for round_ in range(3)
    ]
    return {
        "machine": {"cpu": "A CPU", "features": ["AVX2"], "cores": 2},
        "versions": {"Infinity": {"infinity-emb": "0.0.78"}},
        "work": {"source": "XQuAD", "rounds": 3},
        "servers": ["me5 fp32", "Infinity"],
        "not_measured": {"me5 bf16": "this CPU has no bf16"},
        "steps": steps,
        "engine": engine,
    }


def test_the_table_holds_medians_over_rounds_and_ratios_to_infinity(report: ModuleType, bench: dict[str, Any]) -> None:
    rows = [line for line in report.section(bench).splitlines() if line.startswith("| me5 fp32 | 100")]
    assert rows == [
        "| me5 fp32 | 100 (2.0×) | 100 (2.0×) | 100 (2.0×) | 10.0 | 10.0 (2.0×) | 40.0 | 80.0 | 0.50 |",
    ]


def test_the_generators_cost_is_taken_from_the_engines_rate_not_added_to_the_gateways(
    report: ModuleType, bench: dict[str, Any]
) -> None:
    assert report.corrected_ratio(81, 100, 0.1) == pytest.approx(0.9)
    assert "| me5 fp32 | 8 | 100 | 81.0 | 0.81 | 10 % | **0.90** |" in report.section(bench)


def test_what_was_not_measured_is_said_with_its_reason(report: ModuleType, bench: dict[str, Any]) -> None:
    assert "Not measured, me5 bf16: this CPU has no bf16." in report.section(bench)


def test_refused_requests_are_told(report: ModuleType, bench: dict[str, Any]) -> None:
    bench["steps"][0]["errors"] = {"429": 7}
    assert "me5 fp32: 7 × 429" in report.section(bench)


def test_a_server_without_an_answer_shows_a_dash(report: ModuleType, bench: dict[str, Any]) -> None:
    for measured in bench["steps"]:
        if measured["server"] == "me5 fp32" and measured["work"] == "mixed":
            measured["queries"] = None
    assert re.search(r"\| me5 fp32 \| 100 .* \| – \| – \| 0\.50 \|", report.section(bench))


def test_only_what_lies_between_the_markers_is_replaced(report: ModuleType) -> None:
    readme = f"# A\n\n{report.START}\nold\n{report.END}\n\n## B\nends\n"
    assert report.insert(readme, "new") == f"# A\n\n{report.START}\nnew\n{report.END}\n\n## B\nends\n"


def test_a_readme_without_markers_gets_a_section_before_its_last_one(report: ModuleType) -> None:
    found = report.insert("# A\n\n## Use\nso\n\n## Decisions\nmany\n", "new")
    assert found.index("## Use") < found.index("## Compared") < found.index("new") < found.index("## Decisions")
    assert report.insert(found, "new") == found


@pytest.mark.parametrize(("percent", "wanted"), [(50, 50), (95, 95), (99, 99), (100, 100), (0.5, 1)])
def test_a_percentile_is_the_nearest_rank(report: ModuleType, percent: float, wanted: int) -> None:
    assert report.percentile([float(value) for value in range(100, 0, -1)], percent) == wanted


def test_no_latency_has_no_percentile(report: ModuleType) -> None:
    assert math.isnan(report.percentile([], 50))
