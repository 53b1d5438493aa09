"""The README's own examples run as they stand: the library without a server, the client, the recipes and commands."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from indexer.cli import main
from service.client import Client, ProblemError
from service.local_server import local_server
from tests.indexer.text_models import save_model, write_pairs

pytestmark = pytest.mark.slow  # each builds an index with the command line

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
CONSOLE_BLOCKS = re.findall(r"^```console\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def block_with(text: str) -> str:
    """The one Python block that contains the text."""
    (block,) = [block for block in PYTHON_BLOCKS if text in block]
    return block


def run(folder: Path, *command: str) -> str:
    """Run a Python program in a folder with this checkout on its path, and return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NATTRIBUTE_CACHE": str(folder / "cache")}
    result = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def indexer(folder: Path, *words: str) -> str:
    """Run `indexer` in a folder and return what it printed; in this process, for another costs seconds of imports."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.setenv("NATTRIBUTE_CACHE", str(folder / "cache"))
        with pytest.raises(SystemExit) as ended:
            main(words)
    assert not ended.value.code, printed.getvalue()
    return printed.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the digits index of the README's first command."""
    folder = tmp_path_factory.mktemp("readme")
    indexer(folder, "build", "digits", "--out", "indexes/digits")
    return folder


def test_library_example_prints_ten_ids_with_their_nats(folder):
    printed = run(folder, "-c", block_with('open_engine("indexes/digits")'))
    hits = re.findall(r"\('(train:\d+)', ([\d.e-]+)\)", printed)
    assert len(hits) == 10
    assert all(float(nats) >= 0 for _, nats in hits)


def test_client_example_answers(folder):
    with local_server(folder / "indexes" / "digits") as url:
        program = block_with("client.attribute(").replace("http://127.0.0.1:8000", url)
        printed = run(folder, "-c", program + "\nprint(len(answer.hits), answer.search.exact)")
    assert printed.split() == ["10", "True"]


def test_streaming_example_prints_each_hit(folder):
    with local_server(folder / "indexes" / "digits") as url:
        printed = run(folder, "-c", block_with("client.stream(").replace("http://127.0.0.1:8000", url))
    assert [line.split()[0] for line in printed.splitlines()] == [str(rank) for rank in range(1, 11)]


def test_groups_and_jobs_example_ends_with_a_coreset(folder):
    with local_server(folder / "indexes" / "digits", "--job-store", str(folder / "jobs.sqlite3")) as url:
        printed = run(folder, "-c", block_with("client.submit(").replace("http://127.0.0.1:8000", url)).splitlines()
    assert [line.split()[0] for line in printed[:2]] == ["Ada", "Ben"]
    assert "20 of 20" in printed
    assert printed[-1].count("train:") == 20


def test_regression_example_passes_the_commands_shown_below_it(folder):
    (folder / "diabetes.py").write_text(block_with("load_diabetes"), encoding="utf-8")
    (commands,) = [block for block in CONSOLE_BLOCKS if "diabetes.py" in block]
    indexer(folder, "check", "diabetes.py")
    for line in commands.splitlines():
        program, *arguments = shlex.split(line.removeprefix("$ "))
        assert program == "indexer"
        printed = indexer(folder, *arguments)
    assert "These 5 examples carry" in printed


def test_hugging_face_example_passes_the_commands_shown_below_it(tmp_path):
    save_model(tmp_path / "checkpoint", "bert", "classifier")
    write_pairs(tmp_path / "data")
    for table in (tmp_path / "data").iterdir():  # whose labels are names
        text = table.read_text(encoding="utf-8")
        table.write_text(text.replace('"not_entailment"', "1").replace('"entailment"', "0"), encoding="utf-8")
    (tmp_path / "pairs.py").write_text(block_with("AutoModelForSequenceClassification"), encoding="utf-8")
    (commands,) = [block for block in CONSOLE_BLOCKS if "pairs.py" in block]
    for line in commands.splitlines():
        program, *arguments = shlex.split(line.removeprefix("$ "))
        assert program == "indexer"
        printed = indexer(tmp_path, *arguments)
    assert "sentence1" in printed
    assert "These 3 examples carry" in printed
    stored = {"sentence1": "She was born in Norway and lived in Spain.", "sentence2": "She was born in Spain."}
    program = f"""
from service.engine import open_engine
engine = open_engine("indexes/pairs", recipe="pairs.py", data_dir="data")
asked = {{"query": {{"type": "example", "content": {stored!r}}}, "budget": 3, "relative_noise": 1.0}}
print([hit.id for hit in engine.attribute(asked).hits])
"""
    assert "train:" in run(tmp_path, "-c", program)


def test_metadata_preview_and_parse_serve_the_library_example(folder, tmp_path):
    recipe = block_with("load_wine") + "\n\n" + block_with('"alcohol": float(')
    (tmp_path / "wine.py").write_text(recipe, encoding="utf-8")
    indexer(tmp_path, "build", "wine.py", "--out", "indexes/wine")
    printed = run(tmp_path, "-c", block_with('recipe="wine.py"'))
    assert printed.startswith("0 [('train:")
    assert printed.count("train:") == 3
    given = ["--recipe", f"wine={tmp_path / 'wine.py'}"]
    with local_server(tmp_path / "indexes" / "wine", *given) as url, Client(url) as client:
        assert set(client.example("wine", 0).metadata) == {"alcohol", "class"}
        stored = json.loads(client.content("wine", 0)[1])
        assert len(client.attribute("wine", {"type": "example", "content": stored}, budget=2).hits) == 2
        with pytest.raises(ProblemError, match="13 standardised numbers"):
            client.attribute("wine", {"type": "example", "content": {"chemistry": [1.0]}})


def test_recipe_passes_every_command_shown_beside_it(folder):
    (folder / "wine.py").write_text(block_with("load_wine"), encoding="utf-8")
    (commands,) = [block for block in CONSOLE_BLOCKS if "wine.py" in block]
    lines = [line.removeprefix("$ ").partition("#")[0] for line in commands.splitlines()]
    for line in lines:
        program, *arguments = shlex.split(line)
        if program == "indexer":
            indexer(folder, *arguments)
        else:
            assert program == "attribution-service"
            assert arguments[:2] == ["--index", "wine=indexes/wine"]
            recipe = absolute(arguments[2:], folder)
            with (
                local_server(folder / "indexes" / "wine", *recipe, name="wine") as url,
                Client(url) as client,
            ):
                answer = client.attribute("wine", {"type": "row", "split": "query", "row": 0}, budget=5)
            assert len(answer.hits) == 5


def absolute(arguments: list[str], folder: Path) -> list[str]:
    """Name the recipe's file absolutely: the service of a test runs in the checkout."""
    return [argument.replace("=wine.py", f"={folder / 'wine.py'}") for argument in arguments]


def test_every_command_that_keeps_an_index_does_what_is_said_beside_it(folder):
    (commands,) = [block for block in CONSOLE_BLOCKS if "indexer append" in block]
    place = folder / "kept"
    place.mkdir()
    (place / "cache").symlink_to(folder / "cache")  # the trained model
    small = ["--dim", "256", "--sketch", "rademacher", "--no-previews"]
    for name, limit in (("digits", 300), ("one", 200)):
        indexer(place, "build", "digits", "--out", f"indexes/{name}", "--limit", str(limit), *small)
    printed = []
    for line in commands.splitlines():
        program, *arguments = shlex.split(line.removeprefix("$ ").partition("#")[0])
        assert program == "indexer"
        printed.append(indexer(place, *arguments))
    tuned, verified, appended, removed, purged, _, merged, stable = printed
    assert "stored as the default" in tuned
    assert "is sound" in verified
    assert (place / "noise.svg").is_file()
    assert "rows 300 to 1436 of the training set" in appended
    assert "1436 are left" in removed
    assert "1 row out of" in purged
    assert "1637: 200 + 1437" in merged
    assert "of the picks in common" in stable
