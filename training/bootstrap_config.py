"""The settings of `bootstrap`, read from a TOML file. Imports neither torch nor transformers."""

from pathlib import Path

from pydantic import Field

from training.config import Section, read_settings


class TokenizerConfig(Section):
    """What the sub-word vocabulary is learned from."""

    vocab_size: int = Field(gt=4)
    sample_strings: int = Field(gt=0)
    # Languages are drawn in proportion to their number of texts to this power.
    language_exponent: float = Field(default=0.6, ge=0, le=1)
    min_character_count: int = Field(default=5, ge=1)
    # Words at least this frequent in the sample may become one token.
    min_word_count: int = Field(default=5, ge=1)


class MixtureConfig(Section):
    """How often sources and languages come up: in proportion to their number of pairs to a power."""

    source_exponent: float = Field(default=0.5, ge=0, le=1)
    language_exponent: float = Field(default=0.6, ge=0, le=1)
    # By the beginning of a source's name, the longest match decides; 0 leaves a source out.
    weights: dict[str, float] = Field(default_factory=dict)


class TokenVectorsConfig(Section):
    """The warm start of the token vectors, as bags of tokens."""

    steps: int = Field(gt=0)
    # A batch holds as many pairs as make about this many tokens, at most batch_pairs_max.
    tokens_per_batch: int = Field(gt=0)
    batch_pairs_max: int = Field(gt=1)
    max_tokens: int = Field(default=128, gt=0)
    # Both fall linearly to 0: of the vectors, and of the logarithms of the tokens' weights.
    learning_rate: float = Field(gt=0)
    gain_learning_rate: float = Field(gt=0)
    temperature: float = Field(default=0.05, gt=0)
    # How strongly English texts and their translations are held near the English bag of the first vectors.
    anchor_weight: float = Field(default=1.0, ge=0)
    # A token's weight in its bag is a / (a + its share of all tokens).
    rarity_smoothing: float = Field(default=1e-3, gt=0)
    # How far the variances of the text vectors are evened out at the end: 0 not at all, 1 wholly.
    whitening: float = Field(default=0.5, ge=0, le=1)
    whitening_texts_per_language: int = Field(default=400, gt=0)
    mixture: MixtureConfig = MixtureConfig()


class LayersConfig(Section):
    """The training of the whole encoder, after the warm start."""

    layer_count: int = Field(gt=0)
    head_count: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    steps: int = Field(gt=0)
    warmup_steps: int = Field(default=50, ge=0)
    # A batch holds as many pairs as make about this many tokens, at most batch_pairs_max.
    tokens_per_batch: int = Field(gt=0)
    batch_pairs_max: int = Field(gt=1)
    max_tokens: int = Field(default=128, gt=8, le=512)
    # Rows of like length are computed together, up to this many tokens with padding.
    chunk_tokens: int = Field(default=2048, gt=0)
    learning_rate: float = Field(gt=0)
    token_learning_rate: float = Field(gt=0)
    gradient_norm_max: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=0.01, gt=0)
    # In this share of the batches the teacher is asked; it costs about as much as the student.
    teacher_share: float = Field(default=0.5, ge=0, le=1)
    distillation_weight: float = Field(default=1.0, ge=0)
    distillation_temperature: float = Field(default=0.05, gt=0)
    # Rows that the teacher finds closer than this are no negatives of each other.
    same_meaning_cosine: float = Field(default=0.9, gt=0, le=1)
    save_every_steps: int = Field(default=200, gt=0)
    log_every_steps: int = Field(default=20, gt=0)


class TrainConfig(Section):
    """A small model from nothing, all parts in the order in which they are done."""

    seed: int = Field(default=1, ge=0)
    # A folder, or `package:NAME` for the `model` folder of an installed Python package.
    starting_model: str
    # This share of the pairs is never trained on, chosen by the text of the query.
    held_out_per_mille: int = Field(default=5, ge=0, lt=1000)
    tokenizer: TokenizerConfig
    token_vectors: TokenVectorsConfig
    layers: LayersConfig
    mixture: MixtureConfig = MixtureConfig()


def load_config(path: Path) -> TrainConfig:
    """Read a TOML file; BadTrainConfig names every key that is unknown, missing or out of bounds."""
    return read_settings(path, TrainConfig)
