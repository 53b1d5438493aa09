"""What another seed changes: exactly what comparing two whole indexes says, and nothing where the sketch is exact."""

import json

import numpy as np
import pytest
import torch

from indexer.append import append_rows
from indexer.build import build_index
from indexer.build_settings import BuildSettings
from indexer.stability import MOST_DIFFERENCE, StabilityError, measure_stability
from sketchstore.merge import merge_indexes
from sketchstore.reader import Index, open_index
from sketchstore.remove import remove_rows
from tests.index_factory import resign
from tests.indexer.small_recipes import CLASSIFIER, write_recipe
from tests.oracles import greedy_infogain, info_gain

#: Whole builds and dense oracles: left out of `make check`.
pytestmark = pytest.mark.slow


PARTS = """def train_set(count=60, part: int = 0):
    lost = __import__("pathlib").Path(__file__).with_name("lost")
    if lost.exists() and int(lost.read_text()) == part:
        raise RuntimeError(f"part {part} is lost")
    return _points(count, part)"""


def build(tmp_path, source: str = CLASSIFIER, out: str = "points", **choices) -> Index:
    recipe = write_recipe(tmp_path, source)
    settings = BuildSettings(str(recipe), **{"sketch": "rademacher", "dim": 24, "measurement": "margin", **choices})
    build_index(settings, tmp_path / out)
    return open_index(tmp_path / out)


def stability(index: Index, **choices):
    return measure_stability(index, recipe=str(index.path.parent / "points.py"), **choices)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_report_is_what_two_whole_indexes_say(tmp_path, dtype):
    index, other = build(tmp_path, dtype=dtype), build(tmp_path, out="other", seed=7)
    report = stability(index, seed=7, rows=30, queries=4, picks=5, relative_noises=(0.1, 10.0))
    assert (report.seed, report.other_seed, report.pool_rows, report.queries) == (0, 7, 30, 4)
    assert report.query_split == "query"
    # The sample is of the first index; it is found in the second by what its rows and queries say in both.
    rng = torch.Generator().manual_seed(0)
    rows = torch.randperm(60, generator=rng)[: 30 + 4][4:].sort().values
    pairs = list(zip(*(array.tolist() for array in index.queries.arrays("margin")[1:]), strict=True))
    chosen = sorted(
        pairs[place] for place in torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:4]
    )
    for entry in report.nats:
        for query, told in zip(chosen, entry["by_query"], strict=True):
            picks, nats = [], []
            for each in (index, other):
                pool = each.view("margin").sketches(rows)
                noise = entry["relative_noise"] * float(pool.square().sum(1).mean())
                asked = each.queries.sketch(query[0], "margin", query[1])
                picks.append(greedy_infogain(asked, pool, noise, 5))
                nats.append((info_gain(asked, pool[picks[0]], noise), info_gain(asked, pool, noise)))
            assert told["shared_picks"] == len(set(picks[0]) & set(picks[1]))
            # float32 sketches of other batch sizes: 1e-6; where the query is stored in float32 and rows in float16, too
            assert told["index_set_nats"] == pytest.approx(nats[0][0], rel=1e-3)
            assert told["other_seed_set_nats"] == pytest.approx(nats[1][0], rel=1e-3)
            assert told["other_seed_pool_nats"] == pytest.approx(nats[1][1], rel=1e-3)
        total = [sum(query[f"{name}_pool_nats"] for query in entry["by_query"]) for name in ("index", "other_seed")]
        assert entry["pool_ratio"] == pytest.approx(total[0] / total[1])
    json.dumps(report.as_json(), allow_nan=False)


def test_more_dimensions_are_more_stable(tmp_path):
    spreads, shared = [], []
    for dim in (8, 128, 2048):
        report = stability(build(tmp_path, out=f"d{dim}", dim=dim), relative_noises=(1.0,))
        spreads.append(report.kernel_spread)
        shared.append(report.nats[0]["shared_picks_fraction"])
    # The spread of a difference of two sketches is about √(2 · 2/d) times less than ‖φ‖‖φ′‖.
    assert spreads[0] > 2 * spreads[1] > 4 * spreads[2]
    assert shared[0] < shared[2]
    assert spreads[2] == pytest.approx(np.sqrt(2 / 2048), rel=0.6)


@pytest.mark.parametrize(
    "choices", [{"measurement": "label_logit"}, {"measurement": "class_logit"}, {"sketch": "sjlt"}]
)
def test_every_measurement_and_family_can_be_rebuilt(tmp_path, choices):
    report = stability(build(tmp_path, **choices), queries=3)
    assert report.rebuilt_difference < 1e-5  # float32 sums in another order
    assert (report.label is not None) == (choices.get("measurement") == "label_logit")


def test_without_a_query_set_rows_are_held_out(tmp_path):
    report = stability(build(tmp_path, num_queries=0), queries=3)
    assert (report.query_split, report.queries) == ("train", 3)


@pytest.mark.parametrize("prefix", ["", "b/"])
def test_rows_are_found_after_removals_purges_and_appends(tmp_path, prefix):
    index = build(tmp_path, limit=40, id_prefix=prefix)
    recipe = str(tmp_path / "points.py")
    remove_rows(index, [f"{prefix}train:0", f"{prefix}train:7"])
    assert stability(open_index(index.path)).rebuilt_difference < 1e-5
    remove_rows(open_index(index.path), [f"{prefix}train:9"], purge=True)
    append_rows(index.path, recipe=recipe)
    append_rows(index.path, recipe=recipe, rows=(0, 5), id_prefix="again/")
    found = open_index(index.path)
    assert found.num_rows == 62
    report = stability(found, rows=50)
    assert report.rebuilt_difference < 1e-5
    assert report.pool_rows <= 50  # what came from another data source is left out


@pytest.mark.parametrize("first", ["few", "many"])
def test_rows_of_a_merged_index_are_found_in_the_data_of_every_part(tmp_path, first):
    source = f"# {first}" + CLASSIFIER.replace(
        "def train_set(count=60):\n    return _points(count, 0)", PARTS
    )  # a module of its own
    few = build(tmp_path, source, out="few", limit=15, id_prefix="few/", options={"part": 5})
    many = build(tmp_path, source, out="many", id_prefix="many/", options={"part": 6})
    parts = [few, many] if first == "few" else [many, few]
    merge_indexes(parts, tmp_path / "all")
    report = stability(open_index(tmp_path / "all"), rows=60)
    assert report.pool_rows == 60
    assert report.rebuilt_difference < 1e-5
    remove_rows(open_index(tmp_path / "all"), ["few/train:2", "many/train:1", "many/train:9"], purge=True)
    assert stability(open_index(tmp_path / "all"), rows=60).pool_rows == 60
    # Without the data of the larger part not even half of a sample is there.
    (tmp_path / "points.py").with_name("lost").write_text("6")
    with pytest.raises(StabilityError, match=r"neither it nor most .* part 6 is lost"):
        stability(open_index(tmp_path / "all"), rows=60)


DEEP = '''
"""A trained network of eight layers: bfloat16 sums in another order turn some ReLUs, and the sketch with them."""
import torch
from torch import nn

inputs = torch.randn(400, 32, generator=torch.Generator().manual_seed(0))
labels = (inputs[:, 0] * inputs[:, 1] > 0).long()


def train_set():
    return list(zip(inputs, labels.tolist()))


def architecture():
    torch.manual_seed(0)
    hidden = [module for _ in range(6) for module in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), *hidden, nn.Linear(64, 2)).eval()


def model():
    model = architecture().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval()
'''


def test_rounding_of_a_type_of_fewer_bits_is_no_other_data(tmp_path):
    index = build(tmp_path, DEEP, compute_dtype="bfloat16", sketch="kronecker", dim=512)
    report = stability(index, rows=300)
    assert report.rebuilt_difference > MOST_DIFFERENCE, "rounding must show"
    other = DEEP.replace("zip(inputs, labels", "zip(inputs.flip(0), labels")
    elsewhere = build(tmp_path, other, out="other", compute_dtype="bfloat16", sketch="kronecker", dim=512)
    resign(index.path, {"recipe": elsewhere.manifest.recipe.model_dump(mode="json")})
    with pytest.raises(StabilityError, match="the recipe gives other data than it was built from"):
        stability(open_index(index.path), rows=300)


def test_a_sample_that_is_not_the_indexs_own_is_refused(tmp_path):
    index = build(tmp_path)
    recipe = tmp_path / "elsewhere" / "points.py"
    recipe.parent.mkdir()
    recipe.write_text(CLASSIFIER)
    assert measure_stability(index, recipe=str(recipe)).pool_rows > 40
    with pytest.raises(StabilityError, match="the index's own seed; choose another"):
        stability(index, seed=0)
    with pytest.raises(StabilityError, match="no seed is in it"):
        stability(build(tmp_path, out="exact", sketch="identity", dim=None))


def test_data_that_changed_since_the_build_are_found_out(tmp_path):
    shifted = CLASSIFIER.replace(
        "    inputs = torch.randn(count, 5, generator=generator)", "    inputs = _inputs(count, generator)"
    )
    shifted += """

def _inputs(count, generator):
    import pathlib
    shift = float(pathlib.Path(__file__).with_name("shift").read_text())
    return torch.randn(count, 5, generator=generator) + shift
"""
    (tmp_path / "shift").write_text("0")
    index = build(tmp_path, shifted)
    assert stability(index).rebuilt_difference < 1e-5
    (tmp_path / "shift").write_text("0.5")
    with pytest.raises(StabilityError, match="the recipe gives other data than it was built from"):
        stability(index)
