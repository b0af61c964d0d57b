"""The gateway's process, and what it is asked."""

from __future__ import annotations

from panels import OF, Line, Panel, Row, quantile, rate


def a_text(counter: str) -> str:
    """A counter over the texts, by role."""
    return f"sum by (role) ({rate(counter)}) / sum by (role) ({rate('me5_inputs_total')})"


PROCESS = Row(
    "Is the gateway's process well?",
    [
        Panel(
            "Event loop lag",
            "99th percentile of how late a call every 100 ms comes. Line: where an alert fires. High: it lacks "
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
            [
                Line(
                    a_text("me5_tokens_total"),
                    "{{role}}",
                )
            ],
        ),
        Panel(
            "Texts cut",
            "Share of the texts that are longer than the model reads. Line: where an alert fires. Cut texts in smaller "
            "pieces before they are sent.",
            "percentunit",
            [
                Line(
                    a_text("me5_truncated_inputs_total"),
                    "{{role}}",
                )
            ],
            bound=0.2,
            most=1,
        ),
        Panel(
            "Fields ignored",
            "Fields that the gateway does not know: a misspelt option, or a client made for another server.",
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
