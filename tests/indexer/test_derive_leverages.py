from pathlib import Path

import pytest
import torch

from indexer.attributor import Attributor, Question
from indexer.attributor.noise import resolve_noise
from indexer.derive import derive
from sketchstore.arrays import read_tensor_header
from sketchstore.derived import check_entry
from sketchstore.errors import CorruptDerivedError, StaleDerivedError
from sketchstore.leverages import StoredCurves, StoredLeverages, read_curves, read_leverages, write_leverages
from sketchstore.reader import Index, open_index
from tests import oracles
from tests.index_factory import make_index

FILE = "leverages/margin/all.safetensors"


@pytest.fixture
def index(tmp_path: Path) -> Index:
    made = make_index(tmp_path, view="margin", num_rows=70, dim=6, default_relative_noise=0.5)
    derive(made, faiss=None)
    return made


def noise_of(index: Index) -> float:
    return resolve_noise(index, "margin", None, None, None).variance


def digest_of(index: Index) -> str:
    entry = index.derived.entry("spectrum", "margin", None)
    assert entry is not None
    return entry.blake3


def test_leverages_at_the_default_noise_are_derived_and_read_back(index: Index) -> None:
    noise = noise_of(index)
    assert noise == 0.5 * index.view("margin").mean_squared_norm(None)
    found = read_leverages(index.derived, "margin", None, noise, digest_of(index))
    assert found is not None
    expected = oracles.leverages(index.view("margin").sketches(slice(None)), noise)
    # Stored with their own bound, and 70 float64 products in the Gram matrix at a condition of about 1e2.
    torch.testing.assert_close(found.values, expected, rtol=found.relative_error + 1e-12, atol=0)
    assert read_leverages(index.derived, "margin", None, 2 * noise, digest_of(index)) is None
    # What programs that know no curves read is bounded for every row.
    assert bool(((found.values - expected).abs() <= found.relative_error * expected).all())
    assert found.relative_error < 1e-4, "float32 sums of 6 products"


def test_stored_leverages_spare_the_rows_and_change_no_answer(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Attributor(index)
    question = Question(asked.resolve_query_row(1), "infoloss", 6)
    stored = asked.answer(question)
    computed = Attributor(index)
    monkeypatch.setattr("indexer.attributor.spectra.read_leverages", lambda *_: None)
    monkeypatch.setattr("indexer.attributor.spectra.read_curves", lambda *_: None)
    assert computed.answer(question).hits == stored.hits

    monkeypatch.undo()
    monkeypatch.setattr("attribution.leverages.Leverages._compute", _refuse)
    assert Attributor(index).answer(question).hits == stored.hits


@pytest.mark.parametrize("relative", [0.01, 3.0, 1e3])
def test_no_noise_needs_the_rows_and_picks_and_nats_are_those_of_the_dense_greedy(
    index: Index, monkeypatch: pytest.MonkeyPatch, relative: float
) -> None:
    asked = Attributor(index)
    query = asked.resolve_query_row(1)
    rows = index.view("margin").sketches(slice(None)).double()
    noise = relative * index.view("margin").mean_squared_norm(None)
    with monkeypatch.context() as patched:
        patched.setattr("attribution.leverages.Leverages._compute", _refuse)
        answer = asked.answer(Question(query, "infoloss", 6, relative_noise=relative))
    picks = [hit.row for hit in answer.hits]
    assert picks == oracles.greedy_infoloss(query.sketch.double(), rows, noise, 6)
    nats = oracles.info_loss(query.sketch.double(), rows, picks, noise)
    # Dense solves of condition up to 1e4.
    assert answer.hits[-1].cumulative_nats == pytest.approx(nats, rel=1e-9)
    monkeypatch.setattr("indexer.attributor.spectra.read_curves", lambda *_: None)
    assert Attributor(index).answer(Question(query, "infoloss", 6, relative_noise=relative)).hits == answer.hits


def _refuse(*_: object) -> torch.Tensor:
    raise AssertionError("leverages were computed though they are stored")


def test_leverages_at_one_noise_only_serve_as_before_and_are_completed(index: Index) -> None:
    asked = Attributor(index)
    questions = [Question(asked.resolve_query_row(1), "infoloss", 6, relative_noise=noise) for noise in (None, 2.0)]
    complete = [asked.answer(question).hits for question in questions]
    found = read_leverages(index.derived, "margin", None, noise_of(index), digest_of(index))
    assert found is not None
    write_leverages(index.derived, "margin", None, noise_of(index), found)
    assert read_curves(index.derived, "margin", None, digest_of(index)) is None
    older = Attributor(index)
    assert [older.answer(question).hits for question in questions] == complete
    assert FILE in derive(index, faiss=None).written
    assert read_curves(index.derived, "margin", None, digest_of(index)) is not None


def test_deriving_again_keeps_sound_leverages_and_mends_others(index: Index) -> None:
    assert FILE in derive(index, faiss=None).kept
    noise, wrong = noise_of(index), StoredLeverages(torch.zeros(70, dtype=torch.float64), 0.0)
    write_leverages(index.derived, "margin", None, 3 * noise, wrong)  # those of a noise that is no default any more
    assert FILE in derive(index, faiss=None).written
    path = index.path / "derived" / FILE
    path.write_bytes(path.read_bytes()[:-8])
    assert FILE in derive(index, faiss=None).written
    assert FILE in derive(index, faiss=None, spectra=False).removed
    assert not path.exists()


def test_the_kernel_form_has_no_leverages(tmp_path: Path) -> None:
    index = make_index(tmp_path, view="margin", num_rows=6, dim=9)
    assert "leverages/margin/all.safetensors" not in derive(index, faiss=None).written


@pytest.mark.parametrize("tensor", ["leverages", "nodes", "curves", "product_errors"])
def test_damaged_leverages_are_refused_by_name(index: Index, tensor: str) -> None:
    path = index.path / "derived" / FILE
    content = bytearray(path.read_bytes())
    content[read_tensor_header(path, FILE)[tensor].offset + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptDerivedError, match=FILE):
        read_leverages(index.derived, "margin", None, noise_of(index), digest_of(index))
    with pytest.raises(CorruptDerivedError, match=FILE):
        read_curves(index.derived, "margin", None, digest_of(index))
    with pytest.raises(CorruptDerivedError, match=FILE):
        Attributor(index).answer(Question(Attributor(index).resolve_query_row(1), "infoloss", 2))
    entry = index.derived.entry("leverages", "margin", None)
    assert entry is not None
    with pytest.raises(CorruptDerivedError, match=FILE):
        check_entry(index.path, index.manifest, FILE, entry)


def test_curves_that_say_no_number_of_noises_are_refused_by_name(index: Index) -> None:
    found = read_leverages(index.derived, "margin", None, noise_of(index), digest_of(index))
    assert found is not None
    none = torch.empty(0, dtype=torch.float64)
    curves = StoredCurves(none, none.expand(70, 0), torch.zeros(70, dtype=torch.float64))
    write_leverages(index.derived, "margin", None, noise_of(index), found, curves)
    with pytest.raises(CorruptDerivedError, match=f"{FILE}.*nodes is 0"):
        read_curves(index.derived, "margin", None, digest_of(index))


def test_leverages_of_another_spectrum_are_refused_by_name(index: Index) -> None:
    with pytest.raises(StaleDerivedError, match=f"{FILE}.*another spectrum"):
        read_leverages(index.derived, "margin", None, noise_of(index), "0" * 64)
    with pytest.raises(StaleDerivedError, match=f"{FILE}.*another spectrum"):
        read_curves(index.derived, "margin", None, "0" * 64)


def test_leverages_of_other_sketches_are_refused_by_name(index: Index, tmp_path: Path) -> None:
    other = make_index(tmp_path / "other", view="margin", num_rows=70, dim=6, seed=1, default_relative_noise=0.5)
    (other.path / "derived").mkdir()
    for file in ("manifest.json", FILE, "spectra/margin/all.safetensors"):
        target = other.path / "derived" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((index.path / "derived" / file).read_bytes())
    derived = open_index(other.path, derived=False).derived
    with pytest.raises(StaleDerivedError, match=FILE):
        read_leverages(derived, "margin", None, noise_of(index), digest_of(index))
