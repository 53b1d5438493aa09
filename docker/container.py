"""One container of runc, under the limits of docker-compose.yml."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: Where control groups are mounted: those of version 1 each in a folder, those of version 2 together.
GROUPS = Path("/sys/fs/cgroup")
#: Sends one request: URL, headers and body are its arguments.
REQUEST = """
import json, sys, urllib.error, urllib.request
url, headers, body = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
data = None if body is None else json.dumps(body).encode()
try:
    answer = urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=120)
except urllib.error.HTTPError as error:
    answer = error
except urllib.error.URLError as error:
    sys.exit(print("0", error.reason))
sys.stdout.buffer.write(b"%d " % answer.status + answer.read())
"""


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
        memory_bytes: What it may use of memory.
        processes: How many processes and threads it may have.

    Attributes:
        wanted: The limits, named as :meth:`limits` names them.
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
        memory_bytes: int = 4 << 30,
        processes: int = 512,
    ) -> None:
        self.name = name
        self.wanted = {"memory": memory_bytes, "pids": processes}
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
            "linux": {
                "cgroupsPath": f"/{name}",
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
                "resources": {"memory": {"limit": memory_bytes}, "pids": {"limit": processes}},
            },
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

    def ask(self, path: str, body: object = None, *, key: str | None = None) -> tuple[int, bytes]:
        """Send a request from this machine, by a process that enters the container's network only.

        Args:
            path: The path.
            body: What to post as JSON; None sends a GET.
            key: The API key to send.

        Returns:
            The status and the answer; the status is 0 where nothing listens.
        """
        return self.answer(self.send(path, body, key=key))

    def send(self, path: str, body: object = None, *, key: str | None = None) -> "subprocess.Popen[bytes]":
        """Send a request and do not wait: :meth:`answer` does."""  # noqa: DOC201
        headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
        entered = ["nsenter", "--net", "--target", str(self.state()["pid"]), sys.executable, "-c", REQUEST]
        command = [*entered, f"http://127.0.0.1:8000{path}", json.dumps(headers), json.dumps(body)]
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    @staticmethod
    def answer(sent: "subprocess.Popen[bytes]") -> tuple[int, bytes]:
        """Wait for the answer to what was sent.

        Args:
            sent: What :meth:`send` returned.

        Returns:
            The status and the answer.

        Raises:
            SystemExit: If it could not be sent at all.
        """
        answered, _ = sent.communicate()
        if sent.returncode:
            raise SystemExit("a request could not be sent, see above")
        status, _, content = answered.partition(b" ")
        return int(status), content

    def limits(self) -> dict[str, int]:
        """Read the limits of its control groups, as the kernel has them.

        Returns:
            Bytes of memory and number of processes, as "memory" and "pids"; what is not limited is missing.
        """
        files = {"memory": ("memory.limit_in_bytes", "memory.max"), "pids": ("pids.max", "pids.max")}
        found = {}
        for group, (first, second) in files.items():
            for path in (GROUPS / group / self.name / first, GROUPS / self.name / second):
                if path.exists() and (text := path.read_text(encoding="ascii").strip()).isdecimal():
                    found[group] = int(text)
        return found

    def kill(self, signal: str) -> None:
        """Send its first process a signal.

        Args:
            signal: The signal's name, as TERM.
        """
        subprocess.run(["runc", "kill", self.name, signal], check=True)

    def close(self) -> None:
        """Remove what is left of it."""
        subprocess.run(["runc", "delete", "--force", self.name], capture_output=True, check=False)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self._log.close()


@contextmanager
def running(*arguments: Any, **options: Any) -> Iterator[Container]:
    """Run a container and remove what is left of it afterwards; the arguments are those of :class:`Container`.

    Yields:
        The container.
    """
    container = Container(*arguments, **options)
    try:
        yield container
    finally:
        container.close()
