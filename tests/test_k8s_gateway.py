"""The manifests of k8s/ against a gateway, and a Triton, that run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import triton_server
import yaml
from gateway_process import Gateway, run_service, start_gateway
from manifests import (
    K8S,
    OVERLAYS,
    ROOT,
    Manifest,
    Objects,
    argument,
    build,
    container_ports,
    of_kind,
    overlay,
    pod,
    probes,
    settings_of,
)
from metric_series import scrape
from service_links import links_of

from service.settings import load_settings

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

from autoscaler import read_hpa

# Triton has these only where there is a GPU (its documentation, "Metrics", GPU metrics).
GPU_METRICS = {"nv_gpu_utilization"}


@pytest.fixture(scope="module")
def monitoring() -> Objects:
    """ServiceMonitors and rules."""
    return build(K8S / "monitoring")


@pytest.fixture(scope="module")
def adapter() -> Manifest:
    """The values for prometheus-adapter."""
    found: Manifest = yaml.safe_load((K8S / "monitoring" / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    return found


def test_probes_and_ports_are_those_of_a_running_gateway(client: httpx.Client) -> None:
    for name in OVERLAYS:
        each = pod(overlay(name), "me5-gateway")
        settings = load_settings(settings_of(overlay(name)))
        assert container_ports(each) == {"http": settings.port}
        assert settings.host == "0.0.0.0"
        paths = {probe["httpGet"]["path"] for probe in probes(each.main)}
        assert paths == {"/livez", "/readyz"}
        for path in paths:
            assert client.get(path).status_code == 200
        assert each.main["readinessProbe"]["httpGet"]["path"] == "/readyz"
        # Red while an engine is started again: nothing that a restart of the pod would mend.
        assert each.main["livenessProbe"]["httpGet"]["path"] == "/livez"


def test_probes_are_answered_in_time_while_the_queue_is_full(gateway: Gateway) -> None:
    limits = {
        probe["httpGet"]["path"]: min(
            p["timeoutSeconds"] for p in probes(pod(overlay("cpu-embedded"), "me5-gateway").main)
        )
        for probe in probes(pod(overlay("cpu-embedded"), "me5-gateway").main)
    }
    body = {"inputs": ["a passage of some words that is to be embedded " * 20] * 400, "input_type": "passage"}
    worst = dict.fromkeys(limits, 0.0)
    with gateway.client() as one, gateway.client() as two:
        under_way = [threading.Thread(target=one.post, args=("/embed",), kwargs={"json": body}) for _ in range(2)]
        for thread in under_way:
            thread.start()
        asked = 0
        while any(thread.is_alive() for thread in under_way):
            for path in limits:
                started = time.monotonic()
                assert two.get(path).status_code == 200
                worst[path] = max(worst[path], time.monotonic() - started)
                asked += 1
        for thread in under_way:
            thread.join()
    assert asked > 10
    assert all(worst[path] < limit for path, limit in limits.items()), worst


def test_metrics_of_autoscalers_come_through_the_adapter_from_a_running_gateway(
    adapter: Manifest, client: httpx.Client, monitoring: Objects
) -> None:
    there = {name for name, _ in scrape(client)} | GPU_METRICS
    served = {
        kind: {rule["name"]["as"]: rule for rule in adapter["rules"][key]}
        for kind, key in (("Pods", "custom"), ("External", "external"))
    }
    used = {kind: set() for kind in served}
    for name in OVERLAYS:
        for scaler in of_kind(overlay(name), "HorizontalPodAutoscaler"):
            for target in read_hpa(scaler).targets:
                if target.kind != "Resource":
                    used[target.kind].add(target.name)
    assert used == {kind: set(rules) for kind, rules in served.items()}
    for kind, rules in served.items():
        for rule in rules.values():
            series = rule["seriesQuery"].split("{")[0]
            assert series in there
            assert re.fullmatch(rule["name"]["matches"], series)
            # Labels that the operator puts on every target.
            labels = set(re.findall(r"(\w+)!=", rule["seriesQuery"]))
            assert labels == set(rule["resources"]["overrides"])
            assert labels == ({"namespace", "pod"} if kind == "Pods" else {"namespace"})
    for monitor in of_kind(monitoring, "ServiceMonitor"):
        assert all(client.get(endpoint["path"]).status_code == 200 for endpoint in monitor["spec"]["endpoints"])


def test_queries_of_the_adapter_are_promql(adapter: Manifest, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not on this machine (Debian's package prometheus)")
    rules = [
        {
            "record": f"rule{number}",
            "expr": rule["metricsQuery"]
            .replace("<<.Series>>", rule["seriesQuery"].split("{")[0])
            .replace("<<.LabelMatchers>>", 'namespace="me5"')
            .replace("<<.GroupBy>>", "pod"),
        }
        for number, rule in enumerate([*adapter["rules"]["custom"], *adapter["rules"]["external"]])
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "adapter", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_tritons_arguments_and_probes_are_those_of_a_real_one() -> None:
    triton = pod(overlay("gpu-triton"), "me5-triton")
    # The test's server has its own repository, ports, and time to end.
    own = ("--model-repository", "--model-control-mode", "--load-model", "--exit-timeout-secs")
    options = [item for item in triton.main["args"] if not item.startswith(own)]
    model = argument(triton, "--load-model")
    with triton_server.start_triton(ROOT / "model_repo", model=model, options=options) as server:
        asked = [probe["httpGet"]["path"] for probe in probes(triton.main)]
        assert [httpx.get(server.http_url + path, timeout=5).status_code for path in asked] == [200, 200, 200]
        server.unload(model)
        ready, _, alive = (httpx.get(server.http_url + path, timeout=5).status_code for path in asked)
        assert ready != 200
        assert alive == 200


def test_a_gateway_starts_beside_services_whose_names_begin_with_me5() -> None:
    links = links_of("me5") | links_of("me5-gateway") | links_of("me5-triton", 8001)
    # The one of these that is a setting too is set by the manifests themselves, so it is theirs.
    given = {name.removeprefix("ME5_").lower(): value for name, value in links.items() if name != "ME5_PORT"}
    with start_gateway(**given) as gateway, gateway.client() as client:
        assert client.post("/embed", json={"inputs": "query: hello"}).status_code == 200
        assert "enableServiceLinks: false" in gateway.log_text()


def test_an_address_in_me5_port_from_a_service_leaves_the_default_port() -> None:
    done = run_service("check", **{name.removeprefix("ME5_").lower(): value for name, value in links_of("me5").items()})
    assert done.returncode == 0, done.stderr
    assert b"ME5_PORT=8080\n" in done.stdout
    assert b"enableServiceLinks: false" in done.stderr
