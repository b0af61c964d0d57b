"""The way of spans out of the gateway: receivers that are no good, the end of the process, and no tracing at all."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from gateway_process import ROOT, SHIPPED_MODEL, environment, free_port, run_service, start_gateway
from trace_receiver import QUICK, receiver, variables, wait_until

from service.errors import SettingsError
from service.settings import load_settings


def test_the_last_spans_are_sent_when_the_process_ends() -> None:
    with receiver() as found, variables({"OTEL_BSP_SCHEDULE_DELAY": "3600000"}):
        with start_gateway(otlp_endpoint=found.url, drain_s=0) as gateway, gateway.client() as client:
            client.post("/embed", json={"inputs": "one"}, headers={"x-request-id": "last"})
            assert not found.spans
            assert gateway.terminate() == 0
            assert "given up" not in gateway.log_text()
        _, spans = found.wait_for_request("last")
        assert len(spans) == 5


@contextmanager
def deaf(how: str) -> Iterator[str]:
    """The address of a receiver that is no good."""
    if how == "nobody listens":
        yield f"http://127.0.0.1:{free_port()}"
    elif how == "nobody accepts":
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(8)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    else:
        with receiver() as found:
            if how == "never answers":
                found.go.clear()
            else:
                found.abort = grpc.StatusCode.UNIMPLEMENTED
            yield found.url


@pytest.mark.slow
@pytest.mark.parametrize("how", ["nobody listens", "nobody accepts", "never answers", "refuses"])
def test_a_receiver_that_is_no_good_is_told_of_once_and_costs_no_request(how: str) -> None:
    # A queue that overflows too, for the same one line.
    small = {"OTEL_BSP_MAX_QUEUE_SIZE": "32", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "16", "OTEL_EXPORTER_OTLP_TIMEOUT": "2"}
    with (
        deaf(how) as endpoint,
        variables(QUICK | small),
        start_gateway(otlp_endpoint=endpoint, drain_s=0) as gateway,
        gateway.client() as client,
    ):
        slowest_s, began = 0.0, time.monotonic()
        # Long enough for several calls to fail.
        while time.monotonic() - began < 6:
            started = time.monotonic()
            assert client.post("/embed", json={"inputs": "one"}).status_code == 200
            slowest_s = max(slowest_s, time.monotonic() - started)
        assert client.get("/readyz").status_code == 200
        # A call to the receiver takes two seconds; no request waits for one, however busy the machine is otherwise.
        assert slowest_s < 1.8
        (line,) = [line for line in gateway.log_text().splitlines() if "WARNING" in line or "ERROR" in line]
        assert "me5.tracing: spans are lost on their way" in line
        assert f"ME5_OTLP_ENDPOINT={endpoint}" in line
        assert "Traceback" not in gateway.log_text()


@pytest.mark.parametrize("how", ["nobody listens", "nobody accepts", "never answers"])
def test_a_receiver_that_is_no_good_does_not_keep_the_process_from_ending(how: str) -> None:
    # Each of its calls would take half a minute.
    patient = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_EXPORTER_OTLP_TIMEOUT": "30"}
    with (
        deaf(how) as endpoint,
        variables(patient),
        start_gateway(otlp_endpoint=endpoint, drain_s=0) as gateway,
        gateway.client() as client,
    ):
        client.post("/embed", json={"inputs": "one"})
        # The first call is under way, and more waits behind it.
        time.sleep(0.5)
        client.post("/embed", json={"inputs": "two"})
        started = time.monotonic()
        assert gateway.terminate() == 0
        # Two seconds for the last spans, one to cut them off, and the engine's own end.
        assert time.monotonic() - started < 12
        assert "the last spans were not sent within 2 s" in gateway.log_text()
        assert "Traceback" not in gateway.log_text()


def test_spans_that_wait_are_bounded_and_a_receiver_that_comes_back_gets_the_newest() -> None:
    small = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "32"}
    with receiver() as found, variables(small | {"OTEL_EXPORTER_OTLP_TIMEOUT": "60"}):
        found.go.clear()
        with start_gateway(otlp_endpoint=found.url, drain_s=0) as gateway, gateway.client() as client:
            for number in range(100):
                client.post("/embed", json={"inputs": "one"}, headers={"x-request-id": f"kept-{number}"})
            assert found.calls == 1
            found.go.set()
            found.wait_for_request("kept-99")
            # Those in the call that hung, and those in the queue.
            assert len(found.spans) <= 32 + 64
            wait_until(lambda: "again" in gateway.log_text())
            log = [line for line in gateway.log_text().splitlines() if "me5.tracing" in line]
            assert len(log) == 2
            assert "OTEL_BSP_MAX_QUEUE_SIZE" in log[0]
            assert "spans get through" in log[1]


IMPORTED = """
    import sys
    from service.app import create_app
    from service.settings import load_settings
    create_app(load_settings())
    heavy = ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "google.protobuf")
    ours = ("service.tracing", "service.span_export")
    print([name for name in sys.modules if name.startswith(heavy) or name in ours])
"""


def test_without_an_endpoint_nothing_of_the_exporter_is_imported() -> None:
    """FastAPI itself imports opentelemetry's API; the rest is ours to leave alone."""

    def imported(**settings: object) -> str:
        finished = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(IMPORTED)],
            cwd=ROOT,
            env=environment(model=SHIPPED_MODEL, **settings),
            capture_output=True,
            text=True,
            check=True,
        )
        return finished.stdout.strip()

    assert imported() == "[]"
    # The list would show them.
    with_it = imported(otlp_endpoint=f"http://127.0.0.1:{free_port()}")
    assert "'service.tracing'" in with_it
    assert "'opentelemetry.sdk'" in with_it


WITHOUT_THE_EXTRA = """
    import sys
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    sys.meta_path.insert(0, Missing())
    sys.argv = ["me5", "serve"]
    from service.commands import app
    app()
"""


def test_a_missing_extra_is_told_with_its_remedy() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITHOUT_THE_EXTRA)],
        cwd=ROOT,
        env=environment(model=SHIPPED_MODEL, otlp_endpoint="http://127.0.0.1:4317"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert line.startswith("me5: ME5_OTLP_ENDPOINT='http://127.0.0.1:4317': ")
    assert "pip install -e '.[tracing]'" in line


@pytest.mark.parametrize(
    "value",
    ["collector:4317", "http://collector", "grpc://collector:4317", "http://collector:4318/v1/traces", "http://:4317"],
)
def test_an_endpoint_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="ME5_OTLP_ENDPOINT=.*give http://host:port"):
        load_settings({"ME5_OTLP_ENDPOINT": value})


@pytest.mark.parametrize("value", ["-0.1", "1.1", "often", "nan"])
def test_a_ratio_outside_its_limits_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=f"ME5_TRACE_SAMPLE_RATIO='{value}'"):
        load_settings({"ME5_TRACE_SAMPLE_RATIO": value})


def test_check_prints_where_traces_go(tmp_path: Path) -> None:
    finished = run_service("check", otlp_endpoint="https://collector:4317/", cache_dir=tmp_path, model=SHIPPED_MODEL)
    assert b"ME5_OTLP_ENDPOINT=https://collector:4317/" in finished.stdout
