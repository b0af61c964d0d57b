"""The dashboard: generated as committed, and every panel shows data of a live gateway and a live Triton under load."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from alert_faults import address
from asking import asking, passages
from gateway_process import ROOT, Gateway, start_gateway
from metric_series import scrape
from monitoring import PROMETHEUS, Monitoring, missing, rules_of, run_tool, start_monitoring
from triton_server import installation, triton_missing
from upstream_faults import start_tritons

from service.keys import digest_of, entry_of, new_secret, with_key
from service.keys_file import write_file

GRAFANA = ROOT / "docker" / "grafana"
# Four scrapes, as Grafana has it.
RATE_INTERVAL = "4s"

needs_promtool = pytest.mark.skipif(missing("promtool") is not None, reason=str(missing("promtool")))
needs_prometheus = pytest.mark.skipif(
    missing("prometheus", "alertmanager") is not None, reason=str(missing("prometheus", "alertmanager"))
)


# The generator is no package: it runs as it lies.
sys.path.insert(0, str(GRAFANA))
import dashboard as generator  # noqa: E402
from panels import stages  # noqa: E402

DASHBOARD = json.loads(generator.TARGET.read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# What a panel asks, by its title and letter; and what hardware it needs to have an answer.
QUERIES = {
    f"{panel['title']}: {target['legendFormat']}": target["expr"] for panel in PANELS for target in panel["targets"]
}
NEEDS = {
    f"{panel.title}: {line.legend}": line.needs
    for row in generator.ROWS
    for panel in row.panels
    for line in panel.lines
}
# A gateway without keys has nothing to say of them.
OF_KEYS = {"me5_key_rejected_total", "me5_keys_file_valid"}
OF_TRITON = re.compile(r"\b(nv_|me5_upstream)")
METRIC = re.compile(r"\b((?:me5|nv|process|python)_[a-z0-9_]+|up)\b(?!:)")


def filled_in(expr: str) -> str:
    """An expression with Grafana's variables replaced as Grafana does it for all gateways."""
    return expr.replace("$__rate_interval", RATE_INTERVAL).replace("$instance", ".*")


def metrics_in(expr: str) -> set[str]:
    """Names of scraped metrics in an expression: no label values, no recorded names, no labels."""
    bare = re.sub(r'"[^"]*"', "", expr)
    bare = re.sub(r"\b[\w]+:[\w:]+", "", bare)
    return set(METRIC.findall(re.sub(r"\b(by|without)\s*\([^)]*\)", "", bare)))


def recorded_in(expr: str) -> set[str]:
    """Names of recorded metrics in an expression."""
    return set(re.findall(r"\b[a-z_0-9]+:[a-z_0-9]+(?::[a-z_0-9]+)*\b", re.sub(r'"[^"]*"', "", expr)))


ALL_EXPRESSIONS = [
    *QUERIES.values(),
    *(str(rule["expr"]) for name in ("rules.yml", "alerts.yml") for rule in rules_of(name)),
]


def test_the_file_is_what_its_generator_writes() -> None:
    assert generator.TARGET.read_text(encoding="utf-8") == generator.text(), "run python docker/grafana/dashboard.py"


def test_every_panel_says_what_it_shows_in_which_unit_and_names_its_lines() -> None:
    for panel in PANELS:
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["legendFormat"] for target in panel["targets"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_panels_lie_beside_each_other_and_never_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_lines_are_drawn_where_alerts_fire() -> None:
    alerts = " ".join(str(rule["expr"]) for rule in rules_of("alerts.yml"))
    bounds = {float(bound) for bound in re.findall(r"> ([\d.]+)", alerts)} | {1.0}
    drawn = {panel.bound for row in generator.ROWS for panel in row.panels if panel.bound is not None}
    assert drawn <= bounds


def test_the_provisioned_folder_and_source_are_those_of_the_dashboard() -> None:
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text(encoding="utf-8"))
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "me5.yml").read_text(encoding="utf-8"))
    scrape_interval = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))["global"][
        "scrape_interval"
    ]
    (given,) = source["datasources"]
    assert given["isDefault"]
    assert given["type"] == "prometheus"
    assert given["jsonData"]["timeInterval"] == scrape_interval
    assert provider["providers"][0]["options"]["path"] == "/var/lib/grafana/dashboards"
    assert {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]} == {"${source}"}


@needs_promtool
def test_every_expression_is_valid(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:number{number}", "expr": filled_in(expr)} for number, expr in enumerate(QUERIES.values())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    run_tool("promtool", "check", "rules", file)


def test_recorded_names_exist() -> None:
    recorded = {str(rule["record"]) for rule in rules_of("rules.yml")}
    assert set().union(*map(recorded_in, ALL_EXPRESSIONS)) <= recorded


def names_of(gateway: Gateway) -> set[str]:
    """Names of everything on a gateway's /metrics."""
    with gateway.client() as client:
        return {name for name, _ in scrape(client)}


def test_every_metric_of_the_embedded_gateway_exists(gateway: Gateway) -> None:
    wanted = set().union(*map(metrics_in, ALL_EXPRESSIONS))
    assert {name for name in wanted if not OF_TRITON.match(name)} - names_of(gateway) == {"up", *OF_KEYS}


def test_metrics_of_keys_are_there_where_keys_are(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    write_file(file, with_key("", "search", entry_of("search", {"sha256": digest_of(new_secret().encode()).hex()})))
    with start_gateway(keys_file=file, drain_s=0) as guarded:
        assert names_of(guarded) >= OF_KEYS


def test_every_metric_of_the_gateway_is_looked_at(gateway: Gateway) -> None:
    used = set().union(*map(metrics_in, ALL_EXPRESSIONS))
    counted = {name for name in names_of(gateway) if name.startswith("me5_") and not name.endswith("_created")}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in counted}
    assert {name for name in families if not any(use.startswith(name) for use in used)} == set()


@needs_promtool
def test_the_gateways_metrics_are_as_prometheus_wants_them(gateway: Gateway) -> None:
    with gateway.client() as client:
        assert run_tool("promtool", "check", "metrics", stdin=client.get("/metrics").text) == ""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitoring]:
    """Prometheus over a gateway with an engine of its own, all the while asked for queries and passages."""
    with start_monitoring(tmp_path_factory.mktemp("live")) as monitoring, start_gateway(drain_s=0) as gateway:
        monitoring.watch(gateway=[address(gateway)])
        with asking(gateway, clients=2), asking(gateway, passages, clients=2):
            # More than the longest window that is asked for.
            monitoring.wait_until(lambda: monitoring.query("count_over_time(me5_ready[30s]) > 10"), "scrapes")
            yield monitoring


@pytest.fixture(scope="module")
def live_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitoring]:
    """The same over a gateway with two Tritons."""
    if why := triton_missing():
        pytest.skip(why)
    with start_monitoring(tmp_path_factory.mktemp("live")) as monitoring, start_tritons(monitoring) as tritons:
        tritons.watch()
        with asking(tritons.gateway, clients=2), asking(tritons.gateway, passages, clients=2):
            monitoring.wait_until(lambda: monitoring.query("count_over_time(me5_ready[30s]) > 10"), "scrapes")
            yield monitoring


@needs_prometheus
@pytest.mark.parametrize("title", [title for title, expr in QUERIES.items() if not OF_TRITON.search(expr)])
def test_a_panel_shows_data_of_a_live_gateway(title: str, live: Monitoring) -> None:
    assert live.query(filled_in(QUERIES[title]))


@needs_prometheus
@pytest.mark.parametrize(
    "title", [title for title, expr in QUERIES.items() if OF_TRITON.search(expr) and NEEDS[title] is None]
)
def test_a_panel_shows_data_of_a_live_triton(title: str, live_triton: Monitoring) -> None:
    assert live_triton.query(filled_in(QUERIES[title]))


@needs_prometheus
def test_every_metric_of_triton_and_of_its_gateway_exists(live_triton: Monitoring) -> None:
    wanted = set().union(*(metrics_in(expr) for title, expr in QUERIES.items() if NEEDS[title] is None))
    wanted |= set().union(
        *(metrics_in(str(rule["expr"])) for name in ("rules.yml", "alerts.yml") for rule in rules_of(name))
    )
    assert wanted - {"up", *OF_KEYS} <= live_triton.names()


@pytest.mark.skipif(triton_missing() is not None, reason=str(triton_missing()))
def test_metrics_of_gpus_are_named_as_in_tritons_library() -> None:
    # There may be no GPU here to see them of; the library that gives them has their names in it.
    wanted = set().union(*(metrics_in(expr) for title, expr in QUERIES.items() if NEEDS[title] == "a GPU"))
    assert wanted
    (library,) = (installation().packages / "nvidia_pytriton.libs").glob("libtritonserver-*.so")
    program = library.read_bytes()
    # Compilers put no more than 16 bytes of a short constant in one place.
    assert {name for name in wanted if name[:16].encode() not in program} == set()


@needs_prometheus
def test_the_parts_of_a_querys_time_add_up_to_the_whole(live: Monitoring) -> None:
    parts = {line.legend: live.query(filled_in(line.expr))[0][1] for line in stages("interactive")}
    whole = live.query("lane:me5_request_seconds:mean5m{lane='interactive'}")[0][1]
    assert set(parts) == {"tokenise", "queue", "engine", "rest"}
    # Their windows are not the same.
    assert sum(parts.values()) == pytest.approx(whole, rel=0.5)
