"""A small model from nothing: tokenizer, token vectors, then the whole encoder, taught by an English one.

The layers are the English encoder's own (graft.py), so what has to be learnt is a vocabulary: which tokens it has, what
they stand for in English (translation_table.py, token_vectors.py), and, by distillation (distil.py), the rest. Beside
the layers lies a static path (static_path.py).
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from service.recipe.tokens import load_tokenizer
from training.batches import read_prefixes
from training.bootstrap_config import MixtureConfig, TokenVectorsConfig, TrainConfig
from training.checkpoint import describe_run, load_state, save_checkpoint, write_json
from training.data import Corpus, Source, keep_open_sources, read_corpus, read_sources
from training.distil import DistilState, DistilTrainer
from training.errors import BadTrainConfig, BadTrainingData, RunExists, SettingsChanged
from training.graft import english_shares, graft_encoder, graft_table
from training.lexical_path import LexicalPath, draw_lexical_path, lexical_weights, told_scales
from training.loop import run_steps, stop_on_signal
from training.mixture import Mixture, build_mixture
from training.narrow import onto_subspace
from training.nibbles import GROUP
from training.restore import Restored, restore, restored_hashes, restored_name, restored_tokenizer
from training.starting_model import StartingModel, load_starting_model
from training.static_path import StaticPath, rotation_onto
from training.targets import find_targets, pair_weights
from training.teacher_vectors import TeacherVectors
from training.token_store import TokenStore, load_tokens, save_tokens, take_bags, tokenize_all
from training.token_vectors import begin_static_path, learn_token_vectors, token_shares
from training.tokenizer import train_tokenizer
from training.translation_table import english_pairs, translation_shares
from training.two_paths import write_two_paths
from training.vocabulary import choose_vocabulary

logger = logging.getLogger(__name__)
RUN_FILE = "run.json"
LEARNT_TOKENIZER_FILE, TOKENIZER_FILE = "tokenizer_learnt.json", "tokenizer.json"
TOKEN_VECTORS_FILE, TEACHER_FILE = "token_vectors.safetensors", "teacher.npy"


@dataclass(frozen=True)
class Material:
    """What all parts read: the numbered texts in the tokens of the student, and the model that it starts from."""

    corpus: Corpus
    start: StartingModel
    tokenizer: Tokenizer
    store: TokenStore


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
    should_stop: asked after every part and every step; SIGTERM and Ctrl-C by default.
    Raises RunExists, SettingsChanged, StartingModelMissing, and BadTrainingData for pairs that can't be read or have
    no English.
    """
    if out.exists() and any(out.iterdir()) and not resume:
        raise RunExists(f"{out} is not empty; continue that run with --resume, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    stop = should_stop or stop_on_signal()
    torch.manual_seed(config.seed)
    sources = keep_open_sources(read_sources(data, config.dev_sets))
    start = load_starting_model(config.starting_model)
    check_table(config, start.bert.config.hidden_size)
    check_same_run(out, run_identity(config, sources))
    corpus = read_corpus(sources, config.held_out_per_mille)
    if "en" not in corpus.languages:
        raise BadTrainingData(f"{data} has no English text, and the teacher reads English; add translations from it")
    logger.info("%d pairs, %d texts, %d languages", len(corpus.pairs), len(corpus.texts), len(corpus.languages))
    made = make_tokenizer(config, corpus, start, out, stop)
    if made is None:
        return None
    material = Material(corpus, start, *made)
    teacher = make_teacher(config, material, out)
    begun = begin(config, material, teacher, out, stop)
    if begun is None or stop():
        return None
    bert, static = begun.bert, begun.static
    targets = find_targets(corpus)
    mixture = mix(corpus, config.mixture, pair_weights(corpus, targets, config.distil.untaught_weight))
    trainer = DistilTrainer(
        bert,
        static,
        material.tokenizer,
        corpus,
        targets,
        mixture,
        material.store,
        teacher,
        config.distil,
        config.seed,
        config.table_width,
        config.table_bits,
    )
    lexical = make_lexical_path(config, material, begun)
    begins_with = config.starting_model if config.begins_with is None else restored_name(Path(config.begins_with))

    def save(steps_done: int, pairs: int) -> None:
        manifest = describe_run(config, sources, begins_with, steps_done, pairs)
        state = trainer.state(steps_done, pairs)
        model = trainer.result()
        layout = partial(write_two_paths, static=model.static, dimension=bert.config.hidden_size, lexical=lexical)
        save_checkpoint(out, steps_done, model.bert, material.tokenizer, manifest, state, layout)

    found = load_state(out)
    first_step, pairs_seen = (0, 0)
    if not found:
        # The graft alone is a model that can be used.
        save(0, 0)
    else:
        first_step, pairs_seen = trainer.load(cast(DistilState, found[1]))
    steps = range(first_step, config.distil.steps)
    run_steps(trainer, steps, save, stop, config.distil.save_every_steps, config.distil.log_every_steps, pairs_seen)
    last = load_state(out)
    return last[0] if last else None


def run_identity(config: TrainConfig, sources: list[Source]) -> dict[str, object]:
    """What every part of a run was made from: settings, data, and the model that it begins with."""
    identity: dict[str, object] = {
        "settings": config.model_dump(mode="json"),
        "data": {source.name: source.sha256 for source in sources},
    }
    if config.begins_with is not None:
        identity["begins_with"] = restored_hashes(Path(config.begins_with))
    return identity


def check_table(config: TrainConfig, layers_width: int) -> None:
    """Raises BadTrainConfig where token vectors of the layers' width can't be stored as the settings want."""
    if config.table_width is not None and config.table_width > layers_width:
        raise BadTrainConfig(
            f"table_width = {config.table_width} is more than the {layers_width} of the starting model"
        )
    if config.table_bits == 4 and layers_width % GROUP:
        raise BadTrainConfig(
            f"table_bits = 4 takes a width that {GROUP} divides, the starting model's is {layers_width}; leave it out"
        )


def check_same_run(out: Path, identity: dict[str, object]) -> None:
    """Note what this run is made from, or refuse to continue one that was made from something else."""
    path = out / RUN_FILE
    if not path.is_file():
        write_json(path, identity)
    elif json.loads(path.read_text(encoding="utf-8")) != identity:
        raise SettingsChanged(f"settings or data differ from those in {path}; start a new run, with another --out")


def mix(corpus: Corpus, config: MixtureConfig, weights: NDArray[np.float64] | None = None) -> Mixture:
    """Build the mixture that a section of the settings describes.   weights: float64[N], of the pairs."""
    return build_mixture(corpus, config.source_exponent, config.language_exponent, config.weights, weights)


def make_tokenizer(
    config: TrainConfig, corpus: Corpus, start: StartingModel, out: Path, should_stop: Callable[[], bool]
) -> tuple[Tokenizer, TokenStore] | None:
    """Train the tokenizer, choose its vocabulary, tokenise every text; a resumed run finds each of these in `out`.

    None when it was stopped.
    """
    learnt_path, path = out / LEARNT_TOKENIZER_FILE, out / TOKENIZER_FILE
    longest = max(config.distil.max_tokens, config.distil.passage_tokens)
    if config.begins_with is not None:
        tokenizer = restored_tokenizer(Path(config.begins_with))
        return tokenizer, make_store(tokenizer, corpus.texts, longest, out / "tokens.npz")
    warm = config.warm_start
    assert warm is not None
    longest = max(longest, warm.token_vectors.max_tokens)
    if not learnt_path.is_file() and not path.is_file():
        logger.info("training the tokenizer")
        save_whole(train_tokenizer(corpus.texts, corpus.text_language, warm.tokenizer, config.seed), learnt_path)
    if should_stop():
        return None
    if not path.is_file():
        learnt = load_tokenizer(learnt_path)
        store = make_store(learnt, corpus.texts, longest, out / "tokens_learnt.npz")
        pieces = start.tokenizer.get_vocab()
        save_whole(choose_vocabulary(learnt, store, corpus, pieces, warm.vocabulary, config.seed), path)
    if should_stop():
        return None
    tokenizer = load_tokenizer(path)
    return tokenizer, make_store(tokenizer, corpus.texts, longest, out / "tokens.npz")


def save_whole(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    tokenizer.save(str(unfinished))
    os.replace(unfinished, path)


def make_store(tokenizer: Tokenizer, texts: list[str], max_tokens: int, path: Path) -> TokenStore:
    """Tokenise every text, or read what an earlier run has written."""
    if not path.is_file():
        logger.info("tokenising for %s", path.name)
        save_tokens(tokenize_all(tokenizer, texts, max_tokens), path)
    return load_tokens(path)


def make_teacher(config: TrainConfig, material: Material, out: Path) -> TeacherVectors:
    """The teacher, who reads the English texts in its own tokens."""
    corpus = material.corpus
    english = corpus.languages.index("en")
    texts = [
        text if language == english else ""
        for text, language in zip(corpus.texts, corpus.text_language.tolist(), strict=True)
    ]
    longest = config.distil.teacher_max_tokens
    store = make_store(material.start.tokenizer, texts, longest, out / "tokens_teacher.npz")
    return TeacherVectors(material.start, store, longest, out / TEACHER_FILE)


def begin(
    config: TrainConfig, material: Material, teacher: TeacherVectors, out: Path, should_stop: Callable[[], bool]
) -> Restored | None:
    """What the layers' training begins with: a finished model, or the graft; None when it was stopped."""
    share = config.distil.static_share
    if config.begins_with is not None:
        found = restore(Path(config.begins_with), material.start)
        found.static.share.fill_(share)
        if config.table_width is not None:
            table = found.bert.embeddings.word_embeddings.weight
            table.copy_(table @ onto_subspace(table, config.table_width))
        return found
    made = make_token_vectors(config, material, teacher, out / TOKEN_VECTORS_FILE, should_stop)
    return None if made is None else Restored(graft_encoder(made[0], material.start), made[1])


def make_token_vectors(
    config: TrainConfig, material: Material, teacher: TeacherVectors, path: Path, should_stop: Callable[[], bool]
) -> tuple[torch.Tensor, StaticPath] | None:
    """Find out what each token stands for in English, or take what this run has found out before.

    Returns the token table float32[V, H] and the static path that reads it; None when it was stopped.
    """
    share = config.distil.static_share
    if not path.is_file():
        assert config.warm_start is not None
        settings, seed = config.warm_start.token_vectors, config.seed
        corpus, store, vocab_size = material.corpus, material.store, material.tokenizer.get_vocab_size()
        others, english = english_pairs(corpus)
        shares = translation_shares(store, others, english, vocab_size)
        how_english = english_shares(store, corpus, vocab_size)
        table = graft_table(material.tokenizer, material.start, how_english, shares)
        within = None if config.table_width is None else onto_subspace(table, config.table_width)
        if within is not None:
            table = table @ within
        prefixes = read_prefixes(material.tokenizer)
        met = token_shares(store, [prefixes.query, prefixes.passage], vocab_size)
        mixture = mix(corpus, settings.mixture)
        static = begin_static_path(table, met, settings.rarity_smoothing, share)
        if not learn_token_vectors(
            table, static, how_english, store, corpus, mixture, settings, seed, should_stop, within
        ):
            return None
        turn_onto_teacher(static, table, material, teacher, settings, seed)
        unfinished = path.with_suffix(".unfinished")
        save_file({"table": table, **static.state_dict()}, unfinished)
        os.replace(unfinished, path)
    tensors = load_file(path)
    return tensors["table"], StaticPath(tensors["weights"], tensors["middle"], tensors["matrix"], torch.tensor(share))


def make_lexical_path(config: TrainConfig, material: Material, begun: Restored) -> LexicalPath | None:
    """What says by numbers of its own which tokens a text holds; None where the settings want none.

    A model that is trained further keeps its codes and what it knows of rarity, if they are as wide as the settings
    want them: the pairs it is trained on may be few.
    """
    width = config.distil.lexical_width
    if not width:
        return None
    prefixes = read_prefixes(material.tokenizer)
    first_tokens = int(prefixes.query[0]), int(prefixes.passage[0])
    scales = told_scales((config.distil.lexical_query_scale, config.distil.lexical_passage_scale), first_tokens)
    if begun.lexical is not None and begun.lexical.low.shape[1] == width:
        begun.lexical.scales.copy_(torch.tensor(scales)[:, None])
        return begun.lexical
    weights = lexical_weights(material.store, [prefixes.query, prefixes.passage], material.tokenizer.get_vocab_size())
    return draw_lexical_path(weights, width, scales, first_tokens[1], config.seed)


def turn_onto_teacher(
    static: StaticPath,
    table: torch.Tensor,
    material: Material,
    teacher: TeacherVectors,
    settings: TokenVectorsConfig,
    seed: int,
) -> None:
    """Turn the space of the static path, in place, so that English texts lie where the teacher has them."""
    corpus = material.corpus
    english = np.flatnonzero(corpus.text_language == corpus.languages.index("en"))
    count = min(len(english), settings.turned_texts)
    numbers = np.sort(np.random.default_rng([seed, 2]).choice(english, count, replace=False))
    logger.info("asking the teacher for %d English texts", count)
    wanted = teacher.of(numbers)
    ids, starts = take_bags(material.store, numbers, settings.max_tokens)
    with torch.no_grad():
        bags = static.of_bags(table, static.weights, torch.from_numpy(ids), torch.from_numpy(starts))
        before = (bags * wanted).sum(dim=1).mean()
        rotation = rotation_onto(bags, wanted)
        after = ((bags @ rotation) * wanted).sum(dim=1).mean()
        static.matrix.copy_(static.matrix @ rotation)
    logger.info("bags turned onto the teacher's vectors: mean cosine %.3f before, %.3f now", before, after)
