"""README.md of a checkpoint and of a model version: generated from the files that lie beside it, never hand-written.

The head is YAML as model hubs read it. A checkpoint's card comes from run.json; a version's from spec.json,
training.json (what of run.json a card needs), evaluation.json, parity.json and int8.json, so that it can be written
anew whenever one of them is.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service.recipe.prompts import Prompts
from service.recipe.spec import FP16_ATTENTION_FILE, FP16_FILE, INT8_FILES, MODEL_FILE, ModelSpec, file_sha256
from training.card_facts import (
    FACTS_FILE,
    MANIFEST_FILE,
    RESULT_FILE,
    Figures,
    TrainingFacts,
    facts_of_run,
    read_facts,
    read_figures,
    write_facts,
)
from training.sentence_folder import checkpoint_identity, read_sentence_folder

CARD_FILE = "README.md"
TAGS = ("sentence-transformers", "feature-extraction", "sentence-similarity", "multilingual-e5")
# What a hub takes as the name of a model.
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
GRAPHS = {
    MODEL_FILE: "float32, for CPUs and GPUs",
    INT8_FILES["onnx"]: "int8, for ONNX Runtime on CPUs",
    INT8_FILES["openvino"]: "int8, for OpenVINO on CPUs",
    FP16_FILE: "float16 with LayerNorm and pooling in float32, for GPUs and TensorRT",
    FP16_ATTENTION_FILE: "the same with ONNX's Attention operator (opset 23), for GPUs",
}


@dataclass(frozen=True)
class Card:
    """All that a card says.   graphs: those a version has; none for a checkpoint."""

    name: str
    dimension: int
    max_tokens: int
    prompts: Prompts
    licence: str
    facts: TrainingFacts | None
    figures: Figures | None
    graphs: Sequence[str] = ()

    @property
    def lexical_width(self) -> int:
        """How many of the last numbers say which tokens a text holds; 0 where there is no such path."""
        width = self.facts.settings.get("lexical_width") if self.facts else None
        return width if isinstance(width, int) else 0

    @property
    def static_share(self) -> float | None:
        """The part of the vector that a static path makes up; None where there is none."""
        share = self.facts.settings.get("static_share") if self.facts else None
        return share if isinstance(share, float) else None


def write_checkpoint_card(folder: Path, *, licence: str = "other", result: Path | None = None) -> None:
    """Write the card of a checkpoint in the Sentence Transformers layout."""
    about = read_sentence_folder(folder)
    hashes = [checkpoint_identity(folder)] if result else []
    manifest = folder / MANIFEST_FILE
    facts = facts_of_run(json.loads(manifest.read_text(encoding="utf-8"))) if manifest.is_file() else None
    figures = read_figures(result, hashes) if result else None
    name = (facts and facts.name) or folder.resolve().name
    card = Card(name, about.dimension, about.max_tokens, about.prompts, licence, facts, figures)
    (folder / CARD_FILE).write_text(render(card), encoding="utf-8")


def keep_facts(checkpoint: Path, version: Path, result: Path | None) -> None:
    """Copy what the card of a version needs from its checkpoint. Raises ExportError for figures of another model."""
    write_facts(checkpoint, version / FACTS_FILE)
    if result is not None:
        keep_figures(result, version, [checkpoint_identity(checkpoint)])


def keep_figures(result: Path, version: Path, known_hashes: Sequence[str]) -> None:
    """Copy an evaluation of the version, or of the checkpoint it was made from."""
    graphs = [file_sha256(version / name) for name in GRAPHS if (version / name).is_file()]
    read_figures(result, [*graphs, *known_hashes])
    document = json.loads(result.read_text(encoding="utf-8"))
    # What each example gave is as large as a small model, and no card shows it.
    document.pop("examples", None)
    (version / RESULT_FILE).write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_version_card(folder: Path, spec: ModelSpec, *, licence: str | None = None) -> None:
    """Write the card of a model version.   licence: None keeps the one that its card has."""
    figures = read_figures(folder / RESULT_FILE) if (folder / RESULT_FILE).is_file() else None
    card = Card(
        spec.name,
        spec.dimension,
        spec.max_tokens,
        spec.prompts,
        licence or _stated_licence(folder / CARD_FILE) or "other",
        read_facts(folder / FACTS_FILE),
        figures,
        [name for name in GRAPHS if name in spec.files],
    )
    (folder / CARD_FILE).write_text(render(card), encoding="utf-8")


def _stated_licence(path: Path) -> str | None:
    """The licence in the head of a card, which a person may have written without quotes."""
    if not path.is_file():
        return None
    _, _, rest = path.read_text(encoding="utf-8").partition("---\n")
    head = rest.partition("\n---")[0].splitlines()
    stated = next((line.removeprefix("license:").strip() for line in head if line.startswith("license:")), "")
    return stated.strip("\"'") or None


def render(card: Card) -> str:
    """The whole card."""
    parts = [_head(card), _opening(card), _use(card), _training(card.facts), _figures(card.figures), _limits(card)]
    return "\n".join(part for part in parts if part)


def _head(card: Card) -> str:
    languages = card.facts.languages if card.facts and card.facts.languages else ["multilingual"]
    lines = ["---", "language:", *(f"- {quoted(language)}" for language in languages)]
    lines += [f"license: {quoted(card.licence)}", f"pipeline_tag: {quoted('sentence-similarity')}"]
    if not card.graphs:
        lines.append(f"library_name: {quoted('sentence-transformers')}")
    lines += ["tags:", *(f"- {quoted(tag)}" for tag in TAGS)]
    base = card.facts.begins_with if card.facts else None
    if base and HUB_NAME.fullmatch(base):
        lines.append(f"base_model: {quoted(base)}")
    return "\n".join([*lines, "---", ""])


def quoted(text: str) -> str:
    """A YAML scalar that is text whatever is in it (`no` is a language, and YAML's false); JSON strings are YAML."""
    return json.dumps(text, ensure_ascii=False)


def cell(text: object) -> str:
    """Text inside a Markdown table or sentence, where none of its signs is markup."""
    escaped = " ".join(str(text).split())
    for sign in "\\`*<[|":
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped


def _opening(card: Card) -> str:
    static = ""
    if card.static_share:
        static = f"; {card.static_share:.0%} of it is the weighted sum of the token vectors under a matrix"
    if card.lexical_width:
        static += (
            f". So are the first {card.dimension - card.lexical_width} numbers made, the meaning; the last "
            f"{card.lexical_width} say which tokens the text holds, so that a name is found which the model has no "
            "meaning for: the sum of a code of +1 and -1 for each token, rare ones loudest, longer in a passage than "
            "in a query, which the prompt tells. Where vectors have to be small, cut these off and scale the rest to "
            f"length one (`dimensions: {card.dimension - card.lexical_width}` of the gateway)"
        )
    return (
        f"# {cell(card.name)}\n\nTurns a text into a vector of {card.dimension} numbers and length one; texts of like "
        f"meaning, in one language or two, get vectors close to each other. Multilingual E5 recipe: the mean over the "
        f"last layer's token states, up to {card.max_tokens} tokens, prompt counted{static}.\n"
    )


def _use(card: Card) -> str:
    query, passage = card.prompts.prefix("query"), card.prompts.prefix("passage")
    lines = [
        "## Use\n",
        "**Every text needs its prompt**, counted in its length; without it the vectors are worse.\n",
        "| role | prompt |",
        "|---|---|",
        f"| query, and both sides of symmetric tasks | `{json.dumps(query, ensure_ascii=False)}` |",
        f"| passage that is searched | `{json.dumps(passage, ensure_ascii=False)}` |",
        "",
    ]
    if card.prompts.instruct:
        lines.append("The query side takes an instruction: say in one sentence what is searched for.\n")
    if not card.graphs:
        return "\n".join([*lines, _PYTHON_USE.replace("PLACE", _place(card)), ""])
    rows = [f"| `{name}` | {GRAPHS[name]} |" for name in card.graphs]
    return "\n".join([*lines, _VERSION_USE, "| graph | precision |", "|---|---|", *rows, ""])


def _place(card: Card) -> str:
    """What SentenceTransformer is called with."""
    # The library runs the code of a folder only where it is told to.
    return '"PATH/OF/THIS/FOLDER"' + (", trust_remote_code=True" if card.static_share else "")


_PYTHON_USE = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(PLACE)
questions = model.encode(["how long does yeast keep"], prompt_name="query")
passages = model.encode(["Fresh yeast keeps for two weeks."], prompt_name="passage")
print(model.similarity(questions, passages))
```"""
_VERSION_USE = """```sh
ME5_MODEL=PATH/OF/THIS/FOLDER python -m service serve
curl -X POST 127.0.0.1:8080/embed -d '{"inputs": "how long does yeast keep", "input_type": "query"}'
```
"""


def _training(facts: TrainingFacts | None) -> str:
    if facts is None:
        return "## Training\n\nNothing was written down about how these weights were trained.\n"
    told: list[tuple[str, object]] = [
        ("stage", facts.stage),
        ("begins with", facts.begins_with),
        ("steps", _number(facts.steps)),
        ("pairs seen", _number(facts.pairs_seen)),
        *((name.replace("_", " "), value) for name, value in facts.settings.items()),
        ("made with", ", ".join(f"{name} {version}" for name, version in facts.versions.items())),
    ]
    lines = ["## Training\n", "| | |", "|---|---|"]
    lines += [f"| {cell(name)} | {cell(value)} |" for name, value in told if value not in (None, "")]
    if facts.sources:
        lines += ["", "Pairs of texts, by source:\n", "| source | pairs | licence |", "|---|--:|---|"]
        lines += [
            f"| {cell(item.name)} | {_number(item.pairs) or '?'} | {cell(item.licence or '?')} |"
            for item in facts.sources
        ]
    return "\n".join([*lines, ""])


def _figures(figures: Figures | None) -> str:
    if figures is None:
        return ""
    lines = [
        "## Evaluation\n",
        f"Means over the subsets of each set; protocol {cell(figures.protocol)}, computed by {cell(figures.engine)}.\n",
        "| set | measure | value |",
        "|---|---|--:|",
    ]
    for name, measures in figures.means.items():
        lines += [f"| {cell(name)} | {cell(measure)} | {value:.4f} |" for measure, value in measures.items()]
    return "\n".join([*lines, ""])


def _limits(card: Card) -> str:
    return "\n".join(
        [
            "## Limits\n",
            f"- A text beyond {card.max_tokens} tokens is cut there.",
            "- Compare cosines with each other, not with a fixed threshold: at the training's small temperature "
            "all of them lie high.",
            "- Languages with few pairs above, or none, are served worse than the averages say.",
            "- What the sources hold of bias and error, the vectors hold too.",
            *(
                ["- The licence of the weights is not decided: see the licences of the sources above."]
                if card.licence == "other"
                else []
            ),
            "",
        ]
    )


def _number(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def rewrite_card(folder: Path, spec: ModelSpec | None, *, licence: str | None, result: Path | None) -> Path:
    """The card of a version or a checkpoint anew, with figures where a result is given."""
    if spec is None:
        write_checkpoint_card(folder, licence=licence or _stated_licence(folder / CARD_FILE) or "other", result=result)
    else:
        if result is not None:
            # Export ends `source` with the hash of the checkpoint's weights.
            keep_figures(result, folder, spec.source.split()[-1:])
        write_version_card(folder, spec, licence=licence)
    return folder / CARD_FILE
