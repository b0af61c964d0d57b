"""For each alert a fault of the kind it is made for, on real gateways.

A fault is a context: inside it something is broken, and it gives the labels that the alert has to have; after it the
gateway is whole again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from asking import asking, passages
from gateway_process import MODEL_REPO, ROOT, SHIPPED_MODEL, Gateway, start_gateway
from monitoring import Monitoring

from service.model import find_version

# The gateway whose engine commits the faults that a file orders, and goes on with the next process.
FAULTY_GATEWAY = ROOT / "tests" / "faults" / "faulty_gateway.py"
READY_MAX_S = 60.0

# As a container with a memory limit sees its cgroup: a folder with the file memory.max.
IN_A_CGROUP = "import os, sys; os.execvp('unshare', ['unshare', '-m', 'sh', '-c', sys.argv[1]])"


@dataclass(frozen=True)
class Scene:
    """What faults happen to.

    gateway: one with default settings whose engine takes orders.   orders: their file.   narrow: one whose limits are
    reached soon.   folder: to write into.
    """

    monitoring: Monitoring
    gateway: Gateway
    orders: Path
    narrow: Gateway
    folder: Path

    @contextmanager
    def ordered(self, fault: str) -> Iterator[None]:
        """Every batch of every engine commits a fault of tests/faults/faulty_worker.py; afterwards all is well."""
        draft = self.orders.with_suffix(".draft")
        draft.write_text(f"always {fault}", encoding="ascii")
        draft.rename(self.orders)
        try:
            yield
        finally:
            self.orders.unlink()
            wait_until_ready(self.gateway)


Fault = Callable[[Scene], AbstractContextManager[Mapping[str, str]]]


def address(gateway: Gateway) -> str:
    """host:port, which is Prometheus's label instance."""
    return gateway.url.removeprefix("http://")


def engine_of(gateway: Gateway) -> psutil.Process:
    """The engine's process."""
    (child,) = psutil.Process(gateway.process.pid).children()
    return child


def wait_until_ready(gateway: Gateway) -> None:
    """Poll /readyz until it is green."""
    give_up = time.monotonic() + READY_MAX_S
    with gateway.client() as client:
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < give_up, gateway.log_text()[-3000:]
            time.sleep(0.05)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that exists and does nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def stuttering(pid: int, *, stopped_s: float, running_s: float) -> Iterator[None]:
    """A process that is stopped again and again, as one is that has used up its share of the CPU."""
    over = threading.Event()

    def stutter() -> None:
        while not over.is_set():
            with stopped(pid):
                time.sleep(stopped_s)
            over.wait(running_s)

    thread = threading.Thread(target=stutter)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def unavailable(scene: Scene) -> Iterator[Mapping[str, str]]:
    """The only gateway hangs."""
    scene.monitoring.watch(gateway=[address(scene.gateway)])
    with stopped(scene.gateway.process.pid):
        yield {"severity": "critical"}


@contextmanager
def batches_fail(scene: Scene) -> Iterator[Mapping[str, str]]:
    """Every batch raises, and so does the proof of every new engine."""
    scene.monitoring.watch(gateway=[address(scene.gateway)])
    with asking(scene.gateway) as statuses, scene.ordered("raises"):
        yield {"severity": "critical"}
    assert statuses[500] + statuses[503] > 0


@contextmanager
def slow_engine(scene: Scene) -> Iterator[Mapping[str, str]]:
    """The engine gets the CPU now and then only."""
    scene.monitoring.watch(gateway=[address(scene.gateway)])
    engine = engine_of(scene.gateway)
    with asking(scene.gateway), stuttering(engine.pid, stopped_s=1.5, running_s=0.3):
        yield {"lane": "interactive"}


@contextmanager
def overload(scene: Scene) -> Iterator[Mapping[str, str]]:
    """More is asked than may wait."""
    scene.monitoring.watch(gateway=[address(scene.narrow)])
    with asking(scene.narrow, passages, clients=6) as statuses:
        yield {}
    assert statuses[429] > 0


@contextmanager
def missed_deadlines(scene: Scene) -> Iterator[Mapping[str, str]]:
    """Clients give 100 ms to an engine that does nothing."""
    scene.monitoring.watch(gateway=[address(scene.gateway)])
    with stopped(engine_of(scene.gateway).pid), asking(scene.gateway, headers={"x-me5-timeout-ms": "100"}) as statuses:
        yield {}
    assert statuses[504] > 0


@contextmanager
def killed_gateway(scene: Scene) -> Iterator[Mapping[str, str]]:
    """One of two gateways is killed, and nothing starts it again."""
    with start_gateway(exit_code=-signal.SIGKILL) as doomed:
        scene.monitoring.watch(gateway=[address(scene.gateway), address(doomed)])
        doomed.process.kill()
        yield {"instance": address(doomed), "job": "gateway"}


@contextmanager
def unproved_engine(scene: Scene) -> Iterator[Mapping[str, str]]:
    """The engine of one of two gateways is killed, and no other one passes its proof."""
    scene.monitoring.watch(gateway=[address(scene.gateway), address(scene.narrow)])
    with scene.ordered("gives_wrong_vectors"):
        engine_of(scene.gateway).kill()
        yield {"instance": address(scene.gateway)}


def lose_engines(gateway: Gateway, count: int) -> None:
    """Kill one engine after another, each once the gateway computes with it."""
    for _ in range(count):
        killed = engine_of(gateway)
        killed.kill()
        with suppress(psutil.NoSuchProcess):
            killed.wait(READY_MAX_S)
        # Readiness turns red once the gateway has noticed.
        time.sleep(0.2)
        wait_until_ready(gateway)


@contextmanager
def killed_engines(scene: Scene) -> Iterator[Mapping[str, str]]:
    """One engine after another is killed."""
    scene.monitoring.watch(gateway=[address(scene.gateway)])
    lose_engines(scene.gateway, 3)
    yield {"instance": address(scene.gateway)}


@contextmanager
def stuck_engine(scene: Scene) -> Iterator[Mapping[str, str]]:
    """The engine does nothing while requests come in."""
    scene.monitoring.watch(gateway=[address(scene.gateway)])
    with asking(scene.gateway, passages), stopped(engine_of(scene.gateway).pid):
        yield {"instance": address(scene.gateway)}


@contextmanager
def throttled_gateway(scene: Scene) -> Iterator[Mapping[str, str]]:
    """The gateway has the CPU half of the time."""
    scene.monitoring.watch(gateway=[address(scene.gateway)])
    with stuttering(scene.gateway.process.pid, stopped_s=0.2, running_s=0.2):
        yield {"instance": address(scene.gateway)}


@contextmanager
def lowered_memory_limit(scene: Scene) -> Iterator[Mapping[str, str]]:
    """The limit of a gateway's cgroup is lowered while it runs, to what it takes and a twentieth more."""
    cgroup = scene.folder / "cgroup"
    cgroup.mkdir()
    limit = cgroup / "memory.max"
    limit.write_text(f"{8 * 2**30}\n", encoding="ascii")
    mount = ["unshare", "-m", "mount", "--bind", str(cgroup), "/sys/fs/cgroup"]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount (run as root): a memory limit is shown to the gateway as its cgroup's")
    script = f"mount --bind {cgroup} /sys/fs/cgroup && exec {sys.executable} -m service serve"
    with start_gateway(program=("-c", IN_A_CGROUP, script)) as limited:
        scene.monitoring.watch(gateway=[address(limited)])
        resident = sum(one.memory_info().rss for one in (psutil.Process(limited.process.pid), engine_of(limited)))
        limit.write_text(f"{int(resident * 1.05)}\n", encoding="ascii")
        yield {"instance": address(limited)}


@contextmanager
def crowd(scene: Scene) -> Iterator[Mapping[str, str]]:
    """More connections than are allowed."""
    scene.monitoring.watch(gateway=[address(scene.narrow)])
    with asking(scene.narrow, clients=16) as statuses:
        yield {"instance": address(scene.narrow)}
    assert statuses[503] > 0


@contextmanager
def large_bodies(scene: Scene) -> Iterator[Mapping[str, str]]:
    """Bodies that together are larger than may be held."""
    scene.monitoring.watch(gateway=[address(scene.narrow)])
    with asking(scene.narrow, lambda number: {"inputs": f"{number} " + "harbour " * 2500}, clients=6) as statuses:
        yield {"instance": address(scene.narrow)}
    assert statuses[429] > 0


@contextmanager
def broken_keys(scene: Scene) -> Iterator[Mapping[str, str]]:
    """A gateway's file of keys is saved half written."""
    keys = scene.folder / "keys.toml"
    keys.write_text("", encoding="ascii")
    with start_gateway(keys_file=keys) as guarded:
        scene.monitoring.watch(gateway=[address(guarded)])
        keys.write_text("[half", encoding="ascii")
        yield {"instance": address(guarded)}


@contextmanager
def long_texts(scene: Scene) -> Iterator[Mapping[str, str]]:
    """Passages of more tokens than the model reads, beside queries that are not."""
    scene.monitoring.watch(gateway=[address(scene.gateway)])

    def chapters(number: int) -> Mapping[str, object]:
        return {"inputs": f"{number} " + "many words " * 600, "input_type": "passage"}

    with asking(scene.gateway, chapters, clients=2), asking(scene.gateway, clients=2):
        yield {"role": "passage"}


@contextmanager
def half_rolled_out(scene: Scene) -> Iterator[Mapping[str, str]]:
    """A second gateway with the next version of the model, beside the first with the one before."""
    shipped = find_version(SHIPPED_MODEL, MODEL_REPO)
    following = str(int(shipped.name) + 1)
    shutil.copytree(shipped, scene.folder / "repo" / SHIPPED_MODEL / following)
    with start_gateway(model=f"{SHIPPED_MODEL}/{following}", model_repo=scene.folder / "repo") as newer:
        scene.monitoring.watch(gateway=[address(scene.gateway), address(newer)])
        yield {}


FAULTS: dict[str, Fault] = {
    "Me5Unavailable": unavailable,
    "Me5ErrorRatioHigh": batches_fail,
    "Me5LatencyHigh": slow_engine,
    "Me5Overloaded": overload,
    "Me5DeadlinesMissed": missed_deadlines,
    "Me5GatewayDown": killed_gateway,
    "Me5NotReady": unproved_engine,
    "Me5EngineRestarting": killed_engines,
    "Me5QueueGrowing": stuck_engine,
    "Me5EventLoopLag": throttled_gateway,
    "Me5MemoryNearLimit": lowered_memory_limit,
    "Me5ConnectionsRefused": crowd,
    "Me5BodiesRefused": large_bodies,
    "Me5KeysNotInForce": broken_keys,
    "Me5TruncationHigh": long_texts,
    "Me5ModelsDiffer": half_rolled_out,
}
