"""docs/bench.json to the README's section: pure functions. What is measured is `bench.py`'s business.

A measurement ("step") is one server, one kind of work, one load, one round; what is printed is the median over rounds.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
BASELINE = "Infinity"
CLIENTS = (1, 8, 64)
PASSAGES_CLIENTS = 4
MIXED_CLIENTS = 8

_ENGINE_TEXT = (
    "The gateway against its own engine: texts tokenised beforehand, the fastest of wide or narrow streams and small "
    "or large batches, no HTTP. The load generator's own cost is measured against a server that does nothing, with as "
    "many clients at the same rate; *corrected* is the gateway's rate over what the engine could give on the CPU time "
    "that the generator leaves."
)

Json = dict[str, Any]


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that at least this share of the values does not exceed (nearest rank). NaN for none."""
    if not values:
        return float("nan")
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def corrected_ratio(gateway_rate: float, engine_rate: float, generator_share: float) -> float:
    """The gateway's rate over the engine's, once the load generator's cost is taken off.

    generator_share: CPU seconds that the load generator takes for each second, over the number of cores; measured
    against a server that does nothing, with as many clients, at the gateway's own rate. The engine alone has all
    cores; the gateway's has what the load generator leaves, so it could give engine_rate × (1 - generator_share).
    HTTP, JSON, tokenising and scheduling stay in: they are the gateway's.
    """
    return gateway_rate / (engine_rate * (1 - generator_share))


def section(bench: Json) -> str:
    """The Markdown between the markers."""
    parts = [_setting(bench), _servers_table(bench), "![Throughput against p99](docs/throughput.svg)"]
    if bench["engine"]:
        parts += [_ENGINE_TEXT, _engine_table(bench)]
    return "\n\n".join(parts)


def insert(readme: str, text: str) -> str:
    """The README with this text between the markers; where it has none, in a new section before the last one."""
    if START not in readme:
        head, mark, tail = readme.rpartition("\n## ")
        new = f"\n## Compared\n\n{START}\n{END}\n"
        readme = head + new + mark + tail if mark else readme + new
    before, rest = readme.split(START, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{START}\n{text}\n{END}{after}"


def median(bench: Json, server: str, work: str, clients: int, value: str) -> float:
    """The median over rounds of one value, such as "queries.p50_ms"; NaN where nothing was measured."""
    kind, name = value.split(".")
    found = [
        step[kind][name]
        for step in bench["steps"]
        if step["server"] == server and step["work"] == work and step["clients"] == clients and step[kind]
    ]
    return statistics.median(found) if found else float("nan")


def open_loop(bench: Json, server: str) -> list[tuple[float, float]]:
    """(queries answered a second, p99 in ms) for each rate offered, ascending."""
    steps = [step for step in bench["steps"] if step["server"] == server and step["rate"] and step["queries"]]
    return [
        tuple(
            statistics.median(step["queries"][name] for step in steps if step["rate"] == rate)
            for name in ("per_s", "p99_ms")
        )
        for rate in sorted({step["rate"] for step in steps})
    ]


def _setting(bench: Json) -> str:
    machine, work = bench["machine"], bench["work"]
    lines = [
        f"One run on {machine['cores']} cores ({machine['cpu']}; {', '.join(machine['features']) or 'no AVX2'}), the "
        f"load generator on the same cores; medians of {work['rounds']} rounds, servers in turn. One model for all: "
        f"mE5-small's shape with random weights, texts from {work['source']}. In brackets: times {BASELINE}."
    ]
    for server, reason in bench["not_measured"].items():
        lines.append(f"Not measured, {server}: {reason.rstrip('.')}.")
    used = [
        f"{server} ({', '.join(f'{name} {version}' for name, version in versions.items())})"
        for server, versions in bench["versions"].items()
    ]
    lines.append(f"Versions: {'; '.join(used)}.")
    failed = {
        f"{step['server']}: {count} × {error}"
        for step in bench["steps"]
        if not step["rate"]
        for error, count in step["errors"].items()
    }
    if failed:
        lines.append(f"Requests that were not answered with 200, left out above: {'; '.join(sorted(failed))}.")
    return "\n".join(lines)


def _servers_table(bench: Json) -> str:
    rows = [
        "| | queries/s, 1 client | 8 | 64 | lone query, p50 ms | passages/s | mixed: query p50 ms | p95 ms "
        "| mixed: passages, of alone |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for server in bench["servers"]:
        cells = [
            *(_with_ratio(bench, server, "queries", clients, "queries.per_s") for clients in CLIENTS),
            _number(median(bench, server, "queries", 1, "queries.p50_ms")),
            _with_ratio(bench, server, "passages", PASSAGES_CLIENTS, "passages.per_s"),
            _number(median(bench, server, "mixed", MIXED_CLIENTS, "queries.p50_ms")),
            _number(median(bench, server, "mixed", MIXED_CLIENTS, "queries.p95_ms")),
            f"{passages_share(bench, server):.2f}",
        ]
        rows.append(f"| {server} | {' | '.join(cells)} |")
    return "\n".join(rows)


def passages_share(bench: Json, server: str) -> float:
    """Passages a second under mixed load over passages a second alone."""
    mixed = median(bench, server, "mixed", MIXED_CLIENTS, "passages.per_s")
    return mixed / median(bench, server, "passages", PASSAGES_CLIENTS, "passages.per_s")


def _engine_table(bench: Json) -> str:
    rows = [
        "| | clients | engine alone, texts/s | gateway, texts/s | ratio | generator's share of the CPU | corrected |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for server, clients in dict.fromkeys((row["server"], row["clients"]) for row in bench["engine"]):
        found = [row for row in bench["engine"] if (row["server"], row["clients"]) == (server, clients)]
        engine, gateway, share = (
            statistics.median(row[name] for row in found)
            for name in ("engine_per_s", "gateway_per_s", "generator_share")
        )
        # The ratio of each round: its two sides were measured within minutes.
        raw = statistics.median(row["gateway_per_s"] / row["engine_per_s"] for row in found)
        corrected = statistics.median(
            corrected_ratio(row["gateway_per_s"], row["engine_per_s"], row["generator_share"]) for row in found
        )
        rows.append(
            f"| {server} | {clients} | {_number(engine)} | {_number(gateway)} | {raw:.2f} | {100 * share:.0f} % "
            f"| **{corrected:.2f}** |"
        )
    return "\n".join(rows)


def _with_ratio(bench: Json, server: str, work: str, clients: int, value: str) -> str:
    found, baseline = (median(bench, name, work, clients, value) for name in (server, BASELINE))
    return _number(found) if server == BASELINE else f"{_number(found)} ({found / baseline:.1f}×)"


def _number(value: float) -> str:
    """Three digits that mean something."""
    if value != value:
        return "–"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}"
