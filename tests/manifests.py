"""Manifests as kubectl builds them, and what of Kubernetes' own reading of them the tests need."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
K8S = ROOT / "k8s"
OVERLAYS = ("cpu-embedded", "gpu-triton")
# What a pod template lies in, of the kinds that are used here.
WITH_PODS = ("Deployment",)

Manifest = dict[str, Any]
Objects = tuple[Manifest, ...]


@functools.cache
def build(folder: Path) -> Objects:
    """Every object of a kustomization, in the order in which kubectl would apply them."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on this machine")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(item for item in yaml.safe_load_all(done.stdout) if item)


def overlay(name: str) -> Objects:
    """One of the overlays."""
    return build(K8S / "overlays" / name)


def derived(folder: Path, base: str, *components: str, **settings: str) -> Objects:
    """An overlay as a user would write one: over one of ours, with components and settings of his own."""

    def relative(place: Path) -> str:
        return os.path.relpath(place, folder.resolve())

    own: Manifest = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "me5",
        "resources": [relative(K8S / "overlays" / base)],
        "components": [relative(K8S / "components" / name) for name in components],
    }
    if settings:
        literals = [f"{name}={value}" for name, value in settings.items()]
        own["configMapGenerator"] = [{"name": "me5-settings", "behavior": "merge", "literals": literals}]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    return build(folder)


def of_kind(objects: Objects, *kinds: str) -> list[Manifest]:
    """The objects of these kinds."""
    return [item for item in objects if item["kind"] in kinds]


def named(objects: Objects, kind: str, name: str) -> Manifest:
    """The one object of this kind and name."""
    found = [item for item in of_kind(objects, kind) if item["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} objects are {kind} {name}"
    return found[0]


@dataclass(frozen=True)
class Pod:
    """A pod template. owner: the object that holds it."""

    owner: str
    labels: dict[str, str]
    spec: Manifest

    @property
    def main(self) -> Manifest:
        """Its one container that is not an init container."""
        (container,) = self.spec["containers"]
        found: Manifest = container
        return found

    @property
    def containers(self) -> list[Manifest]:
        """All, init containers first."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pods(objects: Objects) -> list[Pod]:
    """Every pod template."""
    return [
        Pod(item["metadata"]["name"], template["metadata"]["labels"], template["spec"])
        for item in of_kind(objects, *WITH_PODS)
        for template in [item["spec"]["template"]]
    ]


def pod(objects: Objects, owner: str) -> Pod:
    """The pod template of one Deployment."""
    return next(item for item in pods(objects) if item.owner == owner)


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector matches; an empty one matches everything."""
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In", f"{rule['operator']} is not read here"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def settings_of(objects: Objects, owner: str = "me5-gateway") -> dict[str, str]:
    """The ME5_* variables that a Deployment's main container gets, from its ConfigMaps and its own list."""
    container = pod(objects, owner).main
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= named(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    found |= {item["name"]: item["value"] for item in container.get("env", []) if "value" in item}
    return {name: value for name, value in found.items() if name.startswith("ME5_")}


def container_ports(of: Pod) -> dict[str, int]:
    """Numbers of the main container's ports by name."""
    return {item["name"]: item["containerPort"] for item in of.main.get("ports", [])}


def probes(container: Manifest) -> Iterator[Manifest]:
    """Its probes, each a mapping with httpGet."""
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        if kind in container:
            yield container[kind]


@dataclass(frozen=True)
class Peer:
    """A pod somewhere, for the question who reaches whom. namespace: that namespace's labels."""

    labels: dict[str, str]
    namespace: dict[str, str]


def argument(each: Pod, name: str) -> str:
    """The value of one --name=value of its main container."""
    (found,) = [item.split("=", 1)[1] for item in each.main["args"] if item.startswith(f"{name}=")]
    return str(found)


HOME = {"kubernetes.io/metadata.name": "me5"}


def peer(of: Pod) -> Peer:
    """A pod of the manifests."""
    return Peer(of.labels, HOME)


def reaches(objects: Objects, source: Peer, target: Peer, port: str) -> bool:
    """Whether the network policies let a connection to a named TCP port through: out of the source, into the target."""
    return _lets(objects, source, target, port, "Egress") and _lets(objects, target, source, port, "Ingress")


def _lets(objects: Objects, own: Peer, other: Peer, port: str, direction: str) -> bool:
    policies = [
        item["spec"]
        for item in of_kind(objects, "NetworkPolicy")
        if own.namespace == HOME
        and matches(item["spec"]["podSelector"], own.labels)
        and direction in item["spec"]["policyTypes"]
    ]
    if not policies:
        # Where no policy selects a pod, it is not isolated.
        return True
    side = "to" if direction == "Egress" else "from"
    return any(
        any(_is_peer(item, other) for item in rule.get(side, []))
        and any(item["port"] == port and item["protocol"] == "TCP" for item in rule["ports"])
        for policy in policies
        for rule in policy.get(direction.lower(), [])
    )


def _is_peer(item: Manifest, other: Peer) -> bool:
    if "ipBlock" in item:
        return False
    at_home = other.namespace == HOME
    there = matches(item["namespaceSelector"], other.namespace) if "namespaceSelector" in item else at_home
    return there and matches(item.get("podSelector", {}), other.labels)
