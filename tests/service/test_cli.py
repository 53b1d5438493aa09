"""``attribution-service`` as a process: what it refuses, how it stops, that every setting is a flag."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from service.local_server import local_server
from service.settings import Settings

COMMAND = [sys.executable, "-m", "service.cli"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=120, env=os.environ | environment
    )


def test_help_names_every_setting_with_its_variable():
    shown = run("--help", COLUMNS="300").stdout
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
    ended = run(*arguments)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_missing_index_ends_with_1(tmp_path: Path):
    ended = run("--index", f"a={tmp_path / 'nowhere'}")
    assert ended.returncode == 1
    assert "nowhere" in ended.stderr
    assert "Traceback" not in ended.stderr


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
    ended = run("--index", str(directory))
    assert ended.returncode == 1
    assert file in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_taken_port_ends_with_1(index_root: Path, server: str):
    ended = run("--index", str(index_root / "own"), "--port", server.rpartition(":")[2])
    assert ended.returncode == 1
    assert "cannot listen" in ended.stderr


def test_the_environment_configures_and_a_signal_ends_it_cleanly(index_root: Path):
    port = free_port()
    environment = {"NATTRIBUTE_INDEX": f"mine={index_root / 'own'}", "NATTRIBUTE_PORT": str(port)}
    process = subprocess.Popen(COMMAND, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    assert process.stderr is not None
    assert f"http://127.0.0.1:{port}" in process.stderr.readline()
    for _ in range(100):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/v1/info").json()["indexes"] == ["mine"]:
                break
        except httpx.TransportError:
            time.sleep(0.1)
    else:
        pytest.fail("the service did not come up")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) in (0, -signal.SIGTERM)
    process.stderr.close()


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


def test_a_client_that_leaves_a_stream_leaves_no_work_behind(index_root: Path):
    with (
        local_server(index_root / "margin", "--workers", "1", "--queue", "0") as url,
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
