"""Whether a request is taken in: pure functions of what waits and what comes, and the book of promised times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.batching import Lane
from service.errors import Overloaded

# A short text has about this many characters a token, and a prompt and its special tokens are about four more.
CHARS_PER_TOKEN = 3
PROMPT_TOKENS = 4

# The share of the time a client gives that the wait may take by the measured rate; rates waver.
WAIT_SHARE = 0.8

RETRY_AFTER_MAX_S = 60.0
# Its multiples, modulo one, fill the interval evenly, however many there are.
GOLDEN_RATIO = 0.6180339887498949


@dataclass(frozen=True)
class Refusal:
    """excess: tokens that have to leave the lane before the request would be taken in.   why: the end of a sentence."""

    excess: int
    why: str


def guess_tokens(inputs: Sequence[str | list[int]], max_tokens: int) -> int:
    """About how many tokens some inputs will have, from their lengths alone."""
    return sum(
        min(len(item) // (CHARS_PER_TOKEN if isinstance(item, str) else 1) + PROMPT_TOKENS, max_tokens)
        for item in inputs
    )


def refusal(
    queued: Mapping[str, int], client: str, tokens: int, *, limit: int, tokens_per_s: float, timeout_s: float
) -> Refusal | None:
    """Why a request of so many tokens is not taken into a lane, or None.

    queued: tokens of each client in the lane, the running batches included.   tokens_per_s: how fast the lane drains,
    0 while that is unknown.   timeout_s: the time the request has.

    A client may hold as many tokens as are left free beside all that is queued (dynamic thresholds, Choudhury and
    Hahne, 1998): alone it can fill half of a lane, and however greedy it is, another one finds room. An empty lane has
    room for any request. Work that could not be done in time is better refused at once than dropped later.
    """
    total = sum(queued.values())
    if not total:
        return None
    own = queued.get(client, 0)
    if own + tokens > limit - total:
        return Refusal(
            excess=own + tokens + total - limit,
            why=f"of which {own} are this client's, and a client may hold what is left free of {limit} "
            "(ME5_MAX_QUEUED_TOKENS)",
        )
    if tokens_per_s:
        ahead = wait_tokens(queued, client, tokens)
        allowed = WAIT_SHARE * timeout_s * tokens_per_s
        if ahead > allowed:
            return Refusal(math.ceil(ahead - allowed), f"that takes longer than the {timeout_s:g} s allowed")
    return None


def wait_tokens(queued: Mapping[str, int], client: str, tokens: int) -> int:
    """Tokens a fair queue serves before this request is done: of each other client at most as many as of this one."""
    own = queued.get(client, 0) + tokens
    return own + sum(min(held, own) for other, held in queued.items() if other != client)


class Promises:
    """When refused requests were told to come back, so that each is told a time at which there is room for it.

    A queue that many are waiting outside of has room for one of them as soon as its excess has left, and for the next
    when the work of that one is done as well.
    """

    def __init__(self) -> None:
        self._until = 0.0
        self._beyond = 0

    def forget(self) -> None:
        """The lane is empty: who was told to come back and did not has lost its turn."""
        self._until = 0.0

    def retry_after_s(self, excess: int, tokens: int, tokens_per_s: float, now: float) -> int:
        """Whole seconds, 1 to 60, after which this request would be taken in; they are booked for it.

        Those for whom there is no room within that time are told times all over its second half: one and the same for
        all would send them back as a herd.
        """
        rate = max(tokens_per_s, 1.0)
        at = max(now + excess / rate, self._until)
        if at - now >= RETRY_AFTER_MAX_S:
            self._beyond += 1
            return math.ceil(RETRY_AFTER_MAX_S * (0.5 + 0.5 * (self._beyond * GOLDEN_RATIO % 1)))
        self._until = at + tokens / rate
        return max(1, math.ceil(at - now))


def overloaded(lane: Lane, queued: int, tokens: int, refused: Refusal, retry_after_s: int) -> Overloaded:
    """The error a refused request gets."""
    return Overloaded(
        f"Model is overloaded: {queued} tokens are waiting in lane {lane}, this request adds {tokens}, "
        f"{refused.why}; try again in {retry_after_s} s",
        retry_after_s=retry_after_s,
    )
