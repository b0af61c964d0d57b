"""A checkpoint as ONNX by Hugging Face optimum: exported, optimised (O2), quantised (dynamic int8, AVX-512 VNNI).

    make export-optimum CHECKPOINT=runs/me5_nano/latest

A script for the environment of constraints-optimum.txt, not a module of the package: optimum's exporter wants
transformers below 4.58, the rest of the training wants 5. It imports nothing of this project; what it writes is judged
by `python -m training gate-optimum`.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTOptimizer, ORTQuantizer
from optimum.onnxruntime.configuration import AutoOptimizationConfig, AutoQuantizationConfig

# As training/sentence_folder.py names it.
STATIC_PATH = "2_StaticPath"


def export(checkpoint: Path, out: Path) -> None:
    """Write model.onnx in out/fp32, out/o2 and out/int8; as Sentence Transformers models they pool in the graph."""
    if (checkpoint / STATIC_PATH).is_dir():
        sys.exit(
            f"{checkpoint} has a static path beside its layers, which optimum's exporter does not write; "
            "export it with `python -m training export`"
        )
    for name in ("fp32", "o2", "int8"):
        shutil.rmtree(out / name, ignore_errors=True)
    main_export(str(checkpoint), out / "fp32", task="feature-extraction", library_name="sentence_transformers")
    model = ORTModelForFeatureExtraction.from_pretrained(out / "fp32")
    with tempfile.TemporaryDirectory() as scratch:
        ORTOptimizer.from_pretrained(model).optimize(
            save_dir=scratch, optimization_config=AutoOptimizationConfig.O2(), file_suffix=""
        )
        _keep(Path(scratch), out / "o2")
    with tempfile.TemporaryDirectory() as scratch:
        ORTQuantizer.from_pretrained(out / "fp32").quantize(
            save_dir=scratch,
            quantization_config=AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True),
            file_suffix="",
        )
        _keep(Path(scratch), out / "int8")


def _keep(scratch: Path, folder: Path) -> None:
    """The one graph in a folder, under the name that all have here."""
    (graph,) = scratch.glob("*.onnx")
    folder.mkdir(parents=True)
    for part in scratch.glob(f"{graph.name}*"):
        shutil.move(part, folder / part.name.replace(graph.name, "model.onnx"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="in the Sentence Transformers layout")
    parser.add_argument("out", type=Path, help="folder for fp32/, o2/ and int8/")
    given = parser.parse_args()
    export(given.checkpoint, given.out)
