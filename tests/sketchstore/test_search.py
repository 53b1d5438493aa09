"""FAISS and brute force give the same scores; both are what a float64 product over the stored rows says."""

import numpy as np
import pytest
import torch

from sketchstore.brute_force import BruteForceSearch
from sketchstore.errors import EngineUnavailableError, FaissFactoryError, MissingDerivedError, SketchBlockError
from sketchstore.faiss_build import check_factory, write_faiss
from sketchstore.faiss_search import FaissSearch, open_faiss
from tests.index_factory import make_index

EXACT = ["Flat", "SQfp16"]
INEXACT = ["SQ8", "IVF4,Flat", "HNSW8", "IVF4,SQfp16", "PCA8,Flat", "RaBitQ", "IVF4,Flat,RFlat"]
ALLOWED = {
    "all": None,
    "range": torch.arange(100, 220),
    "gaps": torch.arange(0, 300, 7),
    "most": torch.arange(0, 290),
    "one": torch.tensor([42]),
    "none": torch.tensor([], dtype=torch.int64),
    "outside": torch.tensor([0, 299, 10_000]),
}


@pytest.fixture(scope="module", params=["own-float32", "own-float16", "margin-float16"])
def index(request, tmp_path_factory):
    view, dtype = request.param.split("-")
    return make_index(
        tmp_path_factory.mktemp("index"), view=view, dtype=dtype, num_rows=300, dim=16, shard_rows=128, num_queries=9
    )


def view_of(index):
    (view,) = index.views.values()
    return view, view.partitions[-1]


def residuals(dim: int = 16, count: int = 3) -> torch.Tensor:
    half = torch.randn((count, dim), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    half[0] *= 1e-30  # neither overflow nor underflow depends on the size of a residual
    return torch.cat([half, -half])


def check_against_float64(search, view, rows, allowed, num_results=9):
    """Scores are those of the best allowed rows, in order, within the bound that the search states."""
    queries = residuals()
    results = search.search(queries, num_results, allowed)
    assert results.scores.shape == results.rows.shape == (6, num_results)
    keep = rows if allowed is None else rows[torch.isin(rows, allowed)]
    products = queries @ view.sketches(keep).T
    count = min(num_results, keep.numel())
    assert bool((results.rows[:, count:] == -1).all())
    assert bool((results.scores[:, count:] == -torch.inf).all())
    bound = search.relative_error * view.squared_norms.max().sqrt() * queries.norm(dim=1, keepdim=True)
    best = products.topk(count, dim=1).values
    assert bool(((results.scores[:, :count] - best).abs() <= bound).all())
    exact = torch.stack(
        [view.sketches(found[:count]) @ query for found, query in zip(results.rows, queries, strict=True)]
    )
    assert bool(((results.scores[:, :count] - exact).abs() <= bound).all()), "a score must be that of its row"
    assert bool((results.scores[:, :count].diff(dim=1) <= 0).all())
    assert all(len(set(found[:count].tolist())) == count for found in results.rows)


@pytest.mark.parametrize("allowed", ALLOWED)
@pytest.mark.parametrize("engine", ["brute_force", *EXACT])
def test_search_finds_the_best_rows_of_a_float64_scan(index, engine, allowed):
    view, label = view_of(index)
    if engine == "brute_force":
        search = BruteForceSearch(view, view.partition_rows(label))
    elif engine == "SQfp16" and view.storage_dtype != np.float16:
        pytest.skip("the fp16 quantiser keeps float16 sketches only")
    else:
        write_faiss(index, view.name, label, engine)
        search = open_faiss(index, view.name, label)
        assert search.exact
        assert search.recall == 1.0
    check_against_float64(search, view, view.partition_rows(label), ALLOWED[allowed])


@pytest.mark.parametrize("factory", INEXACT)
def test_an_inexact_factory_says_so_gives_true_scores_and_its_measured_recall(index, factory):
    view, label = view_of(index)
    write_faiss(index, view.name, label, factory)
    search = open_faiss(index, view.name, label)
    assert not search.exact
    assert 0.0 <= search.recall <= 1.0
    entry = index.derived.entry("faiss", view.name, label)
    assert entry.measured["recall"] == search.recall
    assert entry.measured["num_results"] == 10
    queries = residuals()
    for allowed in (None, ALLOWED["most"], ALLOWED["gaps"]):
        results = search.search(queries, 5, allowed)
        for found, scores, query in zip(results.rows, results.scores, queries, strict=True):
            valid = found >= 0
            bound = search.relative_error * view.squared_norms.max().sqrt() * query.norm()
            assert bool(((scores[valid] - view.sketches(found[valid]) @ query).abs() <= bound).all())
            assert allowed is None or bool(torch.isin(found[valid], allowed).all())


def test_a_filter_never_costs_an_inexact_index_results(index):
    view, label = view_of(index)
    write_faiss(index, view.name, label, "HNSW8")
    allowed = view.partition_rows(label)[3:20:2]
    found = open_faiss(index, view.name, label).search(residuals(), 30, allowed)
    assert all(sorted(rows[rows >= 0].tolist()) == allowed.tolist() for rows in found.rows)


def test_brute_force_breaks_ties_by_the_lowest_row(tmp_path):
    sketches = np.ones((50, 4), np.float32)
    sketches[7] = 2.0
    view = make_index(tmp_path, view="margin", sketches={"margin": sketches}).view("margin")
    results = BruteForceSearch(view).search(torch.ones(1, 4, dtype=torch.float64), 4)
    assert results.rows.tolist() == [[7, 0, 1, 2]]


def test_more_results_than_rows_are_padded(index):
    view, label = view_of(index)
    rows = view.partition_rows(label)
    write_faiss(index, view.name, label)
    for search in (BruteForceSearch(view, rows), open_faiss(index, view.name, label)):
        results = search.search(residuals(), rows.numel() + 5)
        assert bool((results.rows[:, -5:] == -1).all())
        assert bool((results.rows[:, :-5] >= 0).all())


def test_plus_and_minus_a_residual_in_one_batch_score_as_alone(index):
    view, label = view_of(index)
    search = BruteForceSearch(view, view.partition_rows(label))
    together = search.search(residuals(), 7)
    for i, residual in enumerate(residuals()):
        alone = search.search(residual[None], 7)
        assert alone.rows[0].tolist() == together.rows[i].tolist()


def test_a_view_of_class_logits_is_searched_over_all_rows(tmp_path):
    index = make_index(tmp_path, view="class", faiss="Flat")
    for name, view in index.views.items():
        assert view.partitions == [None]
        check_against_float64(open_faiss(index, name), view, torch.arange(60), None)


def test_rows_scored_counts_what_was_looked_at(index):
    view, label = view_of(index)
    rows = view.partition_rows(label)
    write_faiss(index, view.name, label)
    for search in (BruteForceSearch(view, rows), open_faiss(index, view.name, label)):
        assert search.search(residuals(), 3).rows_scored == 6 * rows.numel()
        assert search.search(residuals(), 3, rows[:10]).rows_scored == 60
    write_faiss(index, view.name, label, "IVF4,Flat")
    assert open_faiss(index, view.name, label).search(residuals(), 3).rows_scored < 6 * rows.numel()


@pytest.mark.parametrize("bad", [torch.zeros(16), torch.zeros(2, 15), torch.full((1, 16), torch.nan)])
def test_residuals_that_do_not_fit_are_refused(index, bad):
    view, _ = view_of(index)
    with pytest.raises(SketchBlockError):
        BruteForceSearch(view).search(bad.to(torch.float64), 3)


def test_num_results_below_one_is_refused(index):
    with pytest.raises(SketchBlockError, match="at least 1"):
        BruteForceSearch(view_of(index)[0]).search(residuals(), 0)


@pytest.mark.parametrize("factory", ["Bogus", "LSH", "IDMap,Flat", "", "Flat,"])
def test_a_factory_that_cannot_serve_is_refused_before_anything_is_built(index, factory):
    view, label = view_of(index)
    with pytest.raises(FaissFactoryError):
        write_faiss(index, view.name, label, factory)


def test_rabitq_fastscan_is_refused_where_it_is_silently_wrong():
    with pytest.raises(FaissFactoryError, match="RaBitQfs"):
        check_factory("RaBitQfs", 4096)
    check_factory("RaBitQfs", 512)


def test_training_on_too_few_rows_is_a_refusal(index):
    view, label = view_of(index)
    with pytest.raises(FaissFactoryError, match="rows"):
        write_faiss(index, view.name, label, "IVF4096,Flat")


def test_no_index_of_this_partition_says_how_to_get_one(tmp_path):
    index = make_index(tmp_path)
    with pytest.raises(MissingDerivedError, match="indexer derive"):
        open_faiss(index, "own", 1)


def test_a_streamed_flat_index_has_the_bytes_faiss_writes(index, tmp_path):
    import faiss

    view, label = view_of(index)
    path = write_faiss(index, view.name, label)
    expected = faiss.IndexFlatIP(16)
    expected.add(view.stored(view.partition_rows(label)).astype(np.float32))
    faiss.write_index(expected, str(tmp_path / "whole.faiss"))
    assert path.read_bytes() == (tmp_path / "whole.faiss").read_bytes()


def test_no_gpu_no_gpu_search(tmp_path):
    import faiss

    if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus():
        pytest.skip("this machine has one")
    index = make_index(tmp_path, faiss="Flat")
    with pytest.raises(EngineUnavailableError, match="faiss-gpu"):
        open_faiss(index, "own", 0, device="cuda")


class WithoutSelectors:
    """A FAISS index that, like those on a GPU, returns 2048 results at most and ignores selectors."""

    def __init__(self, index):
        self._index = index
        self.ntotal = index.ntotal

    def search(self, queries, count, params=None):
        assert params is None, "a GPU index ignores a selector in silence"
        assert count <= 2048
        return self._index.search(queries, count)


@pytest.mark.parametrize("allowed", ALLOWED)
def test_a_gpu_index_is_never_given_a_selector(index, allowed):
    view, label = view_of(index)
    write_faiss(index, view.name, label)
    opened = open_faiss(index, view.name, label)
    entry = index.derived.entry("faiss", view.name, label)
    search = FaissSearch(view, entry, WithoutSelectors(opened._index), label, gpu=True)
    check_against_float64(search, view, view.partition_rows(label), ALLOWED[allowed])


def test_more_than_a_gpu_returns_is_scanned(tmp_path):
    index = make_index(tmp_path, view="margin", num_rows=2100, dim=4, block_rows=512, shard_rows=4096, faiss="Flat")
    opened = open_faiss(index, "margin")
    entry = index.derived.entry("faiss", "margin")
    search = FaissSearch(index.view("margin"), entry, WithoutSelectors(opened._index), gpu=True)
    results = search.search(torch.ones(1, 4, dtype=torch.float64), 2100)
    assert sorted(results.rows[0].tolist()) == list(range(2100))


@pytest.mark.gpu
@pytest.mark.parametrize("allowed", ALLOWED)
def test_gpu_search_finds_the_best_rows_of_a_float64_scan(index, allowed):
    faiss = pytest.importorskip("faiss")
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        pytest.skip("needs faiss-gpu and a CUDA device")
    view, label = view_of(index)
    write_faiss(index, view.name, label)
    search = open_faiss(index, view.name, label, device="cuda")
    assert search.gpu
    check_against_float64(search, view, view.partition_rows(label), ALLOWED[allowed])
