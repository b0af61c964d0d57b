"""Optimisation profiles of a TensorRT plan: for which shapes it is built, and for which of them it is fastest.

TensorRT picks its kernels for a profile's opt shape and promises to run everything between min and max. Two narrow
profiles are faster than a wide one: most queries are short, most passages long. Written NAME=MIN:OPT:MAX with shapes
as ROWSxTOKENS:

    query=1x1:16x32:256x64        passage=1x1:32x256:256x512
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from training.errors import ExportError

SPELLING = re.compile(r"(\w+)=(\d+)x(\d+):(\d+)x(\d+):(\d+)x(\d+)")
# A query with its prompt is rarely longer.
QUERY_TOKENS_MAX = 64
ROWS_MAX = 256


@dataclass(frozen=True)
class Shape:
    """Of input_ids and of attention_mask."""

    rows: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.tokens}"


@dataclass(frozen=True)
class Profile:
    """The least and the largest shape that a plan takes, and the one that it is made for."""

    name: str
    min: Shape
    opt: Shape
    max: Shape

    def __str__(self) -> str:
        return f"{self.name}={self.min}:{self.opt}:{self.max}"

    @property
    def shapes(self) -> tuple[Shape, Shape, Shape]:
        """All three."""
        return self.min, self.opt, self.max


def default_profiles(max_tokens: int) -> list[Profile]:
    """Short queries and long passages; any batch fits into the second."""
    passage = Profile("passage", Shape(1, 1), Shape(32, -(-max_tokens // 2)), Shape(ROWS_MAX, max_tokens))
    if max_tokens <= QUERY_TOKENS_MAX:
        return [passage]
    return [Profile("query", Shape(1, 1), Shape(16, 32), Shape(ROWS_MAX, QUERY_TOKENS_MAX)), passage]


def parse_profile(text: str) -> Profile:
    """Read NAME=MIN:OPT:MAX. Raises ExportError."""
    found = SPELLING.fullmatch(text)
    if found is None:
        raise ExportError(
            f"{text!r} is no profile; write NAME=MIN:OPT:MAX with shapes as ROWSxTOKENS, such as query=1x1:16x32:256x64"
        )
    numbers = [int(number) for number in found.groups()[1:]]
    return Profile(found[1], Shape(*numbers[:2]), Shape(*numbers[2:4]), Shape(*numbers[4:]))


def check_profiles(profiles: Sequence[Profile], max_tokens: int) -> None:
    """Raise ExportError where a profile contradicts itself, or where some text fits into none."""
    names = [profile.name for profile in profiles]
    if len(set(names)) < len(names) or not names:
        raise ExportError(
            f"profiles are named {', '.join(names) or 'nothing'}; give at least one, each with its own name"
        )
    for profile in profiles:
        for side in ("rows", "tokens"):
            least, best, most = (getattr(shape, side) for shape in profile.shapes)
            if not 1 <= least <= best <= most:
                raise ExportError(
                    f"profile {profile} has {side} {least}, {best}, {most}; wanted is 1 ≤ min ≤ opt ≤ max"
                )
        if profile.max.tokens > max_tokens:
            raise ExportError(
                f"profile {profile} goes up to {profile.max.tokens} tokens, the model to {max_tokens}; lower its max"
            )
        if profile.min.rows > 1:
            raise ExportError(
                f"profile {profile} begins with {profile.min.rows} rows; a single text must fit, begin with 1"
            )
    missing = _uncovered(profiles, max_tokens)
    if missing is not None:
        raise ExportError(
            f"no profile takes a text of {missing} tokens, the model takes 1 to {max_tokens}: widen one of "
            f"{', '.join(map(str, profiles))}"
        )


def _uncovered(profiles: Sequence[Profile], max_tokens: int) -> int | None:
    """The smallest number of tokens that no profile takes."""
    reached = 0
    for profile in sorted(profiles, key=lambda item: item.min.tokens):
        if profile.min.tokens > reached + 1:
            break
        reached = max(reached, profile.max.tokens)
    return reached + 1 if reached < max_tokens else None


def profile_for(profiles: Sequence[Profile], rows: int, tokens: int) -> int | None:
    """The number of the narrowest profile that takes a batch, or None."""
    fitting = [
        (profile.max.rows * profile.max.tokens, number)
        for number, profile in enumerate(profiles)
        if profile.min.rows <= rows <= profile.max.rows and profile.min.tokens <= tokens <= profile.max.tokens
    ]
    return min(fitting)[1] if fitting else None


def polygraphy_command(graph: str, plan: str, inputs: Sequence[str], profiles: Sequence[Profile]) -> list[str]:
    """The command that builds a strongly typed plan with every profile: precision is what the graph says."""
    command = ["polygraphy", "convert", graph, "--convert-to", "trt", "--output", plan, "--strongly-typed"]
    for profile in profiles:
        for kind, shape in zip(("min", "opt", "max"), profile.shapes, strict=True):
            command += [f"--trt-{kind}-shapes", *(f"{name}:[{shape.rows},{shape.tokens}]" for name in inputs)]
    return command


def trtexec_command(graph: str, plan: str, inputs: Sequence[str], profile: Profile) -> list[str]:
    """The command that builds a strongly typed plan with one profile by trtexec."""
    command = ["trtexec", f"--onnx={graph}", f"--saveEngine={plan}", "--stronglyTyped", "--skipInference"]
    for kind, shape in zip(("min", "opt", "max"), profile.shapes, strict=True):
        command.append(f"--{kind}Shapes=" + ",".join(f"{name}:{shape}" for name in inputs))
    return command
