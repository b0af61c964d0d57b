"""What computes: the engine, and Triton."""

from __future__ import annotations

from panels import OF, RATE, Line, Panel, Row, quantile, rate


def of_triton(counter: str) -> str:
    """The rate of one of Triton's counters of inferences."""
    return f"rate(nv_inference_{counter}{RATE})"


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
            [
                Line(quantile(share, "me5_engine_duration_seconds", "lane"), f"{{{{lane}}}} p{share * 100:g}")
                for share in (0.5, 0.95)
            ],
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
            "In 15 minutes, by reason. died: killed or crashed. hung: longer than ME5_ENGINE_TIMEOUT_S. failed: "
            "batches in a row. Three of them: an alert fires.",
            "none",
            [
                Line(
                    f"sum by (instance, reason) (increase(me5_engine_restarts_total{{{OF}}}[15m]))",
                    "{{instance}} {{reason}}",
                )
            ],
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
                    f"sum({of_triton(f'{part}_duration_us')}) / sum({of_triton('request_success')}) / 1e6",
                    part.replace("compute_", ""),
                )
                for part in ("queue", "compute_input", "compute_infer", "compute_output")
            ],
            stacked=True,
        ),
        Panel(
            "Texts an execution",
            "Texts that Triton computed at a time, over the requests of all gateways. Near the gateways' batch size: "
            "its dynamic batching joins nothing, since widths differ or it is not busy.",
            "short",
            [
                Line(
                    f"sum by (model) ({of_triton('count')}) / sum by (model) ({of_triton('exec_count')})",
                    "{{model}}",
                )
            ],
        ),
        Panel(
            "Waiting in Triton",
            "Requests that wait for an execution. Near max_queue_size of config.pbtxt Triton rejects.",
            "short",
            [Line("sum by (instance) (nv_inference_pending_request_count)", "{{instance}}")],
        ),
        Panel(
            "Triton's failures",
            "As Triton counts them, by reason. Its REJECTED stays 0 with a full queue: see the gateways' outcomes.",
            "ops",
            [Line(f"sum by (instance, reason) ({of_triton('request_failure')})", "{{instance}} {{reason}}")],
        ),
        Panel(
            "Triton's machine",
            "Share of the CPUs, and of each GPU. A GPU far below 1 while work waits: batches too small.",
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
                    "nv_gpu_memory_used_bytes / nv_gpu_memory_total_bytes",
                    "{{instance}} {{gpu_uuid}}",
                    needs="a GPU",
                )
            ],
            most=1,
        ),
    ],
)
