"""A real Triton as a process of its own, with the stand-in for its ONNX Runtime backend.

    with start_triton(ROOT / "model_repo", model="me5_nano") as triton:
        ...  # triton.grpc_url, triton.http_url, triton.metrics_url

The server lives in an environment of its own, made by `make triton` and named by TRITON_VENV.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from gateway_process import free_port

ROOT = Path(__file__).resolve().parent.parent
TRITON_VENV = Path(os.environ.get("TRITON_VENV", ROOT / ".venv-triton"))
STANDIN = Path(__file__).resolve().parent / "triton_backend" / "onnxruntime"

# Generous: a start takes three seconds, but the machine may be busy with something else.
START_MAX_S = 90.0
EXIT_TIMEOUT_S = 10
STOP_MAX_S = 45.0


@dataclass(frozen=True)
class Installation:
    """Where nvidia-pytriton lies.   libraries: of Python itself, for the stub to find its own."""

    packages: Path
    libraries: Path
    python: str

    @property
    def server(self) -> Path:
        """The program."""
        return self.packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    def backends(self, folder: Path) -> Path:
        """A backend directory with copies of the python backend and of the stand-in.

        The stub must lie beside its library, and a backend that is a link is refused.
        """
        origin = self.packages / "pytriton" / "tritonserver"
        python = folder / "python"
        shutil.copytree(origin / "backends" / "python", python)
        shutil.copy2(origin / "python_backend_stubs" / self.python / "triton_python_backend_stub", python)
        shutil.copytree(STANDIN, folder / "onnxruntime", ignore=shutil.ignore_patterns("__pycache__"))
        return folder

    def environment(self) -> dict[str, str]:
        """Variables that the server needs to find NumPy, its libraries and its stub's Python."""
        return {
            "PATH": f"{TRITON_VENV / 'bin'}:{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": f"{self.libraries}:{self.packages / 'nvidia_pytriton.libs'}",
        }


@functools.cache
def installation() -> Installation:
    """What TRITON_VENV holds. Raises subprocess.CalledProcessError or OSError where that is no environment."""
    script = (
        "import json, sys, sysconfig as s;"
        "print(json.dumps([s.get_path('purelib'), s.get_config_var('LIBDIR'), '%d.%d' % sys.version_info[:2]]))"
    )
    done = subprocess.run([TRITON_VENV / "bin" / "python", "-c", script], capture_output=True, check=True)
    packages, libraries, python = json.loads(done.stdout)
    return Installation(Path(packages), Path(libraries), python)


@functools.cache
def triton_missing() -> str | None:
    """Why no Triton can be started here, or None."""
    try:
        found = installation()
    except (OSError, subprocess.CalledProcessError):
        return (
            f"Triton is not installed: no environment {TRITON_VENV}; `make triton` makes it, TRITON_VENV names another"
        )
    if not found.server.exists():
        return f"Triton is not installed: nvidia-pytriton is missing in {TRITON_VENV}; run `make triton`"
    return None


needs_triton = pytest.mark.skipif(triton_missing() is not None, reason=str(triton_missing()))


class TritonServer:
    """A Triton that can be stopped, killed, paused and started again on the same ports.

    address and the three ports stay the same for its life.   log: what all its processes wrote.
    """

    def __init__(
        self,
        repository: Path,
        folder: Path,
        *,
        models: Sequence[str],
        explicit: bool,
        address: str,
        ports: tuple[int, int, int],
        options: Sequence[str],
        env: Mapping[str, str],
    ) -> None:
        self.repository = repository
        self.address = address
        self.http_port, self.grpc_port, self.metrics_port = ports
        self.log = folder / "triton.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._models = list(models)
        self._backends = installation().backends(folder / "backends")
        self._delay, self._delay_ms = folder / "delay", 0.0
        self._shared = f"me5_test_{uuid.uuid4().hex[:8]}"
        self._command = self._command_line(explicit, options)
        self._runs = folder / "runs"
        files = {"TRITON_STANDIN_DELAY_FILE": str(self._delay), "TRITON_STANDIN_RUNS_FILE": str(self._runs)}
        self._env = {**os.environ, **installation().environment(), **files, **env}

    @property
    def grpc_url(self) -> str:
        """host:port."""
        return f"{self.address}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        """http://host:port."""
        return f"http://{self.address}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        """The page that Prometheus scrapes."""
        return f"http://{self.address}:{self.metrics_port}/metrics"

    def start(self) -> None:
        """Start it, and wait until it and the models it was given are ready; no delay holds up their warm-up."""
        assert self.process is None, "it runs already"
        delay_ms = self._delay_ms
        self.set_delay(0)
        with self.log.open("ab") as stream:
            # A session of its own: its stubs end with it, and a Ctrl-C is the test's.
            self.process = subprocess.Popen(
                self._command,
                env=self._env,
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.wait_until_ready()
        self.set_delay(delay_ms)

    def wait_until_ready(self, *models: str, within_s: float = START_MAX_S) -> None:
        """Wait for the server and these models, or those it was started with."""
        paths = ["/v2/health/ready", *(f"/v2/models/{name}/ready" for name in models or self._models)]
        give_up = time.monotonic() + within_s
        while time.monotonic() < give_up:
            assert self.process is None or self.process.poll() is None, f"Triton ended\n{self.log_text()}"
            try:
                if all(httpx.get(self.http_url + path, timeout=5).status_code == 200 for path in paths):
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"Triton was not ready after {within_s:g} s\n{self.log_text()}")

    def stop(self) -> int:
        """SIGTERM: what it has accepted is answered. Returns the exit code; 0 unless something hangs."""
        assert self.process is not None, "it does not run"
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_MAX_S)
        finally:
            self._forget()

    def kill(self) -> None:
        """SIGKILL, to its stubs too: the machine is gone."""
        if self.process is not None:
            self._forget()

    def restart(self) -> None:
        """Stop it if it runs, and start it on the same ports."""
        if self.process is not None:
            self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP to the server: connections stay open, nothing is answered.

        Its stubs go on: one that is stopped while it holds a lock of the memory they share makes the server abort
        ("boost::interprocess::lock_exception") as soon as that goes on.
        """
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after a pause."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def stub_pids(self) -> list[int]:
        """The processes that compute, one a model instance."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child.pid for child in children if "python_backend_stub" in " ".join(child.cmdline())]

    def load(self, model: str, *, config: str | None = None) -> None:
        """Load a model, or look again for its versions. Raises httpx.HTTPStatusError where Triton refuses.

        config: a ModelConfig as JSON, in place of config.pbtxt.
        """
        self._control(model, "load", {"parameters": {"config": config}} if config else {})

    def unload(self, model: str) -> None:
        """Take a model out of service, and wait until it is."""
        self._control(model, "unload", {})
        give_up = time.monotonic() + STOP_MAX_S
        while self.model_ready(model):
            assert time.monotonic() < give_up, f"{model} is still loaded\n{self.log_text()}"
            time.sleep(0.02)

    def model_ready(self, model: str, version: int | None = None) -> bool:
        """Whether a model, or this version of it, answers."""
        part = "" if version is None else f"/versions/{version}"
        return httpx.get(f"{self.http_url}/v2/models/{model}{part}/ready", timeout=5).status_code == 200

    def statistics(self, model: str, version: int | None = None) -> dict[str, int]:
        """inference_count (texts), execution_count (batches), and success_count, fail_count (requests), summed."""
        part = "" if version is None else f"/versions/{version}"
        answer = httpx.get(f"{self.http_url}/v2/models/{model}{part}/stats", timeout=5).raise_for_status()
        rows = answer.json()["model_stats"]
        return {
            **{name: sum(int(row[name]) for row in rows) for name in ("inference_count", "execution_count")},
            "success_count": sum(int(row["inference_stats"]["success"]["count"]) for row in rows),
            "fail_count": sum(int(row["inference_stats"]["fail"]["count"]) for row in rows),
        }

    def runs(self, model: str) -> list[str]:
        """Every execution of a model so far, warm-up included, from its beginning on: "version rowsxwidth requests"."""
        lines = self._runs.read_text(encoding="utf-8").splitlines() if self._runs.exists() else []
        return [line.removeprefix(f"{model} ") for line in lines if line.startswith(f"{model} ")]

    def pending(self, model: str) -> int:
        """Requests that wait in a model's queue, those being computed not counted."""
        name = re.escape(f'nv_inference_pending_request_count{{model="{model}",')
        page = httpx.get(self.metrics_url, timeout=5).raise_for_status().text
        return sum(int(found) for found in re.findall(rf"^{name}.*}} (\d+)$", page, re.MULTILINE))

    def set_delay(self, milliseconds: float) -> None:
        """From now on every execution takes so much longer: the present one, and those of a load's warm-up, too."""
        self._delay_ms = milliseconds
        whole = self._delay.with_suffix(".new")
        whole.write_text(str(milliseconds), encoding="ascii")
        whole.replace(self._delay)

    def log_text(self) -> str:
        """What it has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def _control(self, model: str, what: str, body: dict[str, dict[str, str | None]]) -> None:
        url = f"{self.http_url}/v2/repository/models/{model}/{what}"
        answer = httpx.post(url, json=body, timeout=START_MAX_S)
        if answer.is_error:
            raise httpx.HTTPStatusError(f"{what} {model}: {answer.text}", request=answer.request, response=answer)

    def _command_line(self, explicit: bool, options: Sequence[str]) -> list[str]:
        control = ["--model-control-mode", "explicit"] if explicit else []
        return [
            str(installation().server),
            *("--model-repository", str(self.repository), "--backend-directory", str(self._backends)),
            *("--http-address", self.address, "--http-port", str(self.http_port)),
            *("--grpc-address", self.address, "--grpc-port", str(self.grpc_port)),
            *("--metrics-address", self.address, "--metrics-port", str(self.metrics_port)),
            *("--exit-timeout-secs", str(EXIT_TIMEOUT_S)),
            # Named for this server alone, so that what a killed one leaves in /dev/shm can be removed.
            *("--backend-config", f"python,shm-region-prefix-name={self._shared}"),
            *control,
            *(part for name in self._models if explicit for part in ("--load-model", name)),
            *options,
        ]

    def _forget(self) -> None:
        """Nothing of the process is left afterwards, whatever state it is in."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        for left in Path("/dev/shm").glob(f"{self._shared}*"):
            left.unlink(missing_ok=True)


@contextmanager
def start_triton(
    repository: Path,
    *,
    model: str | Sequence[str] | None = None,
    explicit: bool | None = None,
    address: str = "127.0.0.1",
    ports: tuple[int, int, int] | None = None,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    delay_ms: float = 0,
) -> Iterator[TritonServer]:
    """A Triton over this model repository, ready.

    model: loaded under explicit control, as production does it; without it every model of the repository is loaded,
    unless explicit says that none is.   address: one of 127.0.0.0/8.   ports: HTTP, gRPC, metrics; free ones unless
    given.   options: more of the command line, such as "--log-verbose=1".   delay_ms: how much longer each execution
    takes; set_delay changes it.   Two threads for ONNX Runtime, unless env sets TRITON_STANDIN_THREADS.
    """
    models = [model] if isinstance(model, str) else list(model or [])
    with tempfile.TemporaryDirectory(prefix="triton-") as folder:
        server = TritonServer(
            repository,
            Path(folder),
            models=models,
            explicit=bool(models) if explicit is None else explicit,
            address=address,
            ports=ports or free_ports(address),
            options=options,
            env={"TRITON_STANDIN_THREADS": "2", **(env or {})},
        )
        server.set_delay(delay_ms)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def free_ports(address: str) -> tuple[int, int, int]:
    """Three ports of this address that nobody has right now."""
    found: set[int] = set()
    while len(found) < 3:
        found.add(free_port(address))
    first, second, third = found
    return first, second, third
