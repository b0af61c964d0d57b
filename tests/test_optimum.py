"""The road through Hugging Face optimum: run in the environment of `make export-optimum` where it is, judged here."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import onnx
import pytest
from faulty_engine import SHIPPED
from tiny_checkpoint import LINES, write_tiny_checkpoint

from training.errors import ExportError
from training.optimum_gate import FILES, gate
from training.parity import GateTexts

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv-optimum" / "bin" / "python"
TEXTS = GateTexts(["en"] * 20, LINES[:20], [None] * 20)


def test_the_extra_and_its_constraints_agree_and_name_no_address() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    lines = (ROOT / "constraints-optimum.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    exact = dict(item.split("==") for item in extra["optimum"] if "==" in item)
    assert {"transformers", "optimum", "optimum-onnx", "sentence-transformers"} <= set(exact)
    for name, version in exact.items():
        assert pinned[name] == version
    assert all(re.fullmatch(r"[0-9A-Za-z.]+", version) for version in pinned.values())
    # The exporter's own limit, and the reason for a second environment.
    assert tuple(map(int, pinned["transformers"].split(".")[:2])) < (4, 58)


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if not PYTHON.is_file():
        pytest.skip(f"{PYTHON.parent.parent.name} is not there; make export-optimum builds it")
    root = tmp_path_factory.mktemp("optimum")
    checkpoint = write_tiny_checkpoint(root / "checkpoint", request.param)
    done = subprocess.run(
        [str(PYTHON), str(ROOT / "training" / "optimum_export.py"), str(checkpoint), str(root / "graphs")],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return checkpoint, root / "graphs"


def test_optimum_exports_optimises_and_quantises_a_checkpoint_within_the_limits(exported: tuple[Path, Path]) -> None:
    checkpoint, graphs = exported
    report = gate(checkpoint, graphs, TEXTS)
    judged = {item.parity.form: item for item in report.judged}
    assert list(judged) == list(FILES)
    assert judged["optimum O2"].nodes < judged["optimum fp32"].nodes
    # Old transformers export what ONNX Runtime's optimiser knows: one fused attention a layer.
    assert judged["optimum O2"].fused.get("Attention", 0) == 2
    quantised = {node.op_type for node in onnx.load(graphs / FILES["optimum int8 dynamic"][0]).graph.node}
    assert "MatMulInteger" in quantised
    assert (graphs / "parity.json").is_file()


def test_a_graph_of_another_checkpoint_is_refused(exported: tuple[Path, Path], tmp_path: Path) -> None:
    _, graphs = exported
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(ExportError, match="optimum fp32 is not written.*en: mean cosine"):
        gate(other, graphs, TEXTS)


def test_missing_graphs_are_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "fp32").mkdir()
    shutil.copyfile(SHIPPED / "model.onnx", tmp_path / "fp32" / "model.onnx")
    with pytest.raises(ExportError, match=r"lacks o2/model.onnx, int8/model.onnx; .*make export-optimum"):
        gate(tmp_path, tmp_path, TEXTS)
