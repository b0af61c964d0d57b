"""Every alert fires: a real fault on a real gateway, seen by a real Prometheus, told by a real Alertmanager."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator

import pytest
import yaml
from alert_faults import FAULTS, FAULTY_GATEWAY, Scene, address, lose_engines, stopped
from asking import asking, passages
from gateway_process import ROOT, start_gateway
from monitoring import (
    ALERTMANAGER,
    PROMETHEUS,
    faster,
    faster_rules,
    missing,
    rules_of,
    run_tool,
    start_monitoring,
)
from triton_server import triton_missing
from upstream_faults import UPSTREAM_FAULTS, Tritons, start_tritons

UNIT_TESTS = PROMETHEUS / "tests" / "alerts_test.yml"
RUNBOOK = ROOT / "docs" / "alerts.md"
ALERTS = {str(rule["alert"]): rule for rule in rules_of("alerts.yml")}

needs_tools = pytest.mark.skipif(missing("promtool", "amtool") is not None, reason=str(missing("promtool", "amtool")))
needs_servers = pytest.mark.skipif(
    missing("prometheus", "alertmanager") is not None, reason=str(missing("prometheus", "alertmanager"))
)


@needs_tools
def test_the_files_are_valid() -> None:
    run_tool("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    run_tool(
        "promtool", "check", "rules", "--lint=all", "--lint-fatal", PROMETHEUS / "rules.yml", PROMETHEUS / "alerts.yml"
    )
    run_tool("amtool", "check-config", ALERTMANAGER)


@needs_tools
def test_alerts_fire_at_their_bounds_and_after_their_time() -> None:
    run_tool("promtool", "test", "rules", UNIT_TESTS)


def test_every_alert_has_a_unit_test_that_fires_it() -> None:
    tests = yaml.safe_load(UNIT_TESTS.read_text(encoding="utf-8"))["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert fired == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_it_means_and_leads_to_what_to_do(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"
    # Where GitHub puts the anchor.
    headings = re.findall(r"^### (\w+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings.count(name) == 1


def test_the_runbook_tells_of_no_alert_that_does_not_exist() -> None:
    headings = re.findall(r"^### (\w+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == list(ALERTS)


def test_group_names_are_unique_over_both_files() -> None:
    # They share one PrometheusRule on Kubernetes.
    documents = [
        yaml.safe_load((PROMETHEUS / name).read_text(encoding="utf-8")) for name in ("rules.yml", "alerts.yml")
    ]
    names = [group["name"] for document in documents for group in document["groups"]]
    assert len(names) == len(set(names))


def test_for_a_test_only_durations_change() -> None:
    text = (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8")
    before, after = yaml.safe_load(text), yaml.safe_load(faster_rules(text))
    assert faster("5m") == "3000ms"
    assert faster("1h30m") == "54000ms"
    for group, fast in zip(before["groups"], after["groups"], strict=True):
        for rule, quick in zip(group["rules"], fast["rules"], strict=True):
            same = {key: value for key, value in rule.items() if key not in ("expr", "for")}
            assert same == {key: value for key, value in quick.items() if key not in ("expr", "for")}
            assert re.sub(r"\[\w+\]", "", rule["expr"]) == re.sub(r"\[\w+\]", "", quick["expr"])
            assert ("for" in rule) == ("for" in quick)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One Prometheus and one Alertmanager for all faults, and two gateways that most of them happen to."""
    folder = tmp_path_factory.mktemp("scene")
    orders = folder / "orders"
    narrow = {"max_queued_tokens": 300, "max_connections": 8, "max_buffered_bytes": 30_000}
    with (
        start_monitoring(folder) as monitoring,
        start_gateway(program=(str(FAULTY_GATEWAY), str(orders)), drain_s=0) as gateway,
        start_gateway(drain_s=0, **narrow) as limited,
    ):
        yield Scene(monitoring, gateway, orders, limited, folder)


def come_to_rest(scene: Scene, *alerts: str) -> int:
    """Wait until earlier faults' alerts are over, for Alertmanager says no thing twice; how many notices there were."""
    monitoring = scene.monitoring
    # What an earlier test has ended is no gateway that is down.
    monitoring.watch(gateway=[address(scene.gateway)])

    def over(alert: str) -> bool:
        told = [notice.status for notice in monitoring.receiver.notices if notice.labels["alertname"] == alert]
        return alert not in monitoring.firing() and (not told or told[-1] == "resolved")

    for alert in alerts:
        monitoring.wait_until(lambda alert=alert: over(alert), f"{alert} resolved")
    return len(monitoring.receiver.notices)


@needs_servers
def test_a_gateway_at_work_sets_off_nothing(scene: Scene) -> None:
    monitoring = scene.monitoring
    # Before this nothing was scraped, so nobody was ready.
    since = come_to_rest(scene, "Me5Unavailable")
    with asking(scene.gateway, clients=2), asking(scene.gateway, passages, clients=1) as statuses:
        monitoring.wait_until(lambda: monitoring.query("me5:requests:rate5m > 0"), "requests")
        # Longer than every `for` of what a load alone could set off.
        monitoring.wait_until(lambda: sum(statuses.values()) > 200, "200 answers")
        monitoring.wait_until(lambda: monitoring.query("count_over_time(me5:requests:rate5m[12s]) > 20"), "12 s")
    # True of a machine that is busy with other things, and so quick an alarm is not what is looked at here.
    slow = {"Me5EventLoopLag", "Me5LatencyHigh", "Me5GatewayDown", "Me5QueueGrowing"}
    assert monitoring.firing() <= slow
    told = {notice.labels["alertname"] for notice in monitoring.receiver.notices[since:] if notice.status == "firing"}
    assert told <= slow | {"Me5Unavailable"}
    assert monitoring.broken_rules() == []


@pytest.fixture(scope="module")
def tritons(scene: Scene) -> Iterator[Tritons]:
    """Two Tritons and a gateway that computes with them, beside the same Prometheus."""
    with start_tritons(scene.monitoring) as started:
        yield started


@needs_servers
@pytest.mark.parametrize("name", ALERTS)
def test_alert_fires(name: str, scene: Scene, request: pytest.FixtureRequest) -> None:
    assert name in FAULTS or name in UPSTREAM_FAULTS, f"no fault is known that sets off {name}"
    if name in UPSTREAM_FAULTS and (why := triton_missing()):
        pytest.skip(why)
    monitoring = scene.monitoring
    since = come_to_rest(scene, name)
    if name in UPSTREAM_FAULTS:
        fault = UPSTREAM_FAULTS[name](request.getfixturevalue("tritons"))
    else:
        fault = FAULTS[name](scene)
    with fault as labels:
        notice = monitoring.wait_for_notice(name, since=since, **labels)
    assert notice.labels["severity"] == ALERTS[name]["labels"]["severity"]
    assert notice.annotations["runbook"] == ALERTS[name]["annotations"]["runbook"]
    # Every template was filled in.
    assert not re.search(r"\{\{|<no value>|error", notice.annotations["summary"])
    assert notice.annotations["summary"]


@needs_servers
def test_an_alert_that_is_over_is_said_to_be(scene: Scene) -> None:
    monitoring = scene.monitoring
    since = come_to_rest(scene, "Me5GatewayDown")
    monitoring.watch(gateway=[address(scene.gateway), address(scene.narrow)])
    with stopped(scene.narrow.process.pid):
        monitoring.wait_for_notice("Me5GatewayDown", since=since, instance=address(scene.narrow))
    monitoring.wait_for_notice("Me5GatewayDown", "resolved", since=since, instance=address(scene.narrow))


@needs_servers
def test_where_nobody_serves_that_alone_is_told(scene: Scene) -> None:
    monitoring = scene.monitoring
    since = come_to_rest(scene, "Me5Unavailable", "Me5GatewayDown")
    with FAULTS["Me5Unavailable"](scene):
        monitoring.wait_for_notice("Me5Unavailable", since=since)
        monitoring.wait_until(lambda: "Me5GatewayDown" in monitoring.suppressed(), "Me5GatewayDown is suppressed")
        # As long again as a message of its own would have taken.
        time.sleep(2.0)
        told = {
            notice.labels["alertname"] for notice in monitoring.receiver.notices[since:] if notice.status == "firing"
        }
    assert told == {"Me5Unavailable"}


@needs_servers
def test_a_gateway_that_is_gone_silences_what_it_did_before(scene: Scene) -> None:
    monitoring = scene.monitoring
    come_to_rest(scene, "Me5GatewayDown", "Me5EngineRestarting")
    with start_gateway(exit_code=-signal.SIGKILL) as doomed:
        monitoring.watch(gateway=[address(scene.gateway), address(doomed)])
        lose_engines(doomed, 3)
        monitoring.wait_until(lambda: "Me5EngineRestarting" in monitoring.firing(), "Me5EngineRestarting")
        assert "Me5EngineRestarting" not in monitoring.suppressed()
        doomed.process.kill()
        monitoring.wait_until(lambda: "Me5EngineRestarting" in monitoring.suppressed(), "its suppression")
        assert "Me5GatewayDown" in monitoring.firing()
