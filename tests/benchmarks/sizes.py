"""me5_nano at equal file size: tokens, layers, the width and the bits of a token's vector, on a short budget.

    python tests/benchmarks/sizes.py --data DIR --out .bench/sizes [--at-once 2]

Each variant is made as training/configs/me5_nano.toml says, of a third of the pairs, with fewer steps, and measured on
pairs and rows that are never trained on (their texts are among those that the tokenizer is learnt from). Fewer layers
are some of the English encoder's, the first and the last among them. A
variant takes one core and about a quarter of an hour; typed again, what is finished stays: another --data wants another
--out.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertModel

from training import bootstrap
from training.batches import RETRIEVAL_SOURCES, PrefixIds, Texts, read_prefixes, token_rows
from training.bootstrap_config import TrainConfig, load_config
from training.checkpoint import write_json
from training.data import DEV_FOLDS, DEV_FOLDS_MEASURED, Corpus, Pair, Source, is_held_out, read_corpus
from training.distil import DistilTrainer, TwoPaths
from training.encoder import TokenRows, distinct_ids, embed_rows
from training.eval_reading import read_sts
from training.scores import ndcg_at, similarity_scores
from training.starting_model import StartingModel, load_starting_model
from training.targets import TRANSLATION_SOURCES, find_targets, pair_weights
from training.token_store import TokenStore, tokenize_all

CONFIG = Path(__file__).resolve().parent.parent.parent / "training" / "configs" / "me5_nano.toml"
# Of a thousand queries: measured with, and beyond these trained on.
MEASURED, TRAINED_BELOW = 5, 335
DEV_SET = "sts_stsb_multi"
# Of all-MiniLM-L6-v2.
LAYER_WIDTH = 384
# Languages with fewer held-out translations say little.
TRANSLATIONS_MIN = 30
LARGE = frozenset(
    {"de", "fr", "es", "pt", "nl", "pl", "ru", "uk", "cs", "ro"}
    | {"tr", "vi", "zh", "ja", "ko", "ar", "fa", "hi", "el", "fi"}
)


@dataclass(frozen=True)
class Variant:
    """width, bits: of a stored token vector and its numbers; that of the layers is 384."""

    tokens: int
    layers: int
    width: int
    bits: int = 8

    @property
    def name(self) -> str:
        return f"{self.tokens // 1000}k-{self.layers}-{self.width}" + ("" if self.bits == 8 else f"-{self.bits}bits")

    @property
    def file_bytes(self) -> int:
        """A float16 scale for 32 values; a token's weight and its line in tokenizer.json; layers in int8; the rest."""
        stored = 1 + 2 / 32
        token = self.width * (self.bits / 8 + 2 / 32) + 3 + 23
        layer = 12 * LAYER_WIDTH**2 * stored
        projection = 0 if self.width == LAYER_WIDTH else self.width * LAYER_WIDTH * 4
        return round(self.tokens * token + self.layers * layer + projection + 1_350_000)


VARIANTS = (
    Variant(62_000, 6, 384),
    Variant(70_600, 4, 384),
    Variant(79_300, 2, 384),
    Variant(89_900, 6, 256),
    Variant(116_600, 6, 192),
    Variant(111_200, 6, 384, bits=4),
)


def short(config: TrainConfig, variant: Variant) -> TrainConfig:
    """The settings of one variant."""
    warm = config.warm_start
    assert warm is not None
    warm = warm.model_copy(
        update={
            "tokenizer": warm.tokenizer.model_copy(update={"vocab_size": max(each.tokens for each in VARIANTS)}),
            "vocabulary": warm.vocabulary.model_copy(update={"vocab_size": variant.tokens}),
            "token_vectors": warm.token_vectors.model_copy(
                update={"steps": 400, "tokens_per_batch": 40_000, "turned_texts": 10_000}
            ),
        }
    )
    # So few steps are done before compiled code has paid for itself.
    steps = {"steps": 160, "warmup_steps": 16, "average_steps": 40, "compiled": False}
    distil = config.distil.model_copy(update=steps)
    width = None if variant.width == LAYER_WIDTH else variant.width
    table = {"table_width": width, "table_bits": variant.bits}
    return config.model_copy(update={"warm_start": warm, "distil": distil, **table})


def third_of(sources: list[Source]) -> Corpus:
    """The pairs of a third of the queries, none of them measured with."""
    corpus = read_corpus(sources, TRAINED_BELOW, only_held_out=True)
    trained = [not is_held_out(Pair(corpus.texts[query], "", None, "", ""), MEASURED) for query in corpus.pairs[:, 0]]
    kept = np.flatnonzero(trained)
    return replace(
        corpus,
        pairs=corpus.pairs[kept],
        negatives=corpus.negatives[kept],
        pair_source=corpus.pair_source[kept],
        pair_language=corpus.pair_language[kept],
    )


def with_layers(start: StartingModel, count: int) -> StartingModel:
    """The encoder with some of its layers, evenly chosen."""
    bert = BertModel(copy.deepcopy(start.bert.config), add_pooling_layer=False)
    bert.load_state_dict(start.bert.state_dict())
    kept = np.linspace(0, len(bert.encoder.layer) - 1, count).round().astype(int).tolist()
    bert.encoder.layer = torch.nn.ModuleList(bert.encoder.layer[number] for number in kept)
    bert.config.num_hidden_layers = count
    return replace(start, bert=bert.eval().requires_grad_(False))


@dataclass(frozen=True)
class Measured:
    """Texts by number in the tokens of a variant, and its model."""

    model: TwoPaths
    store: TokenStore
    prefixes: PrefixIds

    def vectors(self, numbers: Sequence[int] | NDArray[np.int32], role: str) -> NDArray[np.float32]:
        """float32[N, H]."""
        rows = token_rows(self.store, self.prefixes, Texts(np.asarray(numbers), role), 256)  # type: ignore[arg-type]
        ids = distinct_ids(rows)
        table = TokenRows(ids, self.model.bert.embeddings.word_embeddings.weight[ids])
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16):
                layers = embed_rows(self.model.bert, rows, table, 2048)
            static = self.model.static.of_rows(rows, ids, table.vectors)
            both = self.model.static.beside(layers.float(), static)
        found: NDArray[np.float32] = torch.nn.functional.normalize(both, dim=1).numpy()
        return found


def measure(trainer: DistilTrainer, data: Path, held_out: Corpus, material: bootstrap.Material) -> dict[str, float]:
    """Development data alone: similarity, translations found, passages found; and how finely text is cut."""
    similarity = read_sts(data, file=f"eval/{DEV_SET}.jsonl.gz", splits=frozenset({"dev"}), subset="lang")
    texts = list(held_out.texts)
    measured = {
        lang: [place for place in range(len(pairs.judged)) if place % DEV_FOLDS < DEV_FOLDS_MEASURED]
        for lang, pairs in similarity.items()
    }
    for lang, pairs in similarity.items():
        texts += [side[place] for side in (pairs.firsts, pairs.seconds) for place in measured[lang]]
    store = tokenize_all(material.tokenizer, texts, 256)
    model = Measured(trainer.result(), store, read_prefixes(material.tokenizer))
    found: dict[str, float] = {"tokens a text": float(material.store.lengths().mean())}
    start, correlations = len(held_out.texts), {}
    for lang, pairs in similarity.items():
        count = len(measured[lang])
        first, second = (model.vectors(np.arange(at, at + count), "query") for at in (start, start + count))
        judged = [pairs.judged[place] for place in measured[lang]]
        near = (first * second).sum(axis=1).astype(np.float64)
        correlations[lang] = similarity_scores(near, judged).measures["spearman"]
        start += 2 * count
    found["STS-B en"] = correlations.pop("en")
    found["STS-B others"] = float(np.mean(list(correlations.values())))
    right = translations_found(model, held_out)
    found["translations, large"] = float(np.mean([share for lang, share in right.items() if lang in LARGE]))
    found["translations, others"] = float(np.mean([share for lang, share in right.items() if lang not in LARGE]))
    found["passages, nDCG@10"] = float(np.mean(passages_found(model, held_out)))
    return found


def translations_found(model: Measured, held_out: Corpus) -> dict[str, float]:
    """How often a text's nearest English text among all is its translation, by language."""
    english = held_out.languages.index("en")
    of_language: dict[str, list[tuple[int, int]]] = defaultdict(list)
    sources = [name.startswith(TRANSLATION_SOURCES) for name in held_out.sources]
    for (left, right), source in zip(held_out.pairs.tolist(), held_out.pair_source.tolist(), strict=True):
        languages = [int(held_out.text_language[text]) for text in (left, right)]
        if sources[source] and english in languages and languages[0] != languages[1]:
            other, own = (right, left) if languages[0] == english else (left, right)
            of_language[held_out.languages[held_out.text_language[other]]].append((other, own))
    of_language = {lang: pairs for lang, pairs in of_language.items() if len(pairs) >= TRANSLATIONS_MIN}
    pool = sorted({own for pairs in of_language.values() for _, own in pairs})
    places, vectors = {text: place for place, text in enumerate(pool)}, model.vectors(pool, "query")
    right_first = {}
    for lang, pairs in of_language.items():
        nearest = (model.vectors([other for other, _ in pairs], "query") @ vectors.T).argmax(axis=1)
        right_first[lang] = float(np.mean(nearest == [places[own] for _, own in pairs]))
    return right_first


def passages_found(model: Measured, held_out: Corpus) -> list[float]:
    """nDCG@10 of the questions of each source among all passages, by source."""
    retrieval = [number for number, name in enumerate(held_out.sources) if name.startswith(RETRIEVAL_SOURCES)]
    rows = np.flatnonzero(np.isin(held_out.pair_source, retrieval))
    pool = np.unique(held_out.pairs[rows, 1])
    vectors, of_source = model.vectors(pool, "passage"), defaultdict(list)
    ranked = (model.vectors(held_out.pairs[rows, 0], "query") @ vectors.T).argsort(axis=1)[:, ::-1][:, :10]
    wanted = np.searchsorted(pool, held_out.pairs[rows, 1])
    for source, ranking, right in zip(held_out.pair_source[rows], ranked.tolist(), wanted.tolist(), strict=True):
        of_source[source].append(ndcg_at(10, ranking, {right: 1}))
    return [float(np.mean(values)) for values in of_source.values()]


def make_variant(variant: Variant, data: Path, out: Path) -> dict[str, float]:
    """Train one, in this process, and measure it."""
    config = short(load_config(CONFIG), variant)
    folder = out / variant.name
    folder.mkdir(parents=True, exist_ok=True)
    for path in out.glob("*.*"):
        if path.is_file() and not (folder / path.name).exists():
            os.link(path, folder / path.name)
    sources = bootstrap.keep_open_sources(bootstrap.read_sources(data, config.dev_sets))
    corpus, start = third_of(sources), load_starting_model(config.starting_model)
    made = bootstrap.make_tokenizer(config, corpus, start, folder, lambda: False)
    assert made is not None
    material = bootstrap.Material(corpus, start, *made)
    teacher = bootstrap.make_teacher(config, material, folder)
    few = replace(material, start=with_layers(start, variant.layers))
    begun = bootstrap.begin(config, few, teacher, folder, lambda: False)
    assert begun is not None
    targets = find_targets(corpus)
    mixture = bootstrap.mix(corpus, config.mixture, pair_weights(corpus, targets, config.distil.untaught_weight))
    trainer = DistilTrainer(
        begun.bert,
        begun.static,
        made[0],
        corpus,
        targets,
        mixture,
        made[1],
        teacher,
        config.distil,
        config.seed,
        config.table_width,
        config.table_bits,
    )
    for number in range(config.distil.steps):
        trainer.step(number)
    return measure(trainer, data, read_corpus(sources, MEASURED, only_held_out=True), material)


def prepare(data: Path, out: Path) -> None:
    """What all variants have in common: the learnt tokenizer, the texts in its tokens and in the teacher's."""
    config = short(load_config(CONFIG), VARIANTS[0])
    assert config.warm_start is not None
    sources = bootstrap.keep_open_sources(bootstrap.read_sources(data, config.dev_sets))
    corpus, start = third_of(sources), load_starting_model(config.starting_model)
    learnt = out / bootstrap.LEARNT_TOKENIZER_FILE
    if not learnt.is_file():
        tokenizer = bootstrap.train_tokenizer(
            corpus.texts, corpus.text_language, config.warm_start.tokenizer, config.seed
        )
        bootstrap.save_whole(tokenizer, learnt)
    longest = config.distil.passage_tokens
    bootstrap.make_store(bootstrap.load_tokenizer(learnt), corpus.texts, longest, out / "tokens_learnt.npz")
    placeholder = bootstrap.Material(corpus, start, start.tokenizer, TokenStore(np.zeros(0, int), np.zeros(1, int)))
    bootstrap.make_teacher(config, placeholder, out)


def table(found: dict[Variant, dict[str, float]]) -> str:
    """For docs/nano-ablation.md."""
    names = list(next(iter(found.values())))
    lines = [
        f"| tokens | layers | table's width | bits | bytes | {' | '.join(names)} |",
        f"|{'--:|' * (5 + len(names))}",
    ]
    for variant, figures in found.items():
        values = [f"{figures[name]:.1f}" if name.startswith("tokens") else f"{figures[name]:.3f}" for name in names]
        size = f"{variant.file_bytes / 1e6:.1f} million"
        made = f"{variant.tokens:,} | {variant.layers} | {variant.width} | {variant.bits}"
        lines.append(f"| {made} | {size} | {' | '.join(values)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(".bench/sizes"))
    parser.add_argument("--at-once", type=int, default=2, help="variants trained side by side, one core each")
    parser.add_argument("--part", choices=["prepare", *(each.name for each in VARIANTS)], help="only this")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part == "prepare":
        prepare(args.data, args.out)
        return
    if args.part:
        variant = next(each for each in VARIANTS if each.name == args.part)
        figures = make_variant(variant, args.data, args.out)
        write_json(args.out / variant.name / "figures.json", dict(figures))
        return
    own = [sys.executable, __file__, "--data", str(args.data), "--out", str(args.out), "--part"]
    subprocess.run([*own, "prepare"], check=True)
    one_core = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}

    def run(variant: Variant) -> None:
        if not (args.out / variant.name / "figures.json").is_file():
            subprocess.run([*own, variant.name], check=True, env=one_core)

    with ThreadPoolExecutor(args.at_once) as pool:
        list(pool.map(run, VARIANTS))
    print(table({each: json.loads((args.out / each.name / "figures.json").read_text()) for each in VARIANTS}))


if __name__ == "__main__":
    main()
