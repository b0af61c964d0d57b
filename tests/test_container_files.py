"""Dockerfiles and compose files, as files: linted, of the right schema, in agreement with the gateway's settings."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from containers import ROOT, tool

from service.settings import PREFIX, Settings

DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
COMPOSE = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("compose*.yaml"))}
# What starts by itself; the others go on top of them.
WHOLE = {name: config for name, config in COMPOSE.items() if name not in ("compose.gpu.yaml", "compose.keys.yaml")}
SERVICES = [(name, service) for name, config in WHOLE.items() for service in config["services"]]
VARIABLES = {PREFIX + field.upper() for field in Settings.model_fields}
# What says how a gateway computes, where it does not; and where Triton is, where there is none.
ELSEWHERE = {
    "compose.yaml": {"ME5_CACHE_DIR", "ME5_DEVICE", "ME5_THREADS"},
    "compose.single.yaml": {"ME5_DEVICE", "ME5_TRITON_URLS"},
}
# Of pyproject.toml: those of other work than serving, and the one for GPUs in place of `cpu`.
NOT_IN_THE_IMAGE = {"bulk", "containers", "dev", "gpu", "k8s", "mteb", "optimum", "plot", "ray", "search", "training"}
MACHINE_BYTES = 8 * 2**30


def default_of(text: str) -> str:
    """A value of a compose file where no variable is set: ${NAME:-default} is default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def bytes_of(size: str) -> int:
    """1536m or 7g in bytes."""
    found = re.fullmatch(r"(\d+)([mg])", default_of(size))
    assert found is not None, f"{size!r} is not so many m or g"
    return int(found[1]) * {"m": 2**20, "g": 2**30}[found[2]]


def seconds_of(duration: str) -> float:
    """45s in seconds."""
    assert re.fullmatch(r"\d+s", duration), f"{duration!r} is not so many s"
    return float(duration[:-1])


@pytest.mark.skipif(tool("hadolint") is None, reason="hadolint is not installed; `make test-containers` installs it")
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing_in_a_dockerfile(path: Path) -> None:
    done = subprocess.run([tool("hadolint"), "--no-color", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(
    tool("check-jsonschema") is None, reason="check-jsonschema is not installed; `make test-containers` installs it"
)
@pytest.mark.parametrize("name", COMPOSE)
def test_a_compose_file_fits_the_compose_specification(name: str) -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", ROOT / name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_a_service_can_change_and_gain_nothing(name: str, service: str) -> None:
    found = WHOLE[name]["services"][service]
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & set(found)


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_a_service_is_watched_limited_and_started_again(name: str, service: str) -> None:
    found = WHOLE[name]["services"][service]
    assert found["restart"] == "unless-stopped"
    assert {"memory", "pids"} <= set(found["deploy"]["resources"]["limits"])
    # The gateway's own image has one.
    assert "healthcheck" in found or service == "gateway"


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_a_service_is_reached_from_this_machine_alone(name: str, service: str) -> None:
    published = [default_of(port) for port in WHOLE[name]["services"][service].get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in published), published


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_what_a_service_mounts_is_there(name: str, service: str) -> None:
    volumes = [default_of(volume).split(":") for volume in WHOLE[name]["services"][service].get("volumes", [])]
    for source, _target, *mode in volumes:
        if source.startswith("."):
            assert (ROOT / source).is_dir(), source
            assert mode == ["ro"], f"{source} can be written"
        else:
            assert source in WHOLE[name]["volumes"]


@pytest.mark.parametrize("name", WHOLE)
def test_the_limits_of_all_services_fit_into_eight_gigabytes(name: str) -> None:
    limits = {
        service: bytes_of(found["deploy"]["resources"]["limits"]["memory"])
        for service, found in WHOLE[name]["services"].items()
    }
    assert sum(limits.values()) <= MACHINE_BYTES, limits


@pytest.mark.parametrize("name", COMPOSE)
def test_every_variable_handed_to_the_gateway_is_a_setting(name: str) -> None:
    handed = COMPOSE[name]["services"]["gateway"]["environment"]
    assert set(handed) <= VARIABLES


@pytest.mark.parametrize("name", COMPOSE)
def test_a_variable_of_a_compose_file_with_our_prefix_is_a_setting_too(name: str) -> None:
    # In a shell that has it set, the gateway would refuse any other.
    used = re.findall(r"\$\{(ME5_\w+)", (ROOT / name).read_text(encoding="utf-8"))
    assert set(used) <= VARIABLES


@pytest.mark.parametrize("name", WHOLE)
def test_every_setting_of_the_gateway_can_be_set_from_outside(name: str) -> None:
    # Inside, the address, the port and the place of the models are the container's own.
    fixed = {"ME5_HOST", "ME5_PORT", "ME5_MODEL_REPO"} | ELSEWHERE[name]
    assert VARIABLES - set(COMPOSE[name]["services"]["gateway"]["environment"]) == fixed


def test_keys_are_mounted_by_their_folder_and_read_only() -> None:
    gateway = COMPOSE["compose.keys.yaml"]["services"]["gateway"]
    (volume,) = gateway["volumes"]
    source, target, mode = default_of(volume).split(":")
    assert (source, mode) == ("./keys", "ro")
    assert gateway["environment"] == {"ME5_KEYS_FILE": f"{target}/keys.toml"}


@pytest.mark.parametrize("name", WHOLE)
def test_a_gateway_has_more_time_to_end_than_it_takes(name: str) -> None:
    defaults = Settings()
    grace = seconds_of(WHOLE[name]["services"]["gateway"]["stop_grace_period"])
    assert grace > defaults.drain_s + defaults.shutdown_s + 2


def test_triton_has_more_time_to_end_than_it_takes() -> None:
    found = COMPOSE["compose.yaml"]["services"]["triton"]
    exit_timeout = re.search(r"--exit-timeout-secs=(\d+)", found["command"][-1])
    assert exit_timeout is not None
    assert seconds_of(found["stop_grace_period"]) > int(exit_timeout[1])


def test_the_gateway_asks_triton_at_the_port_it_listens_on() -> None:
    services = COMPOSE["compose.yaml"]["services"]
    host, port = services["gateway"]["environment"]["ME5_TRITON_URLS"].split(":")
    assert f"--grpc-port={port}" in services[host]["command"][-1]


def extras_of(path: Path) -> set[str]:
    """The default of a Dockerfile's EXTRAS."""
    found = re.findall(r"^ARG EXTRAS=(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == 1, path
    return set(found[0].split(","))


def test_the_images_have_the_extras_of_their_work() -> None:
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )
    gateway, training = (extras_of(ROOT / "docker" / f"{name}.Dockerfile") for name in ("gateway", "training"))
    assert gateway == extras - NOT_IN_THE_IMAGE
    assert {"training", "cpu"} <= training <= extras
    without_engine = COMPOSE["compose.yaml"]["services"]["gateway"]["build"]["args"]["EXTRAS"].split(",")
    assert set(without_engine) == gateway - {"cpu", "openvino"}


def test_the_gateway_is_stopped_before_the_triton_that_it_asks() -> None:
    assert COMPOSE["compose.yaml"]["services"]["gateway"]["depends_on"] == ["triton"]


def test_grafana_finds_its_dashboards_and_its_prometheus() -> None:
    provisioning = ROOT / "docker" / "grafana" / "provisioning"
    read = {path.parent.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in provisioning.glob("*/*.yml")}
    services = COMPOSE["compose.yaml"]["services"]
    mounts = dict(reversed(volume.split(":")[:2]) for volume in services["grafana"]["volumes"])
    folder = mounts[read["dashboards"]["providers"][0]["options"]["path"]]
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert mounts[str(home.parent)] == folder
    assert (ROOT / folder / home.name).is_file()
    host, port = read["datasources"]["datasources"][0]["url"].removeprefix("http://").split(":")
    assert services[host]["ports"][0].endswith(f":{port}")


def test_prometheus_asks_services_that_there_are() -> None:
    config = yaml.safe_load((ROOT / "docker" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    names = [
        name for job in config["scrape_configs"] for found in job.get("dns_sd_configs", []) for name in found["names"]
    ]
    managers = [
        target.split(":")[0]
        for group in config["alerting"]["alertmanagers"]
        for found in group["static_configs"]
        for target in found["targets"]
    ]
    assert {"gateway", "triton"} <= set(names)
    assert {*names, *managers} <= set(COMPOSE["compose.yaml"]["services"])
