"""The learning rate over the steps: pure functions."""

from typing import Literal


def rate_at(
    step: int,
    steps: int,
    warmup_steps: int,
    schedule: Literal["linear", "warmup_stable_decay"] = "linear",
    decay_share: float = 0.1,
) -> float:
    """The share of the full learning rate that step number `step` of `steps` moves by, in (0, 1].

    linear: up over warmup_steps, then down to nothing behind the last step.
    warmup_stable_decay: up, level, and down over the last decay_share of the steps.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    falling = steps - warmup_steps if schedule == "linear" else max(1, round(steps * decay_share))
    return min(1.0, (steps - step) / max(falling, 1))
