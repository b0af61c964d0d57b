"""The gateway's image, built from its Dockerfile as it is and run as compose runs it: no root, nothing to write to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest
from containers import (
    PYTHON_IMAGE,
    ROOT,
    attempt,
    build,
    containers_missing,
    image_size,
    make_python_base,
    run,
    stack_extras,
)
from gateway_from_outside import golden_cosine, wait_for_work
from gateway_process import free_port

pytestmark = [
    pytest.mark.skipif(containers_missing() is not None, reason=str(containers_missing())),
    pytest.mark.slow,
    # The first build installs everything that a gateway imports.
    pytest.mark.timeout(900),
]

IMAGE = "localhost/me5-gateway:latest"
TRITON_ONLY = "localhost/me5-gateway:triton"
HARDENED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--security-opt", "no-new-privileges")
READY_MAX_S = 90.0


@dataclass(frozen=True)
class Container:
    """A container of the gateway's image that was started. name: podman's.   url: its published port."""

    name: str
    url: str
    started: float

    def ready_after(self) -> float:
        """Wait until it is ready; the seconds since `podman run`."""
        while time.monotonic() - self.started < READY_MAX_S:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False).status_code == 200:
                    return time.monotonic() - self.started
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise AssertionError(f"not ready after {READY_MAX_S:g} s\n{self.log()}")

    def log(self) -> str:
        """What it wrote so far."""
        return attempt("podman", "logs", self.name).stderr

    def stop(self) -> int:
        """SIGTERM, as `docker stop` sends it, and the exit code; the time compose gives is not overrun."""
        run("podman", "stop", "-t", "45", self.name)
        return int(run("podman", "inspect", "--format", "{{.State.ExitCode}}", self.name))


@contextmanager
def started(image: str, *options: str) -> Iterator[Container]:
    """A container of this image, with everything taken away that compose takes away."""
    name, port = f"me5-test-{uuid4().hex[:8]}", free_port()
    begin = time.monotonic()
    try:
        run("podman", "run", "-d", "--name", name, "-p", f"127.0.0.1:{port}:8080", *HARDENED, *options, image)
        yield Container(name, f"http://127.0.0.1:{port}", begin)
    finally:
        attempt("podman", "rm", "-f", "-t", "0", name)


def in_image(image: str, script: str) -> str:
    """What a shell in the image says."""
    return run("podman", "run", "--rm", "--network", "none", *HARDENED, "--entrypoint", "sh", image, "-c", script)


@pytest.fixture(scope="module")
def image() -> str:
    """The image with engines of its own."""
    make_python_base()
    build(ROOT / "docker" / "gateway.Dockerfile", [IMAGE])
    return IMAGE


@pytest.fixture(scope="module")
def container(image: str) -> Iterator[Container]:
    """One that the tests share which leave it as it is."""
    with started(image) as found:
        print(f"\nready {found.ready_after():.1f} s after `podman run`")
        yield found


def test_the_image_is_small_and_has_neither_torch_nor_a_compiler(image: str) -> None:
    added = image_size(image) - image_size(PYTHON_IMAGE)
    print(f"\ngateway image: {added / 1e6:.0f} MB on top of its base")
    assert added < 500e6
    found = in_image(image, "which gcc g++ cc c++ clang make ld; python -c 'import torch' 2>&1 | tail -n 1; true")
    assert found == "ModuleNotFoundError: No module named 'torch'"


def test_the_image_for_triton_has_no_engine_and_is_smaller(image: str) -> None:
    build(ROOT / "docker" / "gateway.Dockerfile", [TRITON_ONLY], EXTRAS=stack_extras())
    added, whole = (image_size(name) - image_size(PYTHON_IMAGE) for name in (TRITON_ONLY, image))
    print(f"\ngateway image for Triton: {added / 1e6:.0f} MB on top of its base")
    assert added < 0.6 * whole
    found = in_image(TRITON_ONLY, "ls /opt/me5/lib/python3.*/site-packages")
    assert "tritonclient" in found
    assert "onnxruntime" not in found
    assert "openvino" not in found


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_each_engine_of_the_image_passes_the_golden_proof(image: str, engine: str) -> None:
    options = (*HARDENED, "--network", "none", "-e", f"ME5_ENGINE={engine}")
    about = run("podman", "run", "--rm", *options, image, "check")
    assert json.loads(about[about.index("{") :])["engine"] == engine


def test_the_container_answers_with_the_vectors_of_the_training_model(container: Container) -> None:
    container.ready_after()
    assert golden_cosine(container.url) > 0.99


def test_the_container_is_nobody_without_rights_and_can_write_nowhere_but_tmp(container: Container) -> None:
    script = "id -u; id -g; grep CapEff /proc/1/status; touch /app/x /opt/me5/x 2>&1; touch /tmp/x && echo written"
    uid, gid, capabilities, *refused, written = run("podman", "exec", container.name, "sh", "-c", script).splitlines()
    assert (uid, gid) == ("10001", "10001")
    assert int(capabilities.split()[1], 16) == 0
    assert len(refused) == 2
    assert all("Read-only file system" in line for line in refused)
    assert written == "written"


def test_the_health_check_follows_readiness(image: str) -> None:
    with started(image, "-e", "ME5_DRAIN_S=5") as found:
        found.ready_after()
        ready = attempt("podman", "healthcheck", "run", found.name)
        run("podman", "kill", "-s", "TERM", found.name)
        time.sleep(0.2)
        draining = attempt("podman", "healthcheck", "run", found.name)
    assert (ready.returncode, draining.returncode) == (0, 1), ready.stderr + draining.stderr


def test_sigterm_lets_accepted_requests_finish_and_ends_with_0(image: str) -> None:
    answers: list[httpx.Response] = []
    with started(image, "-e", "ME5_THREADS=1", "-e", "ME5_SHUTDOWN_S=40") as found:
        found.ready_after()
        body = {"inputs": ["passage: " + "long " * 500] * 100}

        def ask() -> None:
            answers.append(httpx.post(f"{found.url}/embed", json=body, timeout=60, trust_env=False))

        asking = threading.Thread(target=ask)
        asking.start()
        wait_for_work(found.url)
        assert not answers, "answered before the signal: the request is too small for this test"
        code = found.stop()
        asking.join()
        assert (code, [answer.status_code for answer in answers]) == (0, [200]), found.log()


def test_sigterm_while_the_model_is_opened_ends_the_container_at_once(image: str) -> None:
    with started(image) as found:
        # The kernel keeps a signal from process 1 that has not asked for it.
        give_up = time.monotonic() + 30
        while "TERM" not in caught_signals(found.name) and time.monotonic() < give_up:
            time.sleep(0.01)
        begin = time.monotonic()
        assert found.stop() == 0
        assert time.monotonic() - begin < 10
        assert "listening" not in found.log(), "it was ready before the signal: the test came too late"


def caught_signals(name: str) -> str:
    """TERM if the first process of a container handles it."""
    pid = run("podman", "inspect", "--format", "{{.State.Pid}}", name)
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        caught = next(int(line.split()[1], 16) for line in status if line.startswith("SigCgt"))
    return "TERM" if caught >> 14 & 1 else ""
