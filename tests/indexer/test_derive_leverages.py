from pathlib import Path

import pytest
import torch

from indexer.attributor import Attributor, Question
from indexer.attributor.noise import resolve_noise
from indexer.derive import derive
from sketchstore.derived import check_entry
from sketchstore.errors import CorruptDerivedError, StaleDerivedError
from sketchstore.leverages import StoredLeverages, read_leverages, write_leverages
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


def test_stored_leverages_spare_the_rows_and_change_no_answer(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Attributor(index)
    question = Question(asked.resolve_query_row(1), "infoloss", 6)
    stored = asked.answer(question)
    computed = Attributor(index)
    monkeypatch.setattr("indexer.attributor.spectra.read_leverages", lambda *_: None)
    assert computed.answer(question).hits == stored.hits

    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("leverages were computed though they are stored")

    monkeypatch.undo()
    monkeypatch.setattr("attribution.leverages.Leverages._compute", refuse)
    assert Attributor(index).answer(question).hits == stored.hits


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


def test_damaged_leverages_are_refused_by_name(index: Index) -> None:
    path = index.path / "derived" / FILE
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptDerivedError, match=FILE):
        read_leverages(index.derived, "margin", None, noise_of(index), digest_of(index))
    entry = index.derived.entry("leverages", "margin", None)
    assert entry is not None
    with pytest.raises(CorruptDerivedError, match=FILE):
        check_entry(index.path, index.manifest, FILE, entry)


def test_leverages_of_another_spectrum_are_refused_by_name(index: Index) -> None:
    with pytest.raises(StaleDerivedError, match=f"{FILE}.*another spectrum"):
        read_leverages(index.derived, "margin", None, noise_of(index), "0" * 64)


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
