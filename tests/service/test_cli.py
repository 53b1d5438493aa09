"""``attribution-service`` as a process: what it refuses, how it stops, that every setting is a flag."""

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from service import __version__, cli
from service.cli import command
from service.local_server import local_server
from service.settings import Settings

COMMAND = [sys.executable, "-m", "service.cli"]


def invoke(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(command(), list(arguments))


def start(directory: Path, **fields: Any) -> tuple[int, str]:
    """Start as the command would; only for what is refused before it listens."""
    errors = io.StringIO()
    return cli.run(
        Settings(index=(f"own={directory}",), **fields), Console(file=errors, soft_wrap=True)
    ), errors.getvalue()


def test_help_names_every_setting_with_its_variable():
    shown = invoke("--help").output
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in shown
        assert f"NATTRIBUTE_{name.upper()}" in shown
    assert "Example:" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no index to serve"),
        (["--index", "a=x", "--host", "0.0.0.0"], "--allow-unauthenticated"),
        (["--index", "a=x", "--port", "70000"], "--port"),
        (["--index", "a=x", "--engine", "magic"], "--engine"),
        (["--index-root", "nowhere"], "not a folder"),
        (["--nothing"], "No such option"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(arguments: list[str], message: str):
    ended = invoke(*arguments)
    assert ended.exit_code == 2
    assert message in ended.output
    assert isinstance(ended.exception, SystemExit)


def test_the_version_is_printed():
    assert invoke("--version").output == f"attribution-service {__version__}\n"


def test_a_missing_index_ends_with_1(tmp_path: Path):
    status, printed = start(tmp_path / "nowhere")
    assert status == 1
    assert "nowhere" in printed


def damage_shard(directory: Path) -> str:
    shard = directory / "sketches" / "own" / "00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    return "sketches/own/00000.safetensors"


def truncate_examples(directory: Path) -> str:
    file = directory / "examples.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    return "examples.parquet"


def remove_column(directory: Path) -> str:
    (directory / "columns" / "labels.npy").unlink()
    return "columns/labels.npy"


def add_file(directory: Path) -> str:
    (directory / "columns" / "more.npy").write_bytes(b"")
    return "columns/more.npy"


def edit_manifest(directory: Path) -> str:
    manifest = directory / "manifest.json"
    manifest.write_text(re.sub(r'"num_rows": ?60', '"num_rows": 59', manifest.read_text(), count=1))
    return "manifest.json"


@pytest.mark.parametrize("damage", [damage_shard, truncate_examples, remove_column, add_file, edit_manifest])
def test_a_damaged_index_is_refused_at_the_start_and_the_file_is_named(index_root: Path, tmp_path: Path, damage):
    directory = tmp_path / "own"
    shutil.copytree(index_root / "own", directory)
    file = damage(directory)
    status, printed = start(directory, check="start")
    assert status == 1
    assert file in printed


@pytest.mark.slow
def test_a_damaged_index_stops_the_process_without_a_traceback(index_root: Path, tmp_path: Path):
    directory = tmp_path / "own"
    shutil.copytree(index_root / "own", directory)
    file = damage_shard(directory)
    ended = subprocess.run(
        [*COMMAND, "--index", str(directory), "--check", "start"], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 1
    assert file in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_taken_port_ends_with_1(index_root: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, printed = start(index_root / "own", port=taken.getsockname()[1])
    assert status == 1
    assert "cannot listen" in printed


def test_a_recipe_for_an_index_that_is_not_served_ends_with_1(index_root: Path):
    status, printed = start(index_root / "own", recipe=("other=digits",))
    assert status == 1
    assert "'other'" in printed


@pytest.mark.slow
def test_the_environment_configures_and_a_signal_ends_it_cleanly(index_root: Path):
    environment = os.environ | {"NATTRIBUTE_INDEX": f"mine={index_root / 'own'}", "NATTRIBUTE_PORT": "0"}
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        for _ in range(100):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/v1/info").json()["indexes"] == ["mine"]:
                    break
            time.sleep(0.1)
        else:
            pytest.fail("the service did not come up")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) in (0, -signal.SIGTERM)  # a busy machine takes long to end


@pytest.mark.slow
def test_a_hundred_megabytes_are_refused_and_the_process_lives_on(server: str):
    with httpx.Client(base_url=server) as client:
        for headers in ({"Content-Length": str(100 * 2**20)}, {}):

            def chunks():
                for _ in range(100):
                    yield b" " * 2**20

            response = client.post(
                "/v1/indexes/own/attributions",
                content=chunks(),
                headers={"Content-Type": "application/json", **headers},
            )
            assert response.status_code == 413
            assert response.json()["code"] == "body_too_large"
        answer = client.post("/v1/indexes/own/attributions", json={"query": {"type": "row", "row": 1}})
        assert answer.status_code == 200


@pytest.mark.slow
def test_a_client_that_leaves_a_stream_leaves_no_work_behind(index_root: Path):
    with (
        local_server(index_root / "margin", "--workers", "1", "--queue", "0", start_seconds=300) as url,
        httpx.Client(base_url=url) as client,
    ):
        body = {"query": {"type": "row", "row": 1}, "budget": 60, "strategy": "literal"}
        for _ in range(3):
            with client.stream(
                "POST", "/v1/indexes/margin/attributions", json=body, headers={"Accept": "text/event-stream"}
            ) as response:
                next(response.iter_lines())
        for _ in range(100):
            if "nattribute_workers_busy 0.0" in client.get("/metrics").text:
                break
            time.sleep(0.05)
        else:
            pytest.fail("a left stream still holds its worker")
