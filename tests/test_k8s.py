"""The manifests of k8s/, as kubectl builds them: against Kubernetes' schemas, each other, and a gateway that runs."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import triton_server
import yaml
from gateway_process import Gateway, run_service, start_gateway
from manifests import (
    HOME,
    K8S,
    OVERLAYS,
    ROOT,
    Manifest,
    Peer,
    Pod,
    build,
    container_ports,
    derived,
    matches,
    named,
    of_kind,
    overlay,
    peer,
    pod,
    pods,
    probes,
    reaches,
    settings_of,
)
from metric_series import scrape
from service_links import links_of

from service.batching import Limits
from service.memory import MIB, check_remote_memory
from service.opening_triton import STREAMS
from service.recipe.spec import PUBLISHED, ModelSpec
from service.settings import load_settings

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
sys.path.insert(0, str(K8S))

import render_rules
from autoscaler import quantity, read_hpa

VERSION = "1.32"
SCHEMAS = {"ServiceMonitor": "servicemonitor.json", "PrometheusRule": "prometheusrule.json"}
COMPONENTS = ((), ("pull-model",), ("model-volume",))
# Triton has these only where there is a GPU (its documentation, "Metrics", GPU metrics).
GPU_METRICS = {"nv_gpu_utilization"}
# For answers to leave after the last deadline (service/server.py), and for the processes to end.
SLACK_S = 10

Objects = tuple[Manifest, ...]


@pytest.fixture(params=list(itertools.product(OVERLAYS, COMPONENTS)), ids=lambda part: "+".join([part[0], *part[1]]))
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """Each overlay as it is, and with each source of models."""
    base, components = request.param
    return derived(tmp_path / "own", base, *components) if components else overlay(base)


@pytest.fixture(scope="module")
def monitoring() -> Objects:
    """ServiceMonitors and rules."""
    return build(K8S / "monitoring")


@pytest.fixture(scope="module")
def adapter() -> Manifest:
    """The values for prometheus-adapter."""
    found: Manifest = yaml.safe_load((K8S / "monitoring" / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    return found


# Schemas


def validate(item: Manifest) -> None:
    """Hold an object to the schema of its kind; unknown fields are refused."""
    if item["kind"] in SCHEMAS:
        jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed (extra k8s)")
        schema = json.loads((ROOT / "tests" / "schemas" / SCHEMAS[item["kind"]]).read_text(encoding="utf-8"))
        jsonschema.validate(item, schema)
    else:
        kubernetes_validate = pytest.importorskip(
            "kubernetes_validate", reason="kubernetes-validate is not installed (extra k8s)"
        )
        kubernetes_validate.validate(item, VERSION, strict=True)


def test_every_object_is_valid(objects: Objects) -> None:
    for item in objects:
        validate(item)


def test_monitors_and_rules_are_valid(monitoring: Objects) -> None:
    assert {item["kind"] for item in monitoring} == set(SCHEMAS)
    for item in monitoring:
        validate(item)


@pytest.mark.parametrize(("kind", "path"), [("Deployment", "spec"), ("ServiceMonitor", "spec")])
def test_a_misspelt_field_is_found(kind: str, path: str, monitoring: Objects) -> None:
    item = json.loads(json.dumps(next(i for i in (*overlay("gpu-triton"), *monitoring) if i["kind"] == kind)))
    validate(item)
    item[path]["replicass"] = 1
    with pytest.raises(Exception, match="replicass"):
        validate(item)


# References


def test_every_reference_resolves(objects: Objects) -> None:
    names = {(item["kind"], item["metadata"]["name"]) for item in objects}
    for each in pods(objects):
        assert ("ServiceAccount", each.spec["serviceAccountName"]) in names
        volumes = {item["name"]: item for item in each.spec["volumes"]}
        for container in each.containers:
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            for source in container.get("envFrom", []):
                assert ("ConfigMap", source["configMapRef"]["name"]) in names
            for variable in container.get("env", []):
                # Secrets are the user's to make; a pod starts without them.
                secret = variable.get("valueFrom", {}).get("secretKeyRef", {"optional": True})
                assert secret["optional"]
        # No volume that nothing mounts.
        assert set(volumes) == {mount["name"] for item in each.containers for mount in item["volumeMounts"]}
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in names
        assert "replicas" not in named(objects, target["kind"], target["name"])["spec"]
    assert len(of_kind(objects, "HorizontalPodAutoscaler")) == len(pods(objects))


def test_selectors_match_the_pods_they_are_for(objects: Objects) -> None:
    for item in of_kind(objects, "Deployment"):
        assert matches(item["spec"]["selector"], item["spec"]["template"]["metadata"]["labels"])
        for spread in item["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert spread["labelSelector"] == item["spec"]["selector"]
    of_each = {each.owner: 0 for each in pods(objects)}
    for item in of_kind(objects, "Service", "PodDisruptionBudget"):
        selector = item["spec"]["selector"]
        found = selected(objects, selector if "matchLabels" in selector else {"matchLabels": selector})
        assert len(found) == 1, f"{item['kind']} {item['metadata']['name']} selects {found}"
        of_each[found[0].owner] += 1
    assert set(of_each.values()) == {2}
    for item in of_kind(objects, "NetworkPolicy"):
        assert selected(objects, item["spec"]["podSelector"]), item["metadata"]["name"]


def selected(objects: Objects, selector: Manifest) -> list[Pod]:
    return [each for each in pods(objects) if matches(selector, each.labels)]


def test_ports_by_name_and_number_lead_to_a_container_port(objects: Objects) -> None:
    for service in of_kind(objects, "Service"):
        (target,) = selected(objects, {"matchLabels": service["spec"]["selector"]})
        for port in service["spec"]["ports"]:
            assert container_ports(target)[port["targetPort"]] == port["port"]
    for each in pods(objects):
        for probe in probes(each.main):
            assert probe["httpGet"]["port"] in container_ports(each)
    for policy in of_kind(objects, "NetworkPolicy"):
        spec = policy["spec"]
        own = {name for each in selected(objects, spec["podSelector"]) for name in container_ports(each)}
        for rule in spec.get("ingress", []):
            assert {port["port"] for port in rule["ports"]} <= own


def test_monitors_find_a_port_of_a_service_and_name_the_job_as_the_rules_do(monitoring: Objects) -> None:
    everything = overlay("gpu-triton")
    jobs = {}
    for monitor in of_kind(monitoring, "ServiceMonitor"):
        (service,) = [
            item
            for item in of_kind(everything, "Service")
            if matches(monitor["spec"]["selector"], item["metadata"]["labels"])
        ]
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
        jobs[monitor["metadata"]["name"]] = service["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    assert jobs == {"me5-gateway": "gateway", "me5-triton": "triton"}
    asked = set(re.findall(r'job="(\w+)"', json.dumps(of_kind(monitoring, "PrometheusRule")).replace('\\"', '"')))
    assert asked <= set(jobs.values())


# Against a gateway that runs


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


def test_the_rules_are_those_of_compose(monitoring: Objects) -> None:
    if not all(path.is_file() for path in render_rules.SOURCES):
        pytest.skip("docker/prometheus/rules.yml and alerts.yml are not there")
    (found,) = of_kind(monitoring, "PrometheusRule")
    assert found["spec"] == render_rules.resource()["spec"], "run: python k8s/render_rules.py"
    names = [group["name"] for group in found["spec"]["groups"]]
    assert len(names) == len(set(names))


# Settings


def test_every_setting_is_known_and_valid(objects: Objects) -> None:
    load_settings(settings_of(objects))


def test_a_changed_setting_is_another_config_map_so_that_pods_are_rolled(tmp_path: Path) -> None:
    def name(objects: Objects) -> str:
        found: str = pod(objects, "me5-gateway").main["envFrom"][0]["configMapRef"]["name"]
        return found

    assert name(overlay("cpu-embedded")) != name(derived(tmp_path / "own", "cpu-embedded", ME5_MAX_INPUTS="100"))


def test_requests_are_answered_before_a_pod_is_killed(objects: Objects) -> None:
    gateway = pod(objects, "me5-gateway")
    settings = settings_of(objects)
    least = float(settings["ME5_DRAIN_S"]) + float(settings["ME5_SHUTDOWN_S"]) + SLACK_S
    assert gateway.spec["terminationGracePeriodSeconds"] >= least
    # The gateway has a drain of its own; a hook would only make it longer.
    assert "lifecycle" not in gateway.main
    for triton in pods(objects):
        if triton.owner == "me5-triton":
            pause = triton.main["lifecycle"]["preStop"]["sleep"]["seconds"]
            exit_s = int(argument(triton, "--exit-timeout-secs"))
            assert triton.spec["terminationGracePeriodSeconds"] >= pause + exit_s + SLACK_S


def argument(each: Pod, name: str) -> str:
    (found,) = [item.split("=", 1)[1] for item in each.main["args"] if item.startswith(f"{name}=")]
    return str(found)


def test_the_gateways_upstream_is_the_headless_service_of_triton() -> None:
    objects = overlay("gpu-triton")
    name, port = settings_of(objects)["ME5_TRITON_URLS"].split(":")
    service = named(objects, "Service", name)
    assert service["spec"]["clusterIP"] == "None"
    assert int(port) == next(item["port"] for item in service["spec"]["ports"] if item["name"] == "grpc")


@pytest.mark.parametrize("model", ["me5_nano", "me5_small", "me5_nano/1"])
def test_triton_loads_and_is_asked_for_the_model_that_the_gateway_serves(model: str, tmp_path: Path) -> None:
    objects = derived(tmp_path / "own", "gpu-triton", "triton-model", ME5_MODEL=model)
    triton = pod(objects, "me5-triton")
    assert settings_of(objects)["ME5_MODEL"] == model
    name = model.split("/")[0]
    assert argument(triton, "--load-model") == name
    assert argument(triton, "--model-control-mode") == "explicit"
    ready = f"/v2/models/{name}/ready"
    assert [probe["httpGet"]["path"] for probe in probes(triton.main)] == [ready, ready, "/v2/health/live"]


def test_triton_reads_the_folder_that_was_filled_for_it(objects: Objects) -> None:
    for each in pods(objects):
        repo = settings_of(objects).get("ME5_MODEL_REPO")
        read = argument(each, "--model-repository") if each.owner == "me5-triton" else repo
        if read is not None:
            (mount,) = [item for item in each.main["volumeMounts"] if item["mountPath"] == read]
            assert mount["readOnly"]
            (volume,) = [item for item in each.spec["volumes"] if item["name"] == mount["name"]]
            filled = [
                item
                for item in each.spec.get("initContainers", [])
                if any(at["name"] == mount["name"] for at in item["volumeMounts"])
            ]
            assert ("persistentVolumeClaim" in volume) == (not filled)


def test_a_pulled_model_is_fetched_once_by_the_gateways_own_command(tmp_path: Path) -> None:
    """The init container's script, run by a shell, with `python -m service pull` replaced by a program that counts."""
    objects = derived(tmp_path / "own", "cpu-embedded", "pull-model")
    (init,) = pod(objects, "me5-gateway").spec["initContainers"]
    config = named(objects, "ConfigMap", init["envFrom"][0]["configMapRef"]["name"])["data"]
    models, image = tmp_path / "models", tmp_path / "image"
    (image / "me5_nano" / "1").mkdir(parents=True)
    models.mkdir()
    script = init["args"][0].replace("/app/model_repo", str(image)).replace("/models", str(models))
    assert "python -m service pull" in script
    script = script.replace("python -m service pull", f"mkdir -p {models}/me5_small/1; echo pulled")
    script = script.replace("|| mkdir", "|| exec sh -c 'mkdir").replace('"$MODEL_SOURCE"', "$MODEL_SOURCE'")
    for expected in (["pulled intfloat/multilingual-e5-small"], []):
        done = subprocess.run(
            [*init["command"], script],
            capture_output=True,
            text=True,
            check=True,
            env={**config, "PATH": "/usr/bin:/bin"},
        )
        assert [line for line in done.stdout.splitlines() if line.startswith("pulled")] == expected
    assert (models / "me5_nano" / "1").is_dir()


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


# Service links


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


# Security, resources, network


def test_no_pod_has_a_right_or_a_way_to_get_one(objects: Objects) -> None:
    for account in of_kind(objects, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    assert not of_kind(objects, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
    for each in pods(objects):
        spec = each.spec
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
        assert all(set(item) <= {"name", "emptyDir", "persistentVolumeClaim"} for item in spec["volumes"])
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        for container in each.containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "privileged": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
    (namespace,) = of_kind(objects, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_what_the_gateway_writes_lies_on_a_volume(objects: Objects) -> None:
    each = pod(objects, "me5-gateway")
    writable = {mount["mountPath"] for mount in each.main["volumeMounts"] if not mount.get("readOnly")}
    assert {settings_of(objects)["ME5_CACHE_DIR"], "/tmp"} == writable


def test_resources_add_up(objects: Objects) -> None:
    for each in pods(objects):
        for container in each.containers:
            asked, limit = container["resources"]["requests"], container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(asked)
            assert set(asked) == set(limit)
            assert all(quantity(asked[name]) <= quantity(limit[name]) for name in asked)
        main = each.main["resources"]
        # The engine runs a thread for each core of its limit, and memory that is promised has to be there.
        assert main["requests"]["cpu"] == main["limits"]["cpu"] == str(int(quantity(main["limits"]["cpu"])))
        assert main["requests"]["memory"] == main["limits"]["memory"]
        on_disk = [item["emptyDir"] for item in each.spec["volumes"] if "emptyDir" in item]
        sizes = [quantity(item["sizeLimit"]) for item in on_disk if item.get("medium") != "Memory"]
        assert sum(sizes) <= quantity(main["limits"]["ephemeral-storage"])
        in_memory = [quantity(item["sizeLimit"]) for item in on_disk if item.get("medium") == "Memory"]
        assert sum(in_memory) < quantity(main["limits"]["memory"]) / 2


def test_the_memory_limit_is_above_what_the_gateway_may_take(tmp_path: Path) -> None:
    objects = overlay("cpu-embedded")
    limits = pod(objects, "me5-gateway").main["resources"]["limits"]
    settings = {name.removeprefix("ME5_").lower(): value for name, value in settings_of(objects).items()}
    # What the gateway would read from the cgroup of its container.
    settings |= {"threads": limits["cpu"], "cache_dir": str(tmp_path)}
    done = run_service("check", **settings)
    assert done.returncode == 0, done.stderr
    peak = re.search(rb'"memory_peak_at_most": "(\d+) MiB"', done.stdout)
    assert peak is not None
    assert int(peak[1]) * MIB < 0.9 * quantity(limits["memory"])


def test_the_memory_limit_of_a_gateway_without_an_engine_is_above_what_it_may_take(spec: ModelSpec) -> None:
    objects = overlay("gpu-triton")
    settings = load_settings(settings_of(objects))
    limit = quantity(pod(objects, "me5-gateway").main["resources"]["limits"]["memory"])
    # A published graph gives every token's state, which is where a gateway of this kind has most of its memory.
    small = next(found for found in PUBLISHED.values() if found.name == "me5_small")
    for model, vocabulary in ((spec, 60_000), (replace(small, pooling="mean"), 250_037)):
        limits = Limits(settings.max_batch_tokens, settings.streams or STREAMS)
        peak = check_remote_memory(settings, model, limits, vocabulary=vocabulary, limit_bytes=None)
        assert peak.total < 0.9 * limit


def test_queues_hold_more_than_the_autoscaler_lets_wait(objects: Objects) -> None:
    """A target that the queue's own limit keeps out of reach would never add a replica."""
    held = float(settings_of(objects)["ME5_MAX_QUEUED_TOKENS"])
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        hpa = read_hpa(scaler)
        assert hpa.least >= 2
        for target in hpa.targets:
            if target.name == "me5_queue_tokens":
                assert held >= 2 * target.value
            if target.name == "me5_queue_tokens_all":
                gateways = read_hpa(named(objects, "HorizontalPodAutoscaler", "me5-gateway")).least
                assert gateways * held >= 1.2 * target.value * hpa.most


def test_a_budget_lets_a_node_be_drained_and_keeps_the_service(objects: Objects) -> None:
    for budget in of_kind(objects, "PodDisruptionBudget"):
        allowed = budget["spec"]["maxUnavailable"]
        name = budget["metadata"]["name"]
        least = read_hpa(named(objects, "HorizontalPodAutoscaler", name)).least
        # Percentages are rounded up.
        gone = allowed if isinstance(allowed, int) else math.ceil(least * int(allowed.rstrip("%")) / 100)
        assert 1 <= gone < least


def test_pods_are_reached_by_those_who_need_them_and_by_nobody_else() -> None:
    objects = overlay("gpu-triton")
    gateway, triton = peer(pod(objects, "me5-gateway")), peer(pod(objects, "me5-triton"))
    client = Peer({"app": "search"}, HOME)
    prometheus = Peer({"app": "prometheus"}, {"kubernetes.io/metadata.name": "monitoring"})
    ingress = Peer({}, {"kubernetes.io/metadata.name": "ingress-nginx"})
    stranger = Peer({"app.kubernetes.io/component": "gateway", "app.kubernetes.io/name": "me5"}, {"team": "other"})
    friend = Peer({}, {"team": "other", "me5-client": "true"})
    for source in (client, prometheus, ingress, friend, triton):
        # Triton itself has no way out.
        assert reaches(objects, source, gateway, "http") == (source is not triton)
    assert not reaches(objects, stranger, gateway, "http")
    for source in (client, prometheus, ingress, friend, stranger):
        assert not reaches(objects, source, triton, "grpc")
    assert reaches(objects, gateway, triton, "grpc")
    assert not reaches(objects, gateway, triton, "http")
    assert reaches(objects, prometheus, triton, "metrics")
    assert not reaches(objects, client, triton, "metrics")
    assert not reaches(objects, gateway, client, "http")


def test_images_are_those_that_are_built_and_run_elsewhere_here(objects: Objects) -> None:
    compose = [path for path in (ROOT / "compose.yaml", ROOT / "compose.gpu.yaml") if path.is_file()]
    if not compose:
        pytest.skip("compose.yaml is not there")
    services = [yaml.safe_load(path.read_text(encoding="utf-8"))["services"] for path in compose]
    known = {item["image"] for part in services for item in part.values() if "image" in item}
    # A default in ${NAME:-default} is what is used where nothing is set.
    known = {re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", image) for image in known}
    used = {container["image"] for each in pods(objects) for container in each.containers}
    assert {without_tag(image) for image in used} <= {without_tag(image) for image in known}
    tagged = {image for image in used if without_tag(image) != image}
    assert tagged <= known


def without_tag(image: str) -> str:
    head, _, tail = image.rpartition(":")
    return head if head and "/" not in tail else image
