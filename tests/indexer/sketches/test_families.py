import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from indexer.sketches import SketchSpec, SketchSpecError, make_sketch
from indexer.sketches.gaussian import quantile_table
from indexer.sketches.theory import inner_product_variance, kurtosis

CPU = torch.device("cpu")
LARGE = 2**33  # more parameters than 32 bits count
FIRST = 2**32 - 6
RANDOM = ["rademacher", "gaussian", "sjlt"]

# Dimensions that are no multiple of a word, a call or a vector, and one that is.
SPECS = {
    f"{family}-{dim}": SketchSpec(family, dim, seed=2**63 + 11, options={"buckets": 3} if family == "sjlt" else {})
    for family in RANDOM
    for dim in (3, 33, 129, 384)
}


@pytest.fixture(params=SPECS, ids=list(SPECS))
def spec(request: pytest.FixtureRequest) -> SketchSpec:
    return SPECS[request.param]


def torch_columns(sketch, offset: int, count: int) -> Tensor:
    if sketch.spec.family == "sjlt":
        positions, signs = sketch.entries(offset, count, CPU)
        return torch.zeros(count, sketch.spec.dim).scatter_add_(1, positions, signs * sketch.scale)
    return sketch.entries(offset, count, CPU) * sketch.scale


def test_compiled_and_torch_generators_give_the_same_bits(spec: SketchSpec) -> None:
    sketch = make_sketch(spec, LARGE)
    assert torch.equal(sketch.columns(FIRST, 12), torch_columns(sketch, FIRST, 12))


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 20])
def test_add_is_a_product_with_the_specified_matrix(spec: SketchSpec, rows: int) -> None:
    sketch = make_sketch(spec, LARGE)
    gradients = torch.randn(rows, 21, generator=torch.Generator().manual_seed(0))
    out = torch.ones(rows, spec.dim)
    sketch.add(gradients, FIRST, out)
    expected = 1.0 + gradients.double() @ torch_columns(sketch, FIRST, 21).double()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [2, 20])
def test_slabs_in_any_order_add_up_to_the_whole(spec: SketchSpec, rows: int) -> None:
    sketch = make_sketch(spec, 50)
    gradients = torch.randn(rows, 50, generator=torch.Generator().manual_seed(0))
    whole, parts = torch.zeros(rows, spec.dim), torch.zeros(rows, spec.dim)
    sketch.add(gradients, 0, whole)
    for start, stop in ((31, 50), (0, 7), (7, 31)):
        sketch.add(gradients[:, start:stop], start, parts)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 20])
def test_bits_do_not_depend_on_the_number_of_kernel_threads(spec: SketchSpec, rows: int) -> None:
    gradients = torch.randn(rows, 40, generator=torch.Generator().manual_seed(0))
    results = []
    for num_threads in (1, 2, 5):
        out = torch.zeros(rows, spec.dim)
        make_sketch(spec, 40, num_threads).add(gradients, 0, out)
        results.append(out)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_one_sketch_serves_several_threads_at_once(spec: SketchSpec) -> None:
    sketch = make_sketch(spec, 4000, num_threads=2)
    gradients = torch.randn(12, 4000, generator=torch.Generator().manual_seed(0))

    def one() -> Tensor:
        out = torch.zeros(12, spec.dim)
        sketch.add(gradients, 0, out)
        return out

    expected = one()
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: one(), range(16)):
            assert torch.equal(result, expected)


def test_tiles_do_not_change_the_sketch(spec: SketchSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = torch.randn(20, 101, generator=torch.Generator().manual_seed(0))
    whole, tiled = torch.zeros(20, spec.dim), torch.zeros(20, spec.dim)
    make_sketch(spec, 101).add(gradients, 0, whole)
    monkeypatch.setattr("indexer.sketches.dense.TILE_BYTES", 4 * spec.dim * 7)
    monkeypatch.setattr("indexer.sketches.sjlt.TILE_PARAMETERS", 7)
    monkeypatch.setattr("indexer.sketches.sjlt.TABLE_PARAMETERS", 30)
    make_sketch(spec, 101).add(gradients, 0, tiled)
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", RANDOM)
def test_seeds_and_families_give_different_matrices(family: str) -> None:
    columns = [make_sketch(SketchSpec(family, 64, seed=seed), 50).columns(0, 50) for seed in (0, 1, 2**32)]
    assert not torch.equal(columns[0], columns[1])
    assert not torch.equal(columns[0], columns[2])


@pytest.mark.parametrize("family", RANDOM)
def test_sketch_preserves_inner_products_in_expectation_with_the_spread_of_theory(family: str) -> None:
    generator = torch.Generator().manual_seed(3)
    dim, size, seeds = 32, 60, 4000
    # A heavy coordinate, so that the term Σ g_i² g'_i² tells the families apart.
    first, second = torch.randn(2, size, generator=generator).unbind()
    first[0], second[0] = 6.0, -5.0
    pair = torch.stack((first, second))
    estimates = []
    for seed in range(seeds):
        out = torch.zeros(2, dim)
        make_sketch(SketchSpec(family, dim, seed=seed), size, 1).add(pair, 0, out)
        estimates.append(float(out[0].double() @ out[1].double()))
    errors = torch.tensor(estimates, dtype=torch.float64) - first.double() @ second.double()
    variance = inner_product_variance(
        SketchSpec(family, dim),
        first.double().square().sum(),
        second.double().square().sum(),
        first.double() @ second.double(),
        (first.double() * second.double()).square().sum(),
    )
    standardised = float(errors.mean() / (variance / seeds).sqrt())
    assert abs(standardised) < 4, f"biased by {standardised:.1f} standard errors; a wrong 1/√d or 1/√s shows here"
    # The sample variance of 4,000 nearly normal values strays by 2-3 %; kurtosis 1 taken for 3 would be 40 % off.
    assert math.isclose(float(errors.var() / variance), 1.0, abs_tol=0.12)


def test_rademacher_entries_are_signs_over_the_root_of_dim() -> None:
    columns = make_sketch(SketchSpec("rademacher", 100), 1000).columns(0, 1000)
    assert torch.equal(columns.abs(), torch.full_like(columns, 0.1))
    # 100,000 fair signs: the mean's standard deviation is 0.1/√100,000.
    assert abs(float(columns.mean())) < 4 * 0.1 / math.sqrt(columns.numel())


def test_signs_of_rows_and_columns_are_uncorrelated() -> None:
    signs = make_sketch(SketchSpec("rademacher", 256), 256).columns(0, 256).double() * 16
    for gram in (signs @ signs.T, signs.T @ signs):
        off = gram - 256 * torch.eye(256, dtype=torch.float64)
        assert math.isclose(float(off.square().sum()) / (256 * 255), 256, rel_tol=0.05)
        assert float(off.abs().max()) < 6 * 16


def test_gaussian_table_is_odd_with_unit_mean_square() -> None:
    table = quantile_table()
    assert torch.equal(table, -table.flip(0))
    assert torch.equal(table, table.sort().values)
    assert math.isclose(float(table.double().square().mean()), 1.0, abs_tol=1e-7)
    assert 2.999 < kurtosis(SketchSpec("gaussian", 8)) < 3.0


def test_sjlt_puts_each_parameter_once_into_each_part() -> None:
    columns = make_sketch(SketchSpec("sjlt", 96, options={"buckets": 4}), 500).columns(0, 500)
    parts = columns.reshape(500, 4, 24)
    assert torch.equal((parts != 0).sum(2), torch.ones(500, 4, dtype=torch.int64))
    assert torch.equal(parts.abs().sum(2), torch.full((500, 4), 0.5))
    counts = (parts != 0).sum(0).double()  # 500 parameters over 24 places: 20.8 ± 4.5 each
    assert float((counts - 500 / 24).abs().max()) < 5 * 4.5


@pytest.mark.parametrize("dim", [96, 2**15, 2**16])  # codes of 16 and of 32 bits
def test_an_sjlt_row_has_the_same_bits_alone_and_among_any_others(dim: int) -> None:
    sketch = make_sketch(SketchSpec("sjlt", dim, options={"buckets": 4}), 3000)
    gradients = torch.randn(37, 3000, generator=torch.Generator().manual_seed(0))
    together = torch.zeros(37, dim)
    sketch.add(gradients, 0, together)
    for row in (0, 15, 16, 36):
        alone = torch.zeros(1, dim)
        sketch.add(gradients[row : row + 1], 0, alone)
        assert torch.equal(alone[0], together[row])


def test_sjlt_tables_beyond_their_budget_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = torch.randn(20, 900, generator=torch.Generator().manual_seed(0))
    spec = SketchSpec("sjlt", 96)
    kept, dropped = torch.zeros(20, 96), torch.zeros(20, 96)
    monkeypatch.setattr("indexer.sketches.sjlt.TABLE_PARAMETERS", 100)
    make_sketch(spec, 900).add(gradients, 0, kept)
    monkeypatch.setattr("indexer.sketches.sjlt.TABLES_BYTES", 2000)
    small = make_sketch(spec, 900)
    for _ in range(2):
        dropped.zero_()
        small.add(gradients, 0, dropped)
        assert torch.equal(dropped, kept)
    assert len(small._tables) < 9


def test_identity_keeps_everything() -> None:
    sketch = make_sketch(SketchSpec("identity", 30), 30)
    gradients = torch.randn(4, 30)
    out = torch.zeros(4, 30)
    sketch.add(gradients[:, 10:], 10, out)
    sketch.add(gradients[:, :10], 0, out)
    assert torch.equal(out, gradients)
    assert torch.equal(sketch.columns(10, 5), torch.eye(30)[10:15])


@pytest.mark.parametrize("family", [*RANDOM, "identity"])
@pytest.mark.parametrize(
    ("gradients", "offset", "out", "message"),
    [
        (torch.zeros(2, 5, dtype=torch.float64), 0, torch.zeros(2, 12), "float32"),
        (torch.zeros(2, 5), 0, torch.zeros(3, 12), r"\[2, 5\] and \[3, 12\]"),
        (torch.zeros(2, 5), 8, torch.zeros(2, 12), "8 to 13 lie outside the 12"),
        (torch.zeros(2, 5), -1, torch.zeros(2, 12), "-1 to 4 lie outside the 12"),
    ],
)
def test_a_slab_that_does_not_fit_is_refused(family, gradients, offset, out, message) -> None:
    with pytest.raises(SketchSpecError, match=message):
        make_sketch(SketchSpec(family, 12), 12).add(gradients, offset, out)
