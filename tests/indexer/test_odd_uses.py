"""Parameters that some rows use otherwise than those that chose the routes: what is stored is autograd's."""

from pathlib import Path

import pytest
import torch
from torch import nn

from indexer.build import build_index
from indexer.build_settings import BuildSettings
from indexer.jacobians import TangentFeatures
from indexer.measurement import make_measurement
from indexer.parameters import select_parameters
from sketchstore.reader import open_index
from tests.indexer.odd_recipes import HEAD, TEXTS, VECTORS, built, check_sketches, check_stored, written

# A head of four by a row's first number, by its weights and without a call; the rows looked at first all take head 0.
HEADS_BY_WEIGHT = (
    HEAD
    + "SHAPE = 10"
    + VECTORS.replace(
        "return [(torch.randn(SHAPE, generator=generator), row % 3) for row in range(128)]",
        "rows = torch.randn(128, SHAPE, generator=generator)\n"
        "    rows[:, 0] = torch.tensor([0 if row in (0, 42, 84, 127) else row % 4 for row in range(128)])\n"
        "    return [(row, number % 3) for number, row in enumerate(rows)]",
    )
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.heads = nn.Linear(10, 12), nn.ModuleList([nn.Linear(12, 3) for _ in range(4)])

    def forward(self, rows):
        hidden, chosen = self.inner(rows).tanh(), rows[:, 0].long()
        given = torch.zeros(len(rows), 3)
        for number in chosen.unique():
            mine, head = (chosen == number).nonzero().flatten(), self.heads[int(number)]
            given = given.index_add(0, mine, nn.functional.linear(hidden[mine], head.weight, head.bias))
        return given
"""
)

# Rows whose first token is 1 also score by the embedding's own weights; none of the rows looked at first has it.
COPYING = (
    HEAD
    + "LENGTHS = [6] * 128"
    + TEXTS
    + """
for row, text in enumerate(TEXTS):
    text[0] = 1 if row % 2 and row not in (0, 42, 84, 127) else 2

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(30, 8), nn.Linear(8, 30)

    def forward(self, texts):
        hidden = self.embedding(texts).tanh().mean(1)
        copies = (texts[:, :1] == 1).to(hidden.dtype)
        given = self.head(hidden)
        return given + copies * nn.functional.linear(hidden, self.embedding.weight) if copies.any() else given
"""
)

# Padding is taken out before the layers; in every batch of 8 or more there are six tokens a row, and not of every row.
UNPADDED = (
    HEAD
    + "LENGTHS = [{1: 5, 2: 7}.get(row % 16, 6) if row % 42 > 2 else 6 for row in range(128)]"
    + TEXTS
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.inner, self.head = nn.Embedding(30, 8, padding_idx=0), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, texts):
        real = texts != 0
        hidden = self.inner(self.embedding(texts[real])).tanh()
        summed = torch.zeros(len(texts), 12).index_add(0, real.nonzero()[:, 0], hidden)
        return self.head(summed / real.sum(1, keepdim=True))
"""
)

# A layer with the weight of another one and a bias of its own, called for few rows.
TIED = (
    HEAD
    + "SHAPE = 10"
    + VECTORS.replace(
        "(torch.randn(SHAPE, generator=generator), row % 3)",
        "(torch.randn(SHAPE, generator=generator).abs() * (1 if row in (70, 71, 99) else -1), row % 3)",
    )
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.first, self.other, self.head = (
            nn.Linear(10, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3))
        self.other.weight = self.first.weight

    def forward(self, rows):
        hidden = self.first(self.inner(rows).tanh()).tanh()
        mine = (rows[:, 0] > 0).nonzero().flatten()
        if len(mine):
            hidden = hidden.index_add(0, mine, self.other(hidden[mine]).tanh())
        return self.head(hidden)
"""
)

# Layers that one part of a batch calls and another does not, or with some of its rows; activations make parts of it.
_PARTS = (
    HEAD
    + "SHAPE = 4000"
    + VECTORS.replace("range(128)", "range(64)").replace(
        "(torch.randn(SHAPE, generator=generator), row % 3)",
        "(torch.cat([torch.tensor([ASKS(row)]), torch.randn(SHAPE - 1, generator=generator)]), row % 3)",
    )
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.extra, self.head = nn.Linear(4000, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, rows):
        hidden = large = self.inner(rows).tanh()
        for _ in range(40):
            large = large.repeat(1, 32).tanh().view(len(rows), 32, 16).mean(1)
        return self.head(self.asked(hidden + 0 * large, (rows[:, 0] > 0)))
"""
)
SOME_ROWS_OF_A_PART = (
    _PARTS
    + """
    def asked(self, hidden, mine):
        mine = mine.nonzero().flatten()
        return hidden.index_add(0, mine, self.extra(hidden[mine]).tanh()) if len(mine) else hidden

def ASKS(row):
    return -1.0 if row in (45, 50) else 1.0
"""
)
SOME_PARTS = (
    _PARTS
    + """
    def asked(self, hidden, mine):
        return hidden + mine[:, None].to(hidden.dtype) * self.extra(hidden) if mine.any() else hidden

def ASKS(row):
    return 1.0 if row in (40, 43, 46, 49) else -1.0
"""
)


@pytest.mark.parametrize("options", [{}, {"batch_rows": 32}, {"batch_rows": 8}], ids=["default", "of 32", "of 8"])
@pytest.mark.parametrize(
    "source", [HEADS_BY_WEIGHT, COPYING, UNPADDED, TIED], ids=["heads by weight", "copying", "unpadded", "tied"]
)
def test_rows_that_use_a_layer_otherwise_are_right(tmp_path: Path, source: str, options: dict[str, int]) -> None:
    check_stored(built(tmp_path, source, **options), str(tmp_path / "recipe.py"))


@pytest.mark.parametrize("source", [SOME_ROWS_OF_A_PART, SOME_PARTS], ids=["some rows", "some parts"])
def test_parts_of_a_batch_that_call_a_layer_otherwise_are_right(tmp_path: Path, source: str) -> None:
    check_stored(built(tmp_path, source, batch_rows=64, memory_budget_mib=1), str(tmp_path / "recipe.py"))


@pytest.mark.parametrize("sketch", ["kronecker", "sjlt", "rademacher"])
@pytest.mark.parametrize(
    "source",
    [HEADS_BY_WEIGHT, COPYING, UNPADDED, TIED, SOME_ROWS_OF_A_PART, SOME_PARTS],
    ids=["heads by weight", "copying", "unpadded", "tied", "some rows", "some parts"],
)
def test_so_are_their_sketches(tmp_path: Path, source: str, sketch: str) -> None:
    check_sketches(tmp_path, source, sketch=sketch, dim=128, batch_rows=64, memory_budget_mib=1)


def test_exact_kernels_are_of_all_parts(tmp_path: Path) -> None:
    """A distortion's rows go through in parts as well: an identity's would be nothing but rounding."""
    settings = BuildSettings(written(tmp_path, SOME_PARTS), sketch="sjlt", dim=64, num_queries=0, memory_budget_mib=1)
    build_index(settings, tmp_path / "index", faiss=None, spectra=False)
    assert open_index(tmp_path / "index").manifest.distortion is not None


# A layer that is fed the tokens of some rows, all others' taken out: in the last batch as many as there are rows.
BY_CHANCE = (
    HEAD
    + "LENGTHS = [4] * 64"
    + TEXTS
    + """
for row, text in enumerate(TEXTS):
    text[:] = text.clamp(min=10)
    text[: 2 if row < 48 else {48: 4, 52: 4, 56: 4, 60: 2, 63: 2}.get(row, 0)] = 5

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.inner, self.head = nn.Embedding(30, 8), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, texts):
        chosen = texts == 5
        hidden = self.inner(self.embedding(texts)[chosen] + 0.1 * texts.sum(1)[chosen.nonzero()[:, 0], None]).tanh()
        return self.head(torch.zeros(len(texts), 12).index_add(0, chosen.nonzero()[:, 0], hidden))
"""
)


@pytest.mark.parametrize("sketch", ["identity", "kronecker"])
def test_as_many_positions_as_rows_are_weighed_too(tmp_path: Path, sketch: str) -> None:
    options = {"sketch": sketch, "dim": None if sketch == "identity" else 128}
    index = built(tmp_path, BY_CHANCE, batch_rows=16, **options)
    if sketch == "identity":
        check_stored(index, str(tmp_path / "recipe.py"))
    alone = built(tmp_path / "index", BY_CHANCE, batch_rows=1, **options)
    stored, expected = (torch.from_numpy(one.view("own").shard(0)) for one in (index, alone))
    torch.testing.assert_close(stored, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def second_use(used: str, before: str = "") -> str:
    """A linear layer after another one; rows whose first number is large use its weight once more, in another way."""
    return (
        HEAD
        + before
        + "SHAPE = 10"
        + VECTORS.replace(
            "return [(torch.randn(SHAPE, generator=generator), row % 3) for row in range(128)]",
            "rows = torch.randn(128, SHAPE, generator=generator)\n"
            "    rows[:, 0] = torch.tensor([9.0 if row in (13, 70, 71, 99) else 0.0 for row in range(128)])\n"
            "    return [(row, number % 3) for number, row in enumerate(rows)]",
        )
        + f"""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.layer, self.head = nn.Linear(10, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, rows):
        hidden = self.inner(rows).tanh()
        given = self.layer(hidden).tanh()
        mine = (rows[:, :1] > 5).to(hidden.dtype)
        return self.head(given + mine * {used} if mine.any() else given)
"""
    )


FUNCTION = """
class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, weight):
        ctx.save_for_backward(rows, weight)
        return rows @ weight.T

    @staticmethod
    def backward(ctx, delta):
        rows, weight = ctx.saved_tensors
        return delta @ weight, delta.T @ rows

"""
COMPILED = """
@torch.compile(backend="eager")
def product(rows, weight):
    return rows @ weight.T

"""
SECOND_USES = {
    "a function of its own": second_use("Product.apply(hidden, self.layer.weight)", FUNCTION),
    "a compiled function": second_use("product(hidden, self.layer.weight)", COMPILED),
    "functional_call": second_use(
        "torch.func.functional_call(self.layer, {'weight': 2 * self.layer.weight, 'bias': self.layer.bias}, (hidden,))"
    ),
    "its transpose": second_use("(hidden @ self.layer.weight.T)"),
    "a list": second_use("torch.einsum('bi,koi->bo', hidden, torch.stack([self.layer.weight, self.layer.weight]))"),
    "under no_grad": second_use("(hidden @ self.layer.weight.T.detach())"),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of dynamo's own look at tensors
@pytest.mark.parametrize("sketch", ["identity", "kronecker"])
@pytest.mark.parametrize("use", SECOND_USES)
def test_a_second_use_in_few_rows_is_counted(tmp_path: Path, use: str, sketch: str) -> None:
    options = {"sketch": sketch, "dim": None if sketch == "identity" else 128, "batch_rows": 32}
    index = built(tmp_path, SECOND_USES[use], **options)
    if sketch == "identity":
        check_stored(index, str(tmp_path / "recipe.py"))
    alone = built(tmp_path / "index", SECOND_USES[use], **{**options, "batch_rows": 1})
    stored, expected = (torch.from_numpy(one.view("own").shard(0)) for one in (index, alone))
    torch.testing.assert_close(stored, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


class Odd(nn.Module):
    """A norm as Gemma's, a weight that is looked at and not used, and a parameter that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(6, 8), GemmaLikeRMSNorm(8), nn.Linear(8, 3)
        self.idle = nn.Parameter(torch.ones(5))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.inner(rows))
        scale = self.inner.weight.data.abs().mean() + self.inner.weight.new_zeros(()) + (self.head.weight > 9).sum()
        return self.head(hidden.to(self.head.weight.dtype) * scale)


class GemmaLikeRMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), 0.1))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normalised = hidden.float() * torch.rsqrt(hidden.float().square().mean(-1, keepdim=True) + 1e-6)
        return (normalised * (1.0 + self.weight.float())).type_as(hidden)


def test_what_is_no_use_is_not_counted() -> None:
    torch.manual_seed(0)
    model = Odd().eval()
    features = TangentFeatures(
        model, select_parameters(model), make_measurement("label_logit"), lambda net, rows: net(rows), lambda out: out
    )
    inputs, labels = torch.randn(7, 6), torch.arange(7) % 3
    found = torch.zeros(7, features.num_parameters)
    for slab in features.slabs(inputs, labels, "own"):
        stop = slab.offset + slab.gradients.shape[1]
        found[slab.first_row : slab.first_row + len(slab.gradients), slab.offset : stop] = slab.gradients
    assert set(features.parameters.names) - set(features.hooked_parameters) <= {"idle"}
    for row in range(7):
        plain = features.plain_gradients(inputs[row : row + 1], labels[row : row + 1], "own")
        expected = torch.cat([plain.get(p.name, torch.zeros(p.shape)).flatten() for p in features.parameters])
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-6)  # float32 sums of another order


# The positions of rows 3 and 8 change places where a batch has more than ten rows, and change back at the end.
SWAPPED = (
    HEAD
    + "SHAPE = (6, 10)"
    + VECTORS
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(10, 12), nn.Linear(12, 3)

    def forward(self, rows):
        order = torch.arange(len(rows))
        if len(rows) > 10:
            order[3], order[8] = 8, 3
        hidden = self.inner(rows[order].flatten(0, 1)).tanh().view(len(rows), 6, 12)[order]
        return self.head(hidden.mean(1))
"""
)


def test_rows_that_change_places_are_seen_by_their_weight(tmp_path: Path) -> None:
    check_stored(built(tmp_path, SWAPPED, batch_rows=37), str(tmp_path / "recipe.py"))
