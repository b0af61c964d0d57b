"""What optimum wrote of a checkpoint, held to the parity gate: the same limits as for what this project writes.

optimum lives with older transformers in an environment of its own (constraints-optimum.txt), where
training/optimum_export.py writes ONNX files; here they are only read and judged.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx

from service.recipe.spec import TOKENIZER_FILE
from service.recipe.tokens import load_tokenizer
from training.collection import Recipe, embed_collection
from training.errors import ExportError
from training.graph_run import graph_run
from training.parity import FLOAT32, INT8, GateTexts, Limits, Loss, Parity, hold, worst
from training.sentence_folder import read_sentence_folder
from training.sentence_model import load_sentence_model, torch_run

REPORT_FILE = "parity.json"
# What training/optimum_export.py writes, and the limits of each.
FILES: dict[str, tuple[str, Limits]] = {
    "optimum fp32": ("fp32/model.onnx", FLOAT32),
    "optimum O2": ("o2/model.onnx", FLOAT32),
    "optimum int8 dynamic": ("int8/model.onnx", INT8),
}


@dataclass(frozen=True)
class Judged:
    """One file: its size, its nodes, those that an optimiser fused, and what it loses."""

    parity: Parity
    total_bytes: int
    nodes: int
    fused: dict[str, int]

    @property
    def worst(self) -> Loss:
        """Each measure in the language that loses most by it."""
        return worst(list(self.parity.lost.values()))


@dataclass(frozen=True)
class Report:
    """All files, in the order of FILES."""

    folder: Path
    judged: list[Judged]

    def describe(self) -> str:
        """For the terminal."""
        lines = [f"{'form':<22}{'bytes':>14}{'nodes':>7}{'mean':>10}{'worst':>10}{'rank':>9}  fused"]
        for item in self.judged:
            fused = ", ".join(f"{count} {name}" for name, count in sorted(item.fused.items())) or "nothing"
            lines.append(
                f"{item.parity.form:<22}{item.total_bytes:>14,}{item.nodes:>7}{item.worst.mean_cosine:>10.6f}"
                f"{item.worst.worst_cosine:>10.6f}{item.worst.rank:>9.5f}  {fused}"
            )
        return "\n".join([*lines, f"within the limits; {self.folder / REPORT_FILE}"])


def gate(checkpoint: Path, graphs: Path, texts: GateTexts) -> Report:
    """Write parity.json beside the graphs. Raises ExportError where one is missing or loses too much."""
    missing = [name for name, _ in FILES.values() if not (graphs / name).is_file()]
    if missing:
        raise ExportError(f"{graphs} lacks {', '.join(missing)}; make them by: make export-optimum CHECKPOINT=…")
    facts = read_sentence_folder(checkpoint)
    recipe = Recipe(load_tokenizer(checkpoint / TOKENIZER_FILE), facts.prompts, facts.max_tokens, facts.pad_id)
    wanted = embed_collection(torch_run(load_sentence_model(checkpoint)), recipe, texts.texts, "query", progress=True)
    judged = []
    for form, (name, limits) in FILES.items():
        found = embed_collection(graph_run(graphs / name), recipe, texts.texts, "query", progress=True)
        judged.append(_judged(graphs / name, hold(form, limits, texts, wanted, found)))
    report = {
        "format": 1,
        "forms": {
            item.parity.form: {
                **item.parity.as_json(), "bytes": item.total_bytes, "nodes": item.nodes, "fused": item.fused
            }
            for item in judged
        },
    }  # fmt: skip
    (graphs / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    failed = [item.parity.sentence() for item in judged if item.parity.failed]
    if failed:
        raise ExportError("\n".join(failed))
    return Report(graphs, judged)


def _judged(path: Path, parity: Parity) -> Judged:
    model = onnx.load(path, load_external_data=False)
    total_bytes = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    fused = Counter(node.op_type for node in model.graph.node if node.domain == "com.microsoft")
    return Judged(parity, total_bytes, len(model.graph.node), dict(fused))
