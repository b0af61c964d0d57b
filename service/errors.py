"""Every error this project raises on purpose.

Me5Error                            500 internal
├── RequestError                    the caller can mend it
│   ├── MalformedRequest            400 malformed        not JSON, or JSON of another shape
│   ├── EmptyInput                  400 empty            a text or a list without content
│   ├── InvalidInput                422 validation       a value outside its limits, with the index of each bad input
│   ├── TextTooLong                 422 too_long         more tokens than the model reads, and truncation refused
│   ├── UnsupportedMediaType        415 media_type       a body that is not plain JSON
│   ├── RequestTimeout              408 request_timeout  the headers or the body did not arrive in time
│   ├── HeadersTooLarge             431 headers_too_large
│   ├── BodyTooLarge                413 body_too_large
│   ├── OverBurst                   413 over_burst       more tokens than the key may ever use at once
│   ├── Unauthorized                401 invalid_api_key  no key, or one that is not valid (any more)
│   ├── Forbidden                   403 forbidden        the key is valid, but not for this
│   └── NotFound                    404 not_found        no such route
├── Overloaded                      429 overloaded       the queue is full; carries retry_after_s
├── RateLimited                     429 rate_limit_exceeded, the key's tokens are used up; carries retry_after_s
├── TooManyConnections              503 too_many_connections; carries retry_after_s
├── DeadlineExceeded                504 deadline         the request's time is up
├── EngineFailed                    500 engine_failed    the engine raised, or gave a vector that is not finite
├── EngineLost                      503 engine_lost      no engine to compute with, for now
├── UpstreamFailed                  503 upstream_failed  two of several Tritons were lost with the request
├── ShuttingDown                    503 shutting_down    the process is about to end
├── BulkError                       a bulk job can't go on; never seen by an HTTP client
│   ├── BadInputLine                a record of the input has no text that can be embedded
│   ├── OutputBusy                  another process writes this output
│   ├── OtherJob                    the output, finished or not, is of a job with other settings or another input
│   ├── PartsMissing                shards to be merged are not all there, or not of one job
│   └── GatewayRefused              a gateway elsewhere refused texts, or none answered for too long
└── StartupError                    the process can't start; never seen by an HTTP client
    ├── SettingsError               a setting is unknown or outside its limits
    ├── KeysError                   the file of keys can't be read, or says something that can't be
    ├── ModelNotFound               no such model in the repository
    ├── ModelFileError              a file of the model is missing, damaged or of another version
    ├── GoldenMismatch              the engine's vectors are not those the model was trained to give
    ├── PackageMissing              a command needs a package of an extra that is not installed
    └── IndexUnusable               a search index is missing, damaged, being written, or of another model
"""

from __future__ import annotations

from collections.abc import Iterable


def ranges(indices: Iterable[int], separator: str = ",") -> str:
    """Ascending indices, runs joined: 0, 1, 2, 7 → "0-2,7". Every index is named, and the text stays short."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return separator.join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def name_inputs(indices: list[int]) -> str:
    """Inputs by their indices, for a message: "input 3", "inputs 0, 2-5"."""
    return f"{'input' if len(indices) == 1 else 'inputs'} {ranges(indices, ', ')}"


class Me5Error(Exception):
    """The root: a sentence for people, an HTTP status and a stable code for programs."""

    status = 500
    code = "internal"
    # When to try again, where that is known.
    retry_after_s: int | None = None
    # What its answer has beside.
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(Me5Error):
    """The request is at fault; sending it again unchanged gives the same answer."""

    status = 422
    code = "validation"


class MalformedRequest(RequestError):
    """The body is not JSON, or not of the shape the route takes."""

    status = 400
    code = "malformed"


class EmptyInput(RequestError):
    """A text, or the list of texts, is empty. TEI's own status and wording."""

    status = 400
    code = "empty"

    def __init__(self, message: str = "`inputs` cannot be empty") -> None:
        super().__init__(message)


class InvalidInput(RequestError):
    """A value is outside its limits; the message names the value, the limit and the remedy."""


class TextTooLong(RequestError):
    """Texts of more tokens than the model reads, where the caller asked not to truncate."""

    code = "too_long"

    def __init__(self, *, tokens: int, limit: int, indices: list[int], status: int = 422) -> None:
        """status: 422, or 413 as TEI had it before 1.9, which some clients wait for."""
        self.status = status
        # The first sentence is TEI's, word for word: clients recognise it and send the text in halves.
        super().__init__(
            f"`inputs` must have less than {limit} tokens. Given: {tokens} ({name_inputs(indices)}); "
            "shorten the text or set truncate to true"
        )


class UnsupportedMediaType(RequestError):
    """The body is compressed, or declared to be something else than JSON."""

    status = 415
    code = "media_type"


class BodyTooLarge(RequestError):
    """The body has more bytes than ME5_MAX_BODY_BYTES."""

    status = 413
    code = "body_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"the body is larger than {limit_bytes} bytes; send fewer texts a request, or raise ME5_MAX_BODY_BYTES"
        )


class OverBurst(RequestError):
    """More tokens than the key's bucket holds when full: no waiting helps, and 413 is what makes clients split."""

    status = 413
    code = "over_burst"


class Unauthorized(RequestError):
    """No key, or an unknown, expired or disabled one: RFC 6750 has 401 for all of them, with the reason."""

    status = 401
    code = "invalid_api_key"

    def __init__(self, message: str, *, given: bool) -> None:
        super().__init__(message)
        detail = b', error="invalid_token"' if given else b""
        self.headers = ((b"www-authenticate", b'Bearer realm="me5"' + detail),)


class Forbidden(RequestError):
    """Whose request it is, is known; this it may not do."""

    status = 403
    code = "forbidden"


class NotFound(RequestError):
    """No such route, or no such model."""

    status = 404
    code = "not_found"


class Overloaded(Me5Error):
    """The queue is full; retry_after_s is how long it is expected to take until this request has room."""

    status = 429
    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Me5Error):
    """The key's tokens are used up for now; retry_after_s is when there will be as many as this request has."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyConnections(Me5Error):
    """More connections are open than ME5_MAX_CONNECTIONS."""

    status = 503
    code = "too_many_connections"
    retry_after_s = 1


class HeadersTooLarge(RequestError):
    """The headers have more bytes than any client of ours needs."""

    status = 431
    code = "headers_too_large"


class RequestTimeout(RequestError):
    """The headers or the body did not arrive in time."""

    status = 408
    code = "request_timeout"


class DeadlineExceeded(Me5Error):
    """The request's time was up before its vectors were there."""

    status = 504
    code = "deadline"

    def __init__(self, *, waiting: int, total: int) -> None:
        super().__init__(
            f"the vectors were not ready before the deadline ({waiting} of {total} texts were still waiting); "
            "send fewer texts, allow more time by x-me5-timeout-ms, or raise ME5_DEADLINE_S"
        )


class EngineFailed(Me5Error):
    """The engine raised on this batch, or gave a vector with NaN or infinity in it."""

    code = "engine_failed"


class TokenizerFailed(Me5Error):
    """The tokenizer's native code panicked on a text."""

    code = "tokenizer_failed"


class EngineLost(Me5Error):
    """There is no engine to compute with: it died or hung, and another one is being opened."""

    status = 503
    code = "engine_lost"


class UpstreamFailed(Me5Error):
    """The Triton that had the batch was lost, and the other one that was tried; there are more."""

    status = 503
    code = "upstream_failed"


class ShuttingDown(Me5Error):
    """The process is ending and takes no new work."""

    status = 503
    code = "shutting_down"


class BulkError(Me5Error):
    """A bulk job can't go on; the command line prints the sentence and exits with 2. What is done stays done."""

    code = "bulk"


class BadInputLine(BulkError):
    """A record of the input has no text that can be embedded."""

    def __init__(self, source: object, line: int, reason: str) -> None:
        super().__init__(f"{source}, line {line}: {reason}; mend it, or leave such lines out by --on-error skip")


class OutputBusy(BulkError):
    """Another process writes this output."""


class OtherJob(BulkError):
    """The output, finished or not, is of a job with other settings or of another input."""


class PartsMissing(BulkError):
    """Shards to be merged are not all there, or are not of one job."""


class GatewayRefused(BulkError):
    """A gateway elsewhere refused texts, or none answered for too long."""


class StartupError(Me5Error):
    """The process can't start; the command line prints the sentence and exits with 2."""

    code = "startup"


class SettingsError(StartupError):
    """A setting is unknown or outside its limits."""


class KeysError(StartupError):
    """The file of keys can't be read or written, or says something that can't be. Never holds a secret."""


class ModelNotFound(StartupError):
    """The model repository holds no such model or version."""


class ModelFileError(StartupError):
    """A file of the model is missing, damaged, or written by another version of this project."""


class GoldenMismatch(StartupError):
    """The engine's vectors for the golden texts are not those of the model."""


class PackageMissing(StartupError):
    """A command needs a package that comes with an extra."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; pip install -e '.[{extra}]'")


class IndexUnusable(StartupError):
    """A search index is missing, damaged, being written by another process, or of another model."""
