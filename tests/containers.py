"""Container images and stacks for the tests: podman and buildah with a store of their own under build/containers.

No registry is asked. Base images are made of Debian packages and tagged with the names that the Dockerfiles and
compose.yaml use, in a store where nothing else lies, so that those files are tested as they are.
"""

from __future__ import annotations

import functools
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "build" / "containers"
BIN = Path(sys.executable).parent

PROGRAMS = ("podman", "buildah", "runc", "netavark", "mmdebstrap")
AARDVARK = Path("/usr/lib/podman/aardvark-dns")
BASE_PACKAGES = "ca-certificates,libpython3.11,python3-minimal,python3-pip,python3-venv"
BASE = "localhost/me5-test-base"
PYTHON_IMAGE = "docker.io/library/python:3.11-slim"
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

# Where limits of open files can't be raised, as in a sandbox, podman's own defaults are refused.
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
[network]
network_config_dir = "{store}/networks"
"""
STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{store}/storage"
runroot = "{store}/run"
[storage.options.overlay]
# Else a mount outlives the tests, and `make clean` can't remove the folder.
skip_mount_home = "true"
"""


def tool(name: str) -> str | None:
    """A program of this environment, else of the PATH."""
    return shutil.which(name, path=f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}")


@functools.cache
def containers_missing() -> str | None:
    """Why no container can be built and run here, or None."""
    if os.geteuid() != 0:
        return "containers are built and run as root alone in these tests; run `make test-containers` as root"
    path = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/lib/podman"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    absent += [] if AARDVARK.exists() else ["aardvark-dns"]
    absent += [] if tool("podman-compose") else ["podman-compose"]
    return f"not installed: {', '.join(absent)}; `make test-containers` installs them" if absent else None


def environment() -> dict[str, str]:
    """Variables by which podman, buildah and podman-compose use the store of the tests, which is made if need be."""
    STORE.mkdir(parents=True, exist_ok=True)
    (STORE / "networks").mkdir(exist_ok=True)
    for name, text in (("containers.conf", CONTAINERS_CONF), ("storage.conf", STORAGE_CONF)):
        (STORE / name).write_text(text.format(store=STORE), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ME5_", "COMPOSE_"))}
    return kept | {
        "CONTAINERS_CONF": str(STORE / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(STORE / "storage.conf"),
        # Needs no control groups of its own to build.
        "BUILDAH_ISOLATION": "chroot",
    }


def run(*command: str, cwd: Path = ROOT, timeout_s: float = 600, **variables: str) -> str:
    """The command's standard output. variables: more environment.   Raises AssertionError with what it said."""
    done = attempt(*command, cwd=cwd, timeout_s=timeout_s, **variables)
    assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-6000:]}"
    return done.stdout.strip()


def attempt(
    *command: str, cwd: Path = ROOT, timeout_s: float = 600, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The same, whatever its exit code."""
    program = tool(command[0])
    assert program is not None, f"{command[0]} is not installed"
    return subprocess.run(
        [program, *command[1:]],
        cwd=cwd,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def build(
    dockerfile: Path, tags: Sequence[str], *, context: Path = ROOT, target: str | None = None, **arguments: str
) -> None:
    """Build a Dockerfile, or its stage `target`, on images that are in the store; layers that are there are taken."""
    run(
        "buildah",
        "build",
        *("--format", "docker", "--layers", "--pull-never", "--network", "host"),
        *(part for tag in tags for part in ("-t", tag)),
        *(("--target", target) if target else ()),
        *(part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")),
        *(part for folder in local_indexes() for part in ("--volume", f"{folder}:{folder}:ro")),
        *("-f", str(dockerfile), str(context)),
        timeout_s=1800,
    )


def image_size(image: str) -> int:
    """Bytes, unpacked."""
    return int(run("podman", "image", "inspect", "--format", "{{.Size}}", image))


def make_python_base() -> None:
    """Debian with its Python under the name of the public image, once in the life of the store."""
    if attempt("podman", "image", "exists", PYTHON_IMAGE).returncode == 0:
        return
    archive = STORE / "base.tar"
    # Nothing here has to outlive a power cut: half of the time would be waiting for the disk.
    options = ("--quiet", "--variant=minbase", "--dpkgopt=force-unsafe-io", f"--include={BASE_PACKAGES}")
    run("mmdebstrap", *options, "bookworm", str(archive))
    run("podman", "import", "-q", str(archive), f"{BASE}:bare")
    archive.unlink()
    container = run("buildah", "from", "--pull-never", f"{BASE}:bare")
    script = "rm -f /usr/lib/python3*/EXTERNALLY-MANAGED; ln -sf python3 /usr/bin/python"
    run("buildah", "run", container, "--", "sh", "-c", script)
    bundle = ssl.get_default_verify_paths().cafile
    if bundle is not None:
        # What this machine trusts, so that pip in a build gets through to where pip on the machine does.
        run("buildah", "copy", "-q", container, bundle, CA_BUNDLE)
    (STORE / "pip.conf").write_text(pip_config(), encoding="utf-8")
    run("buildah", "copy", "-q", container, str(STORE / "pip.conf"), "/etc/pip.conf")
    run("buildah", "config", "--cmd", "python3", container)
    run("buildah", "commit", "-q", "--rm", container, PYTHON_IMAGE)


@functools.cache
def pip_settings() -> dict[str, str]:
    """Where this machine's pip looks for packages: its settings of these names, the strongest source's value."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    rows = [line.split("=", 1) for line in listed.stdout.splitlines() if "=" in line]
    # Variables, listed first, are stronger than files.
    values = {key.rsplit(".", 1)[1]: value.strip("'").replace("\\n", " ") for key, value in reversed(rows)}
    return {name: values[name] for name in ("index-url", "find-links", "trusted-host") if name in values}


def pip_config() -> str:
    """A pip.conf for the inside of a build."""
    lines = [f"{name} = {value}" for name, value in pip_settings().items()]
    return "\n".join(["[global]", f"cert = {CA_BUNDLE}", "disable-pip-version-check = true", *lines, ""])


def local_indexes() -> list[Path]:
    """Folders on this machine that its pip finds packages in; a build has to see them too."""
    words = pip_settings().get("find-links", "").split()
    return [folder for folder in (Path(word.removeprefix("file://")) for word in words) if folder.is_dir()]


def stack_extras() -> str:
    """What compose.yaml builds its gateway with."""
    config = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return str(config["services"]["gateway"]["build"]["args"]["EXTRAS"])


def stack_images() -> dict[str, str]:
    """Image names by service, as compose.yaml has them by default, in full."""
    config = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    found = {}
    for name, service in config["services"].items():
        image = service["image"].split(":-", 1)[-1].rstrip("}")
        if name == "gateway":
            found[name] = f"localhost/{image}"
        else:
            found[name] = image if "." in image.split("/")[0] else f"docker.io/{image}"
    return found


def build_substitutes() -> None:
    """Triton, Prometheus and Alertmanager under the names of compose.yaml. There is no Grafana among the packages."""
    make_python_base()
    images = stack_images()
    context = STORE / "context"
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir()
    shutil.copy2(ROOT / "constraints-triton.txt", context)
    for name in ("containers", "triton_backend"):
        shutil.copytree(ROOT / "tests" / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    recipes = context / "containers"
    build(recipes / "triton.Containerfile", [images["triton"]], context=context, BASE=PYTHON_IMAGE)
    for name in ("prometheus", "alertmanager"):
        recipe = recipes / "prometheus.Containerfile"
        build(recipe, [images[name]], context=context, target=name, BASE=PYTHON_IMAGE)
