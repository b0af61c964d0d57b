"""The dashboard that answers "why is it slow?", as dashboards/me5.json. Run it to write that file again.

Rows go from what users notice down to what may be the reason. Every panel says what it shows and what to do about it.
"""

from __future__ import annotations

import json
from pathlib import Path

from panels import Line, Panel, Row
from rows_engine import COMPUTES, UPSTREAMS
from rows_process import PROCESS, TRAFFIC
from rows_users import TIME, USERS, WAITS

Json = dict[str, object]

TARGET = Path(__file__).resolve().parent / "dashboards" / "me5.json"

# Of Grafana's 24 columns.
WIDTH = 24
HEIGHT = 8
STAT_HEIGHT = 4

SOURCE: Json = {"type": "prometheus", "uid": "${source}"}
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
        "target": {"refId": "Alerts", "expr": 'ALERTS{alertstate="firing", alertname=~"Me5.*"}', "interval": "30s"},
        "titleFormat": "{{alertname}}",
        "textFormat": "{{instance}} {{upstream}}",
        "iconColor": "red",
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
            "legend": {
                "displayMode": "table",
                "placement": "bottom",
                "showLegend": True,
                "calcs": ["lastNotNull", "max"],
            },
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
