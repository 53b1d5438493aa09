"""Panels: which queries are drawn, what the table says of the picks, and that texts fit their boxes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.panel_figures import MOST_LINES, Panel, _block, _said, draw_panels
from experiments.panels import SIZES, _mean_cosine, _one_a_class, _panel, _picks, query_rows
from indexer.attributor import Attributor
from indexer.progress import Silent
from tests.index_factory import make_index, png


def test_queries_are_the_first_that_the_model_gets_right(tmp_path: Path):
    # The factory's true label differs from the predicted one for every third query.
    index = make_index(tmp_path, view="margin", num_queries=9)
    assert query_rows(index, 4) == [1, 2, 4, 5]
    assert query_rows(index, 100) == [1, 2, 4, 5, 7, 8]


def test_the_first_of_each_class_is_drawn_before_the_others(tmp_path: Path):
    index = make_index(tmp_path, view="margin", num_queries=9)
    assert _one_a_class(index, [1, 2, 4, 5, 7]) == [1, 2, 4, 5, 7]
    assert _one_a_class(index, [1, 4, 2]) == [1, 2, 4]


def test_likeness_is_the_mean_cosine_of_two_picks(tmp_path: Path):
    index = make_index(tmp_path, view="margin")
    a, b, c = torch.nn.functional.normalize(index.view("margin").sketches(torch.tensor([3, 8, 20])).double(), dim=1)
    assert _mean_cosine(index, [3, 8, 20]) == pytest.approx(float(a @ b + a @ c + b @ c) / 3, rel=1e-12)


def test_a_pick_is_marked_by_the_sign_of_its_kernel_value_with_the_query(tmp_path: Path):
    sketches = np.random.default_rng(0).standard_normal((60, 16)).astype(np.float32)
    index = make_index(tmp_path, view="margin", num_queries=9, sketches={"margin": sketches})
    settings = replace(SIZES["smoke"], picks=15)
    picks = {1: _picks(Attributor(index, engine="brute_force"), settings, 1, "infogain")}
    query = index.queries.sketch(1, "margin", index.queries.label(1)).double()
    expected = index.view("margin").sketches(torch.tensor([pick["row"] for pick in picks[1]])).double() @ query
    found = torch.tensor([pick["covariance"] for pick in picks[1]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert bool((expected > 0).any())
    assert bool((expected < 0).any())
    marks = [positive for _, positive in _panel(index, 1, {"infogain": picks[1]}).picks["infogain"]]
    assert marks == (expected > 0).tolist()


def test_every_query_has_a_random_set_of_its_own(tmp_path: Path):
    index = make_index(tmp_path, view="margin", num_queries=9)
    attributor = Attributor(index, engine="brute_force")
    assert index.queries is not None
    alike = [row for row in range(9) if index.queries.label(row) == index.queries.label(0)]
    drawn = [[pick["row"] for pick in _picks(attributor, SIZES["smoke"], row, "random")] for row in alike]
    assert len(alike) > 1
    assert len(set(map(tuple, drawn))) == len(alike)
    again = [pick["row"] for pick in _picks(attributor, SIZES["smoke"], alike[0], "random")]
    assert again == drawn[0]


def test_the_minus_is_drawn_at_opponents_only(tmp_path: Path):
    texts = _block([(("text/plain", b"for"), True), (("text/plain", b"against"), False)])
    assert texts.split("\n") == ["1+ for", "2− against"]
    picture = ("image/png", png(120))

    def red(*signs: bool) -> int:
        draw_panels(tmp_path / "panel.png", [Panel(picture, "query", {"relatif": [(picture, sign) for sign in signs]})])
        with Image.open(tmp_path / "panel.png") as drawn:
            pixels = torch.frombuffer(bytearray(drawn.convert("RGB").tobytes()), dtype=torch.uint8).view(-1, 3).int()
        return int(((pixels[:, 0] > 200) & (pixels[:, 1] < 60) & (pixels[:, 2] < 60)).sum())

    assert red(True, False) > red(True, True)


def test_texts_are_cut_where_they_are_long_and_nothing_of_them_is_a_formula():
    content = json.dumps({"premise": "costs $5 to $10 " + "word " * 400, "hypothesis": "a\u00a0b"}).encode()
    *lines, last = _said(("application/json", content), 40).split("\n")
    assert len(lines) == MOST_LINES
    assert lines[0].startswith(r"costs \$5 to \$10")
    assert lines[-1].endswith("…")
    assert last == "a b"


def test_a_panel_of_texts_is_drawn(tmp_path: Path):
    long = ("text/plain", b"All that is known of it. " * 30)
    short = ("text/plain", b"Little.")
    panel = Panel(short, "entailment, query 4", {"trak": [(long, True), (short, False)], "random": [(short, True)]})
    draw_panels(tmp_path / "panel.png", [panel])
    with Image.open(tmp_path / "panel.png") as picture:
        assert picture.width > 1000
        dark = sum(value < 100 for value in picture.convert("L").tobytes())
    assert dark > 2000  # letters, not an empty page


def test_more_queries_than_the_model_gets_right_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from experiments import panels
    from experiments.retrained_mlp import TooManyQueriesError

    index = make_index(tmp_path / "index", view="margin", num_queries=9)
    monkeypatch.setattr(panels, "_index", lambda *_: index)
    with pytest.raises(TooManyQueriesError, match=r"7 queries: the model gets 6 of the 9 .* allowed are 1 to 6"):
        panels.run(replace(SIZES["smoke"], queries=7), None, tmp_path, Silent())
