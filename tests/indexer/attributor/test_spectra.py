import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from indexer.attributor.spectra import Kept, Spectra
from tests.indexer.attributor.asking import small_index


def test_a_value_is_made_once_however_many_ask() -> None:
    made: list[int] = []
    kept: Kept[int] = Kept(100, lambda value: 1)

    def make() -> int:
        made.append(threading.get_ident())
        time.sleep(0.05)
        return 7

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: kept.get("key", make), range(16))) == {7}
    assert len(made) == 1


def test_the_least_recently_used_leaves_and_a_large_value_is_kept_alone() -> None:
    kept: Kept[int] = Kept(10, lambda value: value)
    kept.get("a", lambda: 4)
    kept.get("b", lambda: 4)
    kept.get("a", lambda: 0)
    kept.get("c", lambda: 4)
    assert (kept.peek("a"), kept.peek("b"), kept.peek("c")) == (4, None, 4)
    kept.get("d", lambda: 50)
    assert (kept.peek("a"), kept.peek("c"), kept.peek("d")) == (None, None, 50)


def test_a_value_that_failed_to_be_made_is_made_anew() -> None:
    kept: Kept[int] = Kept(10, lambda value: value)

    def fail() -> int:
        raise RuntimeError("no")

    for _ in range(2):
        try:
            kept.get("a", fail)
        except RuntimeError:
            continue
    assert kept.get("a", lambda: 3) == 3


def test_the_stored_spectrum_is_the_computed_one(tmp_path: Path) -> None:
    index = small_index(tmp_path)
    view = index.view("own")
    stored, none = Spectra(index, 1 << 30), Spectra(small_index(tmp_path / "none", spectra=False), 1 << 30)
    assert stored.kernel(view, 1) is not None
    assert none.kernel(none._index.view("own"), 1) is None  # not computed only to spare passes
    sketches = view.sketches(view.partition_rows(1))
    torch.testing.assert_close(stored.spectrum(view, 1).gram, sketches @ sketches.T, rtol=1e-12, atol=1e-12)
    computed = none.spectrum(none._index.view("own"), 1)
    assert torch.equal(computed.gram, stored.spectrum(view, 1).gram)
    assert none.kernel(none._index.view("own"), 1) is computed.gram
