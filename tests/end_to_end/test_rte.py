"""The whole line on real texts with the real MiniLM: table → fine-tuning → index → the pairs that inform an answer."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from indexer.recipe_file import load_recipe
from indexer.recipes.text_classification import TextClassification
from indexer.training import cache_folder, cpu_threads
from service.client import Client, ProblemError
from service.local_server import local_server
from sketchstore.reader import open_index
from tests.indexer.text_models import MINILM

DATA = os.environ.get("NATTRIBUTE_DATA")
TRAIN = os.environ.get("NATTRIBUTE_TRAIN_RTE")
ROWS, QUERIES = 40, 6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DATA is None, reason="NATTRIBUTE_DATA names no folder with rte"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of RTE as a table of their own, so that fine-tuning takes seconds."""
    folder = tmp_path_factory.mktemp("rte")
    (folder / "data").mkdir()
    for name, rows in (("train.tsv", ROWS), ("dev.tsv", QUERIES)):
        lines = (Path(str(DATA)) / "rte" / name).read_text(encoding="utf-8").split("\n")
        (folder / "data" / name).write_text("\n".join(lines[: rows + 1]) + "\n", encoding="utf-8")
    return folder


def indexer(folder: Path, *words: str) -> str:
    environment = os.environ | {"NATTRIBUTE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "indexer.cli", *words], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def index(folder: Path) -> Path:
    recipe = ["text-classification", "--data-dir", str(folder / "data"), "--option", f"model={MINILM}"]
    recipe += ["--option", "epochs=1"]  # the linear layers, all of them: 10.8 million parameters
    assert "FAIL" not in indexer(folder, "check", *recipe)
    indexer(folder, "build", *recipe, "--sketch", "sjlt", "--dim", "256", "--out", str(folder / "rte"))
    return folder / "rte"


def test_the_index_is_of_every_linear_layer_and_of_nothing_else(index: Path):
    parameters = open_index(index).manifest.sketch.parameters
    assert sum(math.prod(each.shape) for each in parameters) == 10_786_178
    weights = [each.name for each in parameters if each.name.endswith("weight")]
    assert len(weights) == 38
    assert not any("embedding" in name or "LayerNorm" in name for name in weights)


def test_the_terminal_shows_premise_and_hypothesis_of_the_query_and_of_every_hit(index: Path, folder: Path):
    printed = indexer(folder, "query", str(index), "--row", "2", "--budget", "3", "--relative-noise", "1")
    assert printed.count("   sentence1  ") == printed.count("   sentence2  ") == 4
    asked = (folder / "data" / "dev.tsv").read_text(encoding="utf-8").split("\n")[3].split("\t")
    for text in asked[1:3]:
        assert " ".join(text.split()) in " ".join(printed.split())


def test_a_pair_sent_over_http_is_answered_with_the_pairs_that_inform_it(index: Path):
    with local_server(index) as url, Client(url) as client:
        stored = json.loads(client.content("rte", 2, split="query")[1])
        assert set(stored) == {"sentence1", "sentence2"}
        by_row = client.attribute("rte", {"type": "row", "split": "query", "row": 2}, budget=3, relative_noise=1.0)
        sent = client.attribute("rte", {"type": "example", "content": stored}, budget=3, relative_noise=1.0)
        assert [hit.id for hit in sent.hits] == [hit.id for hit in by_row.hits]
        # The stored sketch was computed in a batch padded to its longest pair.
        assert sent.information.infogain_nats == pytest.approx(by_row.information.infogain_nats, rel=1e-3)
        for hit in sent.hits:
            assert json.loads(client.content("rte", hit.row)[1])["sentence2"]
            assert client.example("rte", hit.row).metadata["label_name"] in ("entailment", "not_entailment")
        with pytest.raises(ProblemError, match="'sentence2' is missing"):
            client.attribute("rte", {"type": "example", "content": {"sentence1": "words"}})


def test_a_small_language_model_made_from_the_texts_passes_the_check(folder: Path):
    recipe = ["causal-lm", "--data-dir", str(folder / "data"), "--option", "model=new"]
    recipe += ["--option", f"tokenizer={MINILM}", "--option", "epochs=1", "--option", "width=32"]
    assert indexer(folder, "check", *recipe).count("ok    ") == 8


def test_the_fine_tuned_encoder_is_right_about_more_than_sixty_percent_of_dev(monkeypatch: pytest.MonkeyPatch):
    options = {"model": MINILM, "epochs": 2, "matching_epochs": 1}  # as docs/recipes.md shows, with --threads 1
    recipe = load_recipe("text-classification", data_dir=Path(str(DATA)) / "rte", options=options)

    def refuse(*_: object) -> None:
        pytest.skip(
            f"no weights of this fine-tuning for this torch in {cache_folder()}; some 10 minutes on one core make "
            "them: set NATTRIBUTE_TRAIN_RTE=1, or build RTE's index as docs/recipes.md does"
        )

    if not TRAIN:
        monkeypatch.setattr(TextClassification, "warm_up", refuse)  # what training begins with
    queries = recipe.query_set()
    assert queries is not None
    right = 0
    with cpu_threads(1), torch.no_grad():
        model = recipe.model()
        for start in range(0, len(queries), 16):
            inputs, labels = recipe.collate([queries[row] for row in range(start, min(start + 16, len(queries)))])
            right += int((recipe.outputs(recipe.call(model, inputs)).argmax(1) == labels).sum())
    assert len(queries) == 277
    assert right > 0.6 * len(queries)
