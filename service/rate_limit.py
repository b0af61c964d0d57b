"""A token bucket: how many of the model's tokens a key may use, as a pure function of the time it is given."""

from __future__ import annotations

import math


class Bucket:
    """Holds up to `burst` tokens, begins full, and gains tokens_per_minute / 60 each second.

    What is taken in any T seconds is therefore at most burst + T × rate, to the token: a request takes all of its
    tokens at once or none of them, and there is no debt. Times are seconds of any clock that never goes back.
    """

    def __init__(self, tokens_per_minute: int, burst: int, now: float) -> None:
        self.tokens_per_s = tokens_per_minute / 60
        self.burst = burst
        self._level = float(burst)
        self._at = now

    def remaining(self, now: float) -> float:
        """Tokens that could be taken now."""
        return min(self.burst, self._level + max(0.0, now - self._at) * self.tokens_per_s)

    def take(self, tokens: int, now: float) -> bool:
        """Take so many if they are there."""
        level = self.remaining(now)
        if tokens > level:
            return False
        self._level, self._at = level - tokens, max(now, self._at)
        return True

    def give_back(self, tokens: int, now: float) -> None:
        """Undo a take whose work was not done."""
        self._level, self._at = min(self.burst, self.remaining(now) + tokens), max(now, self._at)

    def wait_s(self, tokens: int, now: float) -> float:
        """After how long so many could be taken, if nobody else takes any; infinite where they never fit."""
        if tokens > self.burst:
            return math.inf
        return max(0.0, tokens - self.remaining(now)) / self.tokens_per_s

    def resized(self, tokens_per_minute: int, burst: int, now: float) -> Bucket:
        """A bucket of another size in which as many tokens are missing as in this one, but never more than it holds."""
        found = Bucket(tokens_per_minute, burst, now)
        # A debt would lock the key out for as long as a smaller limit needs to pay what a larger one allowed.
        found._level = max(0.0, burst - (self.burst - self.remaining(now)))
        return found


def duration(seconds: float) -> str:
    """Seconds in the form of OpenAI's x-ratelimit-reset-*: 350ms, 1.5s, 6m0s, 1h2m3s; rounded up."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{math.ceil(seconds * 1000) / 1000:g}s"
    minutes, whole = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{whole}s" if hours else f"{minutes}m{whole}s"
