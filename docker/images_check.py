"""What a built image promises, seen from inside and outside of its containers."""

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from buildah import Buildah
from container import Container, running

USER = 10001
KEY = "a-key-for-the-check-alone"
#: A busy machine takes long to compile the kernels in a container that has no cache of them.
START_SECONDS = 900.0
QUESTION: dict[str, Any] = {"query": {"type": "row", "split": "query", "row": 12}, "budget": 3}
#: Seconds of work, so that a stop finds it unfinished.
LONG_BATCH = {
    "requests": [
        {"query": {"type": "row", "split": "query", "row": row}, "budget": 120, "method": "infogain"}
        for row in range(30)
    ]
}


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
        for place in ("indexes", "cache", "jobs"):
            (folder / place).mkdir()
            shutil.chown(folder / place, USER, USER)
        (folder / "keys").write_text(f"{KEY} admin name=check\n", encoding="utf-8")
        (folder / "keys").chmod(0o400)
        shutil.chown(folder / "keys", USER, USER)
        volumes = {"/indexes": (folder / "indexes", False), "/cache": (folder / "cache", False)}
        if indexes is None:
            with buildah.mounted("nattribute-indexer") as (root, config):
                arguments = ["build", "digits", "--out", "/indexes/digits"]
                with running("nattribute-check-indexer", root, config, arguments, folder, volumes) as container:
                    expect("the indexer's status", container.process.wait(1200), 0, container)
        volumes |= {"/indexes": (indexes or folder / "indexes", True), "/jobs": (folder / "jobs", False)}
        volumes["/keys"] = (folder / "keys", True)
        with buildah.mounted("nattribute-service") as (root, config):
            image = root, config
            served = ["--index-root", "/indexes"]
            with running("nattribute-check-open", *image, served, folder, volumes) as container:
                check_refusal(container)
            loopback = [*served, "--host", "127.0.0.1"]
            with running("nattribute-check-loopback", *image, loopback, folder, volumes) as container:
                wait_until_healthy(container, config)
                check_answers(container, key=None)
            keyed = [*served, "--api-keys-file", "/keys", "--job-store", "/jobs/jobs.sqlite3"]
            with running("nattribute-check-service", *image, keyed, folder, volumes) as container:
                wait_until_healthy(container, config)
                check_confinement(container)
                expect("the card without a key", container.ask("/v1/indexes/digits")[0], 401, container)
                expect("the card with a wrong key", container.ask("/v1/indexes/digits", key=KEY[1:])[0], 401, container)
                check_answers(container, key=KEY)
                check_stop(container, config)


def check_refusal(container: Container) -> None:
    """Check that the image's bind beyond loopback is refused without API keys.

    Args:
        container: One without keys.
    """
    status = container.process.wait(START_SECONDS)
    expect("it starts on all interfaces without API keys", status == 0, False, container)
    expect("it says what to do", "--api-keys-file" in container.log, True, container)


def wait_until_healthy(container: Container, config: dict[str, Any]) -> None:
    """Check what the probes say until the service is ready.

    Args:
        container: A container that was just started.
        config: Its image's configuration.
    """
    health = config["Healthcheck"]["Test"]
    expect("the health check's kind", health[0], "CMD", container)
    seen = set[tuple[int, int]]()
    end = time.monotonic() + START_SECONDS
    while container.process.poll() is None and time.monotonic() < end:
        if container.state().get("status") == "running":
            seen.add((container.inside(*health[1:]).returncode, container.ask("/readyz")[0]))
            if (0, 200) in seen:
                break
        time.sleep(0.5)
    expect("the health check's statuses and those of /readyz, ready at last", (0, 200) in seen, True, container)
    loading = sorted(seen - {(0, 200), (1, 200)})
    expect(f"while it starts: {loading}", {(1, 0), (1, 503)} >= set(loading) and loading != [], True, container)
    status, ready = container.ask("/readyz")
    expect("/readyz", (status, json.loads(ready)), (200, {"status": "ready"}), container)
    expect("/livez", container.ask("/livez")[0], 200, container)


def check_confinement(container: Container) -> None:
    """Check what the container may do: its user, its capabilities, where it may write, how much it may use.

    Args:
        container: A running one.
    """
    facts = dict(line.split(":", 1) for line in container.inside("cat", "/proc/1/status").stdout.splitlines())
    expect("its user", facts["Uid"].split(), [str(USER)] * 4, container)
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        expect(kind, int(facts[kind], 16), 0, container)
    expect("NoNewPrivs", facts["NoNewPrivs"].strip(), "1", container)
    for place in ("/", "/opt/nattribute", "/indexes"):
        refused = container.inside("touch", f"{place}/written")
        expect(f"a file in {place} is refused", "Read-only file system" in refused.stderr, True, container)
    for place in ("/tmp", "/cache", "/jobs"):
        expect(f"a file in {place}", container.inside("touch", f"{place}/written").returncode, 0, container)
    expect("its limits", container.limits(), container.wanted, container)


def check_answers(container: Container, key: str | None) -> None:
    """Check the card, an attribution and the metrics.

    Args:
        container: A ready service.
        key: The key it wants.
    """
    status, card = container.ask("/v1/indexes/digits", key=key)
    expect("the card", (status, json.loads(card).get("name")), (200, "digits"), container)
    status, answer = container.ask("/v1/indexes/digits/attributions", QUESTION, key=key)
    expect("an attribution's status", status, 200, container)
    hits = [(hit["id"], hit["step_nats"]) for hit in json.loads(answer)["hits"]]
    expect("its hits", len(hits), QUESTION["budget"], container)
    print(f"    {hits}")
    status, metrics = container.ask("/metrics", key=key)
    expect("/metrics", (status, b"nattribute_attributions_total{" in metrics), (200, True), container)


def check_stop(container: Container, config: dict[str, Any]) -> None:
    """Check that a request in flight is answered when the container is told to stop, and what the probes say meanwhile.

    Args:
        container: A ready service.
        config: Its image's configuration.
    """
    sent = container.send("/v1/indexes/digits/attributions/batch", LONG_BATCH, key=KEY)
    end = time.monotonic() + 60
    while time.monotonic() < end and b"\nnattribute_requests_in_flight 0.0" in container.ask("/metrics", key=KEY)[1]:
        time.sleep(0.02)
    container.kill("TERM")
    draining = container.ask("/readyz")[0], container.ask("/livez")[0], container.ask("/v1/indexes", key=KEY)[0]
    expect("/readyz, /livez and a new request while it stops", draining, (503, 200, 503), container)
    healthy = container.inside(*config["Healthcheck"]["Test"][1:]).returncode
    expect("the health check while it stops", healthy, 1, container)
    status, content = container.answer(sent)
    answers = [item["status"] for item in json.loads(content)["results"]]
    expect("the batch in flight", (status, answers), (200, [200] * len(LONG_BATCH["requests"])), container)
    expect("the status after SIGTERM", container.process.wait(60), 0, container)


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
