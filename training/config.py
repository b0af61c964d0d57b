"""The settings of a model's stages, read from one TOML file. Imports neither torch nor transformers.

Every number that the report (arXiv 2402.05672) publishes is a default here; what it leaves open is our choice, and says
so. The three sizes differ in learning rates alone: the configs write them out.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from service.recipe.prompts import Role
from training.errors import BadTrainConfig


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceConfig(Section):
    """Where pairs of one kind come from. One of `path` and `dataset`."""

    # What a pair is, for people.
    pair: str = ""
    # Files of the data folder, with * and ?: .jsonl, .jsonl.gz, .parquet.
    path: str = ""
    # A data set of the hub, streamed by the package `datasets`.
    dataset: str = ""
    subset: str = ""
    split: str = "train"
    revision: str = ""
    # The names of the columns. Several for the query or the positive are joined by a space, as "title text".
    query: list[str] = ["query"]
    positive: list[str] = ["positive"]
    negatives: str = "negative"
    # Of a cross-encoder: of the positive, then of each negative.
    scores: str = "scores"
    # Short answers, a text or a list of them: a passage that holds one is no hard negative.
    answers: str = "answers"
    # A column, or with "=" before it the language of every pair.
    language: str = "lang"
    # The task, for instruct models: of every pair, or wordings of which each visit draws one.
    instruction: list[str] = []
    # Of a pair that has its own; it comes before the source's.
    instruction_column: str = "instruction"
    # How the two sides are prompted. Symmetric pairs, such as translations, have the same on both.
    query_role: Role = "query"
    positive_role: Role = "passage"
    # Pairs kept at most: the first ones, from all its files in turn.
    pairs_max: int | None = Field(default=None, gt=0)
    weight: float = Field(default=1.0, ge=0)
    licence: str = ""

    @field_validator("instruction", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, given: object) -> object:
        return [given] if isinstance(given, str) else given

    @model_validator(mode="after")
    def _has_one_place(self) -> "SourceConfig":
        if bool(self.path) == bool(self.dataset):
            raise ValueError("give one of `path` and `dataset`")
        return self


class FilterConfig(Section):
    """Which pairs are kept. The lengths are our choice."""

    characters_min: int = Field(default=2, ge=1)
    # Longer texts are cut, for no token of theirs would be read.
    characters_max: int = Field(default=4000, gt=1)
    # Of two translations one is not this many times as long as the other; other pairs may be.
    length_ratio_max: float = Field(default=6.0, gt=1)
    # Of a text's letters so many are of its language's scripts, where these are known. Low, for names and terms are
    # often written in another script: a text of another language has none.
    script_share_min: float = Field(default=0.2, ge=0, le=1)
    # Languages kept, by the name in the data; none means all.
    languages: list[str] = []


class MixtureConfig(Section):
    """How often sources and languages come up. The report caps each source and does not say how languages are drawn."""

    # Table 1: pools of up to 2.4 billion pairs were cut at 160 million.
    source_cap: int | None = Field(default=160_000_000, gt=0)
    source_exponent: float = Field(default=1.0, ge=0, le=1)
    # Our choice: XLM-R's 0.3 is for learning to write a language, to align one takes less.
    language_exponent: float = Field(default=0.5, ge=0, le=1)
    # The report does not say. Off: each row of a batch is drawn by the same shares, with as many hard negatives as the
    # poorest source in the batch has, and a teacher where every source in it is scored.
    one_source_a_batch: bool = True


class StageConfig(Section):
    """What both contrastive stages have. Published: temperature, batch, learning rate; the rest is our choice."""

    batch_pairs: int = Field(gt=1)
    learning_rate: float = Field(gt=0)
    temperature: float = Field(default=0.01, gt=0)
    max_tokens: int = Field(default=128, gt=8, le=512)
    warmup_steps: int = Field(default=1000, ge=0)
    schedule: Literal["linear", "warmup_stable_decay"] = "linear"
    # Of warmup_stable_decay: the share of the steps in which the rate falls.
    decay_share: float = Field(default=0.1, gt=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    gradient_norm_max: float = Field(default=1.0, gt=0)
    direction: Literal["query_to_passage", "both"] = "query_to_passage"
    # E5 freezes them, so that texts longer than those it was trained on keep their positions.
    freeze_positions: bool = True
    precision: Literal["fp32", "bf16"] = "bf16"
    # Texts of like length are computed together, up to this many tokens with padding. Memory is in proportion.
    chunk_tokens: int = Field(default=65_536, gt=0)
    mixture: MixtureConfig = MixtureConfig()
    filter: FilterConfig = FilterConfig()
    sources: dict[str, SourceConfig] = {}
    save_every_steps: int = Field(default=500, gt=0)
    log_every_steps: int = Field(default=10, gt=0)


def of_epochs(given: object) -> object:
    """What a mixture of epochs is where it is not said otherwise: every pair as often as any other."""
    return {"source_cap": None, "language_exponent": 1.0, **given} if isinstance(given, dict) else given


OfEpochs = Annotated[MixtureConfig, BeforeValidator(of_epochs)]


class PretrainConfig(StageConfig):
    """Stage 1: weak pairs, in-batch negatives."""

    batch_pairs: int = Field(default=32_768, gt=1)
    steps: int = Field(default=30_000, gt=0)
    learning_rate: float = Field(default=3e-4, gt=0)


class FinetuneConfig(StageConfig):
    """Stage 2: labelled pairs, hard negatives, a cross-encoder's scores."""

    batch_pairs: int = Field(default=512, gt=1)
    epochs: int = Field(default=2, gt=0)
    learning_rate: float = Field(default=3e-5, gt=0)
    warmup_steps: int = Field(default=400, ge=0)
    max_tokens: int = Field(default=192, gt=8, le=512)
    # Epochs show every pair as often as any other.
    mixture: OfEpochs = MixtureConfig(source_cap=None, language_exponent=1.0)
    # English E5's; mE5's is not published.
    hard_negatives: int = Field(default=7, ge=0)
    # The weight of InfoNCE beside the KL divergence to the teacher, English E5's.
    alpha: float = Field(default=0.2, ge=0)
    teacher_temperature: float = Field(default=1.0, gt=0)


class InstructConfig(FinetuneConfig):
    """The last stage of an instruct model: stage 2 of large with instructions, and synthetic pairs beside its data."""

    learning_rate: float = Field(default=1e-5, gt=0)
    # Of the visits, those that get the generic instruction of their input type. The report has none of this.
    generic_instruction_share: float = Field(default=0.0, ge=0, le=1)


class ConsistencyConfig(Section):
    """Which weak pairs a model finds right: English E5's numbers (arXiv 2212.03533), as contrastors has them too."""

    # The passage is among so many nearest …
    top: int = Field(default=2, gt=0)
    # … of so many that are drawn from its source.
    passages: int = Field(default=1_000_000, gt=0)
    # From its language alone where that has so many; our choice, English E5 has one language.
    language_passages_min: int = Field(default=10_000, gt=0)


class TeachConfig(Section):
    """The cross-encoder whose ranking the second stage learns.

    Published for SimLM's, whose code the report's author names: learning rate, epochs, length, 64 passages a query of
    which the hardest quarter is learnt from, R-Drop. The report does not publish mE5's; the rest is our choice.
    """

    # A re-ranker with one label, a folder or a repository of the hub, in place of one that is trained here.
    teacher: str = ""
    # What one that is trained here begins with: an encoder or a re-ranker, a folder or a repository. The model's own
    # first stage unless given; a larger encoder makes a better teacher of a small model.
    start: str = ""
    # Queries of a batch, each with its own passages.
    batch_queries: int = Field(default=64, gt=1)
    epochs: int = Field(default=3, gt=0)
    learning_rate: float = Field(default=3e-5, gt=0)
    # Of a query, others at each visit; fewer where some row has fewer.
    negatives: int = Field(default=63, gt=0)
    # One in so many of a query's passages is learnt from: the positive, and those that are scored highest.
    forward_factor: int = Field(default=4, gt=0)
    # The weight of the divergence between two readings with other dropout (R-Drop, arXiv 2106.14448); 0 reads once.
    r_drop: float = Field(default=1.0, ge=0)
    # Of query and passage together.
    max_tokens: int = Field(default=192, gt=8, le=512)
    warmup_steps: int = Field(default=1000, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    gradient_norm_max: float = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "bf16"
    # Read at a time, with padding; a query's passages are never divided. Memory is in proportion.
    chunk_tokens: int = Field(default=32_768, gt=0)
    mixture: OfEpochs = MixtureConfig(source_cap=None, language_exponent=1.0)
    save_every_steps: int = Field(default=500, gt=0)
    log_every_steps: int = Field(default=10, gt=0)

    @model_validator(mode="after")
    def _reads_one_source_a_batch(self) -> "TeachConfig":
        if not self.mixture.one_source_a_batch:
            raise ValueError("a teacher compares the passages of one query; its batches are of one source")
        return self


class MineConfig(Section):
    """Hard negatives. mE5's are not published; the rules are those that others have shown to work, the numbers ours."""

    # Candidates a query from each of the two; 0 asks it nothing.
    bm25_top: int = Field(default=100, ge=0)
    dense_top: int = Field(default=200, ge=0)
    # Ranks that are looked at, from 0, among what the model and BM25 found, taken in turns.
    rank_from: int = Field(default=0, ge=0)
    rank_to: int = Field(default=200, gt=0)
    # A candidate's cosine is at most the positive's less this share of it, and less this. At -1 the share forbids
    # nothing: where labels are weak, what is nearer than the positive may be a better one, and the teacher says so.
    relative_margin: float = Field(default=0.05, ge=-1, lt=1)
    absolute_margin: float = Field(default=0.0, ge=0)
    # Whose passages: any, or those of the query's own language.
    languages: Literal["any", "same"] = "any"
    # A candidate that holds one of the source's answers is dropped, or becomes another positive of the query, as SimLM
    # does for NQ, or is kept.
    answer: Literal["drop", "positive", "keep"] = "drop"
    # Of one query at most.
    positives_added: int = Field(default=3, gt=0)
    # A candidate's score by the teacher is below the positive's less this. None does not ask the teacher.
    teacher_margin: float | None = None
    # Kept a query, so that every visit of it finds others.
    negatives: int = Field(default=30, gt=0)
    # A query with fewer gets passages at random, so that a source's queries all have what the second stage wants.
    filled_to: int = Field(default=7, ge=0)

    @model_validator(mode="after")
    def _asks_somebody(self) -> "MineConfig":
        if self.rank_from >= self.rank_to:
            raise ValueError(f"rank_from {self.rank_from} is not below rank_to {self.rank_to}: no candidate is left")
        if self.filled_to > self.negatives:
            raise ValueError(f"filled_to {self.filled_to} is more than the {self.negatives} negatives that are kept")
        if not (self.bm25_top or self.dense_top):
            raise ValueError("one of bm25_top and dense_top must be above 0")
        return self


class EvaluateConfig(Section):
    """What the finished model is measured on."""

    # By name; none means all sets of the data folder.
    sets: list[str] = []
    protocol: Literal["paper", "mteb-current"] = "paper"


class ModelConfig(Section):
    """All stages of one model."""

    name: str
    seed: int = Field(default=42, ge=0)
    # A checkpoint folder, or a repository of the hub.
    backbone: str
    # Where its tokenizer is, if elsewhere.
    tokenizer: str = ""
    pretrain: PretrainConfig = PretrainConfig()
    consistency: ConsistencyConfig = ConsistencyConfig()
    mine: MineConfig = MineConfig()
    teach: TeachConfig = TeachConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    instruct: InstructConfig = InstructConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _has_one_second_stage(self) -> "ModelConfig":
        if self.finetune.sources and self.instruct.sources:
            raise ValueError("a model's second stage is `finetune` or `instruct`; give sources to one of them")
        return self

    @property
    def second(self) -> "SecondStage":
        """Which stage follows stage 1: what is mined and taught is its."""
        return "instruct" if self.instruct.sources else "finetune"

    @property
    def labelled(self) -> FinetuneConfig:
        """The settings of that stage."""
        return self.instruct if self.second == "instruct" else self.finetune

    def stage(self, name: "Stage") -> "PretrainConfig | FinetuneConfig":
        """The settings of one stage."""
        if name == "pretrain":
            return self.pretrain
        return self.finetune if name == "finetune" else self.instruct


SecondStage = Literal["finetune", "instruct"]
Stage = Literal["pretrain", "finetune", "instruct"]
Settings = TypeVar("Settings", bound=Section)


def load_config(path: Path) -> ModelConfig:
    """Read a model's TOML file; BadTrainConfig names every key that is unknown, missing or out of bounds."""
    return read_settings(path, ModelConfig)


def read_settings(path: Path, shape: type[Settings]) -> Settings:
    """Read a TOML file of this shape."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadTrainConfig(f"{path} does not exist") from None
    except tomllib.TOMLDecodeError as error:
        raise BadTrainConfig(f"{path} is not valid TOML: {error}") from error
    try:
        return shape.model_validate(content)
    except ValidationError as error:
        findings = "; ".join(_explain(item["loc"], item["msg"]) for item in error.errors())
        raise BadTrainConfig(f"{path}: {findings}") from None


def _explain(location: tuple[int | str, ...], message: str) -> str:
    """Name the key of one finding and say what is wrong with it."""
    key = ".".join(str(part) for part in location)
    if not key:
        return message.removeprefix("Value error, ")
    return f"unknown key {key!r}; remove it" if message.startswith("Extra inputs") else f"key {key!r}: {message}"
