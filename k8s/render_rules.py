"""monitoring/prometheusrule.yaml: the rules and alerts that compose uses, as the resource that the operator reads.

python k8s/render_rules.py        # after a change to docker/prometheus/rules.yml or alerts.yml; a test compares them
"""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
SOURCES = tuple(ROOT / "docker" / "prometheus" / name for name in ("rules.yml", "alerts.yml"))
TARGET = ROOT / "k8s" / "monitoring" / "prometheusrule.yaml"


def resource(sources: tuple[Path, ...] = SOURCES) -> dict[str, object]:
    """The PrometheusRule with every group of these files.

    Group names are told apart by their file: within one resource they have to differ.
    """
    groups = [
        {**group, "name": f"{group['name']}_{path.stem}"}
        for path in sources
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    ]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "me5"},
        "spec": {"groups": groups},
    }


def main() -> None:
    text = yaml.safe_dump(resource(), sort_keys=False, width=1000, allow_unicode=True)
    names = " and ".join(str(path.relative_to(ROOT)) for path in SOURCES)
    TARGET.write_text(f"# Made from {names} by k8s/render_rules.py.\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
