"""What a synthesis is made by. Imports neither torch nor a client."""

from typing import Literal, get_args

from pydantic import Field, field_validator, model_validator

from training.config import Section
from training.text_languages import LANGUAGES

Kind = Literal["short_long", "long_short", "short_short", "long_long", "bitext", "sts"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Their tasks are thought up by the model; the others have one each, see INSTRUCTIONS.
INVENTED: tuple[Kind, ...] = ("short_long", "long_short", "short_short", "long_long")
# Fixed by unilm/e5/utils.py.
INSTRUCTIONS: dict[Kind, str] = {
    "bitext": "Retrieve parallel sentences.",
    "sts": "Retrieve semantically similar text.",
}

# arXiv 2401.00368, figure 2: thousands of examples of each kind, and the languages' shares in percent. "Others" had
# 19.8 %; that they share it evenly is our choice.
_KINDS: dict[Kind, float] = {
    "short_long": 167,
    "long_short": 122,
    "short_short": 13,
    "long_long": 17,
    "bitext": 89,
    "sts": 99,
}
_LARGE = {
    "en": 43.1, "pl": 3.0, "ja": 2.9, "it": 2.9, "ru": 2.9, "id": 2.9, "de": 2.9, "fa": 2.9, "es": 2.8, "zh": 2.8,
    "fr": 2.8, "pt": 2.8, "nl": 2.8, "ar": 2.7,
}  # fmt: skip
_OTHERS = 19.8


def published_languages() -> dict[str, float]:
    """Language → share in percent."""
    return {code: _LARGE.get(code, _OTHERS / (len(LANGUAGES) - len(_LARGE))) for code in LANGUAGES}


class SynthesisConfig(Section):
    """Published: shares of kinds and languages, temperature and top_p. The rest is our choice.

    All of it is what a synthesis is made by: another value is another synthesis.
    """

    seed: int = Field(default=42, ge=0)
    kinds: dict[Kind, float] = _KINDS
    languages: dict[str, float] = published_languages()
    # 150 thousand instructions for 319 thousand examples: about two for each.
    tasks_a_request: int = Field(default=20, gt=0, le=100)
    examples_a_task: int = Field(default=2, gt=0)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    answer_tokens_max: int = Field(default=4096, gt=0)
    # Asks for a JSON object in the protocol's own way; some servers don't know it.
    json_mode: bool = True
    # Two instructions, or two queries, are one where so many of their runs of letters are the same (Jaccard).
    near_duplicate: float = Field(default=0.8, gt=0, le=1)

    @property
    def examples_a_unit(self) -> int:
        """A unit is a list of tasks and their examples."""
        return self.tasks_a_request * self.examples_a_task

    @field_validator("kinds", "languages")
    @classmethod
    def _has_shares(cls, shares: dict[str, float]) -> dict[str, float]:
        if min(shares.values(), default=0) < 0 or sum(shares.values()) <= 0:
            raise ValueError("shares must be 0 or more, and one above 0")
        return shares

    @field_validator("languages")
    @classmethod
    def _are_known(cls, shares: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(shares) - set(LANGUAGES))
        if unknown:
            raise ValueError(f"unknown languages {', '.join(unknown)}; known are {', '.join(LANGUAGES)}")
        return shares

    @model_validator(mode="after")
    def _can_translate(self) -> "SynthesisConfig":
        if self.kinds.get("bitext") and sum(share > 0 for share in self.languages.values()) < 2:
            raise ValueError("bitext needs two languages; name another one, or give kinds without bitext")
        return self
