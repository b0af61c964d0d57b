"""How a request says what it wants of its texts, the same on every wire contract: role, cut, lane, deadline."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, JsonValue, WithJsonSchema
from starlette.requests import Request

from service.api.answering import LANE_HEADER, timeout_s_of
from service.api.guard import caller_of
from service.api.reading import Body, client_of, embedder_of, header_of, lower
from service.asking import Ask
from service.batching import LANES, Lane
from service.errors import InvalidInput
from service.recipe.prompts import INPUT_TYPES, Role, role_of

INPUTS_SCHEMA = {
    "description": "A text, a list of texts, a list of token ids of this model, or a list of such lists.",
    "oneOf": [
        {"type": "string"},
        {"type": "array", "items": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]}},
        {"type": "array", "items": {"type": "integer"}},
    ],
    "examples": [["query: how tall is the Fernsehturm?", "passage: Der Fernsehturm ist 368 Meter hoch."]],
}
# Checked by hand: a validator that reports every one of a million wrong elements is a way to fill the memory.
Inputs = Annotated[object, WithJsonSchema(INPUTS_SCHEMA)]
TEXTS_SCHEMA = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Texts = Annotated[object, WithJsonSchema(TEXTS_SCHEMA)]
# TEI takes both spellings, and clients send both.
Side = Annotated[Literal["left", "right"], BeforeValidator(lower)]
InputTypeName = Annotated[str, WithJsonSchema({"type": "string", "enum": list(INPUT_TYPES)})]
ROLE_NAME = "input_type"
# For clients that know one address and no roles.
ROLE_IN_ADDRESS: JsonValue = {
    "name": ROLE_NAME,
    "in": "query",
    "required": False,
    "description": "the role of texts for which neither the body nor the model's name says one",
    "schema": {"type": "string", "enum": list(INPUT_TYPES)},
}


class Cut(Body):
    """What a request may say of how its texts are cut."""

    truncate: bool | None = None
    truncation_direction: Side = "right"


class Options(Cut):
    """What a request may say of how its texts are read. prompt_name is TEI's name for the role."""

    prompt_name: InputTypeName | None = None
    input_type: InputTypeName | None = None
    instruction: str | None = Field(default=None, min_length=1, description="for instruct models, on the query side")
    instruction_weight: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="for instruct models, on the query side: w of norm((1 - w) * vector without the instruction "
        "+ w * vector with it); between 0 and 1 each text is computed, and counted, twice",
    )


def ask_of(
    request: Request,
    inputs: list[str | list[int]],
    options: Options,
    normalize: bool = True,
    dimensions: int | None = None,
    default_role: Role | None = None,
) -> Ask:
    """The embedder's question from a route's options and the request's headers."""
    input_type = options.prompt_name if options.input_type is None else options.input_type
    if options.input_type and options.prompt_name and role_of(options.input_type) != role_of(options.prompt_name):
        raise InvalidInput(
            f"`input_type` {options.input_type!r} and `prompt_name` {options.prompt_name!r} are different roles; "
            "send one of them"
        )
    in_address = _input_type_in_address(request)
    if input_type is None and default_role is None:
        input_type = in_address
    caller, lane = caller_of(request.scope), _lane_of(request)
    return Ask(
        inputs=inputs,
        role=default_role if input_type is None else role_of(input_type),
        input_type=input_type,
        instruction=options.instruction,
        instruction_weight=options.instruction_weight,
        truncate=options.truncate,
        direction=options.truncation_direction,
        normalize=normalize,
        dimensions=dimensions,
        lane=lane if caller is None else caller.lane_for(lane),
        timeout_s=timeout_s_of(request),
        client=client_of(request),
        caller=caller,
        trace=request.scope.get("me5_trace"),
    )


def _input_type_in_address(request: Request) -> str | None:
    """What `?input_type=` says, checked whether it is needed or not."""
    if not request.scope["query_string"]:
        return None
    given = request.query_params.get(ROLE_NAME)
    if given is not None:
        role_of(given)
    return given


def role_of_model(request: Request, model: str) -> Role | None:
    """The role that a model's name says; a name of another model is served all the same, and counted."""
    embedder = embedder_of(request)
    name, role = split_model_name(model)
    if name and name != embedder.model.spec.name:
        embedder.metrics.foreign_model_names.inc()
    return role


def split_model_name(model: str) -> tuple[str, Role | None]:
    """ "me5_small-passage" → ("me5_small", "passage"); a name without suffix has no role."""
    if model.endswith("-query"):
        return model.removesuffix("-query"), "query"
    if model.endswith("-passage"):
        return model.removesuffix("-passage"), "passage"
    return model, None


def _lane_of(request: Request) -> Lane | None:
    given = header_of(request, LANE_HEADER.encode("ascii"))
    if given is None:
        return None
    for lane in LANES:
        if given == lane:
            return lane
    raise InvalidInput(f"{LANE_HEADER} is {given[:40]!r}; use one of {', '.join(LANES)}")
