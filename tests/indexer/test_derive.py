"""derive writes codes and heads together, and each only where it pays."""

import pytest

from indexer.derive import derive, heads_pay
from sketchstore.heads import heads_bytes
from tests.index_factory import make_index


def of_kind(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(("codes/", "heads/"))]


@pytest.mark.parametrize(
    ("rows", "dim", "view", "kinds"),
    [
        (129, 128, "margin", ["codes", "heads"]),
        (128, 128, "margin", []),
        (128, 127, "margin", ["codes"]),  # seven directions
        (129, 128, "own", []),  # 43 rows a label
    ],
)
def test_heads_are_written_with_the_codes_where_they_have_eight_directions(tmp_path, rows, dim, view, kinds):
    index = make_index(tmp_path, view=view, num_rows=rows, dim=dim)
    files = [f"{kind}/{view}/all.safetensors" for kind in kinds]
    assert of_kind(derive(index, faiss=None, spectra=False).written) == files
    assert heads_pay(rows if view == "margin" else rows // 3, dim) == ("heads" in kinds)
    if not kinds:
        return
    assert of_kind(derive(index, faiss=None, spectra=False).kept) == files
    assert of_kind(derive(index, faiss=None, spectra=False, rebuild=True).written) == files
    assert of_kind(derive(index, faiss=None, spectra=False, codes="none").removed) == files


def test_the_bytes_planned_for_heads_are_those_written(tmp_path):
    index = make_index(tmp_path, view="margin", num_rows=200, dim=128)
    derive(index, faiss=None, spectra=False)
    entry = index.derived.entry("heads", "margin")
    assert entry is not None
    assert heads_bytes(200, 128) == 8 * 8 * 128 + 200 * (8 + 24)
    assert heads_bytes(200, 128) < entry.bytes < heads_bytes(200, 128) + 576  # the header
