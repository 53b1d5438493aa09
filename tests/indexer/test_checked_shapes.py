"""Models that check the shape of what all rows share, which hooks widen; and models of which hooks see nothing."""

from pathlib import Path

import pytest

from indexer.batch_rows import rows_for
from indexer.build_settings import BuildSettings
from indexer.preparation import prepare
from tests.indexer.odd_recipes import HEAD, TEXTS, VECTORS, built, check_stored, written

POSITIONS = (
    HEAD
    + "LENGTHS = [7] * 128"
    + TEXTS
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(30, 8), nn.Embedding(7, 8)
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, texts):
        {forward}
        return self.head(self.inner(self.tokens(texts) + places).tanh().mean(1))
"""
)
CHECKED = {
    "asserted": """places = self.places(torch.arange(7)[None])
        assert places.shape == (1, 7, 8), places.shape""",
    "unpacked": """count, width = self.places(torch.arange(7)[None]).squeeze(0).shape
        places = self.places(torch.arange(count)[None])""",
    "refused": """places = self.places(torch.arange(7)[None])
        if len(places) != 1:
            raise ValueError("one table of positions for all rows")""",
    "looked up by shape": """table = {(1, 7, 8): self.places}[self.places(torch.arange(7)[None]).shape]
        places = table(torch.arange(7)[None])""",
    "one row after the other": """places = torch.cat([self.places(torch.arange(7)[None]) for _ in texts])
        if len(places) != len(texts):
            raise RuntimeError("one for every row")""",
}


@pytest.mark.parametrize("forward", CHECKED.values(), ids=CHECKED)
def test_a_model_that_checks_shapes_is_stored_as_it_is(tmp_path: Path, forward: str) -> None:
    index = built(tmp_path, POSITIONS.replace("{forward}", forward))
    check_stored(index, str(tmp_path / "recipe.py"))


SORTED = (
    HEAD
    + "SHAPE = 6"
    + VECTORS
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 4000), nn.Linear(4000, 3)

    def forward(self, rows):
        order = rows[:, 0].argsort()
        return self.head(self.inner(rows[order]).tanh())[order.argsort()]
"""
)
PLAIN = SORTED.replace("rows[order]", "rows").replace("[order.argsort()]", "")


@pytest.mark.parametrize("source", [SORTED, PLAIN], ids=["left to the general route", "seen by hooks"])
def test_rows_that_go_together_are_measured_where_hooks_see_nothing_too(tmp_path: Path, source: str) -> None:
    settings = BuildSettings(
        written(tmp_path, source), sketch="sjlt", dim=64, memory_budget_mib=1, block_rows=128, num_queries=0
    )
    prepared = prepare(settings)
    # 1 MiB holds one row's 44,003 gradients several times, and 128 rows' not at all.
    assert prepared.compute_rows < rows_for(1 << 20, 1, 128, lengths=False) == 128


def test_kronecker_dimensions_are_measured_where_hooks_see_nothing_too(tmp_path: Path) -> None:
    options = {}
    for name, source in (("sorted", SORTED), ("plain", PLAIN)):
        folder = tmp_path / name
        folder.mkdir()
        settings = BuildSettings(written(folder, source), sketch="kronecker", dim=256, num_queries=0)
        options[name] = prepare(settings).spec.options
    assert options["sorted"] == options["plain"]
