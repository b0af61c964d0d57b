"""What users notice, where the time goes, and what waits."""

from __future__ import annotations

from panels import FAILED, OF, REQUESTS, Line, Panel, Row, latencies, mean, quantile, rate, stages

STAGES = (
    "The mean time of a request and where it went. tokenise: a request's texts to tokens. queue: a text's wait for its "
    "batch. engine: a batch's time in the engine, or in Triton and on the way there. rest: reading, waiting "
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
        Panel(
            "A query's time", STAGES.format(lane="Interactive requests."), "s", stages("interactive"), 12, stacked=True
        ),
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
            "Tokens waiting at each gateway over the tokens it computes in a second. Line: where an alert fires. "
            "Growing: less comes out than goes in; add replicas. An hour: nothing comes out.",
            "s",
            [
                Line(
                    # 0/0, nothing waiting and nothing computed, is 0; infinity can't be drawn.
                    f"clamp_max(instance:me5_queue_seconds:to_drain{{{OF}}} >= 0, 3600) "
                    f"or 0 * sum by (instance) (me5_ready{{{OF}}})",
                    "{{instance}}",
                )
            ],
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
            "Mean number of texts. Near 1 under load: texts are long, or too different in length to share a batch.",
            "short",
            [Line(mean("me5_batch_size", "lane"), "{{lane}}")],
        ),
        Panel(
            "Padding",
            "Share of a batch that is padding: work for nothing. Above a quarter: lengths are mixed.",
            "percentunit",
            [Line(mean("me5_batch_padding_ratio", "lane"), "{{lane}}")],
            most=1,
        ),
    ],
)
