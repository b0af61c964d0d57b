"""What a dashboard is made of, and the expressions that its panels share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# The gateways that the variable at the top of the page chooses.
OF = 'instance=~"$instance"'
RATE = "[$__rate_interval]"
REQUESTS = "me5_request_duration_seconds_count"
FAILED = 'code=~"5.."'


@dataclass(frozen=True)
class Line:
    """One query. legend: with the labels in double braces.   needs: hardware without which there is no data."""

    expr: str
    legend: str
    needs: str | None = None


@dataclass(frozen=True)
class Panel:
    """One panel.

    about: its description.   unit, kind: Grafana's names.   bound: where an alert fires, drawn as a line.   most: the
    end of its scale, if it has one.
    """

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
    return [
        Line(quantile(share, "me5_request_duration_seconds", "", *only), f"p{share * 100:g}")
        for share in (0.5, 0.95, 0.99)
    ]
