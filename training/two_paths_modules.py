"""The modules with which Sentence Transformers computes a model of two paths, or three. Copied into its checkpoints.

It imports nothing of the project that wrote the checkpoint, and what it computes is told in the model card.
"""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Module, Transformer


class EncoderWithTokenVectors(Transformer):
    """The encoder, which hands on the vectors of its tokens as they are before the layers."""

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add `token_vectors`, [B, T, H]."""
        found: dict[str, Any] = super().forward(features, **kwargs)
        found["token_vectors"] = self.auto_model.get_input_embeddings()(found["input_ids"]).float()
        return found


class _Path(Module):
    """A module of tensors, whose constructor takes what get_config_dict gives."""

    def save(self, output_path: str, *_: Any, safe_serialization: bool = True, **__: Any) -> None:
        """Write config.json and model.safetensors."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **_: Any,
    ) -> _Path:
        """Read what save() wrote, from a folder or from the hub."""
        place = (model_name_or_path, subfolder)
        config = cls.load_config(*place, None, token, cache_folder, revision, local_files_only)
        model = cls(**config)
        cls.load_torch_weights(*place, token, cache_folder, revision, local_files_only, model)
        return model


class StaticPath(_Path):
    """Behind the pooling: the mean of the states, scaled to length one, and the sum of the token vectors beside it."""

    def __init__(self, vocab_size: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(vocab_size, 1))
        self.register_buffer("middle", torch.zeros(dimension))
        self.register_buffer("share", torch.tensor(0.5))
        self.matrix = torch.nn.Parameter(torch.eye(dimension))

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Change `sentence_embedding`, [B, H]."""
        weights = self.weights[features["input_ids"]] * features["attention_mask"][:, :, None]
        total = ((features["token_vectors"] - self.middle) * weights).sum(dim=1)
        static = torch.nn.functional.normalize(total @ self.matrix, dim=1)
        mean = torch.nn.functional.normalize(features["sentence_embedding"].float(), dim=1)
        features["sentence_embedding"] = (1 - self.share) * mean + self.share * static
        return features

    def get_config_dict(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {"vocab_size": len(self.weights), "dimension": len(self.middle)}


class LexicalPath(_Path):
    """Behind the meaning, scaled to length one, numbers that say which tokens the text holds.

    Padding is on the right: the role is told by the second token.
    """

    def __init__(self, vocab_size: int, high_rows: int, dimension: int, width: int) -> None:
        super().__init__()
        self.dimension = dimension
        self.register_buffer("weights", torch.zeros(vocab_size, 1))
        # A token's code, of +1 and -1, is the product of two rows.
        self.register_buffer("low", torch.ones(512, width, dtype=torch.int8))
        self.register_buffer("high", torch.ones(high_rows, width, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(2, 1))
        self.register_buffer("passage_id", torch.zeros(1, 1, dtype=torch.int64))

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Change `sentence_embedding`, [B, H] to [B, H + W]."""
        ids = features["input_ids"]
        codes = self.low[ids % 512].float() * self.high[ids // 512].float()
        weights = self.weights[ids] * features["attention_mask"][:, :, None]
        lexical = torch.nn.functional.normalize((codes * weights).sum(dim=1), dim=1)
        meaning = torch.nn.functional.normalize(features["sentence_embedding"], dim=1)
        # A passage, told by its prompt, is scaled otherwise than a query.
        scale = self.scales[(ids[:, 1:2] == self.passage_id).long().sum(dim=1)]
        features["sentence_embedding"] = torch.cat([meaning, scale * lexical], dim=1)
        return features

    def get_config_dict(self) -> dict[str, Any]:
        """What the constructor takes."""
        sizes = {"vocab_size": len(self.weights), "high_rows": len(self.high)}
        return {**sizes, "dimension": self.dimension, "width": self.low.shape[1]}

    def get_embedding_dimension(self) -> int:
        """H + W."""
        return self.dimension + int(self.low.shape[1])
