"""What an error of Triton means for a batch: the table "Triton's error → ours", as pure functions."""

from __future__ import annotations

from typing import Literal

# ok: vectors came.   rejected: Triton's queue is full.   deadline: the batch's time is up.   lost: this Triton can't
# serve the model now.   failed: it answered, with an error; out of memory, or a request that is wrong everywhere.
# cancelled: nobody waited any more.
Outcome = Literal["ok", "rejected", "deadline", "lost", "failed", "cancelled"]

# Triton has one status for all that keeps it from taking a request; its words tell them apart. Source: Triton 2.51,
# core/src/backend_model_instance and scheduler; its own metric of rejections stays at 0, so they are counted here.
_QUEUE_FULL = "exceeds maximum queue size"
_EXPIRED_IN_QUEUE = "timeout expired"
# INTERNAL: the process that a python-based backend computes in has died.
_BROKEN = ("stub process", "is not healthy")

# gRPC's status → outcome, where the words don't matter.
TABLE: dict[str, Outcome] = {
    "UNAVAILABLE": "lost",  # not reachable, stopping, or the version is not loaded
    "NOT_FOUND": "lost",  # it has no such model or version
    "DEADLINE_EXCEEDED": "deadline",
    "CANCELLED": "lost",  # by the server: our own cancelling raises no error of Triton
    "ABORTED": "lost",
    "INVALID_ARGUMENT": "failed",  # names, shapes or types are not those of its config.pbtxt
    "UNIMPLEMENTED": "failed",
    "RESOURCE_EXHAUSTED": "failed",  # a message larger than it takes
    "INTERNAL": "failed",
    "UNKNOWN": "failed",
}


def outcome_of(status: str | None, message: str) -> Outcome:
    """What became of a batch.   status: gRPC's, as "StatusCode.UNAVAILABLE" or "UNAVAILABLE".   message: Triton's."""
    name, words = (status or "UNKNOWN").rpartition(".")[2], message.lower()
    if name == "UNAVAILABLE" and _QUEUE_FULL in words:
        return "rejected"
    if name == "UNAVAILABLE" and _EXPIRED_IN_QUEUE in words:
        return "deadline"
    if name == "INTERNAL" and any(sign in words for sign in _BROKEN):
        return "lost"
    return TABLE.get(name, "failed")


def goes_elsewhere(outcome: Outcome) -> bool:
    """Whether another Triton may well answer the batch that this one did not."""
    return outcome in ("rejected", "lost", "failed")
