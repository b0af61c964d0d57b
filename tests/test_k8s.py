"""The manifests of k8s/, as kubectl builds them: against Kubernetes' schemas and each other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from manifests import (
    K8S,
    ROOT,
    Manifest,
    Objects,
    Pod,
    argument,
    build,
    container_ports,
    derived,
    matches,
    named,
    of_kind,
    overlay,
    pod,
    pods,
    probes,
    settings_of,
)

from service.settings import load_settings

sys.path.insert(0, str(K8S))

import render_rules

VERSION = "1.32"
SCHEMAS = {"ServiceMonitor": "servicemonitor.json", "PrometheusRule": "prometheusrule.json"}
# For answers to leave after the last deadline (service/server.py), and for the processes to end.
SLACK_S = 10


@pytest.fixture(scope="module")
def monitoring() -> Objects:
    """ServiceMonitors and rules."""
    return build(K8S / "monitoring")


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
