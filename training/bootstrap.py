"""A small model from nothing: tokenizer, token vectors, then the layers, taught by an English encoder."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from service.recipe.tokens import load_tokenizer
from training.batches import read_prefixes
from training.bootstrap_config import MixtureConfig, TrainConfig
from training.checkpoint import describe_run, load_state, save_checkpoint, write_json
from training.data import Corpus, Source, keep_open_sources, read_corpus, read_sources
from training.encoder import SLACK, build_encoder
from training.errors import RunExists, SettingsChanged
from training.layers import LayersTrainer, TrainerState
from training.loop import run_steps, stop_on_signal
from training.mixture import Mixture, build_mixture
from training.starting_model import StartingModel, embed_tokens, load_starting_model
from training.token_store import TokenStore, load_tokens, save_tokens, tokenize_all
from training.token_vectors import Bags, learn_token_vectors, rarity_weights
from training.tokenizer import train_tokenizer
from training.whitening import sample_by_language, whiten_tokens

logger = logging.getLogger(__name__)
RUN_FILE = "run.json"
TOKENIZER_FILE = "tokenizer.json"
TOKEN_VECTORS_FILE = "token_vectors.safetensors"


@dataclass(frozen=True)
class Material:
    """What both trained stages read: the numbered texts in the tokens of the student and of the teacher."""

    corpus: Corpus
    tokenizer: Tokenizer
    store: TokenStore
    start: StartingModel
    english_store: TokenStore


def bootstrap(
    config: TrainConfig,
    data: Path,
    out: Path,
    resume: bool = False,
    should_stop: Callable[[], bool] | None = None,
) -> Path | None:
    """Make the model and return the folder of the last checkpoint; None when it was stopped before the first one.

    resume: continue what `out` holds, at the step it was stopped at and with the same batches; finished parts of the
    warm start are taken as they are; where there is nothing yet, a new run begins.
    should_stop: asked after every step; SIGTERM and Ctrl-C by default.
    """
    if out.exists() and any(out.iterdir()) and not resume:
        raise RunExists(f"{out} is not empty; continue that run with --resume, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    stop = should_stop or stop_on_signal()
    torch.manual_seed(config.seed)
    sources = keep_open_sources(read_sources(data))
    check_same_run(out, run_identity(config, sources))
    corpus = read_corpus(sources, config.held_out_per_mille)
    logger.info("%d pairs, %d texts, %d languages", len(corpus.pairs), len(corpus.texts), len(corpus.languages))
    tokenizer = make_tokenizer(config, corpus, out / TOKENIZER_FILE)
    material = make_material(config, corpus, tokenizer, out)
    learnt = make_token_vectors(config, material, out / TOKEN_VECTORS_FILE, stop)
    if learnt is None:
        return None
    table, weights = learnt

    size = config.layers
    bert = build_encoder(table, weights, size.layer_count, size.head_count, size.intermediate_size)
    trainer = LayersTrainer(
        bert,
        tokenizer,
        corpus,
        mix(corpus, config.mixture),
        material.store,
        material.start,
        material.english_store,
        config.layers,
        config.seed,
    )

    def save(steps_done: int, pairs: int) -> None:
        manifest = describe_run(config, sources, steps_done, pairs)
        save_checkpoint(out, steps_done, bert, tokenizer, manifest, trainer.state(steps_done, pairs))

    found = load_state(out)
    first_step, pairs_seen = (0, 0)
    if not found:
        # The bag of tokens alone is a model that can be used.
        save(0, 0)
    else:
        first_step, pairs_seen = trainer.load(cast(TrainerState, found[1]))
    steps = range(first_step, config.layers.steps)
    run_steps(trainer, steps, save, stop, config.layers.save_every_steps, config.layers.log_every_steps, pairs_seen)
    last = load_state(out)
    return last[0] if last else None


def run_identity(config: TrainConfig, sources: list[Source]) -> dict[str, object]:
    """What every part of a run was made from: settings and data."""
    data = {source.name: source.sha256 for source in sources}
    return {"settings": config.model_dump(mode="json"), "data": data}


def check_same_run(out: Path, identity: dict[str, object]) -> None:
    """Note what this run is made from, or refuse to continue one that was made from something else."""
    path = out / RUN_FILE
    if not path.is_file():
        write_json(path, identity)
    elif json.loads(path.read_text(encoding="utf-8")) != identity:
        raise SettingsChanged(f"settings or data differ from those in {path}; start a new run, with another --out")


def mix(corpus: Corpus, config: MixtureConfig) -> Mixture:
    """Build the mixture that a section of the settings describes."""
    return build_mixture(corpus, config.source_exponent, config.language_exponent, config.weights)


def make_tokenizer(config: TrainConfig, corpus: Corpus, path: Path) -> Tokenizer:
    """Train the tokenizer, or take the one that this run has trained before."""
    if not path.is_file():
        logger.info("training the tokenizer")
        unfinished = path.with_suffix(".unfinished")
        train_tokenizer(corpus.texts, corpus.text_language, config.tokenizer, config.seed).save(str(unfinished))
        os.replace(unfinished, path)
    return load_tokenizer(path)


def make_material(config: TrainConfig, corpus: Corpus, tokenizer: Tokenizer, out: Path) -> Material:
    """Tokenise every text for the student and the English ones for the teacher; a resumed run finds both in `out`."""
    start = load_starting_model(config.starting_model)
    english = corpus.languages.index("en") if "en" in corpus.languages else -1
    english_texts = [
        text if language == english else "" for text, language in zip(corpus.texts, corpus.text_language, strict=True)
    ]
    longest = config.layers.max_tokens

    def tokens(name: str, tokenizer: Tokenizer, texts: list[str]) -> TokenStore:
        path = out / name
        if not path.is_file():
            logger.info("tokenising for %s", name)
            save_tokens(tokenize_all(tokenizer, texts, longest), path)
        return load_tokens(path)

    return Material(
        corpus=corpus,
        tokenizer=tokenizer,
        store=tokens("tokens.npz", tokenizer, corpus.texts),
        start=start,
        english_store=tokens("tokens_teacher.npz", start.tokenizer, english_texts),
    )


def make_token_vectors(
    config: TrainConfig, material: Material, path: Path, should_stop: Callable[[], bool]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Learn the token vectors, or take those that this run has learnt before.

    Returns directions [V, H - SLACK] and weights [V]; None when it was stopped.
    """
    if not path.is_file():
        settings = config.token_vectors
        prefixes = read_prefixes(material.tokenizer)
        table = embed_tokens(material.tokenizer, material.start, config.seed)[:, :-SLACK].contiguous()
        weights = rarity_weights(
            material.store, [prefixes.query, prefixes.passage], len(table), settings.rarity_smoothing
        )
        bags = Bags(material.store, weights, settings.max_tokens)
        mixture = mix(material.corpus, settings.mixture)
        learnt = learn_token_vectors(table, bags, material.corpus, mixture, settings, config.seed, should_stop)
        if learnt is None:
            return None
        sample = sample_by_language(
            material.corpus, material.store.lengths(), settings.whitening_texts_per_language, config.seed
        )
        table, weights = whiten_tokens(table, learnt, bags, sample, settings.whitening)
        unfinished = path.with_suffix(".unfinished")
        save_file({"directions": table, "weights": weights}, unfinished)
        os.replace(unfinished, path)
    saved = load_file(path)
    return saved["directions"], saved["weights"]
