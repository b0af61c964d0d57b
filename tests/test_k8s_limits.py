"""What the pods of k8s/ may do, take and reach."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from gateway_process import run_service
from manifests import HOME, ROOT, Objects, Peer, named, of_kind, overlay, peer, pod, pods, reaches, settings_of

from service.batching import Limits
from service.memory import MIB, check_remote_memory
from service.opening_triton import STREAMS
from service.recipe.spec import PUBLISHED, TOKENIZER_FILE, ModelSpec
from service.recipe.tokens import load_tokenizer
from service.settings import load_settings

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

from autoscaler import quantity, read_hpa


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


def test_the_memory_limit_of_a_gateway_without_an_engine_is_above_what_it_may_take(
    shipped: Path, spec: ModelSpec
) -> None:
    objects = overlay("gpu-triton")
    settings = load_settings(settings_of(objects))
    limit = quantity(pod(objects, "me5-gateway").main["resources"]["limits"]["memory"])
    # A published graph gives every token's state, which is where a gateway of this kind has most of its memory.
    small = next(found for found in PUBLISHED.values() if found.name == "me5_small")
    entries = load_tokenizer(shipped / TOKENIZER_FILE).get_vocab_size()
    for model, vocabulary in ((spec, entries), (replace(small, pooling="mean"), 250_037)):
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
