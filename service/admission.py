"""Whether a request is taken in: pure functions of what waits and what comes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from service.batching import Lane
from service.errors import Overloaded

# A short text has about this many characters a token, and a prompt and its special tokens are about four more.
CHARS_PER_TOKEN = 3
PROMPT_TOKENS = 4


def guess_tokens(inputs: Sequence[str | list[int]], max_tokens: int) -> int:
    """About how many tokens some inputs will have, from their lengths alone."""
    return sum(
        min(len(item) // (CHARS_PER_TOKEN if isinstance(item, str) else 1) + PROMPT_TOKENS, max_tokens)
        for item in inputs
    )


def refusal(
    lane: Lane, *, queued: int, tokens: int, limit: int, tokens_per_s: float, timeout_s: float | None
) -> Overloaded | None:
    """Why a request of so many tokens is not taken in, or None.

    queued: tokens that wait in its lane.   Each lane has the whole limit for itself, so that bulk work can't keep
    queries out. An empty lane has room for any request. timeout_s: the time its client gives it; work that could not
    be done in time is better refused at once than dropped later.
    """
    if not queued:
        return None
    if queued + tokens > limit:
        excess, why = queued + tokens - limit, f"the limit is {limit} (ME5_MAX_QUEUED_TOKENS)"
    elif timeout_s is not None and tokens_per_s and queued / tokens_per_s > timeout_s:
        excess, why = int(queued - timeout_s * tokens_per_s), f"that takes longer than the {timeout_s:g} s allowed"
    else:
        return None
    wait_s = retry_after_s(excess, tokens_per_s)
    return Overloaded(
        f"Model is overloaded: {queued} tokens are waiting in lane {lane}, this request adds {tokens}, {why}; "
        f"try again in {wait_s} s",
        retry_after_s=wait_s,
    )


def retry_after_s(excess_tokens: int, tokens_per_s: float) -> int:
    """Whole seconds until this many tokens have left the queue at the measured rate; 1 to 60."""
    return max(1, min(60, math.ceil(excess_tokens / max(tokens_per_s, 1.0))))
