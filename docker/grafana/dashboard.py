"""The dashboard that answers "why is it slow?", as dashboards/me5.json. Run it to write that file again.

Rows go from what users notice down to what may be the reason. Every panel says what it shows and what to do about it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Json = dict[str, object]

TARGET = Path(__file__).resolve().parent / "dashboards" / "me5.json"

# Of Grafana's 24 columns.
WIDTH = 24
HEIGHT = 8
STAT_HEIGHT = 4

SOURCE: Json = {"type": "prometheus", "uid": "${source}"}
# The gateways that the variable at the top of the page chooses.
OF = 'instance=~"$instance"'
RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Line:
    """One query. legend: with the labels in double braces.   needs: hardware without which there is no data."""

    expr: str
    legend: str
    needs: str | None = None


@dataclass(frozen=True)
class Panel:
    """One panel.   unit: Grafana's name of it.   bound: where an alert fires, drawn as a line.   kind: Grafana's type."""

    title: str
    about: str
    unit: str
    lines: Sequence[Line]
    width: int = 8
    stacked: bool = False
    bound: float | None = None
    kind: str = "timeseries"
    most: float | None = None


@dataclass(frozen=True)
class Row:
    """A question and the panels that answer it."""

    title: str
    panels: Sequence[Panel]


def rate(metric: str, *matchers: str) -> str:
    """The rate of a counter of the chosen gateways."""
    return f"rate({metric}{{{', '.join((*matchers, OF))}}}{RATE})"


def mean(metric: str, by: str, *matchers: str) -> str:
    """The mean of what a histogram observed."""
    total, count = (f"sum by ({by}) ({rate(f'{metric}_{part}', *matchers)})" for part in ("sum", "count"))
    return f"{total} / {count}"


def quantile(share: float, metric: str, by: str, *matchers: str) -> str:
    """A quantile of what a histogram observed."""
    return f"histogram_quantile({share:g}, sum by ({by}{', ' if by else ''}le) ({rate(f'{metric}_bucket', *matchers)}))"


def stages(lane: str) -> list[Line]:
    """The mean request of a lane in its parts; they add up to the whole."""
    only = f'lane="{lane}"'
    parts = {
        "tokenise": mean("me5_tokenize_duration_seconds", "lane", only),
        "queue": mean("me5_queue_duration_seconds", "lane", only),
        "engine": mean("me5_engine_duration_seconds", "lane", only),
    }
    whole = mean("me5_request_duration_seconds", "lane", only, 'code="200"')
    rest = " - ".join([whole, *(f"({part})" for part in parts.values())])
    return [*(Line(expr, name) for name, expr in parts.items()), Line(f"clamp_min({rest}, 0)", "rest")]


def latencies(lane: str) -> list[Line]:
    """p50, p95 and p99 of a lane's answered requests."""
    only = (f'lane="{lane}"', 'code="200"')
    return [Line(quantile(share, "me5_request_duration_seconds", "", *only), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)]


REQUESTS = "me5_request_duration_seconds_count"
FAILED = 'code=~"5.."'
STAGES = (
    "The mean time of a request and where it went. tokenise: a request's texts to tokens. queue: a text's wait for its "
    "batch. engine: a batch's time in the engine, Triton and the way there included. rest: reading the request, waiting "
    "for its other batches, writing the answer. {lane} Mostly queue: more replicas. Mostly engine: longer texts, or a "
    "slower machine; see below. Mostly rest: see the process."
)

USERS = Row(
    "Are users served?",
    [
        Panel(
            "Gateways ready",
            "Gateways that say on /readyz that they serve. Fewer than there are: look at their logs, or at Triton.",
            "none",
            [Line(f"sum(me5_ready{{{OF}}})", "ready"), Line('count(up{job="gateway"})', "there are")],
            width=6,
            kind="stat",
        ),
        Panel(
            "Requests failed",
            "Share of the requests that were answered with 500, 503 or 504. Above 1 % an alert fires.",
            "percentunit",
            [Line(f"sum({rate(REQUESTS, FAILED)}) / sum({rate(REQUESTS)})", "failed")],
            width=6,
            kind="stat",
            bound=0.01,
        ),
        Panel(
            "A query in a hundred takes",
            "The 99th percentile of answered interactive requests. Above 1 s an alert fires.",
            "s",
            [latencies("interactive")[-1]],
            width=6,
            kind="stat",
            bound=1,
        ),
        Panel(
            "Alerts",
            "Alerts that fire now; docs/alerts.md says what each asks for.",
            "none",
            [Line('count(ALERTS{alertstate="firing", alertname=~"Me5.*"}) or vector(0)', "fire")],
            width=6,
            kind="stat",
            bound=1,
        ),
        Panel(
            "Requests by status",
            "Requests a second by the status they were answered with. 429: refused for want of room. 499: the client "
            "went away. 503: no engine, or shutting down. 504: past the deadline.",
            "reqps",
            [Line(f"sum by (code) ({rate(REQUESTS)}) > 0", "{{code}}")],
            stacked=True,
        ),
        Panel(
            "Time to answer, interactive",
            "Queries that fit one batch, answered with 200. Line: where an alert fires.",
            "s",
            latencies("interactive"),
            bound=1,
        ),
        Panel(
            "Time to answer, bulk",
            "Passages and large requests, answered with 200. Bulk work gives way to queries: slow is not wrong.",
            "s",
            latencies("bulk"),
        ),
        Panel(
            "Requests given up, by reason",
            "overloaded, buffered_bytes: no room (429). deadline: too late (504). abandoned: the client went away. "
            "engine_lost, shutting_down: 503.",
            "reqps",
            [Line(f"sum by (reason) ({rate('me5_rejected_requests_total')})", "{{reason}}")],
            stacked=True,
        ),
        Panel(
            "Requests by route",
            "Requests a second by the route they came in on.",
            "reqps",
            [Line(f"sum by (route) ({rate(REQUESTS)})", "{{route}}")],
            stacked=True,
        ),
        Panel(
            "Requests by gateway",
            "Requests a second at each gateway. Far apart: clients keep their connections and are not balanced again.",
            "reqps",
            [Line(f"sum by (instance) ({rate(REQUESTS)})", "{{instance}}")],
            stacked=True,
        ),
    ],
)

TIME = Row(
    "Where does the time go?",
    [
        Panel("A query's time", STAGES.format(lane="Interactive requests."), "s", stages("interactive"), 12, stacked=True),
        Panel("A bulk request's time", STAGES.format(lane="Bulk requests."), "s", stages("bulk"), 12, stacked=True),
    ],
)

WAITS = Row(
    "What waits?",
    [
        Panel(
            "Tokens waiting",
            "Tokens of requests without an answer, by lane, all gateways together. ME5_MAX_QUEUED_TOKENS bounds each "
            "lane of each gateway. The autoscaler goes by this figure per replica.",
            "short",
            [Line(f"sum by (lane) (me5_queue_tokens{{{OF}}})", "{{lane}}")],
            stacked=True,
        ),
        Panel(
            "Time to work off what waits",
            "Tokens waiting at each gateway over the tokens it computes in a second. Line: where an alert fires. Grows "
            "without end: less comes out than goes in; add replicas.",
            "s",
            [Line(f"instance:me5_queue_seconds:to_drain{{{OF}}} < Inf or 0 * sum by (instance) (me5_ready{{{OF}}})", "{{instance}}")],
            bound=10,
        ),
        Panel(
            "A text's wait for its batch",
            "95th percentile. Interactive texts that wait: the engine is busy with other queries, not with bulk work.",
            "s",
            [Line(quantile(0.95, "me5_queue_duration_seconds", "lane"), "{{lane}} p95")],
        ),
        Panel(
            "Requests waiting",
            "Requests without an answer, by lane.",
            "short",
            [Line(f"sum by (lane) (me5_queue_requests{{{OF}}})", "{{lane}}")],
            stacked=True,
        ),
        Panel(
            "Texts a batch",
            "Mean number of texts. Near 1 under load: texts are long, or their lengths differ too much to share a batch.",
            "short",
            [Line(mean("me5_batch_size", "lane"), "{{lane}}")],
        ),
        Panel(
            "Padding",
            "Share of a batch that is padding: work for nothing. Above a quarter: lengths are mixed, or a width too many.",
            "percentunit",
            [Line(mean("me5_batch_padding_ratio", "lane"), "{{lane}}")],
            most=1,
        ),
    ],
)

COMPUTES = Row(
    "What computes?",
    [
        Panel(
            "Batches at a time",
            "How many batches the engine had in its hands on average. At ME5_STREAMS: it is the bottleneck.",
            "short",
            [Line(f"sum by (instance) ({rate('me5_engine_duration_seconds_sum')})", "{{instance}}")],
        ),
        Panel(
            "A batch in the engine",
            "Time of a batch, with Triton the way there and its queue included.",
            "s",
            [Line(quantile(share, "me5_engine_duration_seconds", "lane"), f"{{{{lane}}}} p{share * 100:g}") for share in (0.5, 0.95)],
        ),
        Panel(
            "Tokens computed",
            "Tokens a second, padding excluded: the figure to compare machines and replicas by.",
            "short",
            [Line(f"sum by (instance) ({rate('me5_batch_tokens_sum')})", "{{instance}}")],
            stacked=True,
        ),
        Panel(
            "Engines lost",
            "In the last 15 minutes, by reason. died: killed or crashed. hung: longer than ME5_ENGINE_TIMEOUT_S. failed: "
            "batches in a row. Three of them: an alert fires.",
            "none",
            [Line(f"sum by (instance, reason) (increase(me5_engine_restarts_total{{{OF}}}[15m]))", "{{instance}} {{reason}}")],
        ),
        Panel(
            "Model",
            "What each gateway serves and computes with. Two versions at a time: a roll-out that is not done.",
            "none",
            [
                Line(
                    f"count by (name, version, engine, precision, device) (me5_model_info{{{OF}}})",
                    "{{name}}/{{version}} {{engine}} {{precision}} {{device}}",
                )
            ],
            16,
            kind="stat",
        ),
    ],
)

UPSTREAMS = Row(
    "What does Triton do? (with ME5_ENGINE=triton)",
    [
        Panel(
            "Tritons ready",
            "1 while a gateway sends batches to it; the least over the gateways. 0: its log, its model, the network.",
            "none",
            [Line(f"min by (upstream) (me5_upstream_ready{{{OF}}})", "{{upstream}}")],
            most=1,
        ),
        Panel(
            "Batches in flight",
            "Batches that a Triton has not answered yet. Far apart: one is slower than the others.",
            "short",
            [Line(f"sum by (upstream) (me5_upstream_in_flight{{{OF}}})", "{{upstream}}")],
        ),
        Panel(
            "A batch's round trip",
            "95th percentile from sending a batch to its answer, as the gateways see it.",
            "s",
            [Line(quantile(0.95, "me5_upstream_duration_seconds", "upstream"), "{{upstream}} p95")],
        ),
        Panel(
            "Batches by outcome",
            "rejected: Triton's queue is full. lost: it went away, or its model did. failed: an error that another one "
            "would give as well. Rejected and lost ones are tried once more elsewhere.",
            "ops",
            [
                Line(f"sum by (upstream, outcome) ({rate('me5_upstream_batches_total')})", "{{upstream}} {{outcome}}"),
                Line(f"sum({rate('me5_upstream_retries_total')})", "second tries"),
            ],
        ),
        Panel(
            "A request inside Triton",
            "Mean time in Triton's queue and in each part of the computation. The round trip less their sum is the "
            "network and gRPC.",
            "s",
            [
                Line(
                    f"sum(rate(nv_inference_{part}_duration_us{RATE})) / sum(rate(nv_inference_request_success{RATE})) / 1e6",
                    part.replace("compute_", ""),
                )
                for part in ("queue", "compute_input", "compute_infer", "compute_output")
            ],
            stacked=True,
        ),
        Panel(
            "Texts an execution",
            "Texts that Triton computed at a time, over the requests of all gateways. Near the gateways' own batch size: "
            "its dynamic batching joins nothing, since widths differ or it is not busy.",
            "short",
            [Line(f"sum by (model) (rate(nv_inference_count{RATE})) / sum by (model) (rate(nv_inference_exec_count{RATE}))", "{{model}}")],
        ),
        Panel(
            "Waiting in Triton",
            "Requests that wait for an execution. Near max_queue_size of config.pbtxt Triton rejects.",
            "short",
            [Line("sum by (instance) (nv_inference_pending_request_count)", "{{instance}}")],
        ),
        Panel(
            "Triton's failures",
            "As Triton counts them, by reason. Its REJECTED stays 0 when its queue is full: see the gateways' outcomes.",
            "ops",
            [Line(f"sum by (instance, reason) (rate(nv_inference_request_failure{RATE}))", "{{instance}} {{reason}}")],
        ),
        Panel(
            "Triton's machine",
            "Share of the CPUs, and of each GPU where there is one. A GPU far below 1 with work waiting: batches too small.",
            "percentunit",
            [
                Line("avg by (instance) (nv_cpu_utilization)", "{{instance}} CPU"),
                Line("avg by (instance, gpu_uuid) (nv_gpu_utilization)", "{{instance}} {{gpu_uuid}}", needs="a GPU"),
            ],
            most=1,
        ),
        Panel(
            "GPU memory",
            "Share of each GPU's memory that is in use.",
            "percentunit",
            [
                Line(
                    "sum by (instance, gpu_uuid) (nv_gpu_memory_used_bytes) / sum by (instance, gpu_uuid) (nv_gpu_memory_total_bytes)",
                    "{{instance}} {{gpu_uuid}}",
                    needs="a GPU",
                )
            ],
            most=1,
        ),
    ],
)

PROCESS = Row(
    "Is the gateway's process well?",
    [
        Panel(
            "Event loop lag",
            "99th percentile of how late a call every 100 ms comes. Line: where an alert fires. High: the process lacks "
            "CPU (throttled, or the engine takes all of it), or something blocks its loop.",
            "s",
            [Line(quantile(0.99, "me5_event_loop_lag_seconds", "instance"), "{{instance}} p99")],
            bound=0.1,
        ),
        Panel(
            "Memory of its limit",
            "Gateway and engine together, of what the cgroup, else the machine, gives. Line: where an alert fires.",
            "percentunit",
            [Line(f"me5_memory_bytes{{{OF}}} / me5_memory_limit_bytes{{{OF}}}", "{{instance}}")],
            bound=0.9,
            most=1,
        ),
        Panel(
            "CPU of the gateway's own process",
            "Cores; the engine's process is not in it. Near 1: its event loop is the bottleneck, add replicas.",
            "short",
            [Line(rate("process_cpu_seconds_total", 'job="gateway"'), "{{instance}}")],
        ),
        Panel(
            "Connections",
            "Open connections of clients. ME5_MAX_CONNECTIONS bounds them.",
            "short",
            [Line(f"me5_open_connections{{{OF}}}", "{{instance}}")],
        ),
        Panel(
            "Connections cut, by reason",
            "too_many: over ME5_MAX_CONNECTIONS. The others are slow or broken clients: header_timeout, "
            "headers_too_large, not_reading.",
            "ops",
            [Line(f"sum by (reason) ({rate('me5_refused_connections_total')})", "{{reason}}")],
            stacked=True,
        ),
        Panel(
            "Bytes of bodies",
            "Bodies that are read or wait for their answer. ME5_MAX_BUFFERED_BYTES bounds them.",
            "bytes",
            [Line(f"me5_buffered_bytes{{{OF}}}", "{{instance}}")],
        ),
        Panel(
            "Open files of the limit",
            "Share of the open files that the process may have. At 1 it accepts no connection.",
            "percentunit",
            [Line(f'process_open_fds{{job="gateway", {OF}}} / process_max_fds{{job="gateway", {OF}}}', "{{instance}}")],
            most=1,
        ),
        Panel(
            "Started again",
            "Starts of the gateway's process in the last hour, the first one not counted.",
            "none",
            [Line(f'changes(process_start_time_seconds{{job="gateway", {OF}}}[1h])', "{{instance}}")],
        ),
        Panel(
            "Tasks on the event loop",
            "About one a connection and a request. Grows without end: a leak, please report it.",
            "short",
            [Line(f"me5_event_loop_tasks{{{OF}}}", "{{instance}}")],
        ),
    ],
)

TRAFFIC = Row(
    "What is asked?",
    [
        Panel(
            "Texts by role",
            "Texts turned into vectors. Passages where only queries are expected: a client takes the default role.",
            "cps",
            [Line(f"sum by (role) ({rate('me5_inputs_total')})", "{{role}}")],
            stacked=True,
        ),
        Panel(
            "Tokens by role",
            "Tokens turned into vectors, prompts and special tokens included.",
            "short",
            [Line(f"sum by (role) ({rate('me5_tokens_total')})", "{{role}}")],
            stacked=True,
        ),
        Panel(
            "Tokens a text",
            "Mean length. Twice as long is more than twice as slow.",
            "short",
            [Line(f"sum by (role) ({rate('me5_tokens_total')}) / sum by (role) ({rate('me5_inputs_total')})", "{{role}}")],
        ),
        Panel(
            "Texts cut",
            "Share of the texts that are longer than the model reads. Line: where an alert fires. Cut texts in smaller "
            "pieces before they are sent.",
            "percentunit",
            [Line(f"sum by (role) ({rate('me5_truncated_inputs_total')}) / sum by (role) ({rate('me5_inputs_total')})", "{{role}}")],
            bound=0.2,
            most=1,
        ),
        Panel(
            "Fields ignored",
            "Fields of requests that this gateway does not know: a misspelt option, or a client made for another server.",
            "cps",
            [Line(f"sum by (route) ({rate('me5_unknown_fields_total')})", "{{route}}")],
        ),
        Panel(
            "Other models asked for",
            "Requests that named another model than the one served. They were answered by the one that is.",
            "reqps",
            [Line(f"sum({rate('me5_foreign_model_names_total')})", "another model")],
        ),
    ],
)

ROWS = (USERS, TIME, WAITS, COMPUTES, UPSTREAMS, PROCESS, TRAFFIC)


def dashboard() -> Json:
    """The whole dashboard, in Grafana's format."""
    panels: list[Json] = []
    top = 0
    for row in ROWS:
        panels.append(_row(row, len(panels) + 1, top))
        top, left, height = top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > WIDTH:
                top, left, height = top + height, 0, 0
            tall = STAT_HEIGHT if panel.kind == "stat" else HEIGHT
            position = {"x": left, "y": top, "w": panel.width, "h": tall}
            panels.append(_panel(panel, len(panels) + 1, position))
            left, height = left + panel.width, max(height, tall)
        top += height
    return {
        "uid": "me5",
        "title": "me5: why is it slow?",
        "description": "From what users notice at the top to the reason further down.",
        "tags": ["me5"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": [_alerts_as_annotations()]},
        "links": [],
        "panels": panels,
    }


def _variables() -> list[Json]:
    return [
        {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0},
        {
            "name": "instance",
            "label": "Gateway",
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": "label_values(me5_ready, instance)", "refId": "instance"},
            "definition": "label_values(me5_ready, instance)",
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
            # Gateways come and go: look again whenever the time range moves.
            "refresh": 2,
            "sort": 1,
            "hide": 0,
        },
    ]


def _alerts_as_annotations() -> Json:
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "expr": 'ALERTS{alertstate="firing", alertname=~"Me5.*"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{instance}} {{upstream}}",
        "iconColor": "red",
        "step": "30s",
    }


def _row(row: Row, number: int, top: int) -> Json:
    position = {"x": 0, "y": top, "w": WIDTH, "h": 1}
    return {"id": number, "type": "row", "title": row.title, "gridPos": position, "collapsed": False, "panels": []}


def _panel(panel: Panel, number: int, position: dict[str, int]) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.bound is not None:
        steps.append({"color": "red", "value": panel.bound})
    defaults: Json = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 0,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "off" if panel.bound is None else "dashed"},
            "showPoints": "never",
        }
        options: Json = {
            "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    else:
        options = {
            "reduceOptions": {"calcs": ["lastNotNull"], "values": False, "fields": ""},
            "colorMode": "value" if panel.bound is not None else "none",
            "graphMode": "none",
            "textMode": "value_and_name" if len(panel.lines) > 1 or "{{" in panel.lines[0].legend else "value",
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [_target(line, chr(ord("A") + index), panel.kind) for index, line in enumerate(panel.lines)],
    }


def _target(line: Line, letter: str, kind: str) -> Json:
    return {
        "refId": letter,
        "datasource": SOURCE,
        "expr": line.expr,
        "legendFormat": line.legend,
        "range": kind != "stat",
        "instant": kind == "stat",
    }


def text() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
