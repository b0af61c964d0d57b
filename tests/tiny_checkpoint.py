"""Small checkpoints with random weights and a real tokenizer, as the training writes them; built in a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

from service.engine import open_engine, vectors_of
from service.recipe.spec import INT8_FILES, load_spec
from service.recipe.tokens import TokenBatch, load_tokenizer, pad
from training.checkpoint import write_sentence_transformers_files
from training.collection import Recipe, Vectors
from training.int8_graphs import write_onnx_int8, write_openvino_int8
from training.lexical_path import draw_lexical_path
from training.static_path import StaticPath
from training.two_paths import write_two_paths

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]
DIMENSION = 64
# The token that a lexical path takes for the beginning of a passage's prompt.
PASSAGE_ID = 4
TOKEN_VECTORS = "embeddings.word_embeddings.weight"
LINES = [
    *(f"line {number} of the book is about {thing}" for number in range(60) for thing in ("boats", "bread", "the sea")),
    "Der Leuchtturm steht am Meer und leuchtet",
    "осенью желтеют листья, вода замерзает при нуле",
    "يقع السوق القديم خلف الميناء",
    "बारिश में साइकिल की चेन",
    "รถไฟขบวนสุดท้ายออกจากสถานี",
    "京都で雨の日に楽しめる場所 这座桥建于明代",
    "김치를 오래 보관하는 방법",
]


def write_tiny_checkpoint(
    folder: Path,
    kind: Literal["bert", "xlm-roberta"] = "bert",
    *,
    spread: float = 0.1,
    seed: int = 0,
    two_paths: bool = False,
    lexical_width: int = 0,
) -> Path:
    """Write a two-layer checkpoint, 64 wide, in the Sentence Transformers layout.

    spread: standard deviation of the weights. 0.1 gives vectors that differ from text to text (0.02, the usual start
    of a training, leaves all of them nearly equal); 3 gives a model so steep that rounding its weights changes it.
    two_paths: with a static path beside the layers.   lexical_width: and behind them so many numbers of a lexical one.
    """
    torch.manual_seed(seed)
    # Threads of a model this small do nothing but wait for each other.
    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer()
    shape = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": DIMENSION,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "initializer_range": spread,
        "pad_token_id": SPECIAL_TOKENS.index("<pad>"),
    }
    model: BertModel | XLMRobertaModel
    if kind == "bert":
        model = BertModel(BertConfig(max_position_embeddings=512, **shape), add_pooling_layer=False)
    else:
        # XLM-R numbers positions from pad_id + 1: 514 rows for 512 tokens.
        config = XLMRobertaConfig(max_position_embeddings=514, type_vocab_size=1, **shape)
        model = XLMRobertaModel(config, add_pooling_layer=False)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    if two_paths:
        vocab_size = tokenizer.get_vocab_size()
        weights = torch.rand(vocab_size, 1)
        weights[: len(SPECIAL_TOKENS)] = 0
        static = StaticPath(weights, torch.randn(DIMENSION) / 10, torch.randn(DIMENSION, DIMENSION), torch.tensor(0.4))
        rarity = 1 + 9 * torch.rand(vocab_size, 1)
        lexical = draw_lexical_path(rarity, lexical_width, (0.5, 1.0), PASSAGE_ID, seed) if lexical_width else None
        write_two_paths(folder, static, DIMENSION, lexical)
    else:
        write_sentence_transformers_files(folder, DIMENSION)
    return folder


def change_token_vectors(checkpoint: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """Put other token vectors [V, H] into a checkpoint, made of its own."""
    weights = load_file(checkpoint / "model.safetensors")
    weights[TOKEN_VECTORS] = change(weights[TOKEN_VECTORS])
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return checkpoint


def batch_of(version: Path, texts: Sequence[str]) -> TokenBatch:
    """Texts as a version reads queries, padded together."""
    spec = load_spec(version)
    recipe = Recipe(load_tokenizer(version / "tokenizer.json"), spec.prompts, spec.max_tokens, spec.pad_id)
    return pad(recipe.rows(texts, "query"), recipe.pad_id)


def int8_vectors(version: Path, batch: TokenBatch) -> Iterator[Vectors]:
    """A batch's vectors by each engine's int8 graph, which is written into the version."""
    spec = load_spec(version)
    write_onnx_int8(version, spec, [batch], version / INT8_FILES["onnx"])
    write_openvino_int8(version, spec, [batch], version / INT8_FILES["openvino"])
    for engine in INT8_FILES:
        yield vectors_of(open_engine(version, spec, engine=engine, precision="int8").run(batch), batch)


def tiny_tokenizer() -> Tokenizer:
    """A Unigram tokenizer over a few hundred lines, `<s> text </s>`, with XLM-R's special ids."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=SPECIAL_TOKENS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer
