"""The settings of `bootstrap`, read from a TOML file. Imports neither torch nor transformers."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

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


class VocabularyConfig(Section):
    """What of the learnt vocabulary is kept, and which whole words become tokens in place of the rest."""

    # As they are in the end.
    vocab_size: int = Field(gt=4)
    # A language counts in proportion to its number of texts to this power, and not at all with fewer texts than these.
    language_exponent: float = Field(default=0.6, ge=0, le=1)
    language_texts_min: int = Field(default=1000, ge=0)
    # So many words of the starting model's vocabulary, the most frequent, are tokens.
    starting_words: int = Field(default=15000, ge=0)
    # So many words of the other languages are, those that save most pieces.
    saving_words: int = Field(default=10000, ge=0)


class TokenVectorsConfig(Section):
    """The training of the token vectors before the layers, with every text as a bag of its tokens."""

    steps: int = Field(gt=0)
    # A batch holds as many pairs as make about this many tokens, at most batch_pairs_max.
    tokens_per_batch: int = Field(gt=0)
    batch_pairs_max: int = Field(gt=1)
    max_tokens: int = Field(default=96, gt=0)
    learning_rate: float = Field(gt=0)
    matrix_learning_rate: float = Field(gt=0)
    gain_learning_rate: float = Field(gt=0)
    temperature: float = Field(default=0.05, gt=0)
    # A token weighs a / (a + its share of all tokens).
    rarity_smoothing: float = Field(default=3e-4, gt=0)
    # Of each step, a token that is wholly English takes this part, one of other languages all.
    mobility_min: float = Field(default=0.05, ge=0, le=1)
    # Behind the last step the bags are turned onto the teacher's vectors of so many English texts.
    turned_texts: int = Field(default=20000, gt=0)
    mixture: MixtureConfig = MixtureConfig()


class DistilConfig(Section):
    """The training of the whole encoder, the English one being its teacher."""

    steps: int = Field(gt=0)
    warmup_steps: int = Field(default=50, ge=0)
    # Over this part of the steps, at their end, the rates fall to 0 in a line.
    decay_share: float = Field(default=0.2, ge=0, le=1)
    # A batch holds as many pairs as make about this many tokens, at most batch_pairs_max.
    tokens_per_batch: int = Field(gt=0)
    batch_pairs_max: int = Field(gt=1)
    max_tokens: int = Field(default=128, gt=8, le=512)
    # Of passages, and of the questions to them, the student reads more.
    passage_tokens: int = Field(default=192, gt=8, le=512)
    # Of the batches of translations, so many are passages put together from sentences (passages.py).
    passage_share: float = Field(default=0.3, ge=0, le=1)
    # Of a sentence the teacher reads more than the student: it does so once, without a way back through its layers.
    teacher_max_tokens: int = Field(default=160, gt=8, le=512)
    # Rows of like length are computed together, up to this many tokens with padding.
    chunk_tokens: int = Field(default=1024, gt=0)
    learning_rate: float = Field(gt=0)
    token_learning_rate: float = Field(gt=0)
    gradient_norm_max: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=0.05, gt=0)
    # How strongly texts are pulled to the teacher's vectors, beside being told apart from the others of the batch.
    pull_weight: float = Field(default=1.0, ge=0)
    # Of the English sides of translations, so many are read by the student too.
    english_share: float = Field(default=0.25, ge=0, le=1)
    # Beside the batch, a text is told apart from so many English texts of the steps before.
    recent_texts: int = Field(default=4096, ge=0)
    # Of the vector, the static path is this part, the layers the rest.
    static_share: float = Field(default=0.5, gt=0, lt=1)
    # Behind the meaning the vector says by so many numbers which tokens the text holds (lexical_path.py), 0 for none;
    # their length in a query and in a passage, where that of the meaning is 1.
    lexical_width: int = Field(default=0, ge=0)
    lexical_query_scale: float = Field(default=0.25, gt=0)
    lexical_passage_scale: float = Field(default=1.05, gt=0)
    # The odds of a translation of which the teacher knows no side, where those of the others are 1.
    untaught_weight: float = Field(default=0.25, gt=0, le=1)
    # Where the teacher is not asked, texts closer than this are no negatives of each other.
    same_meaning_cosine: float = Field(default=0.9, gt=0, le=1)
    # Saved are the weights on average over about the last quarter of the steps, so many at most, and of that average
    # this part is the weights that training began with.
    average_steps: int = Field(default=200, ge=1)
    start_share: float = Field(default=0.3, ge=0, lt=1)
    # Matrix products in bfloat16; weights and sums stay float32.
    bfloat16: bool = True
    # Layers through torch.compile: a fifth faster on CPUs, for two minutes in the beginning and a C++ compiler (without
    # one they are computed as ever). Which code computes a shape depends on the shapes before it: a run that was
    # stopped and resumed meets the same batches, and may differ in the last digits.
    compiled: bool = False
    save_every_steps: int = Field(default=200, gt=0)
    log_every_steps: int = Field(default=20, gt=0)


class WarmStartConfig(Section):
    """Tokenizer and token vectors, which are there before the layers are trained."""

    tokenizer: TokenizerConfig
    vocabulary: VocabularyConfig
    token_vectors: TokenVectorsConfig


class TrainConfig(Section):
    """A small model from nothing, all parts in the order in which they are done; or a finished one trained further."""

    seed: int = Field(default=1, ge=0)
    # A folder, or `package:NAME` for the `model` folder of an installed Python package.
    starting_model: str
    # A version's folder, model_repo/NAME/VERSION, or a checkpoint's, runs/NAME/latest: its tokenizer, token vectors,
    # layers and static path are trained further. What a warm start makes is there already then.
    begins_with: str | None = None
    # This share of the pairs is never trained on, chosen by the text of the query.
    held_out_per_mille: int = Field(default=5, ge=0, lt=1000)
    # Similarity sets among the evaluation files, of whose development part the translations are read (not the scores).
    dev_sets: list[str] = Field(default_factory=list)
    # Token vectors fill so many dimensions of the layers' (narrow.py), and an exported version stores so many numbers
    # for each; None: all of them. A multiple of 32 is stored most exactly.
    table_width: int | None = Field(default=None, gt=0)
    # Token vectors in four bits are rounded while the layers are trained (nibbles.py), and stored without a loss.
    table_bits: Literal[8, 4] = 8
    warm_start: WarmStartConfig | None = None
    distil: DistilConfig
    mixture: MixtureConfig = MixtureConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.table_bits == 4 and self.table_width is not None:
            raise ValueError("table_bits = 4 takes whole token vectors; leave out table_width")
        if (self.begins_with is None) == (self.warm_start is None):
            raise ValueError("give either begins_with, a model to train further, or the sections of [warm_start]")
        return self


def load_config(path: Path) -> TrainConfig:
    """Read a TOML file; BadTrainConfig names every key that is unknown, missing or out of bounds."""
    return read_settings(path, TrainConfig)
