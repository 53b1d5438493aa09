"""Codes and heads against float64: every error bound holds, and company changes no number."""

import threading
from functools import partial

import numpy as np
import pytest
import torch

from attribution import bound_kernels
from attribution.bound_kernels import Facing, Head, Lengths, Looked, LookedTails
from indexer.attributor import compiled_bounds
from indexer.attributor.coded_rows import CodedHeads, CodedRows, CodeScans, _Wanted
from indexer.attributor.near_heads import places_near
from indexer.attributor.scan_rounds import scan_rounds
from sketchstore.codes import Codes, encode
from sketchstore.heads import Heads, encode_heads
from sketchstore.principal_directions import leading_directions

NUM_ROWS, DIM, DIRECTIONS = 700, 48, 8


@pytest.fixture(scope="module")
def sketches():
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(NUM_ROWS, DIM, generator=generator, dtype=torch.float64)
    rows *= torch.logspace(0, -2, DIM)  # a few directions hold most of every row
    rows[::50] = rows[1::50] * 0.999  # near-duplicates
    rows[5] = 0.0
    rows[6] = 1e-20 * rows[7]
    return rows


@pytest.fixture(scope="module")
def scans(sketches):
    encoded = encode(sketches)
    return CodeScans(Codes(*(part.numpy() for part in encoded)), scan_rounds())


def coded_heads(sketches, rows):
    basis = leading_directions(sketches.float(), DIRECTIONS)
    codes, scales, errors, tails = (part.numpy() for part in encode_heads(sketches, basis))
    stored = Heads(basis.numpy(), codes, scales, errors, tails)
    norms = torch.linalg.vector_norm(sketches[rows], dim=1).numpy()
    return CodedHeads(CodeScans(Codes(codes, scales, errors), scan_rounds()), stored, rows, norms)


def pool_of(scans, sketches, rows):
    return CodedRows(scans, rows, torch.linalg.vector_norm(sketches[rows], dim=1).numpy())


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("rows", [np.arange(NUM_ROWS), np.arange(3, NUM_ROWS, 7)], ids=["all", "some"])
def test_products_are_within_their_bounds(scans, sketches, rows, size):
    coarse = pool_of(scans, sketches, rows)
    for seed in range(20):
        vector = size * np.random.default_rng(seed).standard_normal(DIM)
        if seed % 4 == 0:
            vector[1:] *= 1e-6  # one value sets the step of all
        products, errors = coarse.products(vector, None)
        true = sketches[rows].numpy() @ vector
        assert (np.abs(products - true) <= errors).all()
        some = np.arange(1, rows.shape[0], 3)
        fewer, fewer_errors = coarse.products(vector, some)
        assert np.array_equal(fewer, products[some])
        assert np.array_equal(fewer_errors, errors[some])


def test_sums_are_the_integers_alone_and_in_a_round(scans):
    everything = np.arange(NUM_ROWS)
    vectors = [np.random.default_rng(seed).integers(-scans.largest, scans.largest + 1, DIM) for seed in range(5)]
    vectors += [np.full(DIM, scans.largest), np.full(DIM, -scans.largest), np.zeros(DIM, dtype=np.int64)]
    wanted = [_Wanted(scans, everything, vector.astype(np.int16)) for vector in vectors]
    wanted.insert(2, _Wanted(scans, np.array([4, 9, 699]), vectors[0].astype(np.int16)))
    wanted.insert(4, _Wanted(scans, np.empty(0, dtype=np.int64), vectors[0].astype(np.int16)))
    together = scans.multiply([(one.rows, one.vector) for one in wanted])
    for one, sums in zip(wanted, together, strict=True):
        exact = scans.codes.codes[one.rows].astype(np.int64) @ one.vector.astype(np.int64)
        assert np.array_equal(sums, exact)
        assert np.array_equal(scans.products(one.rows, one.vector), exact)


def test_many_threads_get_what_they_asked_for(scans):
    everything, given = np.arange(NUM_ROWS), {}
    vectors = [np.random.default_rng(seed).integers(-99, 100, DIM).astype(np.int16) for seed in range(40)]

    def ask(place):
        given[place] = scans.rounds.ask(_Wanted(scans, everything[: 700 - place], vectors[place]))

    before = scans.rounds.served
    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(vectors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert scans.rounds.served == before + 40
    for place, vector in enumerate(vectors):
        assert np.array_equal(given[place], scans.codes.codes[: 700 - place].astype(np.int64) @ vector.astype(np.int64))


def random_lengths(heads, generator):
    lengths = Lengths(heads.norms / heads.norms.max(), heads.tails / heads.norms.max())
    count = heads.rows.shape[0]
    bounded = generator.random(count) >= 0.1
    lengths.anchor[:] = generator.integers(0, 3, count)
    lengths.along[bounded] = generator.uniform(0, 1, bounded.sum())
    lengths.across[bounded] = generator.uniform(0, 1, bounded.sum())
    lengths.tail_along[:] = generator.uniform(-0.5, 0.5, count)
    lengths.tail_error[:] = generator.uniform(0, 0.01, count)
    lengths.tail_across[:] = generator.uniform(0, 0.2, count)
    return lengths


def random_facing(generator):
    return Facing(
        cosines=generator.uniform(0, 1, 3).astype(np.float32),
        sines=generator.uniform(0, 1, 3).astype(np.float32),
        tail_cosines=generator.uniform(-1, 1, 3),
        tail_blur=1e-9,
        tail_sines=generator.uniform(0, 0.5, 3),
    )


def random_unit(generator):
    vector = generator.standard_normal(DIM)
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("with_tails", [True, False])
@pytest.mark.parametrize("with_heads", [True, False])
def test_compiled_anchoring_is_that_on_arrays(with_tails, with_heads):
    generator = np.random.default_rng(9)
    norms, tails = generator.uniform(0.5, 1, 90), generator.uniform(0, 0.5, 90)
    places = np.sort(generator.choice(90, 60, replace=False))
    looked = Looked(places, generator.uniform(-1, 1, 60), generator.uniform(0, 0.02, 60))
    known = LookedTails(generator.uniform(-1, 1, 60), generator.uniform(0, 0.02, 60), 0.4, 1e-9)
    tables = []
    for kernels in (bound_kernels.BoundKernels(), compiled_bounds.KERNELS):
        lengths = Lengths(norms, tails if with_tails else None)
        kernels.anchor_rows(lengths, 3, looked, known if with_tails and with_heads else None)
        tables.append(lengths.table)
    untouched = np.setdiff1d(np.arange(90), places)
    assert np.isneginf(tables[1][untouched, 1]).all()
    assert (tables[1][places, 0] == 3).all()
    assert tables[1] == pytest.approx(tables[0], rel=2.0**-22)  # float64 rounded in another order, then to float32


def everything_stored(heads):
    return Heads(heads.basis, heads.codes.codes, heads.codes.scales, heads.codes.errors, heads.tails)


@pytest.mark.parametrize("mark", [-1.0, 0.0, 0.3, 0.8, 5.0])
def test_compiled_bounds_are_those_on_arrays(sketches, mark):
    heads = coded_heads(sketches, np.arange(0, NUM_ROWS, 2))
    generator = np.random.default_rng(8)
    lengths = random_lengths(heads, generator)
    facing = random_facing(generator)
    unit = random_unit(generator)

    def face(head):
        assert head == pytest.approx(heads.basis @ unit, abs=1e-15)  # sums of 48 products, each below 1
        return Head(head, 4.0, 1e-9), facing

    places = bound_kernels.places_reaching(lengths, facing, mark)
    assert np.array_equal(compiled_bounds.places_reaching(lengths, facing, mark), places)
    plain = bound_kernels.heads_reaching(heads, unit, face, lengths, mark)
    fast = compiled_bounds.heads_reaching(heads, unit, face, lengths, mark)
    assert np.array_equal(fast.places, plain.places)
    assert fast.looked == plain.looked == places.shape[0]
    assert fast.heads == pytest.approx(plain.heads, rel=1e-12)  # the same operations, rounded in another order
    assert fast.errors == pytest.approx(plain.errors, rel=1e-12)


def test_heads_find_every_near_duplicate(sketches):
    rows = np.arange(NUM_ROWS)
    heads = coded_heads(sketches, rows)
    hits = sketches[[0, 1, 7, 50, 333]]
    norms = torch.linalg.vector_norm(sketches, dim=1)
    cosines = sketches @ hits.T / (norms[:, None].clamp(min=1e-300) * torch.linalg.vector_norm(hits, dim=1))
    found = places_near(heads, heads.norms, hits.numpy(), 0.95)
    for hit, places in enumerate(found):
        near = set(torch.nonzero(cosines[:, hit] > 0.95).squeeze(1).tolist())
        assert near <= set(places.tolist())
        assert len(places) < NUM_ROWS / 2  # and rule out most of the others
    assert 1 in found[0].tolist()


def test_leading_values_of_long_heads_rule_out_no_near_duplicate():
    generator = torch.Generator().manual_seed(11)
    sketches = torch.randn(400, 200, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, 200)
    turned = sketches[100:140] + 0.33 * torch.linspace(0.8, 1.2, 40)[:, None] * sketches[:40].norm(
        dim=1, keepdim=True
    ) * (torch.nn.functional.normalize(torch.randn(40, 200, generator=generator, dtype=torch.float64), dim=1))
    sketches[:40] = turned * torch.linspace(0.1, 10, 40)[:, None]  # cosines on both sides of 0.95, of all lengths
    basis = leading_directions(sketches.float(), 130)
    codes, scales, errors, tails = (part.numpy() for part in encode_heads(sketches, basis))
    norms = torch.linalg.vector_norm(sketches, dim=1)
    stored = Heads(basis.numpy(), codes, scales, errors, tails)
    heads = CodedHeads(CodeScans(Codes(codes, scales, errors), scan_rounds()), stored, np.arange(400), norms.numpy())
    hits = sketches[100:140]
    near = (sketches @ hits.T) > 0.95 * norms[:, None] * norms[100:140]
    found = places_near(heads, heads.norms, hits.numpy(), 0.95)
    assert 45 <= int(near.sum()) <= 75  # the hits themselves and some of those turned away
    for hit, places in enumerate(found):
        assert set(torch.nonzero(near[:, hit]).squeeze(1).tolist()) <= set(places.tolist())
        assert len(places) < 200


@pytest.mark.parametrize("dim", [1, 63, 64, 65, 128, 200])
def test_rows_of_any_length_are_multiplied_whole(dim):
    generator = np.random.default_rng(dim)
    codes = generator.integers(-127, 128, (11, dim)).astype(np.int8)
    codes.flags.writeable = False  # as mapped files are
    scans = CodeScans(Codes(codes, np.ones(11), np.zeros(11)), scan_rounds())
    vector = generator.integers(-scans.largest, scans.largest + 1, dim).astype(np.int16)
    for rows in (np.arange(11), np.array([0, 2, 3, 7, 10])):
        assert np.array_equal(scans.products(rows, vector), codes[rows].astype(np.int64) @ vector.astype(np.int64))


def test_heads_reach_the_same_rows_alone_and_in_a_round(sketches, monkeypatch):
    monkeypatch.setattr(compiled_bounds, "_BLOCK_BYTES", 64 * DIRECTIONS)  # eleven blocks
    generator = np.random.default_rng(4)
    everything = coded_heads(sketches, np.arange(NUM_ROWS))
    scans = []
    for rows in (np.arange(NUM_ROWS), np.arange(3, NUM_ROWS, 5), np.arange(NUM_ROWS), np.array([699])):
        pool = CodedHeads(everything._scans, everything_stored(everything), rows, everything.norms[rows])
        facing, unit = random_facing(generator), random_unit(generator)
        face = partial(lambda facing, head: (Head(head, 4.0, 1e-9), facing), facing)
        scans.append((pool, unit, face, random_lengths(pool, generator), 0.3))
    alone = [compiled_bounds.heads_reaching(*scan) for scan in scans]
    asked, serve = [], everything.rounds._serve
    everything.rounds._serve = lambda together: asked.append(len(together)) or serve(together)
    given = {}

    def ask(place):
        with everything.rounds.turn():
            given[place] = compiled_bounds.heads_reaching(*scans[place])

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(scans))]
    with everything.rounds.turn():
        for thread in threads:
            thread.start()
        while len(everything.rounds._turn_queue) < len(scans):
            pass
    for thread in threads:
        thread.join(60)
    assert asked == [4]
    for place, one in enumerate(alone):
        assert np.array_equal(given[place].places, one.places)
        assert np.array_equal(given[place].heads, one.heads)
        assert np.array_equal(given[place].errors, one.errors)
        assert given[place].looked == one.looked
