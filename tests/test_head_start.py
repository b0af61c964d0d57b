"""The engine's process starts before it is known what it is to open, and is the one that serves."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from faulty_engine import SHIPPED

from service.embedder import Embedder
from service.engine import EngineConfig, EngineHost, Widths
from service.engine_process import EngineProcess, order
from service.engine_start import Started, start_worker
from service.errors import EngineFailed, EngineLost
from service.head_start import head_start
from service.metrics import Metrics
from service.opening import candidates_for, config_of
from service.recipe.spec import load_spec
from service.settings import Settings, load_settings

WAIT_S = 20.0


@pytest.fixture
def started() -> Iterator[Started]:
    found = start_worker()
    yield found
    found.process.kill()
    found.process.wait(WAIT_S)
    found.control.close()


def first_choice(settings: Settings) -> EngineConfig:
    return config_of(settings, SHIPPED, candidates_for(settings, load_spec(SHIPPED, verify=False))[0])


def engines() -> int:
    return sum("service.engine_worker" in child.cmdline() for child in psutil.Process().children())


def test_the_process_that_was_started_first_is_the_one_that_serves(started: Started) -> None:
    settings = load_settings({"ME5_MODEL": str(SHIPPED), "ME5_CACHE_DIR": ""})
    open_host = head_start(settings, started)

    async def story() -> None:
        embedder = Embedder(settings, Metrics(), open_host=open_host)
        await embedder.start()
        assert isinstance(embedder.engine, EngineProcess)
        assert (embedder.engine.pid, engines()) == (started.process.pid, 1)
        # A second one of the same kind is another process.
        embedder.engine.kill("test")
        again = await open_host(first_choice(settings), Widths(768, 384))
        assert isinstance(again, EngineProcess)
        assert again.pid != started.process.pid
        await again.close()
        await embedder.stop()

    asyncio.run(story())


def test_a_process_that_opened_something_else_than_is_asked_for_is_ended(started: Started) -> None:
    settings = load_settings({"ME5_MODEL": str(SHIPPED), "ME5_ENGINE": "onnx", "ME5_CACHE_DIR": ""})
    open_host = head_start(settings, started)

    async def story() -> EngineHost:
        other = dataclasses.replace(first_choice(settings), streams=1)
        host = await open_host(other, Widths(768, 384))
        vectors = await host.run([np.array([0, 5, 6, 2], dtype=np.int32)], lane="interactive")
        assert vectors.shape == (1, 768)
        await host.close()
        return host

    assert asyncio.run(story()).streams == 1
    assert started.process.wait(WAIT_S) < 0


def test_with_a_model_that_is_not_there_it_is_ended_and_the_embedder_says_why(started: Started) -> None:
    head_start(load_settings({"ME5_MODEL": "no_such_model"}), started)
    assert started.process.wait(WAIT_S) < 0


def test_a_process_without_an_order_ends_with_its_gateway(started: Started) -> None:
    started.control.close()
    assert started.process.wait(WAIT_S) == 0


@pytest.mark.parametrize("streams", [3, 130])
def test_every_slot_reaches_the_process_in_its_lane(started: Started, streams: int) -> None:
    settings = load_settings({"ME5_MODEL": str(SHIPPED), "ME5_ENGINE": "onnx", "ME5_CACHE_DIR": ""})
    ordered = order(dataclasses.replace(first_choice(settings), streams=streams), started)
    row = np.array([0, 5, 6, 2], dtype=np.int32)

    async def story() -> list[int]:
        host = await EngineProcess.opened(ordered, widths=Widths(768, 384))
        wanted = [host.run([row], lane=lane) for lane in ("interactive", "bulk") for _ in range(streams)]
        vectors = np.concatenate(await asyncio.gather(*wanted))
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        await host.close()
        return [len(slots) for slots in ordered.slots.values()]

    assert asyncio.run(story()) == [streams, streams]


def test_states_of_another_width_than_the_version_says_fail_their_batch_and_vectors_go_on(started: Started) -> None:
    settings = load_settings({"ME5_MODEL": str(SHIPPED), "ME5_ENGINE": "onnx", "ME5_CACHE_DIR": ""})
    row = np.array([0, 5, 6, 2], dtype=np.int32)

    async def story() -> tuple[int, ...]:
        host = await EngineProcess.opened(order(first_choice(settings), started), widths=Widths(768, 100))
        with pytest.raises(EngineFailed, match=r"shape \(4, 384\), wanted \(4, 100\)"):
            await host.states([row], lane="interactive")
        vectors = await host.run([row], lane="interactive")
        await host.close()
        return vectors.shape

    assert asyncio.run(story()) == (1, 768)


def test_a_process_that_can_not_open_the_model_says_why_in_one_line(started: Started) -> None:
    config = EngineConfig(str(SHIPPED.parent), "onnx", "fp32", "cpu", 1, 1)

    async def story() -> str:
        with pytest.raises(Exception, match="spec.json") as refused:
            await EngineProcess.opened(order(config, started), widths=Widths(768, 384))
        return str(refused.value)

    assert "\n" not in asyncio.run(story())


def test_slots_that_can_not_be_had_are_told_and_the_process_is_ended(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> tuple[socket.socket, socket.socket]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socketpair", none_left)
    with pytest.raises(EngineLost, match="can't be given its slots: .*Too many open files"):
        order(first_choice(load_settings({"ME5_MODEL": str(SHIPPED), "ME5_CACHE_DIR": ""})), started)
    assert started.process.poll() is not None


def test_a_gateway_whose_port_is_taken_says_so_in_one_line_and_leaves_no_engine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environment = {**os.environ, "ME5_HOST": "127.0.0.1", "ME5_PORT": port}
        command = [sys.executable, "-m", "service", "serve"]
        gateway = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        said = gateway.communicate(timeout=WAIT_S)[1]
    assert gateway.returncode == 2
    assert said.count("\n") == 1
    assert f"ME5_PORT={port}" in said
    # The engine's process held the other end of stderr: that it was read to its end says that it is gone.


def test_sigterm_in_the_first_moment_ends_gateway_and_engine() -> None:
    gateway = subprocess.Popen([sys.executable, "-m", "service", "serve"], stderr=subprocess.PIPE, text=True)
    time.sleep(0.2)
    gateway.terminate()
    gateway.communicate(timeout=WAIT_S)
    # Before the handler is in force the signal's own action ends it.
    assert gateway.returncode in (0, -signal.SIGTERM)
