"""A cross-encoder reads a query together with a passage and says how well they go together: what teaches the second
stage. One of our own or any re-ranker in the layout of transformers, with one label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from service.recipe.spec import file_sha256
from service.recipe.tokens import CHARS_PER_TOKEN_MAX, pad
from training.backbone import read_tokenizer
from training.config import TeachConfig
from training.errors import StartingModelMissing
from training.sentence_model import quiet_loading

ARCHITECTURE = "ForSequenceClassification"


@dataclass(frozen=True)
class PairTokens:
    """A query with a passage, special tokens included.   ids, types: int32[n]; types tell the two apart for BERT."""

    ids: NDArray[np.int32]
    types: NDArray[np.int32]


@dataclass(frozen=True)
class CrossEncoder:
    """model: its weights in float32.   tokenizer: with a template for pairs.   reader: the same, that cuts."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    reader: Tokenizer
    max_tokens: int

    @property
    def pad_id(self) -> int:
        """The tokenizer's, as the model knows it."""
        return int(self.model.config.pad_token_id or 0)

    def tokenize(self, pairs: Sequence[tuple[str, str]]) -> list[PairTokens]:
        """Query and passage as one row each; the longer of the two loses its end where they exceed max_tokens."""
        last = self.max_tokens * CHARS_PER_TOKEN_MAX
        encodings = self.reader.encode_batch([(query[:last], passage[:last]) for query, passage in pairs])
        return [PairTokens(np.array(one.ids, np.int32), np.array(one.type_ids, np.int32)) for one in encodings]

    def logits(self, rows: Sequence[PairTokens], precision: str) -> torch.Tensor:
        """How well each pair goes together, as the head says it, in float32: [N]. No sigmoid, which would saturate."""
        device = self.model.device
        batch = pad([row.ids for row in rows], self.pad_id)
        given = {"input_ids": batch.ids, "attention_mask": batch.mask}
        if (getattr(self.model.config, "type_vocab_size", 0) or 0) > 1:
            given["token_type_ids"] = pad([row.types for row in rows], 0).ids
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            found = self.model(**{name: torch.from_numpy(part).to(device) for name, part in given.items()})
        return found.logits.float()[:, 0]


def begin_cross_encoder(source: str, tokenizer: str, device: torch.device, max_tokens: int, seed: int) -> CrossEncoder:
    """An encoder with a new head over its first token; a re-ranker as it stands.

    tokenizer: where it is, if elsewhere. Raises StartingModelMissing.
    """
    if _is_ranker(_config_of(source)):
        return open_cross_encoder(source, device, max_tokens)
    torch.manual_seed(seed)
    model, missing = _load(source)
    # The head and the layer between it and the first token's state are new.
    head = ("classifier.", "score.", "pre_classifier.", "head.")
    if lacking := [name for name in missing if "pooler." not in name and not name.startswith(head)]:
        raise StartingModelMissing(f"the backbone {source!r} lacks {len(lacking)} tensors: {', '.join(lacking[:3])}, …")
    return _assembled(model.to(device), read_tokenizer(tokenizer or source), source, max_tokens)


def open_cross_encoder(source: str, device: torch.device, max_tokens: int) -> CrossEncoder:
    """A trained re-ranker, a folder or a repository of the hub. Raises StartingModelMissing where it is none."""
    config = _config_of(source)
    if not _is_ranker(config):
        raise StartingModelMissing(
            f"{source!r} is a {', '.join(config.architectures or ['model of no known kind'])} and no re-ranker; name "
            f"one that is saved as …{ARCHITECTURE} with one label, or train one by `python -m training teach`"
        )
    if config.num_labels != 1:
        raise StartingModelMissing(
            f"{source!r} has {config.num_labels} labels; a teacher has 1, how well a passage answers a query"
        )
    model, missing = _load(source)
    if missing:
        raise StartingModelMissing(
            f"the re-ranker {source!r} lacks {len(missing)} tensors: {', '.join(missing[:3])}, …"
        )
    return _assembled(model.to(device).eval(), read_tokenizer(source), source, max_tokens)


def identity_of(source: str, config: TeachConfig) -> str:
    """What a score depends on beside its texts: a folder's files or a repository's commit, and how it is read."""
    folder, reading = Path(source), f"{config.max_tokens} {config.precision}"
    if not folder.is_dir():
        return f"{source}@{getattr(_config_of(source), '_commit_hash', None)} {reading}"
    weights = sorted(path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
    files = [folder / "config.json", folder / "tokenizer.json", *weights]
    return " ".join([*(f"{path.name}:{file_sha256(path)}" for path in files if path.is_file()), reading])


def with_pair_template(tokenizer: Tokenizer, source: str) -> Tokenizer:
    """The tokenizer itself where it sets two texts apart; otherwise with the template of its family.

    `[CLS] a [SEP] b [SEP]` for BERT's marks, `<s> a </s> </s> b </s>`, which is XLM-R's, for others. Raises
    StartingModelMissing where a single text has no marks that a pair could be made with.
    """
    if _sets_apart(tokenizer.encode("a", "b")):
        return tokenizer
    marks = tokenizer.encode("a")
    places = [place for place, owner in enumerate(marks.sequence_ids) if owner is None]
    if places != [0, len(marks) - 1]:
        raise StartingModelMissing(
            f"the tokenizer of {source!r} puts nothing between the two texts of a pair; give it a template for pairs"
        )
    first, last = marks.tokens[0], marks.tokens[-1]
    is_bert = first == "[CLS]"
    pair = f"{first} $A {last} $B:1 {last}:1" if is_bert else f"{first} $A {last} {last} $B {last}"
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=pair, special_tokens=[(first, marks.ids[0]), (last, marks.ids[-1])]
    )
    return changed


def _sets_apart(pair: Encoding) -> bool:
    """Whether a special token stands between the two texts."""
    owners = pair.sequence_ids
    return None in owners[owners.index(0) : owners.index(1)]


def _config_of(source: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise StartingModelMissing(
            f"can't read the model {source!r}: {str(error).splitlines()[0]}; it is a folder in the layout of "
            "transformers, or a repository of the hub whose code is in transformers"
        ) from error


def _is_ranker(config: PreTrainedConfig) -> bool:
    return any(name.endswith(ARCHITECTURE) for name in config.architectures or [])


def _load(source: str) -> tuple[PreTrainedModel, list[str]]:
    """The model with one label, and the names of the tensors that were not there."""
    try:
        with quiet_loading():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                source, num_labels=1, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise StartingModelMissing(f"can't read the weights of {source!r}: {str(error).splitlines()[0]}") from error
    return model, sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))


def _assembled(model: PreTrainedModel, tokenizer: Tokenizer, source: str, max_tokens: int) -> CrossEncoder:
    whole = with_pair_template(tokenizer, source)
    reader = Tokenizer.from_str(whole.to_str())
    reader.enable_truncation(max_tokens, strategy="longest_first")
    return CrossEncoder(model, whole, reader, max_tokens)
