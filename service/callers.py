"""Who asks: the keys in force, what each has used, and what it may still use."""

from __future__ import annotations

import math

from service.batching import Lane
from service.errors import Forbidden, KeysError, Me5Error, OverBurst, RateLimited, Unauthorized
from service.keys import Key, Keyring
from service.metrics import KeyMetrics, OneKey
from service.rate_limit import Bucket, duration

# What tokenising a request is charged for where nothing is computed, as a part of its tokens.
TOKENISING_SHARE = 16
# A guess from the length alone may be above the tokens there are; by more than this only where nearly all is spaces.
GUESS_EXCESS = 4

Headers = list[tuple[bytes, bytes]]


class Caller:
    """A key in force.   bucket: None without a limit.

    A request costs the tokens the model reads for it, prompts included and what was cut off not: what the header
    x-compute-tokens says. That is known once it is tokenised, and it is charged then, in one piece. What is refused
    after that is not free, or a key with a small limit could keep the tokenizer busy for ever.
    """

    def __init__(self, key: Key, bucket: Bucket | None, metrics: OneKey) -> None:
        self.key = key
        self.name = key.name
        self.bucket = bucket
        self.metrics = metrics

    def lane_for(self, wanted: Lane | None) -> Lane | None:
        """The lane of a request that names this one, or none. Raises Forbidden."""
        pinned = self.key.lane
        if pinned is not None and wanted not in (None, pinned):
            self.metrics.rejected["forbidden"].inc()
            raise Forbidden(f"key {self.name} may only use lane {pinned}, not {wanted}; leave x-me5-lane out")
        return pinned or wanted

    def expect(self, texts: int, guess: int, now: float) -> None:
        """Refuse before any work what can't be afforded even at a token a text, or at a fraction of what is guessed.

        It is told to come back when there will be what is guessed: then it is counted, and would be refused again
        with no more than its least.
        """
        least_tokens = max(texts, guess // GUESS_EXCESS)
        if self.bucket is not None and least_tokens > self.bucket.remaining(now):
            likely_tokens = max(least_tokens, min(guess, self.bucket.burst))
            raise self._refusal(self.bucket, least_tokens, now, likely_tokens)

    def charge(self, tokens: int, now: float) -> None:
        """Take a request's tokens, all or none. Raises RateLimited, or OverBurst where waiting would not help.

        What it raises for is charged too: all that is left where the request can never fit; where it will, a part of
        its tokens, for clients that try again together must not keep the bucket empty.
        """
        if self.bucket is not None and not self.bucket.take(tokens, now):
            self.penalise(tokens if tokens > self.bucket.burst else tokens // TOKENISING_SHARE, now)
            raise self._refusal(self.bucket, tokens, now, tokens)

    def penalise(self, tokens: int, now: float) -> None:
        """Take so many tokens for work that gave no vectors, or what is left if that is less."""
        if self.bucket is not None:
            self.bucket.take(min(tokens, int(self.bucket.remaining(now))), now)

    def refund(self, tokens: int, error: Me5Error, now: float) -> None:
        """Give the tokens back where the server failed the request. A deadline is the client's own choice."""
        if self.bucket is not None and error.status in (429, 500, 503):
            self.bucket.give_back(tokens, now)

    def headers(self, now: float) -> Headers:
        """OpenAI's headers of a token limit: what the bucket holds when full, what is left, when it is full again."""
        if self.bucket is None:
            return []
        bucket = self.bucket
        return [
            (b"x-ratelimit-limit-tokens", b"%d" % bucket.burst),
            (b"x-ratelimit-remaining-tokens", b"%d" % bucket.remaining(now)),
            (b"x-ratelimit-reset-tokens", duration(bucket.wait_s(bucket.burst, now)).encode("ascii")),
        ]

    def _refusal(self, bucket: Bucket, tokens: int, now: float, likely_tokens: int) -> Me5Error:
        about = f"key {self.name} may use {self.key.tokens_per_minute} tokens a minute, {bucket.burst} at once"
        if tokens > bucket.burst:
            self.metrics.rejected["over_burst"].inc()
            return OverBurst(f"{about}; this request has {tokens} or more; send fewer texts a request")
        self.metrics.rejected["rate_limit"].inc()
        wait_s = max(1, math.ceil(bucket.wait_s(likely_tokens, now)))
        has = f"{tokens}" if likely_tokens == tokens else f"{tokens} or more"
        return RateLimited(
            f"Rate limit reached: {about}; {int(bucket.remaining(now))} are left, this request has {has}; "
            f"try again in {wait_s} s",
            retry_after_s=wait_s,
        )


class Callers:
    """The keys in force. fixed: those of ME5_API_KEY; a file's come by `use`, again and again."""

    def __init__(self, fixed: tuple[Key, ...], metrics: KeyMetrics, now: float) -> None:
        self.metrics = metrics
        self._fixed = fixed
        self._keyring = Keyring(())
        self._by_name: dict[str, Caller] = {}
        self.use((), now)

    def use(self, keys: tuple[Key, ...], now: float) -> None:
        """Put a file's keys in force, and no other. Raises KeysError, and changes nothing.

        A key that stays has used what it has used: what is missing in its bucket is missing in the new one.
        """
        together = (*self._fixed, *keys)
        for what in ({key.name for key in together}, {key.digest for key in together}):
            if len(what) < len(together):
                raise KeysError("a key of ME5_API_KEY is in the file of keys too, or its name is; choose another name")
        before = self._by_name
        self._by_name = {key.name: self._caller(before.get(key.name), key, now) for key in together}
        self._keyring = Keyring(together)
        for name in before.keys() - self._by_name.keys():
            before[name].metrics.forget()
        self.metrics.keys.set(len(together))

    @property
    def count(self) -> int:
        """How many keys there are."""
        return len(self._by_name)

    def identify(self, secret: bytes | None, unix_now: float) -> Caller:
        """Whose key this is. Raises Unauthorized."""
        if secret is None:
            raise self._unauthorized("missing", "no API key; send `Authorization: Bearer KEY`, or x-api-key: KEY")
        key = self._keyring.find(secret)
        if key is None:
            raise self._unauthorized("unknown", "the API key is not known to this server")
        caller = self._by_name[key.name]
        for reason, holds in (("disabled", key.disabled), ("expired", key.has_expired(unix_now))):
            if holds:
                caller.metrics.rejected[reason].inc()
                raise self._unauthorized(reason, f"the API key {key.name} is {reason}")
        return caller

    def _unauthorized(self, reason: str, message: str) -> Unauthorized:
        self.metrics.unauthorized.labels(reason).inc()
        return Unauthorized(message, given=reason != "missing")

    def _caller(self, before: Caller | None, key: Key, now: float) -> Caller:
        if before is not None and before.key == key:
            return before
        bucket: Bucket | None = None
        if key.tokens_per_minute is not None:
            bucket = Bucket(key.tokens_per_minute, key.burst_tokens, now)
            if before is not None and before.bucket is not None:
                same = (before.key.tokens_per_minute, before.key.burst_tokens) == (
                    key.tokens_per_minute,
                    key.burst_tokens,
                )
                # The very same where it can be: requests under way still give their tokens back to it.
                bucket = before.bucket if same else before.bucket.resized(key.tokens_per_minute, key.burst_tokens, now)
        return Caller(key, bucket, self.metrics.of(key.name) if before is None else before.metrics)
