"""Build the images, and run one under its limits, without a container engine or a registry of images.

    python docker/images.py base                    a base image of Debian's packages: Python 3.11 and certificates
    python docker/images.py build indexer service   targets of docker/Dockerfile, on that base
    python docker/images.py check                   index digits and serve it in containers, and ask it over HTTP

Needs Linux, root, and Debian's packages buildah, mmdebstrap, runc and iproute2. ``--pip-config FILE`` is what pip reads
inside the build, ``--volume FOLDER`` is mounted there, read-only, where that names one, or certificates of a proxy.
``--torch cpu`` takes torch's CPU build, which pip must then find. Where an engine and a registry can be reached,
``docker compose build`` does the same.
"""

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from buildah import Buildah
from images_check import check

BASE = "localhost/nattribute-python:3.11-bookworm"
PACKAGES = "python3,python3-venv,python-is-python3,ca-certificates"


def make_base(buildah: Buildah) -> None:
    """Make the base image of Debian's packages.

    Args:
        buildah: Where it goes.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "base.tar"
        subprocess.run(["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(files)], check=True)
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, str(files), "/")
        buildah("commit", "--quiet", "--format", "docker", "--rm", container, BASE)


def build(buildah: Buildah, targets: Sequence[str], base: str, options: argparse.Namespace) -> None:
    """Build targets of docker/Dockerfile.

    Args:
        buildah: Where they go.
        targets: The targets.
        base: The base image.
        options: How pip finds its packages, and which.
    """
    arguments = ["--build-arg", f"PYTHON_IMAGE={base}", "--build-arg", f"TORCH={options.torch}"]
    arguments += ["--build-arg", f"EXTRAS={options.extras}"]
    if options.pip_config is not None:
        arguments += ["--secret", f"id=pip,src={options.pip_config}"]
    for path in options.volume:
        arguments += ["--volume", f"{path}:{path}:ro"]
    for target in targets:
        # The format of OCI has no HEALTHCHECK.
        shape = ["--isolation", "chroot", "--layers", "--format", "docker"]
        named = ["--target", target, "--tag", f"nattribute-{target}", "--file", "docker/Dockerfile", "."]
        buildah("build", *shape, *arguments, *named)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path(".images"), help="folder of images (default: .images)")
    parser.add_argument("--driver", choices=["overlay", "vfs"], default="overlay", help="buildah's storage driver")
    parser.add_argument("--base", default=BASE, help=f"the base image (default: {BASE})")
    parser.add_argument("--torch", choices=["cpu", "cuda"], default="cuda", help="torch's build in CPU images")
    parser.add_argument("--extras", default="", help="further extras, as text,otel")
    parser.add_argument("--pip-config", type=Path, help="pip's configuration inside the build")
    parser.add_argument("--volume", action="append", default=[], help="a path that the build sees too; repeatable")
    parser.add_argument("--indexes", type=Path, help="check: a folder with an index called digits, to build none")
    parser.add_argument("task", choices=["base", "build", "check"])
    parser.add_argument("targets", nargs="*", default=["indexer", "service"], help="targets to build")
    options = parser.parse_args()
    store = options.store.resolve()
    store.mkdir(parents=True, exist_ok=True)
    buildah = Buildah(store, options.driver)
    match options.task:
        case "base":
            make_base(buildah)
        case "build":
            build(buildah, options.targets, options.base, options)
        case _:
            check(buildah, options.indexes)


if __name__ == "__main__":
    main()
