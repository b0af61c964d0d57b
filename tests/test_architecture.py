"""The import arrows go strictly downwards; heavy packages have one home each."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the top down; a module may import from rows below its own, never from its own row or above.
LAYERS = [
    ["service.__main__"],
    ["service.commands"],
    ["service.applications.commands"],
    ["service.applications.search_commands"],
    ["service.applications.searching", "service.applications.mining_files", "service.applications.topic_map"],
    ["service.applications.duplicates", "service.applications.mining", "service.applications.topics"],
    ["service.applications.options", "service.applications.texts", "service.applications.words"],
    ["service.applications.languages", "service.applications.neighbours", "service.applications.origins"],
    ["service.applications.passage_index", "service.applications.writing"],
    ["service.bulk.command"],
    ["service.bulk.ray_job"],
    ["service.bulk.gateways", "service.bulk.merging", "service.bulk.running"],
    ["service.bulk.pipeline"],
    ["service.bulk.embedded", "service.bulk.window_reader"],
    ["service.bulk.computing", "service.bulk.manifest", "service.bulk.outputs", "service.bulk.progress"],
    ["service.bulk.parts"],
    ["service.bulk.job"],
    ["service.server"],
    ["service.app", "service.garbage", "service.http_protocol", "service.tls"],
    ["service.api.contracts"],
    [
        "service.api.cohere",
        "service.api.embed",
        "service.api.embed_all",
        "service.api.info",
        "service.api.ollama",
        "service.api.openai",
        "service.api.page",
    ],
    ["service.api.ops", "service.api.similarity", "service.api.tokenize"],
    ["service.api.binary", "service.api.options", "service.api.tei"],
    ["service.api.answering", "service.api.facade", "service.api.schema"],
    ["service.api.reading", "service.api.encoding"],
    ["service.api.cors", "service.api.guard", "service.api.intake", "service.api.large_json"],
    ["service.api.headers", "service.api.json_split", "service.api.turns", "service.loop_lag"],
    ["service.head_start", "service.ready"],
    ["service.embedder", "service.gate", "service.pull"],
    ["service.opening_triton"],
    ["service.opening", "service.scheduler", "service.admission", "service.asking", "service.tracing"],
    ["service.engine_triton"],
    ["service.triton_upstream"],
    ["service.triton_client", "service.batch_calls"],
    ["service.model", "service.memory", "service.engine_process", "service.jobs"],
    ["service.callers", "service.engine_start", "service.listening", "service.fair_queue", "service.engine_worker"],
    ["service.engine"],
    ["service.engine_onnx", "service.engine_openvino"],
    ["service.engine_cache", "service.graph_states"],
    ["service.metrics", "service.settings", "service.span_export"],
    ["service.keys_file", "service.watched"],
    ["service.keys"],
    ["service.batching", "service.foreign_tokens", "service.triton_config", "service.bulk.windows"],
    ["service.recipe.golden", "service.recipe.spec", "service.recipe.tokens"],
    ["service.processor", "service.rate_limit", "service.shapes", "service.recipe.prompts", "service.recipe.pooling"],
    ["service.bulk.reading"],
    ["service.bulk.lines", "service.bulk.parquet_rows"],
    ["service.bulk.records"],
    ["service.errors", "service.triton_errors"],
    ["service", "service.api", "service.applications", "service.bulk", "service.recipe"],
]
RANK = {module: rank for rank, row in enumerate(LAYERS) for module in row}

HOMES = {
    "fastapi": {"service.app", "service.api"},
    "starlette": {"service.app", "service.api"},
    "uvicorn": {"service.server", "service.http_protocol"},
    "onnxruntime": {"service.engine_onnx", "service.pull", "training"},
    "openvino": {"service.engine_openvino", "training"},
    "tritonclient": {"service.triton_client"},
    "huggingface_hub": {"service.pull"},
    "typer": {"service.commands", "service.applications", "service.bulk.command", "training"},
    "faiss": {"service.applications.neighbours", "service.applications.searching"},
    "sklearn": {"service.applications.topics", "service.applications.topic_map", "training"},
    "py3langid": {"service.applications.languages", "training"},
    "scipy": {"service.applications.duplicates", "service.applications.topics", "training"},
    "opentelemetry": {"service.span_export", "service.tracing"},
    "prometheus_client": {"service.metrics", "service.api.ops"},
    "pyarrow": {"service.applications.texts", "service.bulk"},
    "httpx": {"service.bulk.gateways", "training"},
    "ray": {"service.bulk.ray_job"},
    "tqdm": {"service.bulk.progress", "training"},
    "torch": {"training"},
    "transformers": {"training"},
    "onnx": {"training"},
    "nncf": {"training"},
    "matplotlib": {"service.applications.topic_map", "training.plots"},
    "sentence_transformers": {"training.transformer_system", "training.two_paths_modules"},
    "bm25s": {"service.applications.searching", "training.candidates", "training.words"},
    "mteb": {"training.mteb_bridge", "training.mteb_protocols"},
    "tensorrt": {"training.tensorrt_build"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Every module a file imports when it runs, wherever in the file; imports for type checkers alone don't count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            # `from service.api import embed` imports the module service.api.embed.
            found.update(
                f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in MODULES
            )
    return found


FILES = sorted([*ROOT.glob("service/**/*.py"), *ROOT.glob("training/**/*.py")])
MODULES = {module_name(path) for path in FILES}
IMPORTS = {module_name(path): imports_of(path) for path in FILES}


def test_every_module_of_the_gateway_has_its_place_in_the_layers() -> None:
    assert {module for module in MODULES if module.split(".")[0] == "service"} == set(RANK)


@pytest.mark.parametrize("module", sorted(RANK))
def test_imports_of_the_gateway_point_downwards(module: str) -> None:
    upwards = {name for name in IMPORTS[module] if name in RANK and RANK[name] <= RANK[module]}
    assert not upwards, f"{module} imports {upwards}"


def test_no_import_cycle_anywhere() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"cycle: {' → '.join([*path, module])}"
        if module not in done:
            for name in IMPORTS[module] & MODULES - {module}:
                visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("package", sorted(HOMES))
def test_heavy_packages_stay_in_their_one_home(package: str) -> None:
    users = {module for module, names in IMPORTS.items() if any(name.split(".")[0] == package for name in names)}
    strays = {
        module
        for module in users
        if not any(module == home or module.startswith(home + ".") for home in HOMES[package])
    }
    assert not strays


def test_training_takes_from_the_gateway_only_recipe_errors_the_engine_and_tritons_config() -> None:
    allowed = {"service", "service.errors", "service.engine", "service.triton_config"}
    strays = {
        (module, name)
        for module, names in IMPORTS.items()
        for name in names
        if module.startswith("training")
        and name.split(".")[0] == "service"
        and name not in allowed
        and not name.startswith("service.recipe")
    }
    assert not strays


def test_the_gateway_never_imports_training() -> None:
    assert not [module for module, names in IMPORTS.items() if module.startswith("service") and "training" in names]


def test_only_settings_reads_the_environment() -> None:
    readers = {
        module_name(path)
        for path in FILES
        if module_name(path).startswith("service") and "environ" in path.read_text(encoding="utf-8")
    }
    # The engine's process starts before settings can be read, and not at all where Triton computes.
    assert readers == {"service.settings", "service.__main__"}
