"""How much memory a gateway and its engine take at their worst: a formula, and the check at start that it is there.

The constants were measured on Linux with ONNX Runtime 1.31 and OpenVINO 2026.4 (tests/benchmarks/memory.py); README,
"Memory", says how close they come.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from resource import getpagesize

from service.batching import Limits
from service.engine import Choice, EngineConfig
from service.errors import SettingsError
from service.recipe.spec import ModelSpec, graph_file
from service.settings import Settings

MIB = 2**20

# The interpreter with the gateway's packages, and with the engine's.
GATEWAY_BYTES = 120 * MIB
ENGINE_BYTES = {"onnx": 70 * MIB, "openvino": 215 * MIB}
# The tokenizers library holds a Unigram vocabulary in a trie.
TOKENIZER_BYTES_AN_ENTRY = 1536
# Two sessions, the wide one and the streams', hold the token table each; of matrices also a copy laid out for the CPU.
TABLE_COPIES = {"onnx": 2, "openvino": 2}
MATRIX_COPIES = {"onnx": 4, "openvino": 5}
# Batches whose activations a stream holds: OpenVINO keeps those of shapes it has seen (CPU_RUNTIME_CACHE_CAPACITY).
BATCHES_A_STREAM = {"onnx": 1, "openvino": 3}
# A text that waits: its ids, its place in the queue, and the vector it will be; the shortest has this many tokens.
BYTES_A_WAITING_TEXT = 700
TOKENS_A_TEXT_MIN = 5
# A body is held as bytes and as the texts made of it.
BODY_COPIES = 2


@dataclass(frozen=True)
class Predicted:
    """Bytes, resident, at the worst the settings allow."""

    gateway: int
    engine: int

    @property
    def total(self) -> int:
        """Both processes together."""
        return self.gateway + self.engine


def gateway_bytes(settings: Settings, spec: ModelSpec, *, vocabulary: int) -> int:
    """The gateway's own process at its worst.   vocabulary: the tokenizer's entries."""
    waiting = 2 * settings.max_queued_tokens // TOKENS_A_TEXT_MIN
    return (
        GATEWAY_BYTES
        + TOKENIZER_BYTES_AN_ENTRY * vocabulary
        + waiting * (BYTES_A_WAITING_TEXT + 4 * spec.dimension)
        + BODY_COPIES * settings.max_buffered_bytes
    )


def check_remote_memory(
    settings: Settings, spec: ModelSpec, limits: Limits, *, vocabulary: int, limit_bytes: int | None
) -> Predicted:
    """The peak of a gateway whose engine is elsewhere. Raises SettingsError where the machine has less than that."""
    # Of a graph that does not pool, every token's state comes back, and is there twice while it is pooled.
    batch = 0 if spec.pooling == "graph" else 2 * 4 * limits.max_tokens * spec.states_dimension
    found = Predicted(gateway_bytes(settings, spec, vocabulary=vocabulary) + (limits.streams + 1) * batch, 0)
    if limit_bytes is not None and found.total > limit_bytes:
        raise SettingsError(
            f"the gateway may take {found.total // MIB} MiB, this machine gives {limit_bytes // MIB}; lower "
            "ME5_MAX_BUFFERED_BYTES, ME5_MAX_QUEUED_TOKENS, ME5_STREAMS or ME5_MAX_BATCH_TOKENS"
        )
    return found


def predicted_peak(
    settings: Settings, spec: ModelSpec, config: EngineConfig, *, vocabulary: int, graph_bytes: int
) -> Predicted:
    """The peak on a CPU. vocabulary: the tokenizer's entries.   graph_bytes: of the graph's file, as it is stored."""
    table = 4 * vocabulary * spec.states_dimension
    stored_in_bytes = spec.weights == "int8" or config.precision == "int8"
    # With a float16 scale for every 32 values of a row. ONNX Runtime's int8 graph has no table in four bits.
    in_four_bits = spec.table_bits == 4 and (config.precision, config.engine) != ("int8", "onnx")
    stored = table * (9 if in_four_bits else 17) // 64
    matrices = 4 * (graph_bytes - stored) if stored_in_bytes else graph_bytes - table
    if config.precision == "int8" or (stored_in_bytes and config.engine == "openvino"):
        # Not widened: they are multiplied as they are stored.
        table, matrices = stored, max(matrices, 0) // 4
    heads, longest = spec.states_dimension // 32, spec.max_tokens
    batch = 4 * longest * (5 * heads * longest // 2 + 12 * spec.states_dimension)
    engine = (
        ENGINE_BYTES[config.engine]
        + TABLE_COPIES[config.engine] * table
        + MATRIX_COPIES[config.engine] * max(matrices, 0)
        # Each stream, the one batch more that may run, and the wide engine.
        + (config.streams + 2) * BATCHES_A_STREAM[config.engine] * batch
    )
    return Predicted(gateway_bytes(settings, spec, vocabulary=vocabulary), engine)


def check_memory(
    settings: Settings, spec: ModelSpec, config: EngineConfig, *, vocabulary: int, limit_bytes: int | None
) -> Predicted:
    """The predicted peak. Raises SettingsError where the machine, or the cgroup, has less than that."""
    graph = graph_file(Path(config.folder), spec, config.engine, config.precision)
    # Weights may lie in files beside the graph.
    graph_bytes = sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))
    found = predicted_peak(settings, spec, config, vocabulary=vocabulary, graph_bytes=graph_bytes)
    if limit_bytes is not None and found.total > limit_bytes:
        raise SettingsError(
            f"{spec.name} in {Choice(config.engine, config.precision)} may take {found.total // MIB} MiB "
            f"(gateway {found.gateway // MIB}, engine {found.engine // MIB}), this machine gives {limit_bytes // MIB}; "
            "lower ME5_MAX_BUFFERED_BYTES, ME5_MAX_QUEUED_TOKENS or ME5_STREAMS, or serve a smaller model"
        )
    return found


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes this process and its children may have: the cgroup's limit, else the machine's memory; None if unknown."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            given = (cgroup / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        # cgroup v1 says "no limit" by a number near 2**63.
        if given.isdecimal() and int(given) < 2**60:
            return int(given)
    try:
        line = next(row for row in meminfo.read_text(encoding="ascii").splitlines() if row.startswith("MemTotal"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def resident_bytes(pid: int | None = None, proc: Path = Path("/proc")) -> int:
    """Bytes of a process that are in memory, of this one by default; 0 where it is gone, or the system does not say."""
    try:
        pages = (proc / ("self" if pid is None else str(pid)) / "statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * getpagesize()
