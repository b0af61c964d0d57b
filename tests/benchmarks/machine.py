"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

# What decides how fast a matrix product is, as Linux names it and as people do.
FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bf16",
}


def describe() -> dict[str, object]:
    """CPU, its features that matter, the cores and memory there are, and the kernel."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    about = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    flags = set(about.get("flags", "").split())
    return {
        "cpu": about.get("model name", platform.machine()),
        "features": [name for flag, name in FEATURES.items() if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
    }


def has_bf16(machine: dict[str, object]) -> bool:
    """Whether the CPU multiplies bf16 by itself."""
    return any("bf16" in str(feature).lower() for feature in machine["features"])  # type: ignore[attr-defined]
