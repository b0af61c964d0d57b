"""For each alert about Tritons a fault of the kind it is made for, on real ones; as in alert_faults.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from alert_faults import address, wait_until_ready
from asking import asking, passages
from gateway_process import MODEL_REPO, SHIPPED_MODEL, Gateway, start_gateway
from monitoring import Monitoring
from triton_server import TritonServer, start_triton


@dataclass(frozen=True)
class Tritons:
    """Two Tritons and a gateway that computes with both."""

    monitoring: Monitoring
    gateway: Gateway
    one: TritonServer
    other: TritonServer

    def watch(self) -> None:
        """Have Prometheus scrape all three and nothing else."""
        metrics = [f"{triton.address}:{triton.metrics_port}" for triton in (self.one, self.other)]
        self.monitoring.watch(gateway=[address(self.gateway)], triton=metrics)


UpstreamFault = Callable[[Tritons], AbstractContextManager[Mapping[str, str]]]


@contextmanager
def start_tritons(monitoring: Monitoring, repository: Path = MODEL_REPO) -> Iterator[Tritons]:
    """Both serve the shipped model out of the committed repository."""
    # One thread each: they share the machine with Prometheus, the gateway and its clients.
    env = {"TRITON_STANDIN_THREADS": "1"}
    with ExitStack() as stack:
        one = stack.enter_context(start_triton(repository, model=SHIPPED_MODEL, env=env))
        other = stack.enter_context(start_triton(repository, model=SHIPPED_MODEL, env=env))
        urls = f"{one.grpc_url},{other.grpc_url}"
        gateway = stack.enter_context(start_gateway(engine="triton", triton_urls=urls, precision="fp32", drain_s=0))
        yield Tritons(monitoring, gateway, one, other)


@contextmanager
def both_hang(tritons: Tritons) -> Iterator[Mapping[str, str]]:
    """Both Tritons accept connections and answer nothing."""
    tritons.watch()
    for triton in (tritons.one, tritons.other):
        triton.pause()
    try:
        yield {"severity": "critical"}
    finally:
        for triton in (tritons.one, tritons.other):
            triton.resume()
        wait_until_ready(tritons.gateway)


@contextmanager
def one_stopped(tritons: Tritons) -> Iterator[Mapping[str, str]]:
    """One Triton is stopped while both have work."""
    tritons.watch()
    with asking(tritons.gateway) as statuses:
        tritons.one.stop()
        try:
            yield {"upstream": tritons.one.grpc_url}
        finally:
            tritons.one.start()
    # The other one has answered.
    assert set(statuses) == {200}


@contextmanager
def killed_stub(tritons: Tritons) -> Iterator[Mapping[str, str]]:
    """The process in which one Triton computes is killed; the server goes on without it."""
    tritons.watch()
    with asking(tritons.gateway) as statuses:
        for pid in tritons.one.stub_pids():
            psutil.Process(pid).kill()
        try:
            yield {"upstream": tritons.one.grpc_url}
        finally:
            tritons.one.kill()
            tritons.one.start()
    assert statuses[200] > 0


@contextmanager
def short_queue(tritons: Tritons) -> Iterator[Mapping[str, str]]:
    """One Triton is slow and lets one request wait."""
    tritons.watch()
    slow = tritons.one
    config = httpx.get(f"{slow.http_url}/v2/models/{SHIPPED_MODEL}/config").raise_for_status().json()
    config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] = 1
    slow.load(SHIPPED_MODEL, config=json.dumps(config))
    slow.set_delay(100)
    try:
        with asking(tritons.gateway, clients=8), asking(tritons.gateway, passages, clients=8):
            yield {"upstream": slow.grpc_url}
    finally:
        slow.set_delay(0)
        slow.load(SHIPPED_MODEL)
        wait_until_ready(tritons.gateway)


UPSTREAM_FAULTS: dict[str, UpstreamFault] = {
    "Me5AllUpstreamsDown": both_hang,
    "Me5UpstreamDown": one_stopped,
    "Me5UpstreamFailing": killed_stub,
    "Me5UpstreamRejects": short_queue,
}
