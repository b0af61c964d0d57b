"""What all routes of Text Embeddings Inference share: its errors.

Contract: huggingface/text-embeddings-inference, router/src/http/{server,types}.rs, version 1.9.
"""

from __future__ import annotations

from service.api.facade import TEXT, Facade, object_of
from service.errors import Me5Error

# TEI's names on the wire. Its 424 for a failed engine is not copied: the fault is the server's own.
_TYPES = {
    "empty": "Empty",
    "overloaded": "Overloaded",
    "engine_failed": "Backend",
    "tokenizer_failed": "Backend",
    "engine_lost": "Unhealthy",
    "upstream_failed": "Unhealthy",
    "too_many_connections": "Overloaded",
    "shutting_down": "Unhealthy",
    "deadline": "Overloaded",
    "internal": "Backend",
}


def _error_body(error: Me5Error, _: int) -> dict[str, object]:
    validation = error.status in (400, 422) or error.code == "too_long"
    message = f"Input validation error: {error.message}" if validation else error.message
    return {"error": message, "error_type": _TYPES.get(error.code, "Validation")}


# Every path that is nobody else's.
TEI = Facade(
    prefix="/",
    error_body=_error_body,
    error_schema=object_of(error=TEXT, error_type=TEXT),
)
