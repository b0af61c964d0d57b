"""compose.yaml as it is, started by podman-compose: gateway, Triton, Prometheus and Alertmanager together.

Images that no registry gives here are substitutes under the same names. There is none for Grafana, which no package
carries, so it alone is left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from uuid import uuid4

import httpx
import pytest
from containers import (
    ROOT,
    attempt,
    build,
    build_substitutes,
    containers_missing,
    make_python_base,
    run,
    stack_extras,
    stack_images,
)
from gateway_from_outside import golden_cosine, wait_for_work
from gateway_process import free_port

pytestmark = [
    pytest.mark.skipif(containers_missing() is not None, reason=str(containers_missing())),
    pytest.mark.slow,
    # The first build installs Triton and Prometheus.
    pytest.mark.timeout(900),
]

STARTED = ("gateway", "triton", "prometheus", "alertmanager")
PORTS = {"gateway": "ME5_PORT", "prometheus": "PROMETHEUS_PORT", "alertmanager": "ALERTMANAGER_PORT"}
MACHINE_BYTES = 8 * 2**30
SOON_S = 90.0


@dataclass(frozen=True)
class Stack:
    """A project of podman-compose with ports of its own."""

    project: str = field(default_factory=lambda: f"me5test{uuid4().hex[:8]}")
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in PORTS})

    def compose(self, *arguments: str) -> str:
        """podman-compose on compose.yaml, with nothing set but the ports."""
        variables = {PORTS[name]: str(port) for name, port in self.ports.items()}
        return run("podman-compose", "-p", self.project, "-f", str(ROOT / "compose.yaml"), *arguments, **variables)

    def url(self, service: str) -> str:
        """Where this machine reaches a service."""
        return f"http://127.0.0.1:{self.ports[service]}"

    def get(self, service: str, path: str, **query: str) -> httpx.Response:
        """An answer of one of the published ports."""
        return httpx.get(f"{self.url(service)}{path}", params=query, timeout=10, trust_env=False)

    def container(self, service: str) -> str:
        """podman's name of a service's one container."""
        return f"{self.project}_{service}_1"

    def ready(self) -> bool:
        """Whether the gateway is."""
        return self.get("gateway", "/readyz").status_code == 200

    def value(self, query: str) -> float:
        """What a query to Prometheus sums up to; 0 where it finds nothing."""
        found = self.get("prometheus", "/api/v1/query", query=query).json()["data"]["result"]
        return sum(float(row["value"][1]) for row in found)

    def logs(self) -> str:
        """The end of what everybody wrote."""
        names = [self.container(name) for name in STARTED]
        outputs = [(name, attempt("podman", "logs", "--tail", "30", name)) for name in names]
        return "\n".join(f"--- {name}\n{done.stdout}{done.stderr}" for name, done in outputs)


def wait_until(stack: Stack, what: str, holds: Callable[[], bool], within_s: float = SOON_S) -> float:
    """The seconds until it holds; containers that do not answer yet do not hold."""
    begin = time.monotonic()
    while time.monotonic() - begin < within_s:
        try:
            if holds():
                return time.monotonic() - begin
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not within {within_s:g} s: {what}\n{stack.logs()}")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """The stack, ready; taken down with its volumes."""
    make_python_base()
    build(ROOT / "docker" / "gateway.Dockerfile", [stack_images()["gateway"]], EXTRAS=stack_extras())
    build_substitutes()
    found = Stack()
    try:
        begin = time.monotonic()
        found.compose("up", "-d", "--no-build", *STARTED)
        wait_until(found, "the gateway is ready", found.ready)
        print(f"\nthe stack is ready {time.monotonic() - begin:.1f} s after `up`")
        yield found
    finally:
        # All that carries the project's label: `down` alone leaves what was scaled up, or half begun.
        label = f"label=io.podman.compose.project={found.project}"
        for name in run("podman", "ps", "-aq", "--filter", label).split():
            attempt("podman", "rm", "-f", "-t", "0", name)
        found.compose("down", "-v")


def load(stack: Stack, *, seconds: float, clients: int = 8) -> list[tuple[int, float]]:
    """Status and seconds of every request that so many clients get answered in this time."""
    end = time.monotonic() + seconds

    def ask(client: int) -> list[tuple[int, float]]:
        found, count = [], 0
        with httpx.Client(base_url=stack.url("gateway"), timeout=60, trust_env=False) as session:
            while time.monotonic() < end:
                texts = [f"query: number {count} of {client} " + "word " * (count * 7 % 60)]
                begin = time.monotonic()
                status = session.post("/embed", json={"inputs": texts}).status_code
                found.append((status, time.monotonic() - begin))
                count += 1
        return found

    with ThreadPoolExecutor(clients) as threads:
        return [answer for part in threads.map(ask, range(clients)) for answer in part]


def test_the_stack_answers_with_the_vectors_of_the_training_model(stack: Stack) -> None:
    assert stack.get("gateway", "/info").json()["engine"] == "triton"
    assert golden_cosine(stack.url("gateway")) > 0.99


def test_load_on_the_published_port_arrives_in_prometheus_from_gateway_and_triton(stack: Stack) -> None:
    answers = load(stack, seconds=4)
    assert {status for status, _ in answers} == {200}
    served, executed = 'me5_request_duration_seconds_count{code="200"}', "nv_inference_request_success"
    wait_until(stack, "the requests are counted", lambda: stack.value(f"sum({served})") >= len(answers))
    wait_until(stack, "Triton's batches are counted", lambda: stack.value(f"sum({executed})") > 0)
    wait_until(stack, "Triton is seen by the gateway", lambda: stack.value("sum(me5_upstream_ready)") == 1)


def test_every_target_of_prometheus_is_up_and_its_alertmanager_known(stack: Stack) -> None:
    def targets() -> dict[str, str]:
        active = stack.get("prometheus", "/api/v1/targets").json()["data"]["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in active}

    wait_until(stack, "gateway and Triton are up", lambda: {"gateway", "triton"} <= set(targets()))
    wait_until(stack, "every target is up", lambda: set(targets().values()) == {"up"})
    managers = stack.get("prometheus", "/api/v1/alertmanagers").json()["data"]["activeAlertmanagers"]
    assert len(managers) == 1
    assert stack.get("alertmanager", "/-/ready").status_code == 200
    rules = stack.get("prometheus", "/api/v1/rules").json()["data"]["groups"]
    assert rules
    assert not [rule["lastError"] for group in rules for rule in group["rules"] if rule.get("lastError")]


def test_the_health_checks_of_all_services_agree(stack: Stack) -> None:
    for service in STARTED:
        done = attempt("podman", "healthcheck", "run", stack.container(service))
        assert done.returncode == 0, f"{service}: {done.stdout}{done.stderr}"


def test_no_process_has_rights_and_none_but_those_published_is_reached(stack: Stack) -> None:
    for service in STARTED:
        found = json.loads(run("podman", "inspect", stack.container(service)))[0]
        assert found["EffectiveCaps"] in (None, []), service
        assert found["HostConfig"]["ReadonlyRootfs"] is True
        bindings = [host for hosts in found["HostConfig"]["PortBindings"].values() for host in hosts or []]
        assert {binding["HostIp"] for binding in bindings} <= {"127.0.0.1"}
        assert bool(bindings) == (service in PORTS)


def test_the_whole_stack_under_load_takes_less_than_8_gigabytes(stack: Stack) -> None:
    with ThreadPoolExecutor(1) as thread:
        loading = thread.submit(load, stack, seconds=5)
        time.sleep(3)
        rows = json.loads(run("podman", "stats", "--no-stream", "--format", "json"))
        assert {status for status, _ in loading.result()} == {200}
    ours = [row for row in rows if row["name"].startswith(stack.project)]
    used = {row["name"].split("_")[1]: bytes_of(row["mem_usage"]) for row in ours}
    assert set(used) == set(STARTED)
    print("\nMB under load:", {name: round(size / 1e6) for name, size in used.items()}, round(sum(used.values()) / 1e6))
    assert sum(used.values()) < MACHINE_BYTES


def bytes_of(usage: str) -> float:
    """The first of podman's "288.7MB / 7.516GB"."""
    size = usage.split("/")[0].strip()
    for unit, factor in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("B", 1.0)):
        if size.endswith(unit):
            return float(size.removesuffix(unit)) * factor
    raise AssertionError(f"podman says {usage!r}")


def test_a_triton_that_goes_sets_alerts_off_and_is_used_again_when_it_is_back(stack: Stack) -> None:
    run("podman", "stop", "-t", "40", stack.container("triton"))
    red = wait_until(stack, "the gateway is not ready", lambda: not stack.ready())
    reason = stack.get("gateway", "/readyz").json()["reason"]

    def alerts() -> set[str]:
        return {alert["labels"]["alertname"] for alert in stack.get("alertmanager", "/api/v2/alerts").json()}

    told = wait_until(stack, "the alerts arrive", lambda: {"Me5Unavailable", "Me5AllUpstreamsDown"} <= alerts())
    run("podman", "start", stack.container("triton"))
    green = wait_until(stack, "the gateway is ready again", stack.ready)
    print(f"\nTriton gone: red after {red:.1f} s ({reason}), alerts after {told:.0f} s more")
    print(f"Triton started: green after {green:.1f} s")
    assert golden_cosine(stack.url("gateway")) > 0.99


def test_one_of_two_tritons_dies_under_load_and_no_request_fails(stack: Stack) -> None:
    stack.compose("up", "-d", "--no-build", "--no-recreate", "--scale", "triton=2", "triton")
    ready = "sum(me5_upstream_ready)"
    wait_until(stack, "the gateway sees both", lambda: stack.value(ready) == 2)
    with ThreadPoolExecutor(1) as thread:
        loading = thread.submit(load, stack, seconds=8)
        time.sleep(3)
        run("podman", "kill", f"{stack.project}_triton_2")
        answers = loading.result()
    longest = max(seconds for _, seconds in answers)
    print(f"\n{len(answers)} requests while one of two Tritons was killed, the longest took {longest:.1f} s")
    assert {status for status, _ in answers} == {200}
    assert stack.ready()


def test_stopping_in_the_order_of_compose_drains_the_gateway_while_triton_answers(stack: Stack) -> None:

    def embed(count: int) -> httpx.Response:
        texts = ["passage: " + "long " * 500] * count
        return httpx.post(f"{stack.url('gateway')}/embed", json={"inputs": texts}, timeout=60, trust_env=False)

    begin = time.monotonic()
    embed(4)
    # Work for about eight seconds on this machine: longer than it takes to say stop, shorter than ME5_SHUTDOWN_S.
    count = max(4, int(8 * 4 / (time.monotonic() - begin)))
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(embed, count)
        wait_for_work(stack.url("gateway"))
        assert not asking.done(), "answered before the signal: the request is too small for this test"
        # As Docker Compose does by depends_on; podman-compose would stop both at once.
        for service in ("gateway", "triton"):
            stack.compose("stop", service)
        answer = asking.result()
    assert answer.status_code == 200, f"{count} texts: {answer.text[:500]}\n{stack.logs()}"
    codes = {
        name: run("podman", "inspect", "--format", "{{.State.ExitCode}}", stack.container(name))
        for name in ("gateway", "triton")
    }
    assert codes == {"gateway": "0", "triton": "0"}, stack.logs()
