"""The queueing sum against simulated queues; the autoscaler in a simulation, with the manifests that ship."""

from __future__ import annotations

import heapq
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "benchmarks"))

from autoscaler import DEFAULT_DOWN, DEFAULT_UP, Direction, Hpa, Policy, Target
from capacity_page import LOADS, best, render_measured, render_plans, replace_part, simulated_with
from cluster import Cluster, Load, Run, Simulation, steps
from cluster import Replica as SimulatedReplica
from queueing import Plan, Replica, Work, erlang_c, plan, queue_of, scv_of, wait_law, wait_percentile
from scaling import SCENARIOS, STEP_AT_S, Scenario, Shipped, shipped, simulate

from service.settings import load_settings

ROOT = Path(__file__).resolve().parent.parent

# The sum


def simulated_waits(servers: int, arrivals: float, service_s: float, scv: float, count: int, seed: int) -> list[float]:
    """Waits of customers in M/G/c, first come first served, with lengths of the gamma law that has this scv."""
    draw = random.Random(seed)
    free, now, waits = [0.0] * servers, 0.0, []
    for _ in range(count):
        now += draw.expovariate(arrivals)
        start = max(heapq.heappop(free), now)
        waits.append(start - now)
        length = draw.gammavariate(1 / scv, scv * service_s) if scv else service_s
        heapq.heappush(free, start + length)
    return sorted(waits[count // 10 :])


@pytest.mark.parametrize("scv", [0.25, 1.0, 2.0])
@pytest.mark.parametrize("utilisation", [0.5, 0.7, 0.85])
@pytest.mark.parametrize("servers", [1, 2, 8])
def test_the_waits_of_the_sum_are_those_of_a_simulated_queue(servers: int, utilisation: float, scv: float) -> None:
    service_s = 0.1
    arrivals = utilisation * servers / service_s
    waits = simulated_waits(servers, arrivals, service_s, scv, 200_000, seed=servers)
    found = waits[int(0.95 * len(waits))]
    # Where hardly anybody waits the percentile is a small part of a service, and so is its error.
    assert wait_percentile(servers, arrivals, service_s, scv, 95) == pytest.approx(
        found, rel=0.15, abs=0.02 * service_s
    )
    probability, mean = wait_law(servers, arrivals, service_s, scv)
    assert probability * mean == pytest.approx(sum(waits) / len(waits), rel=0.15, abs=0.01 * service_s)


def test_one_server_is_pollaczek_and_khinchine() -> None:
    probability, mean = wait_law(1, 6.0, 0.1, 0.5)
    assert probability == pytest.approx(0.6)
    assert probability * mean == pytest.approx(6.0 * 0.1**2 * 1.5 / (2 * (1 - 0.6)))


def test_erlang_c_is_that_of_the_tables_and_bears_thousands_of_servers() -> None:
    # C(2, 1) = 1/3 by hand; C(c, a) with c = 10, a = 8 as any table of Erlang's C has it.
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert erlang_c(10, 8.0) == pytest.approx(0.4092, abs=1e-4)
    assert 0 < erlang_c(5000, 4950.0) < 1
    assert erlang_c(5000, 5000.0) == 1


def test_the_plan_is_the_smallest_that_keeps_its_promise() -> None:
    work, replica = Work(2000, 120, scv=1.5), Replica(10_000, streams=2)
    found = plan(work, replica, 0.01, utilisation_max=0.95)

    def waits(replicas: int) -> float:
        return wait_percentile(*queue_of(work, replica, replicas), 95)

    assert waits(found.replicas) <= 0.01 < waits(found.replicas - 1)
    assert found.p95_wait_s == waits(found.replicas)
    assert found.cores == 2 * found.replicas


def test_a_loose_promise_is_bounded_by_utilisation_and_spares_are_added() -> None:
    work, replica = Work(1000, 100), Replica(10_000)
    assert plan(work, replica, 1000.0, utilisation_max=0.5).replicas == 20
    assert plan(work, replica, 1000.0, utilisation_max=0.5, spare=1 / 3).replicas == 30


def test_a_planned_cluster_keeps_its_promise_in_a_simulation() -> None:
    """Requests sent to replicas at random, each with a queue of its own: the wait that was promised, not half of it."""
    work, replica = Work(100, 200, scv=1.0, texts_a_request=10), Replica(10_000)
    found = plan(work, replica, 0.3, utilisation_max=0.95)
    _, arrivals, service_s, scv = queue_of(work, replica, found.replicas)
    waits = simulated_waits(1, arrivals, service_s, scv, 200_000, seed=3)
    assert waits[int(0.95 * len(waits))] == pytest.approx(found.p95_wait_s, rel=0.15)


@pytest.mark.parametrize(
    "broken",
    [
        lambda: Replica(0),
        lambda: Work(0, 10),
        lambda: Work(1, 10, scv=-1),
        lambda: plan(Work(1, 1), Replica(1), 0),
        lambda: plan(Work(1, 1), Replica(1), 1, utilisation_max=1),
        lambda: plan(Work(1, 1), Replica(1), 1, spare=1),
    ],
)
def test_a_plan_for_nothing_is_refused(broken: Callable[[], Plan]) -> None:
    with pytest.raises(ValueError, match="above 0|between|from 0"):
        broken()


def test_scv_is_variance_over_the_squared_mean() -> None:
    assert scv_of([5, 5, 5]) == 0
    assert scv_of([1, 3]) == pytest.approx(0.25)


def test_the_command_prints_a_plan() -> None:
    command = [sys.executable, "tests/benchmarks/capacity.py", "--plan", "--texts-per-s", "10000", "--tokens", "100"]
    done = subprocess.run(
        [*command, "--tokens-per-s", "8000", "--p95-wait-s", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    least = math.ceil(10_000 * 100 / 8000 / 0.7)
    assert f"{least} replicas" in done.stdout


def test_the_page_says_what_its_command_prints() -> None:
    page = (ROOT / "docs" / "capacity.md").read_text(encoding="utf-8")
    command = re.search(r"^python (tests/benchmarks/capacity\.py --plan .*)$", page, re.MULTILINE)
    assert command is not None
    for more in ([], ["--spare", "0.33"]):
        run = [sys.executable, *command[1].split(), *more]
        said = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
        assert f"{said.split(' replicas')[0]} replicas" in page
        if not more:
            cores = re.search(r"\((\d+) cores\)", said)
            assert cores is not None
            assert f"{cores[1]} cores" in page
            assert all(f"{wait} ms" in page.replace("\n", " ") for wait in re.findall(r"(\d+) ms", said))


# The page

MEASURED = {
    "measured": "2026-01-01",
    "rounds": 3,
    "machine": {"cores": 2, "cpu": "a CPU", "features": ["AVX2"]},
    "vocabulary": 111_200,
    "replicas": [
        {
            "model": "me5_small",
            "engine": "onnx",
            "precision": precision,
            "start_s": {"first": 3.0, "again": 1.5},
            "memory_mib": {"idle": 500, "loaded": 600},
            "memory_bound_mib": 900,
            "rates": {
                work: {
                    "texts_per_s": rate / 100,
                    "tokens_per_s": rate,
                    "tokens_per_cpu_s": rate / 2,
                    "tokens_a_text": 100,
                }
                for work in ("passages", "queries")
            },
        }
        for precision, rate in (("fp32", 4000.0), ("int8", 9000.0))
    ],
}


def test_plans_are_made_with_the_fastest_replica_that_was_measured() -> None:
    row, cores = best(MEASURED, "me5_small")
    assert (row["precision"], cores) == ("int8", 2)
    with pytest.raises(ValueError, match="me5_large was not measured, only me5_small"):
        best(MEASURED, "me5_large")
    rows = render_plans(MEASURED).splitlines()[2:]
    assert len(rows) == len(LOADS)
    for line, (_, work, wait_s) in zip(rows, LOADS, strict=True):
        found = plan(work, Replica(9000, 2, 2), wait_s)
        assert f"{found.replicas} ({found.cores})" in line
    # Up to a thousand cores.
    assert any(plan(work, Replica(9000, 2, 2), wait_s).cores > 1000 for _, work, wait_s in LOADS)


def test_every_cell_of_the_table_has_a_column() -> None:
    header, rule, *rows = render_measured(MEASURED).splitlines()[2:]
    assert len(rows) == 2
    assert {line.count("|") for line in (header, rule, *rows)} == {header.count("|")}


def test_a_part_of_the_page_is_replaced_and_the_rest_stays() -> None:
    page = "a\n<!-- x:start -->\nold\n<!-- x:end -->\nb"
    assert replace_part(page, "x", "new") == page.replace("old", "new")
    with pytest.raises(ValueError, match="y:start"):
        replace_part(page, "y", "new")


# What ships

RATE, START_S = 10_000.0, 30.0
QUEUE = Target("Pods", "me5_queue_tokens", 100.0)


@pytest.fixture(scope="module")
def now_shipped() -> Shipped:
    """The manifests, and a replica of round numbers."""
    return shipped(RATE, START_S)


def scenario(name: str) -> Scenario:
    return next(item for item in SCENARIOS if item.name == name)


def assert_nothing_is_lost(run: Run) -> None:
    assert not run.lost
    assert run.answered == run.requests > 1000


@pytest.mark.parametrize("seed", [0, 1])
def test_a_step_up_is_followed_without_swinging(now_shipped: Shipped, seed: int) -> None:
    run = simulate(scenario("up"), now_shipped, seed)
    assert_nothing_is_lost(run)
    # Up, and once down again from what the backlog needed to what the load needs.
    assert run.turns(since=STEP_AT_S) <= 1
    # 8 replicas' worth at 70 % are 11.4; a tenth is tolerated.
    assert 11 <= run.replicas[-1] <= 14
    # Whoever is refused is so while pods start, and answered in the end.
    assert all(STEP_AT_S < at < STEP_AT_S + 180 for at in run.refused_at)


def test_the_page_shows_runs_of_the_manifests_that_ship(now_shipped: Shipped) -> None:
    page = (ROOT / "docs" / "capacity.md").read_text(encoding="utf-8")
    assert simulated_with(now_shipped) in page, "run: python tests/benchmarks/capacity.py --simulate"


def test_a_step_down_is_followed_one_way(now_shipped: Shipped) -> None:
    run = simulate(scenario("down"), now_shipped)
    assert_nothing_is_lost(run)
    assert run.turns(since=STEP_AT_S) == 0
    assert not run.refused_at
    assert run.replicas[-1] <= 4


def test_a_burst_is_gone_with_one_rise_and_one_fall(now_shipped: Shipped) -> None:
    run = simulate(scenario("burst"), now_shipped)
    assert_nothing_is_lost(run)
    assert run.turns(since=STEP_AT_S) == 1
    assert all(STEP_AT_S < at < STEP_AT_S + 180 for at in run.refused_at)


@pytest.mark.slow
def test_a_day_is_followed_up_and_down_with_no_refusal(now_shipped: Shipped) -> None:
    run = simulate(scenario("day"), now_shipped)
    assert_nothing_is_lost(run)
    assert run.turns() <= 1
    assert not run.refused_at


def test_queued_tokens_alone_without_a_window_swing(now_shipped: Shipped) -> None:
    """What CPU and the window are there for: without them the same cluster under the same load never rests."""

    def without(spec: dict) -> None:  # type: ignore[type-arg]
        spec["metrics"] = [item for item in spec["metrics"] if item["type"] != "Resource"]
        spec["behavior"]["scaleDown"] = {
            "stabilizationWindowSeconds": 0,
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
        }

    run = simulate(scenario("up"), now_shipped.changed(without))
    assert run.turns(since=STEP_AT_S) > 5


def test_a_target_that_chance_reaches_makes_pods_come_and_go(now_shipped: Shipped) -> None:
    """Half a second of work, where a request is a fifth of one."""

    def nervous(spec: dict) -> None:  # type: ignore[type-arg]
        spec["metrics"][0]["pods"]["target"]["averageValue"] = "5000"

    calm, run = (simulate(scenario("up"), of) for of in (now_shipped, now_shipped.changed(nervous)))
    assert run.turns() >= calm.turns() + 2


def test_cpu_is_enough_where_no_adapter_serves_queued_tokens(now_shipped: Shipped) -> None:
    """The fallback scales up; it is slower, and takes nothing away while the first metric is missing."""

    def fallback(spec: dict) -> None:  # type: ignore[type-arg]
        spec["metrics"] = [item for item in spec["metrics"] if item["type"] == "Resource"]

    run = simulate(scenario("up"), now_shipped.changed(fallback))
    assert_nothing_is_lost(run)
    assert run.turns(since=STEP_AT_S) <= 1
    assert run.replicas[-1] >= 11


def ended_early(**settings: str) -> Run:
    """Five replicas of which three are taken away at once, under load."""
    cluster = Cluster(load_settings(settings), SimulatedReplica(RATE, START_S), scrape_s=15, grace_s=60)
    down = Direction(0, (Policy("Percent", 100, 15),))
    shrinking = Hpa(2, 2, (QUEUE,), DEFAULT_UP, down)
    profile = steps((0, 1.8 * RATE))
    return Simulation(shrinking, cluster, Load(profile, 1.8 * RATE), seed=1).until(120, replicas=5)


def test_a_drain_shorter_than_the_way_of_the_news_loses_requests() -> None:
    assert ended_early(ME5_DRAIN_S="1").lost["connection refused"] > 0
    assert not ended_early(ME5_DRAIN_S="10").lost


def test_a_queue_that_is_too_small_makes_clients_give_up() -> None:
    cluster = Cluster(
        load_settings({"ME5_MAX_QUEUED_TOKENS": "4000"}), SimulatedReplica(RATE, START_S), scrape_s=15, grace_s=60
    )
    still = Hpa(2, 2, (QUEUE,), DEFAULT_UP, DEFAULT_DOWN)
    load = Load(steps((0, 3 * RATE)), 3 * RATE, tries=3)
    run = Simulation(still, cluster, load).until(120, replicas=2)
    assert run.lost["429, gave up"] > 100
    assert run.answered + sum(run.lost.values()) == run.requests
