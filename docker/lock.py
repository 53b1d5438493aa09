"""Write docker/requirements.lock: all that an image may install, each with its version and the hash of its wheel.

python docker/lock.py

Versions are those of constraints.txt. pip resolves twice and installs nothing: everything with the torch build that a
package index offers by default (CUDA), and torch alone from where this machine's pip is told to look, which must offer
the CPU build. Each entry says what it is for; docker/requirements.py picks by that. The hashes are of the wheels for
Linux, x86-64 and CPython 3.11, as docker/Dockerfile's base image is; for another platform, run this there.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path("docker/requirements.lock")
EXTRAS = ("cpu", "gpu", "text", "lora", "otel")
#: What a CUDA build of torch asks for beyond a CPU build.
CUDA_NAMES = ("nvidia-", "cuda-", "triton")


def resolve(arguments: Iterable[str], *, configured: bool) -> list[dict[str, Any]]:
    """Ask pip what it would install.

    Args:
        arguments: What is wanted.
        configured: Whether the machine's own pip configuration counts, or only the default index.

    Returns:
        The distributions of pip's report.
    """
    environment = dict(os.environ)
    if not configured:
        environment["PIP_CONFIG_FILE"] = os.devnull
        environment.pop("PIP_FIND_LINKS", None)
        environment.pop("PIP_EXTRA_INDEX_URL", None)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        options = ["--only-binary", ":all:", "--constraint", "constraints.txt", "--report", str(report)]
        subprocess.run([*command, *options, *arguments], check=True, env=environment)
        installed: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
    return installed


def reachable(start: Iterable[Requirement], known: Mapping[str, dict[str, Any]]) -> set[str]:
    """Follow dependencies, but not from torch to the libraries of its CUDA build.

    Args:
        start: What is wanted.
        known: pip's report by name.

    Returns:
        The names of all that this needs.
    """
    waiting, seen = [*start], set[tuple[str, frozenset[str]]]()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        for line in known[name]["metadata"].get("requires_dist", []):
            needed = Requirement(line)
            applies = needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in ["", *wanted.extras]
            )
            if applies and not (name == "torch" and canonicalize_name(needed.name).startswith(CUDA_NAMES)):
                waiting.append(needed)
    return {name for name, _ in seen}


def hash_of(distribution: Mapping[str, Any]) -> str:
    """Return the hash of the wheel that pip chose, as its requirement states it."""
    return "sha256:" + distribution["download_info"]["archive_info"]["hashes"]["sha256"]


def entry(purposes: Iterable[str], name: str, version: str, digest: str) -> str:
    """Write one entry.

    Args:
        purposes: What it is for.
        name: The distribution.
        version: Its version.
        digest: The hash of its wheel.

    Returns:
        What it is for as a comment, and the pinned and hashed requirement.
    """
    return f"# for: {' '.join(purposes)}\n{name}=={version} \\\n    --hash={digest}\n"


def main() -> None:
    """Resolve and write."""
    if (platform.machine(), sys.version_info[:2]) != ("x86_64", (3, 11)):
        print(f"note: locking for {platform.machine()} and Python {platform.python_version()}", file=sys.stderr)
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted: dict[str, list[str]] = {"core": [*project["dependencies"], "setuptools"]}
    wanted |= {extra: project["optional-dependencies"][extra] for extra in EXTRAS}
    everything = sorted({line for lines in wanted.values() for line in lines})
    report = {canonicalize_name(each["metadata"]["name"]): each for each in resolve(everything, configured=False)}
    purposes = {name: reachable(map(Requirement, lines), report) for name, lines in wanted.items()}
    torch = report["torch"]["metadata"]
    cuda = [Requirement(line) for line in torch.get("requires_dist", [])]
    cuda = [each for each in cuda if canonicalize_name(each.name).startswith(CUDA_NAMES)]
    cuda = [each for each in cuda if each.marker is None or each.marker.evaluate({"extra": ""})]
    purposes["torch-cuda"] = reachable(cuda, report)
    (cpu_build,) = resolve(["--no-deps", f"torch=={torch['version']}"], configured=True)
    if not cpu_build["metadata"]["version"].endswith("+cpu"):
        sys.exit(
            "pip finds no CPU build of torch here: set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS to where there is one"
        )

    entries = []
    for name in sorted(report):
        version = report[name]["metadata"]["version"]
        if name == "torch":
            entries.append(entry(["torch-cpu"], name, version, hash_of(cpu_build)))
            entries.append(entry(["torch-cuda"], name, version, hash_of(report[name])))
            continue
        named = sorted(purpose for purpose, names in purposes.items() if name in names)
        # What the core needs is in every image, whatever else needs it too.
        entries.append(entry(["core"] if "core" in named else named, name, version, hash_of(report[name])))
    LOCK.write_text("# Written by docker/lock.py; never edited by hand.\n" + "".join(entries), encoding="utf-8")
    print(f"{LOCK}: {len(entries)} entries", file=sys.stderr)


if __name__ == "__main__":
    main()
