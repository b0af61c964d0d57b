"""docs/capacity.md's parts from what was measured and simulated: pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster import Run
from queueing import Replica, Work, plan

if TYPE_CHECKING:
    from scaling import Scenario, Shipped

Json = dict[str, Any]

# texts a second, tokens, their scv, texts a request, p95 of the wait: from one team to a thousand cores.
LOADS = (
    ("search: queries", Work(50, 20, scv=0.5), 0.05),
    ("search: queries", Work(500, 20, scv=0.5), 0.05),
    ("search: queries", Work(5000, 20, scv=0.5), 0.05),
    ("indexing, 32 passages a request", Work(200, 200, scv=0.5, texts_a_request=32), 5.0),
    ("indexing, 32 passages a request", Work(2000, 200, scv=0.5, texts_a_request=32), 5.0),
    ("indexing, 32 passages a request", Work(20_000, 200, scv=0.5, texts_a_request=32), 5.0),
)


def replace_part(page: str, name: str, text: str) -> str:
    """The page with this text between the markers of a name. Raises ValueError where it has none."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    if start not in page or end not in page:
        raise ValueError(f"the page has no {start} … {end}")
    before, rest = page.split(start, 1)
    return f"{before}{start}\n{text}\n{end}{rest.split(end, 1)[1]}"


def best(measured: Json, model: str) -> tuple[Json, int]:
    """The fastest replica of a model, by passages, and the cores it had. Raises ValueError for one not measured."""
    rows = [row for row in measured["replicas"] if row["model"] == model]
    if not rows:
        known = ", ".join(sorted({row["model"] for row in measured["replicas"]}))
        raise ValueError(f"{model} was not measured, only {known}")
    return max(rows, key=lambda row: row["rates"]["passages"]["tokens_per_s"]), measured["machine"]["cores"]


def render_measured(measured: Json) -> str:
    """The table of replicas."""
    about = measured["machine"]
    lines = [
        f"Measured on {measured['measured']}: one replica on {about['cores']} cores ({about['cpu']}; "
        f"{', '.join(about['features'])}), the load generator on the same cores, medians of "
        f"{measured['rounds']} rounds. "
        f"Random weights of the published shapes, with a vocabulary of {measured['vocabulary']:,}.",
        "",
        "| model | engine | tokens/s a replica: passages | queries | tokens a second of CPU time: passages | queries "
        "| texts/s: passages | queries | memory MiB: idle | loaded | at most by settings | ready after s: first "
        "| again |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in measured["replicas"]:
        rates = [row["rates"][work] for work in ("passages", "queries")]
        cells = [
            *(f"{rate['tokens_per_s']:,.0f}" for rate in rates),
            *(f"{rate['tokens_per_cpu_s']:,.0f}" for rate in rates),
            *(f"{rate['texts_per_s']:,.1f}" for rate in rates),
            *(str(row["memory_mib"][name]) for name in ("idle", "loaded")),
            str(row["memory_bound_mib"]),
            *(f"{row['start_s'][name]:.1f}" for name in ("first", "again")),
        ]
        lines.append(f"| {row['model']} | {row['engine']} {row['precision']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def render_plans(measured: Json) -> str:
    """The worked example: loads from small to large, each model's fastest replica."""
    models = list(dict.fromkeys(row["model"] for row in measured["replicas"]))
    lines = [
        "| load | texts/s | p95 of the wait, at most | "
        + " | ".join(f"{name}: replicas (cores), busy, p95" for name in models)
        + " |",
        "|---|--:|--:|" + "--:|" * len(models),
    ]
    for name, work, wait_s in LOADS:
        kind = "passages" if work.texts_a_request > 1 else "queries"
        cells = []
        for model in models:
            row, cores = best(measured, model)
            found = plan(work, Replica(row["rates"][kind]["tokens_per_s"], cores, cores), wait_s)
            cells.append(f"{found.replicas} ({found.cores}), {found.utilisation:.0%}, {1e3 * found.p95_wait_s:,.0f} ms")
        lines.append(f"| {name}, {work.tokens:g} tokens | {work.texts_per_s:g} | {wait_s:g} s | {' | '.join(cells)} |")
    return "\n".join(lines)


def render_simulated(of: Shipped, runs: list[tuple[Scenario, Run]]) -> str:
    """The autoscaler's table and pictures."""
    from scaling import table

    pictures = [f"![{scenario.about}](capacity-{scenario.name}.svg)" for scenario, _ in runs]
    return "\n\n".join([simulated_with(of), table(runs), *pictures])


def simulated_with(of: Shipped) -> str:
    """The numbers that went in."""
    cluster, hpa = of.cluster, of.hpa
    targets = ", ".join(f"{target.name} {target.value:g}" for target in hpa.targets)
    ways = "; ".join(
        f"{name} at most {' or '.join(f'{each.value} {each.kind} in {each.period_s:g} s' for each in way.policies)}, "
        f"window {way.window_s:g} s"
        for name, way in (("up", hpa.up), ("down", hpa.down))
    )
    return (
        f"Simulated with k8s/overlays/cpu-embedded as it is ({targets}; {ways}; {hpa.least} to {hpa.most} replicas, "
        f"the last row up to 600) and replicas of {cluster.replica.tokens_per_s:g} tokens/s that are ready after "
        f"{cluster.replica.start_s:g} s: round numbers, not measured ones. Requests come at random, of exponential "
        "length, 2000 tokens on average (4000 in the last row). A turn is a change from adding to removing or back, "
        "after the step where there is one."
    )
