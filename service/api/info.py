"""GET /info: TEI's description of what is served, with this server's own fields.

Contract: huggingface/text-embeddings-inference, router/src/http/{server,types}.rs, version 1.9.
"""

from __future__ import annotations

from typing import get_args

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service import __version__
from service.api.answering import json_response
from service.api.encoding import Dtype, scale_of
from service.api.facade import INTEGER, TEXT
from service.api.reading import embedder_of
from service.api.tei import TEI
from service.api.tokenize import TOKENIZE_CHARS_MAX

FACADE = TEI
router = APIRouter()

# TEI's names of precisions.
_DTYPE_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}

_EXAMPLE: dict[str, object] = {
    "model_id": "me5_nano",
    "model_sha": "95eeb5315a5c1f0acfdc6ec038fbc4b0d26bab8771ce731cd0d074fe01ea227f",
    "model_dtype": "bfloat16",
    "served_model_name": "me5_nano",
    "model_type": {"embedding": {"pooling": "mean"}},
    "max_concurrent_requests": 200000,
    "max_input_length": 512,
    "max_batch_tokens": 0,
    "max_batch_requests": None,
    "max_client_batch_size": 2048,
    "auto_truncate": True,
    "tokenization_workers": 2,
    "version": "0.1.0",
    "sha": None,
    "docker_label": None,
    "model_version": "1",
    "model_source": "checkpoint step_000500, weights sha256 ede0787b71a61512",
    "dimension": 768,
    "hidden_size": 384,
    "output_dtypes": ["float32", "float16", "int8"],
    "int8_scale": 443.2,
    "weights": "int8",
    "engine": "openvino",
    "precision": "bf16",
    "device": "CPU",
    "memory_peak_bytes": 1503238553,
    "golden": {"source": "torch", "cosine": 0.99997},
    "default_role": "query",
    "prompts": {"query": "query: ", "passage": "passage: ", "instruct": False},
    "token_states": True,
    "max_queued_tokens": 200000,
    "max_tokenize_characters": 100000,
    "max_body_bytes": 10485760,
}


@router.get(
    "/info",
    responses=TEI.responses(
        "TEI's fields and this server's own.",
        {
            "type": "object",
            "required": list(_EXAMPLE),
            "properties": {"model_id": TEXT, "dimension": INTEGER, "max_input_length": INTEGER},
        },
        _EXAMPLE,
        errors=[401],
    ),
    summary="The model and the limits",
)
async def info(request: Request) -> Response:
    """TEI's fields, then this server's own."""
    embedder = embedder_of(request)
    settings, spec, about = embedder.settings, embedder.model.spec, embedder.about()
    return json_response(
        {
            "model_id": spec.name,
            "model_sha": spec.files.get("model.onnx"),
            # Until the first engine is there, the precision may be "auto".
            "model_dtype": _DTYPE_NAMES.get(about["precision"], about["precision"]),
            "served_model_name": spec.name,
            "model_type": {"embedding": {"pooling": "mean"}},
            # Requests are admitted by tokens, not by number; TEI's field has to be a number all the same.
            "max_concurrent_requests": settings.max_queued_tokens,
            "max_input_length": spec.max_tokens,
            "max_batch_tokens": settings.max_batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_inputs,
            "auto_truncate": settings.truncate,
            "tokenization_workers": 2,
            "version": __version__,
            "sha": None,
            "docker_label": None,
            "model_version": embedder.model.version,
            "model_source": spec.source,
            "dimension": spec.dimension,
            "hidden_size": spec.states_dimension,
            "output_dtypes": list(get_args(Dtype)),
            "int8_scale": scale_of(embedder.model.golden),
            "weights": spec.weights,
            "engine": about["engine"],
            "precision": about["precision"],
            "device": about["device"],
            "memory_peak_bytes": embedder.memory.total if embedder.memory else None,
            "golden": {"source": about["golden_source"], "cosine": embedder.proof_cosine},
            "default_role": settings.default_role,
            "prompts": {
                "query": spec.prompts.prefix("query"),
                "passage": spec.prompts.prefix("passage"),
                "instruct": spec.prompts.instruct,
            },
            "token_states": embedder.engine is not None and embedder.engine.gives_states,
            "max_queued_tokens": settings.max_queued_tokens,
            "max_tokenize_characters": TOKENIZE_CHARS_MAX,
            "max_body_bytes": settings.max_body_bytes,
        }
    )
