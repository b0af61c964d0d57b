"""The encoder that is trained: a BERT or XLM-R with its tokenizer, from a folder or the hub."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from service.recipe.pooling import l2_normalize, mean_pool
from service.recipe.tokens import TokenBatch, load_tokenizer
from training.errors import StartingModelMissing
from training.sentence_folder import has_static_path
from training.sentence_model import quiet_loading

TOKENIZER_FILE = "tokenizer.json"
KINDS = ("bert", "xlm-roberta")


@dataclass(frozen=True)
class Backbone:
    """model: its weights in float32.   pad_id: of the tokenizer, which XLM-R counts its positions by."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    pad_id: int

    def embed(self, batch: TokenBatch, precision: str) -> torch.Tensor:
        """Unit vectors [B, H] in float32, the layers computed in `precision`."""
        device = self.model.device
        ids, mask = (torch.from_numpy(part).to(device) for part in (batch.ids, batch.mask))
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return l2_normalize(mean_pool(states.float(), mask.float()))


def load_backbone(source: str, tokenizer: str, device: torch.device, *, freeze_positions: bool) -> Backbone:
    """Read the encoder without its pooler. Raises StartingModelMissing where it can't be had, or is of another kind."""
    if has_static_path(source):
        raise StartingModelMissing(
            f"{source!r} has a static path beside its layers, which the stages don't train; begin with a checkpoint "
            "of layers alone, or go on with the command that made this one: bootstrap --resume"
        )
    try:
        kind = AutoConfig.from_pretrained(source).model_type
        if kind not in KINDS:
            raise StartingModelMissing(f"{source!r} is a {kind}; what is trained here is {' or '.join(KINDS)}")
        with quiet_loading():
            model, report = AutoModel.from_pretrained(
                source, add_pooling_layer=False, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError) as error:
        raise StartingModelMissing(
            f"can't read the backbone {source!r}: {str(error).splitlines()[0]}; it is a checkpoint's folder, such as "
            "the stage before has made, or a repository of the hub"
        ) from error
    # The library fills weights that it does not find with random numbers, and goes on.
    if lacking := [*report["missing_keys"], *report["mismatched_keys"]]:
        first = ", ".join(sorted(map(str, lacking))[:3])
        raise StartingModelMissing(f"the backbone {source!r} lacks {len(lacking)} of the model's tensors: {first}, …")
    if freeze_positions:
        model.embeddings.position_embeddings.weight.requires_grad_(False)
    pad_id = model.config.pad_token_id
    return Backbone(model.to(device), read_tokenizer(tokenizer or source), pad_id)


def read_tokenizer(source: str) -> Tokenizer:
    """A folder's tokenizer.json, or what the hub has under a name."""
    if (Path(source) / TOKENIZER_FILE).is_file():
        return load_tokenizer(Path(source) / TOKENIZER_FILE)
    try:
        found: Tokenizer = AutoTokenizer.from_pretrained(source).backend_tokenizer
    except (OSError, ValueError) as error:
        raise StartingModelMissing(f"can't read the tokenizer {source!r}: {error}") from error
    found.no_truncation()
    found.no_padding()
    return found
