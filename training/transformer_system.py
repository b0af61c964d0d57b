"""Any Sentence Transformers or Hugging Face model as a System, computed by the sentence-transformers library.

A folder or repository with modules.json says its own pooling and layers (LaBSE's dense layer among them). A plain
transformer is given its pooling here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling as PoolingLayer
from sentence_transformers.util import is_sentence_transformer_model
from transformers import AutoConfig
from transformers.utils import cached_file

from service.recipe.prompts import Prompts, Role
from service.recipe.spec import file_sha256
from training.errors import UnknownSystem
from training.known_models import KNOWN_MODELS, NO_PROMPTS, KnownModel, Pooling
from training.sentence_folder import INSTRUCT_HEAD, INSTRUCT_TAIL
from training.system import Identity
from training.vectors import Similarity, Vectors, VectorSystem, prompted, prompts_by_role

Dtype = Literal["fp32", "bf16", "fp16"]
_TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LIBRARY_POOLING = {"mean": "mean", "cls": "cls", "last": "lasttoken"}
# Everything of a folder that its vectors depend on.
_MODEL_FILES = (".json", ".safetensors", ".bin", ".model", ".txt")


@dataclass(frozen=True)
class TransformerOptions:
    """What the caller sets; None: what is known of the model, else what its files say.

    pooling: of a plain transformer; one with modules.json has its own.   max_tokens: prompt and special tokens counted.
    device: None is the GPU where there is one.   raw_features: do not scale features to length one, also where the
    model's last layer would; what the E5 paper does before classification.
    """

    pooling: Pooling | None = None
    query_prompt: str | None = None
    passage_prompt: str | None = None
    similarity: Similarity | None = None
    max_tokens: int | None = None
    device: str | None = None
    dtype: Dtype = "fp32"
    batch_rows: int = 32
    raw_features: bool = False


def open_transformer(source: str, options: TransformerOptions, *, name: str | None = None) -> VectorSystem:
    """A model by its folder or by its name on the hub.   name: what to call it, where not by its source."""
    folder = Path(source) if Path(source).is_dir() else None
    known = KNOWN_MODELS.get("/".join(Path(source).parts[-2:]))
    model = _load(source, known, options)
    # Prompts are put here: the library would put this one before what has one already, and before what takes none.
    model.default_prompt_name = None
    if options.raw_features and isinstance(model[len(model) - 1], Normalize):
        del model[len(model) - 1]
    if model.max_seq_length is None or (known and known.max_tokens < model.max_seq_length):
        model.max_seq_length = known.max_tokens if known else None
    if options.max_tokens is not None:
        model.max_seq_length = options.max_tokens
    prompts = choose_prompts(options, known, model.prompts)

    def embed(texts: Sequence[str], role: Role | None, instruction: str | None) -> Vectors:
        with torch.inference_mode():
            vectors = model.encode(
                prompted(texts, prompts, role, instruction), batch_size=options.batch_rows, show_progress_bar=False
            )
        return np.asarray(vectors, dtype=np.float32)

    similarity = options.similarity or (known.similarity if known else "cosine")
    identity = Identity(
        name=name or ("/".join(folder.resolve().parts[-2:]) if folder else source),
        engine=f"sentence-transformers {version('sentence-transformers')} {model.device.type}",
        dtype=options.dtype,
        prompts=prompts_by_role(prompts),
        max_tokens=model.max_seq_length,
        files=_hashes(folder or _snapshot(source)),
        details=_details(model, similarity) | ({} if folder else {"revision": _snapshot(source).name}),
    )
    return VectorSystem(identity, embed, similarity, options.raw_features)


def choose_prompts(options: TransformerOptions, known: KnownModel | None, stated: Mapping[str, str | None]) -> Prompts:
    """The caller's prompts, else the known ones, else those in the model's own files, else none."""
    if options.query_prompt is not None or options.passage_prompt is not None:
        return Prompts(query=options.query_prompt or "", passage=options.passage_prompt or "")
    if known is not None:
        return known.prompts
    query = stated.get("query") or ""
    passage = stated.get("passage") or stated.get("document") or ""
    if query.startswith(INSTRUCT_HEAD) and query.endswith(INSTRUCT_TAIL):
        instruction = query.removeprefix(INSTRUCT_HEAD).removesuffix(INSTRUCT_TAIL)
        return Prompts(query="", passage=passage, instruct=True, instructions={"query": instruction})
    return Prompts(query=query, passage=passage) if query or passage else NO_PROMPTS


def _load(source: str, known: KnownModel | None, options: TransformerOptions) -> SentenceTransformer:
    local = Path(source).is_dir()
    settings = {"dtype": _TORCH_DTYPES[options.dtype]}
    pooling = options.pooling or (known.pooling if known else None)
    # What the library says of tensors that the file lacks is not silenced: it fills them with random numbers.
    try:
        if is_sentence_transformer_model(source, local_files_only=local):
            if options.pooling is not None:
                raise UnknownSystem(
                    f"{source} has a modules.json that says its pooling; leave out the pooling {options.pooling!r}"
                )
            model = SentenceTransformer(source, device=options.device, model_kwargs=settings, local_files_only=local)
        elif pooling is None:
            # A name that nobody has, or a folder with nothing in it, is told as that.
            AutoConfig.from_pretrained(source)
            raise UnknownSystem(
                f"{source} has no modules.json that says how its token states become one vector; "
                "name the pooling it was trained with: mean, cls or last"
            )
        else:
            encoder = Transformer(source, model_kwargs=settings)
            encoder.max_seq_length = _longest_input(encoder)
            layer = PoolingLayer(encoder.get_embedding_dimension(), pooling_mode=_LIBRARY_POOLING[pooling])
            model = SentenceTransformer(modules=[encoder, layer], device=options.device)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnknownSystem(
            f"can't open {source}: {str(error).splitlines()[0]}; name a folder with config.json, weights and "
            "tokenizer, or a model on the hub that this machine can reach or has in its cache"
        ) from error
    return model.eval()


def _longest_input(encoder: Transformer) -> int | None:
    """What the tokenizer states, or what the position table holds; the library forgets XLM-R's two rows."""
    config = encoder.auto_model.config
    rows = getattr(config, "max_position_embeddings", None)
    if rows is not None and config.model_type in ("xlm-roberta", "roberta", "camembert", "mpnet"):
        rows -= config.pad_token_id + 1
    limits = [limit for limit in (rows, encoder.max_seq_length) if limit is not None]
    return min(limits, default=None)


def _details(model: SentenceTransformer, similarity: Similarity) -> dict[str, str]:
    layers = [type(layer).__name__ for layer in model]
    modes = [layer.pooling_mode for layer in model if isinstance(layer, PoolingLayer)]
    weights = [(each.numel(), each.element_size()) for each in model.parameters()]
    found = {"layers": " ".join(layers), "similarity": similarity}
    found |= {"parameters": str(sum(n for n, _ in weights)), "bytes": str(sum(n * size for n, size in weights))}
    if modes:
        found["pooling"] = str(modes[0])
    return found


def _snapshot(name: str) -> Path:
    """The folder in the hub's cache that the model came from; it is called by the commit."""
    return Path(str(cached_file(name, "config.json"))).parent


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in _MODEL_FILES)
    return {str(path.relative_to(folder)): file_sha256(path) for path in files}
