"""The clients that are tried, and what their users write to say what a text is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Place = Literal["sdks", "frameworks", "node", "shell"]

ROOT = '"http://127.0.0.1:8080"'
V1 = '"http://127.0.0.1:8080/v1"'
SUFFIX = ('"me5_nano-query"', '"me5_nano-passage"')
COHERE = ('"search_query"', '"search_document"')
PROMPT = ('prompt_name="query"', 'prompt_name="passage"')
TEXTS = '"check_embedding_ctx_length": False'
LLAMA_INDEX = "llama-index-embeddings"
# The vendors' own packages; what else there is for Python are frameworks.
SDKS = ("openai", "cohere", "huggingface_hub", "ollama", "httpx numpy")
# Cohere's clients always say it.
ALONE = "nothing: it sends `search_query` and `search_document` by itself"


@dataclass(frozen=True)
class Client:
    """A client package, used as its own documentation does.

    script: the user's program, beside this file.   place: the environment that it runs in.   installs: what its user
    installs, its own package first.   address, roles: words of the script that say where the gateway is, and what a
    text is (ALONE where nothing has to be).   patient_at: statuses after which it goes on trying for more than a
    minute.   hasty: words of the script, and those in their place with which it gives up at once.   blind: it looks at
    no status, and takes an error's body for vectors.
    """

    name: str
    script: str
    place: Place
    installs: str
    address: str
    roles: tuple[str, ...]
    patient_at: tuple[int, ...] = ()
    hasty: tuple[str, str] | None = None
    blind: bool = False

    @property
    def package(self) -> str:
        """The client's own package, whose version the table shows."""
        return self.installs.split()[0].partition("[")[0]


def _python(name: str, script: str, installs: str, address: str, *roles: str) -> Client:
    place: Place = "sdks" if installs in SDKS else "frameworks"
    return Client(name, f"python/{script}.py", place, installs, address, roles)


def _node(name: str, script: str, installs: str, address: str, *roles: str) -> Client:
    return Client(name, f"node/{script}.mjs", "node", installs, address, roles)


# LlamaIndex tries ten times and more, and waits up to twenty seconds between.
_LLAMA_INDEX_HASTY = ('"api_key": "none"', '"api_key": "none", "max_retries": 0')
# LangChain.js tries six times more, and takes a 422 for a failure that may pass.
_LANGCHAIN_JS_HASTY = ('apiKey: "none"', 'apiKey: "none", maxRetries: 0')

CLIENTS = (
    Client("curl", "shell/curl.sh", "shell", "curl", "http://127.0.0.1:8080/embed", ("input_type",)),
    _python(
        "httpx, NumPy (bytes, no JSON)", "httpx-bytes", "httpx numpy", '"http://127.0.0.1:8080/embed"', "input_type"
    ),
    _python("openai", "openai-sync", "openai", f"base_url={V1}", *SUFFIX),
    _python(
        "openai, `AsyncOpenAI`", "openai-async", "openai", f"base_url={V1}", 'extra_body={"input_type": "passage"}'
    ),
    _python("cohere, `ClientV2`", "cohere-v2", "cohere", f"base_url={ROOT}", *COHERE),
    _python("cohere, `Client` (v1)", "cohere-v1", "cohere", f"base_url={ROOT}", *COHERE),
    _python("huggingface_hub, `feature_extraction`", "huggingface-hub", "huggingface_hub", f"model={ROOT}", *PROMPT),
    _python("ollama", "ollama-client", "ollama", f"host={ROOT}", *SUFFIX),
    _python("LangChain, OpenAI", "langchain-openai", "langchain-openai", f'"base_url": {V1}', TEXTS, *SUFFIX),
    _python("LangChain, Cohere", "langchain-cohere", "langchain-cohere", f"base_url={ROOT}", ALONE),
    _python("LangChain, Ollama", "langchain-ollama", "langchain-ollama", f'"base_url": {ROOT}', *SUFFIX),
    _python(
        "LangChain, Hugging Face",
        "langchain-huggingface",
        "langchain-huggingface",
        f"InferenceClient(model={ROOT})",
        'model_kwargs={"prompt_name": "query"}',
        'model_kwargs={"prompt_name": "passage"}',
    ),
    replace(
        _python("LlamaIndex, OpenAI", "llama-index-openai", f"{LLAMA_INDEX}-openai", f'"api_base": {V1}', *SUFFIX),
        patient_at=(429,),
        hasty=_LLAMA_INDEX_HASTY,
    ),
    replace(
        _python(
            "LlamaIndex, OpenAI-like",
            "llama-index-openai-like",
            f"{LLAMA_INDEX}-openai-like",
            f'"api_base": {V1}',
            *SUFFIX,
        ),
        patient_at=(429,),
        hasty=_LLAMA_INDEX_HASTY,
    ),
    replace(
        _python(
            "LlamaIndex, TEI",
            "llama-index-tei",
            f"{LLAMA_INDEX}-text-embeddings-inference",
            f"base_url={ROOT}",
            'query_instruction="query: "',
            'text_instruction="passage: "',
        ),
        blind=True,
    ),
    _python("LlamaIndex, Cohere", "llama-index-cohere", f"{LLAMA_INDEX}-cohere", f"base_url={ROOT}", ALONE),
    _python("LlamaIndex, Ollama", "llama-index-ollama", f"{LLAMA_INDEX}-ollama", f'"base_url": {ROOT}', *SUFFIX),
    _python("Haystack", "haystack-openai", "haystack-ai", f'"api_base_url": {V1}', *SUFFIX),
    _python("LiteLLM, `openai/`", "litellm-openai", "litellm", f'"api_base": {V1}', '"openai/me5_nano-passage"'),
    _python(
        "LiteLLM, `infinity/`", "litellm-infinity", "litellm", f'"api_base": {ROOT}', '"infinity/me5_nano-passage"'
    ),
    _python(
        "LiteLLM, `huggingface/`",
        "litellm-huggingface",
        "litellm",
        f'"api_base": {ROOT}',
        '"input_type": "feature-extraction"',
        *PROMPT,
    ),
    _python(
        "LiteLLM, `cohere/`",
        "litellm-cohere",
        "litellm",
        '"api_base": "http://127.0.0.1:8080/v2/embed"',
        'input_type="search_query"',
        'input_type="search_document"',
    ),
    _python("LiteLLM, `ollama/`", "litellm-ollama", "litellm", f'"api_base": {ROOT}', '"ollama/me5_nano-passage"'),
    _python("Chroma, OpenAI", "chroma-openai", "chromadb openai", f'"api_base": {V1}', *SUFFIX),
    replace(
        _python(
            "Chroma, `HuggingFaceEmbeddingServer`",
            "chroma-tei",
            "chromadb",
            'url="http://127.0.0.1:8080/embed',
            "?input_type=query",
            "?input_type=passage",
        ),
        blind=True,
    ),
    _python("Chroma, Ollama", "chroma-ollama", "chromadb ollama", f'"url": {ROOT}', *SUFFIX),
    _python("Pydantic AI, OpenAI", "pydantic-ai-openai", "pydantic-ai-slim[openai]", f"base_url={V1}", *SUFFIX),
    _python("Pydantic AI, Cohere", "pydantic-ai-cohere", "pydantic-ai-slim[cohere]", f"base_url={ROOT}", ALONE),
    _node("openai (npm)", "openai", "openai", f"baseURL: {V1}", *SUFFIX),
    _node("cohere-ai (npm)", "cohere", "cohere-ai", f"baseUrl: {ROOT}", *COHERE),
    _node(
        "@huggingface/inference (npm)",
        "huggingface",
        "@huggingface/inference",
        f"endpoint({ROOT})",
        'prompt_name: "query"',
        'prompt_name: "passage"',
    ),
    _node("ollama (npm)", "ollama", "ollama", f"host: {ROOT}", *SUFFIX),
    _node("Vercel AI SDK (npm)", "ai-sdk", "@ai-sdk/openai-compatible ai", f"baseURL: {V1}", *SUFFIX),
    replace(
        _node(
            "LangChain.js, OpenAI (npm)", "langchain", "@langchain/openai @langchain/core", f"baseURL: {V1}", *SUFFIX
        ),
        patient_at=(422, 429),
        hasty=_LANGCHAIN_JS_HASTY,
    ),
)
# Its answer is no vectors, so it stands outside of the table.
SIMILARITY = _python(
    "huggingface_hub, `sentence_similarity`",
    "huggingface-hub-similarity",
    "huggingface_hub",
    f"model={ROOT}",
    'f"query: {question}"',
    'f"passage: {passage}"',
)
