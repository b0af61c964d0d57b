"""A running server as a System, by its address: what is measured is what its clients get.

    http://127.0.0.1:8080                     a me5 gateway or Text Embeddings Inference, told apart by GET /info
    openai+https://host/v1#MODEL              POST /v1/embeddings
    cohere+https://host#MODEL                 POST /v2/embed
    tei+http://host                           TEI without looking

An API key is read from the environment variable that the caller names, and goes to this address only.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import numpy as np

from service.recipe.prompts import Prompts, Role
from training.errors import ServerFailed, UnknownSystem
from training.known_models import KNOWN_MODELS, NO_PROMPTS
from training.server_http import post
from training.server_wires import Json, Wire, cohere_wire, me5_wire, openai_wire, tei_wire
from training.system import Identity
from training.vectors import Similarity, Vectors, VectorSystem, prompts_by_role

SCHEMES = ("http", "https", "openai+http", "openai+https", "cohere+http", "cohere+https", "tei+http", "tei+https")
KEY_VARIABLE = "ME5_SERVER_KEY"
# What a server takes at once may be thousands, and would then wait for each other.
_BATCH_TEXTS = 64
# Below TEI's --payload-limit of 2,000,000 bytes even where each character takes three.
_BATCH_CHARS = 500_000


@dataclass(frozen=True)
class ServerOptions:
    """query_prompt, passage_prompt: put before the texts here, for servers that put none; None: what is known of the
    model.   key_variable: the environment variable with the API key, if the server wants one.   timeout_s: of one try.
    raw_features: as in TransformerOptions, where the server can leave vectors unscaled.
    """

    query_prompt: str | None = None
    passage_prompt: str | None = None
    key_variable: str = KEY_VARIABLE
    connections: int = 4
    timeout_s: float = 120.0
    raw_features: bool = False


@dataclass(frozen=True)
class Address:
    """scheme: without the wire.   wire: None where GET /info has to tell.   url: without a name, password or model."""

    url: str
    wire: str | None
    model: str | None


def split_address(text: str) -> Address:
    """The parts of WIRE+http://host/path#MODEL."""
    scheme, _, rest = text.partition("://")
    if scheme not in SCHEMES or not rest:
        raise UnknownSystem(f"{text} is no address of a server; it must begin with one of {', '.join(SCHEMES)}")
    wire, _, plain = scheme.rpartition("+")
    try:
        url = httpx.URL(f"{plain}://{rest}")
    except httpx.InvalidURL as error:
        raise UnknownSystem(f"{text} is no address of a server: {error}") from error
    if url.userinfo:
        raise UnknownSystem(
            f"{scheme}://…@{url.host}: a key in an address ends up in results; put it in {KEY_VARIABLE}"
        )
    bare = str(url.copy_with(fragment=None)).rstrip("/")
    return Address(bare, wire or None, url.fragment or None)


def open_server(text: str, options: ServerOptions) -> VectorSystem:
    """Ask the server who it is, and make it a System."""
    address = split_address(text)
    if address.wire == "openai" and not httpx.URL(address.url).path.strip("/"):
        address = Address(f"{address.url}/v1", "openai", address.model)
    key = os.environ.get(options.key_variable)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    client = httpx.Client(
        base_url=address.url,
        headers=headers,
        timeout=options.timeout_s,
        limits=httpx.Limits(max_connections=options.connections),
    )
    wire, identity = _introduce(client, address, options)

    def embed(texts: Sequence[str], role: Role | None, instruction: str | None) -> Vectors:
        # Texts of like length together: the server pads what comes in one request.
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        batches = list(_batches(order, texts, wire.batch_texts))

        def ask(numbers: list[int]) -> Vectors:
            body = wire.write([texts[number] for number in numbers], role, instruction)
            answer = post(client, wire.path, body)
            return _checked(wire, answer, len(numbers), f"{address.url}{wire.path}")

        pool = ThreadPoolExecutor(options.connections)
        try:
            parts = list(pool.map(ask, batches))
        finally:
            pool.shutdown(cancel_futures=True)
        vectors = np.empty((len(texts), parts[0].shape[1]), dtype=np.float32)
        for numbers, part in zip(batches, parts, strict=True):
            vectors[numbers] = part
        return vectors

    similarity = _similarity(identity.name)
    return VectorSystem(identity, embed, similarity, options.raw_features)


def _introduce(client: httpx.Client, address: Address, options: ServerOptions) -> tuple[Wire, Identity]:
    """How to talk to the server, and who it is."""
    if address.wire == "cohere":
        if address.model is None:
            raise UnknownSystem(f"cohere+{address.url}: name the model behind a #, such as #embed-multilingual-v3.0")
        return cohere_wire(address.model), _foreign(address, address.model, "cohere", NO_PROMPTS)
    info = _info(client, address.url.removesuffix("/v1") + "/info")
    ours = isinstance(info.get("prompts"), dict) and "default_role" in info
    if address.wire == "openai":
        if ours:
            return openai_wire(str(info["model_id"]), None), _own(address, info, "openai")
        model = address.model or _only_model(client, address)
        prompts = _prompts(options, model) or NO_PROMPTS
        return openai_wire(model, prompts), _foreign(address, model, "openai", prompts)
    batch_texts = min(int(str(info.get("max_client_batch_size") or 32)), _BATCH_TEXTS)
    if ours and address.wire is None:
        identity = _own(address, info, "me5")
        return me5_wire(_own_prompts(info), batch_texts, normalize=not options.raw_features), identity
    if address.wire is None and "model_id" not in info:
        raise UnknownSystem(
            f"{address.url} doesn't say by GET /info what it is; "
            "name its wire: openai+http://…#MODEL, cohere+http://…#MODEL or tei+http://…"
        )
    model = str(info.get("model_id", address.model or "unnamed"))
    chosen = _prompts(options, model)
    identity = _foreign(address, model, "tei", chosen, info)
    normalize = not options.raw_features and _similarity(model) == "cosine"
    return tei_wire(chosen, batch_texts, normalize=normalize), identity


def _info(client: httpx.Client, url: str) -> dict[str, Json]:
    """GET /info as far as there is one; a server of another kind has none."""
    try:
        response = client.get(url)
        found = response.json() if response.is_success else {}
    except ValueError:
        found = {}
    except httpx.TransportError as error:
        raise ServerFailed(f"{url} can't be reached: {type(error).__name__}: {error}") from error
    return found if isinstance(found, dict) else {}


def _only_model(client: httpx.Client, address: Address) -> str:
    try:
        models = [str(card["id"]) for card in client.get("/models").json()["data"]]
    except (httpx.TransportError, ValueError, KeyError, TypeError):
        models = []
    if len(models) != 1:
        listed = f"; it lists {', '.join(models[:10])}" if models else ""
        raise UnknownSystem(f"openai+{address.url}: name the model behind a #{listed}")
    return models[0]


def _prompts(options: ServerOptions, model: str) -> Prompts | None:
    if options.query_prompt is not None or options.passage_prompt is not None:
        return Prompts(query=options.query_prompt or "", passage=options.passage_prompt or "")
    known = KNOWN_MODELS.get(model)
    return known.prompts if known else None


def _similarity(model: str) -> Similarity:
    known = KNOWN_MODELS.get(model)
    return known.similarity if known else "cosine"


def _own_prompts(info: dict[str, Json]) -> Prompts:
    stated = info["prompts"]
    assert isinstance(stated, dict)
    if not stated.get("instruct"):
        return Prompts(query=stated["query"], passage=stated["passage"])
    # The server fills in its own default instruction; ours is only told where a task has one.
    return Prompts(query="", passage=stated["passage"], instruct=True, instructions={"query": ""})


def _own(address: Address, info: dict[str, Json], wire: str) -> Identity:
    return Identity(
        name=str(info["model_id"]),
        engine=f"me5 {info.get('version')} {info.get('engine')} {info.get('device')}",
        dtype=str(info.get("precision")),
        prompts=prompts_by_role(_own_prompts(info)),
        max_tokens=int(str(info["max_input_length"])),
        files={"model.onnx": str(info["model_sha"])} if info.get("model_sha") else {},
        details={"address": address.url, "wire": wire, "model_version": str(info.get("model_version"))},
    )


def _foreign(
    address: Address, model: str, wire: str, prompts: Prompts | None, info: dict[str, Json] | None = None
) -> Identity:
    told = info or {}
    length = told.get("max_input_length")
    return Identity(
        name=model,
        engine=f"{wire} {told['version']}" if "version" in told else wire,
        dtype=str(told.get("model_dtype", "unknown")),
        prompts={} if prompts is None else prompts_by_role(prompts),
        max_tokens=length if isinstance(length, int) else None,
        details={
            "address": address.url,
            "wire": wire,
            "prompts": "server" if prompts is None else "client",
            "similarity": _similarity(model),
        },
    )


def _checked(wire: Wire, answer: Json, rows: int, address: str) -> Vectors:
    try:
        vectors = wire.read(answer)
    except (KeyError, TypeError, ValueError) as error:
        raise ServerFailed(f"{address}: the answer is not one of the {wire.name} wire: {error}") from error
    if len(vectors) != rows or not np.isfinite(vectors).all():
        raise ServerFailed(f"{address} gave {len(vectors)} vectors for {rows} texts, or some that are not finite")
    return vectors


def _batches(order: Sequence[int], texts: Sequence[str], texts_max: int) -> Iterator[list[int]]:
    batch: list[int] = []
    characters = 0
    for number in order:
        if batch and (len(batch) == texts_max or characters + len(texts[number]) > _BATCH_CHARS):
            yield batch
            batch, characters = [], 0
        batch.append(number)
        characters += len(texts[number])
    if batch:
        yield batch
