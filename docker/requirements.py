"""Print what pyproject.toml asks for: its dependencies and those of the extras named, one a line.

An image installs these before the source is copied, so that a changed line of code installs nothing again.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(project: dict[str, object], extras: list[str]) -> list[str]:
    """The requirement lines. project: the table [project].   Raises SystemExit for an extra that it lacks."""
    known = project["optional-dependencies"]
    lines = list(project["dependencies"])
    for extra in extras:
        if extra not in known:
            raise SystemExit(f"no extra {extra!r} in pyproject.toml; it has {', '.join(sorted(known))}")
        lines += known[extra]
    return lines


if __name__ == "__main__":
    table = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = ",".join(sys.argv[1:]).split(",")
    print("\n".join(requirements(table, [name.strip() for name in names if name.strip()])))
