"""A real Prometheus and a real Alertmanager with the files of docker/, and a webhook receiver for what they send.

    with start_monitoring(tmp_path) as monitoring:
        monitoring.watch(gateway=["127.0.0.1:8080"])
        monitoring.wait_for_notice("Me5GatewayDown")

Their files are used as they are but for what a test can't have: names of other containers become addresses, and every
duration is divided, so that what takes minutes takes seconds. Bounds, labels and routes stay.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml
from gateway_process import ROOT, free_port

PROMETHEUS = ROOT / "docker" / "prometheus"
ALERTMANAGER = ROOT / "docker" / "alertmanager" / "alertmanager.yml"

# What windows are divided by, and what waiting times are: rates want some scrapes in their window.
WINDOWS, WAITS = 40, 100
SCRAPE = "1s"
# As long as may be: a scrape that is late on a busy machine is no lost gateway.
SCRAPE_TIMEOUT = "1s"
EVALUATE = "400ms"

START_MAX_S = 60.0
PATIENCE_S = 60.0

_DURATION = re.compile(r"(\d+)(ms|[smhd])")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_RANGE = re.compile(r"\[(\d+(?:ms|s|m|h|d))\]")

# Debian's names, and those of everybody else.
PROGRAMS = {
    "prometheus": ("prometheus",),
    "promtool": ("promtool",),
    "alertmanager": ("prometheus-alertmanager", "alertmanager"),
    "amtool": ("amtool",),
}


def program(name: str) -> str | None:
    """Where a program of PROGRAMS is, or None."""
    return next((found for other in PROGRAMS[name] if (found := shutil.which(other))), None)


def missing(*names: str) -> str | None:
    """Why a test can't run here, or None where all these programs are installed."""
    lacking = [name for name in names if program(name) is None]
    if not lacking:
        return None
    return f"not installed: {', '.join(lacking)} (apt-get install prometheus prometheus-alertmanager)"


def run_tool(name: str, *arguments: str | Path, stdin: str = "") -> str:
    """What promtool or amtool writes; fails the test with it where the tool is not content."""
    found = program(name)
    assert found is not None
    done = subprocess.run([found, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def faster(duration: str, by: int = WAITS) -> str:
    """A part of a duration: 5m → 3000ms."""
    seconds = sum(int(count) * _SECONDS[unit] for count, unit in _DURATION.findall(duration))
    return f"{math.ceil(1000 * seconds / by)}ms"


def faster_rules(text: str) -> str:
    """A file of rules with every window over WINDOWS and every `for` over WAITS."""
    document = yaml.safe_load(text)
    for group in document["groups"]:
        if "interval" in group:
            group["interval"] = faster(group["interval"])
        for rule in group["rules"]:
            rule["expr"] = _RANGE.sub(lambda found: f"[{faster(found[1], WINDOWS)}]", rule["expr"])
            if "for" in rule:
                rule["for"] = faster(rule["for"])
    return str(yaml.safe_dump(document, sort_keys=False))


def rules_of(name: str) -> list[dict[str, object]]:
    """Every rule of rules.yml or alerts.yml."""
    document = yaml.safe_load((PROMETHEUS / name).read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


@dataclass(frozen=True)
class Notice:
    """One alert of one message from Alertmanager. status: firing or resolved."""

    status: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    receiver: str


@dataclass
class Receiver:
    """What a webhook got."""

    notices: list[Notice] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        """One message, in Alertmanager's format, version 4."""
        message = json.loads(body)
        assert message["version"] == "4"
        for alert in message["alerts"]:
            self.notices.append(Notice(alert["status"], alert["labels"], alert["annotations"], message["receiver"]))


class Monitoring:
    """A running Prometheus with its Alertmanager and a receiver."""

    def __init__(self, folder: Path, prometheus: str, alertmanager: str, receiver: Receiver) -> None:
        self.receiver = receiver
        self._folder = folder
        self._prometheus = httpx.Client(base_url=prometheus, timeout=30)
        self._alertmanager = httpx.Client(base_url=alertmanager, timeout=30)

    def watch(self, **targets: Sequence[str]) -> None:
        """Scrape these addresses (host:port) from now on, by job, and no others; wait until that is so."""
        for job in ("gateway", "triton"):
            _write_targets(self._folder, job, targets.get(job, ()))
        wanted = {address for addresses in targets.values() for address in addresses}

        def scraped() -> bool:
            active = self._get("/api/v1/targets", state="active")["activeTargets"]
            found = {one["labels"]["instance"]: one for one in active if one["labels"]["job"] in ("gateway", "triton")}
            return set(found) == wanted and all(one["health"] != "unknown" for one in found.values())

        self.wait_until(scraped, f"{wanted} as the only targets")

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """An instant query: labels and value of each series, NaN left out."""
        found = self._get("/api/v1/query", query=expression)["result"]
        values = [(one["metric"], float(one["value"][1])) for one in found]
        return [(labels, value) for labels, value in values if not math.isnan(value)]

    def names(self) -> set[str]:
        """Every metric name that was scraped or recorded so far."""
        return set(self._get("/api/v1/label/__name__/values"))

    def firing(self) -> set[str]:
        """Names of the alerts that fire in Prometheus."""
        return {one["labels"]["alertname"] for one in self._get("/api/v1/alerts")["alerts"] if one["state"] == "firing"}

    def broken_rules(self) -> list[str]:
        """Rules whose last evaluation failed, with the reason."""
        groups = self._get("/api/v1/rules")["groups"]
        return [
            f"{rule['name']}: {rule['lastError']}"
            for group in groups
            for rule in group["rules"]
            if rule.get("lastError")
        ]

    def suppressed(self) -> set[str]:
        """Names of the alerts that Alertmanager keeps to itself because another one says it already."""
        answer = self._alertmanager.get("/api/v2/alerts", params={"active": "true", "inhibited": "true"})
        answer.raise_for_status()
        return {one["labels"]["alertname"] for one in answer.json() if one["status"]["inhibitedBy"]}

    def wait_for_notice(self, alert: str, status: str = "firing", *, since: int = 0, **labels: str) -> Notice:
        """The first such notice that the receiver got, leaving out the first `since` of all."""

        def find() -> Notice | None:
            return next(
                (
                    one
                    for one in self.receiver.notices[since:]
                    if (one.labels["alertname"], one.status) == (alert, status) and labels.items() <= one.labels.items()
                ),
                None,
            )

        self.wait_until(find, f"{alert} {status} {labels}")
        found = find()
        assert found is not None
        return found

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Poll until something is so."""
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < give_up, (
                f"{what}: not after {PATIENCE_S:g} s; firing: {self.firing()}, suppressed: {self.suppressed()}"
            )
            time.sleep(0.1)

    def _get(self, path: str, **parameters: str) -> Any:
        answer = self._prometheus.get(path, params=parameters)
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]


@contextmanager
def start_monitoring(folder: Path) -> Iterator[Monitoring]:
    """Prometheus, Alertmanager and a receiver on free ports, with nothing to scrape yet."""
    with _receive() as (receiver, webhook):
        alerts, queries = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        for job in ("gateway", "triton"):
            _write_targets(folder, job, ())
        (folder / "alertmanager.yml").write_text(_alertmanager_config(webhook), encoding="utf-8")
        (folder / "prometheus.yml").write_text(_prometheus_config(folder, alerts), encoding="utf-8")
        for name in ("rules.yml", "alerts.yml"):
            (folder / name).write_text(faster_rules((PROMETHEUS / name).read_text(encoding="utf-8")), encoding="utf-8")
        alertmanager = [
            str(program("alertmanager")),
            f"--config.file={folder / 'alertmanager.yml'}",
            f"--storage.path={folder / 'alertmanager'}",
            f"--web.listen-address={alerts}",
            "--cluster.listen-address=",
        ]
        prometheus = [
            str(program("prometheus")),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address={queries}",
            # How long an alert that ended may come back without being sent anew: a minute by default.
            "--rules.alert.resend-delay=500ms",
        ]
        with (
            _running(alertmanager, folder / "alertmanager.log", alerts),
            _running(prometheus, folder / "prometheus.log", queries),
        ):
            yield Monitoring(folder, f"http://{queries}", f"http://{alerts}", receiver)


def _prometheus_config(folder: Path, alertmanager: str) -> str:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] |= {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE_TIMEOUT, "evaluation_interval": EVALUATE}
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alertmanager]}]}]
    for job in config["scrape_configs"]:
        if job.pop("dns_sd_configs", None):
            job["file_sd_configs"] = [{"files": [str(folder / f"{job['job_name']}.json")], "refresh_interval": "500ms"}]
    # Prometheus itself is another one's business.
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] != "prometheus"]
    return str(yaml.safe_dump(config))


def _alertmanager_config(webhook: str) -> str:
    config = yaml.safe_load(ALERTMANAGER.read_text(encoding="utf-8"))

    def hasten(route: dict[str, object]) -> None:
        for name in ("group_wait", "group_interval", "repeat_interval"):
            if name in route:
                route[name] = faster(str(route[name]))
        for inner in route.get("routes", ()):  # type: ignore[attr-defined]
            hasten(inner)

    hasten(config["route"])
    for receiver in config["receivers"]:
        for hook in receiver["webhook_configs"]:
            hook["url"] = webhook
    return str(yaml.safe_dump(config))


def _write_targets(folder: Path, job: str, addresses: Sequence[str]) -> None:
    draft = folder / f"{job}.draft"
    draft.write_text(json.dumps([{"targets": list(addresses)}]), encoding="utf-8")
    draft.rename(folder / f"{job}.json")


@contextmanager
def _receive() -> Iterator[tuple[Receiver, str]]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing: the test says what is wrong."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver, f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def _running(command: Sequence[str], log: Path, address: str) -> Iterator[None]:
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        give_up = time.monotonic() + START_MAX_S
        while True:
            try:
                if httpx.get(f"http://{address}/-/ready", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            said = log.read_text(encoding="utf-8", errors="replace")
            assert process.poll() is None, f"{command[0]} ended\n{said}"
            assert time.monotonic() < give_up, f"{command[0]} is not ready after {START_MAX_S:g} s\n{said}"
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
