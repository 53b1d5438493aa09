"""An index of texts is served without its data, and as far as possible without its model's folder."""

from pathlib import Path
from typing import Any

import pytest

from indexer.build import build_index
from indexer.build_settings import BuildSettings
from service.engine import open_engine
from service.errors import ExampleUnsupportedError, InvalidExampleError
from tests.indexer.text_models import PAIRS, save_model, write_pairs

NAMES = {"id2label": {0: "entailment", 1: "not_entailment"}, "label2id": {"entailment": 0, "not_entailment": 1}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    model = save_model(root / "model", "bert", "classifier", **NAMES)
    settings = BuildSettings(
        recipe="text-classification",
        data_dir=write_pairs(root / "data"),
        options={"model": str(model)},
        measurement="margin",
        sketch="sjlt",
        dim=16,
        threads=1,
    )
    build_index(settings, root / "pairs")
    return root


def asked(query: dict[str, Any]) -> dict[str, Any]:
    return {"query": query, "budget": 3, "relative_noise": 1.0}


def test_a_text_is_answered_as_its_stored_row(root: Path) -> None:
    engine = open_engine(root / "pairs")
    sent = {"sentence1": PAIRS[-1][0], "sentence2": PAIRS[-1][1]}
    by_row = engine.attribute(asked({"type": "row", "split": "query", "row": 1}))
    by_example = engine.attribute(asked({"type": "example", "content": sent}))
    assert [hit.row for hit in by_example.hits] == [hit.row for hit in by_row.hits]
    # The stored sketch was computed in a padded float32 batch.
    assert by_example.information.infogain_nats == pytest.approx(by_row.information.infogain_nats, rel=1e-4)
    with pytest.raises(InvalidExampleError, match="'sentence2' is missing"):
        engine.attribute(asked({"type": "example", "content": {"sentence1": "words"}}))


def test_without_the_models_folder_everything_but_examples_is_answered(root: Path) -> None:
    (root / "model").rename(root / "elsewhere")
    try:
        engine = open_engine(root / "pairs")
        assert len(engine.attribute(asked({"type": "row", "split": "query", "row": 1})).hits) == 3
        with pytest.raises(ExampleUnsupportedError, match="no such folder"):
            engine.attribute(asked({"type": "example", "content": {"sentence1": "a", "sentence2": "b"}}))
    finally:
        (root / "elsewhere").rename(root / "model")
