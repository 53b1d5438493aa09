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
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BASE = "localhost/nattribute-python:3.11-bookworm"
PACKAGES = "python3,python3-venv,python-is-python3,ca-certificates"
USER = 10001
#: A busy machine takes long to compile the kernels in a container that has no cache of them.
START_SECONDS = 900.0
QUESTION = {"query": {"type": "row", "split": "query", "row": 12}, "budget": 3}


class Buildah:
    """Runs buildah on a store of its own, so that it neither sees nor leaves anything elsewhere.

    Args:
        store: The folder of images.
        driver: buildah's storage driver: overlay, or vfs where that cannot be mounted.
    """

    def __init__(self, store: Path, driver: str) -> None:
        self._options = ["--root", str(store / "images"), "--runroot", str(store / "run"), "--storage-driver", driver]

    def __call__(self, *arguments: str) -> str:
        """Run a command; what it says goes to the terminal, what it answers comes back."""  # noqa: DOC201
        command = ["buildah", *self._options, *arguments]
        return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()

    @contextmanager
    def mounted(self, image: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Mount an image.

        Args:
            image: Its name.

        Yields:
            Its files, and its configuration.
        """
        container = self("from", "--pull-never", image)
        try:
            config = json.loads(self("inspect", container))["Docker"]["config"]
            yield Path(self("mount", container)), config
        finally:
            self("rm", container)


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


class Container:
    """One container of runc: read-only root, no capability, no new privileges, networks and processes of its own.

    The settings of ``docker-compose.yml``, by hand. Nothing of it can be reached from outside: requests are sent by a
    process of this machine that enters its network only.

    Args:
        name: Its name.
        root: Its files.
        config: The image's configuration.
        arguments: What its entrypoint gets.
        folder: Where its bundle is written.
        volumes: Folders to mount by where they are mounted, and whether for reading only.
        environment: More variables.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        config: dict[str, Any],
        arguments: Sequence[str],
        folder: Path,
        volumes: dict[str, tuple[Path, bool]],
        environment: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._folder = folder / name
        self._folder.mkdir()
        self._log = (self._folder / "log").open("wb")
        bind = [
            {"destination": inside, "type": "bind", "source": str(outside), "options": ["rbind", "ro" if ro else "rw"]}
            for inside, (outside, ro) in volumes.items()
        ]
        specification = {
            "ociVersion": "1.0.2",
            "root": {"path": str(root), "readonly": True},
            "process": {
                "args": [*config["Entrypoint"], *arguments],
                "env": [*config["Env"], *environment],
                "cwd": config["WorkingDir"],
                "user": dict(zip(("uid", "gid"), map(int, config["User"].split(":")), strict=True)),
                "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")},
                "noNewPrivileges": True,
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {
                    "destination": "/tmp",
                    "type": "tmpfs",
                    "source": "tmpfs",
                    "options": ["nosuid", "nodev", "mode=1777"],
                },
                *bind,
            ],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]},
        }
        (self._folder / "config.json").write_text(json.dumps(specification, indent=1), encoding="utf-8")
        command = ["runc", "run", "--bundle", str(self._folder), name]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)

    @property
    def log(self) -> str:
        """What it printed."""
        return (self._folder / "log").read_text(encoding="utf-8", errors="replace")

    def state(self) -> dict[str, Any]:
        """Ask runc for its state.

        Returns:
            The state; empty before it is created.
        """
        asked = subprocess.run(["runc", "state", self.name], capture_output=True, text=True, check=False)
        found: dict[str, Any] = json.loads(asked.stdout) if asked.returncode == 0 else {}
        return found

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as its user."""  # noqa: DOC201
        return subprocess.run(["runc", "exec", self.name, *command], capture_output=True, text=True, check=False)

    def ask(self, path: str, body: object = None) -> tuple[int, bytes]:
        """Send a request from this machine, by a process that enters the container's network only.

        Args:
            path: The path.
            body: What to post as JSON; None sends a GET.

        Returns:
            The status and the answer.
        """
        program = (
            "import sys, urllib.request as u, urllib.error as e\n"
            "r = u.Request(sys.argv[1], sys.stdin.buffer.read() or None, {'Content-Type': 'application/json'})\n"
            "try: a = u.urlopen(r, timeout=60)\n"
            "except e.HTTPError as error: a = error\n"
            "sys.stdout.buffer.write(b'%d ' % a.status + a.read())\n"
        )
        entered = ["nsenter", "--net", "--target", str(self.state()["pid"]), sys.executable, "-c", program]
        sent = b"" if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:8000{path}"
        answered = subprocess.run([*entered, url], input=sent, stdout=subprocess.PIPE, check=True).stdout
        status, _, content = answered.partition(b" ")
        return int(status), content

    def end(self, seconds: float) -> int:
        """Send SIGTERM and wait.

        Args:
            seconds: How long.

        Returns:
            Its exit status.
        """
        subprocess.run(["runc", "kill", self.name, "TERM"], check=True)
        return self.process.wait(seconds)

    def close(self) -> None:
        """Remove what is left of it."""
        subprocess.run(["runc", "delete", "--force", self.name], capture_output=True, check=False)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self._log.close()


def check(buildah: Buildah, indexes: Path | None) -> None:
    """Build the digits index in the indexer's container, serve it in the service's, ask, stop.

    Args:
        buildah: Where the images are.
        indexes: A folder with an index called digits to serve instead of building one.

    Raises:
        SystemExit: If anything is not as it should be.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for place in ("indexes", "cache"):
            (folder / place).mkdir()
            shutil.chown(folder / place, USER, USER)
        volumes = {"/indexes": (folder / "indexes", False), "/cache": (folder / "cache", False)}
        if indexes is None:
            with buildah.mounted("nattribute-indexer") as (root, config):
                arguments = ["build", "digits", "--out", "/indexes/digits"]
                container = Container("nattribute-check-indexer", root, config, arguments, folder, volumes)
                try:
                    expect("the indexer's status", container.process.wait(1200), 0, container)
                finally:
                    container.close()
        volumes["/indexes"] = (indexes or folder / "indexes", True)
        with buildah.mounted("nattribute-service") as (root, config):
            arguments = ["--index-root", "/indexes"]
            environment = ["NATTRIBUTE_ALLOW_UNAUTHENTICATED=true"]
            container = Container("nattribute-check-service", root, config, arguments, folder, volumes, environment)
            try:
                check_service(container, config)
            finally:
                container.close()


def check_service(container: Container, config: dict[str, Any]) -> None:
    """Check the confinement, the health check and the answers of a running service, and its end.

    Args:
        container: The container.
        config: Its image's configuration.
    """
    health = config["Healthcheck"]["Test"]
    expect("the health check's kind", health[0], "CMD", container)
    end = time.monotonic() + START_SECONDS
    while container.process.poll() is None and time.monotonic() < end:
        if container.state().get("status") == "running" and container.inside(*health[1:]).returncode == 0:
            break
        time.sleep(1.0)
    expect("the health check's status", container.inside(*health[1:]).returncode, 0, container)

    facts = dict(line.split(":", 1) for line in container.inside("cat", "/proc/1/status").stdout.splitlines())
    expect("its user", facts["Uid"].split(), [str(USER)] * 4, container)
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        expect(kind, int(facts[kind], 16), 0, container)
    expect("NoNewPrivs", facts["NoNewPrivs"].strip(), "1", container)
    for place in ("/", "/opt/nattribute", "/indexes"):
        refused = container.inside("touch", f"{place}/written")
        expect(f"a file in {place} is refused", "Read-only file system" in refused.stderr, True, container)

    status, ready = container.ask("/readyz")
    expect("/readyz", (status, json.loads(ready)), (200, {"status": "ready"}), container)
    status, answer = container.ask("/v1/indexes/digits/attributions", QUESTION)
    expect("an attribution's status", status, 200, container)
    expect("its hits", len(json.loads(answer)["hits"]), QUESTION["budget"], container)
    status, metrics = container.ask("/metrics")
    expect("/metrics", (status, b"nattribute_attributions_total{" in metrics), (200, True), container)
    expect("the status after SIGTERM", container.end(60), 0, container)
    print(f"{answer[:200].decode()}…")


def expect(what: str, found: object, wanted: object, container: Container) -> None:
    """Say what was checked, or end with what the container printed.

    Args:
        what: What is checked.
        found: What it is.
        wanted: What it should be.
        container: Of which container.

    Raises:
        SystemExit: If it is something else.
    """
    if found != wanted:
        raise SystemExit(f"{what}: {found!r}, not {wanted!r}. It printed:\n{container.log}")
    print(f"ok: {what}: {found!r}")


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
