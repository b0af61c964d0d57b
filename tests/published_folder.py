"""A folder in the layout of the published mE5 repositories: onnx/model.onnx with token states, and tokenizer.json.

The weights are random; everything else (architecture, tensor names, tokenizer family, pad id) is as published.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

Shape = Literal["small", "base", "large"]
# Of the two that are XLM-R: width, heads, width of the feed-forward layers.
XLMR_SHAPES = {"base": (768, 12, 3072), "large": (1024, 16, 4096)}


def write_published_folder(
    folder: Path, tokenizer: Path, *, shape: Shape = "small", layers: int = 2, vocabulary: int | None = None
) -> Path:
    """Write a checkpoint of the shape of mE5-small (a BertModel that wants token_type_ids), -base or -large (XLM-R)."""
    from tokenizers import Tokenizer

    torch.manual_seed(0)
    size = vocabulary or Tokenizer.from_file(str(tokenizer)).get_vocab_size()
    if shape == "small":
        model: torch.nn.Module = BertModel(
            BertConfig(
                vocab_size=size,
                hidden_size=384,
                num_hidden_layers=layers,
                num_attention_heads=12,
                intermediate_size=1536,
                max_position_embeddings=512,
                pad_token_id=1,
            ),
            add_pooling_layer=False,
        )
        names = ["input_ids", "attention_mask", "token_type_ids"]
    else:
        width, heads, inner = XLMR_SHAPES[shape]
        model = XLMRobertaModel(
            XLMRobertaConfig(
                vocab_size=size,
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=inner,
                max_position_embeddings=514,
                pad_token_id=1,
                type_vocab_size=1,
            ),
            add_pooling_layer=False,
        )
        names = ["input_ids", "attention_mask"]
    (folder / "onnx").mkdir(parents=True)
    model.save_pretrained(folder)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    ids = torch.where(mask == 1, torch.randint(5, size, (2, 5)), 1)
    example = (ids, mask, torch.zeros_like(ids))[: len(names)]
    torch.onnx.export(
        _States(model).eval(),
        example,
        str(folder / "onnx" / "model.onnx"),
        dynamo=True,
        opset_version=18,
        external_data=False,
        verbose=False,
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_shapes=tuple({0: "batch", 1: "sequence"} for _ in names),
    )
    (folder / "onnx" / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return folder


class _States(torch.nn.Module):
    """Positional inputs in, last_hidden_state out."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **extra).last_hidden_state
