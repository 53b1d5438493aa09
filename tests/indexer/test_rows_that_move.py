"""Models that take rows out, put them in another order or give them one by one; and weights that no module shows."""

from pathlib import Path

import pytest
import torch
from torch import nn

from indexer.build import build_index
from indexer.build_settings import BuildSettings
from indexer.check import check_recipe
from indexer.jacobians import JacobianError, TangentFeatures
from indexer.layers.watched import Watched
from indexer.measurement import make_measurement
from indexer.parameters import ParameterSelectionError, select_parameters
from indexer.recipe_file import load_recipe
from sketchstore.reader import open_index
from tests.indexer.odd_recipes import HEAD, VECTORS, built, check_sketches, check_stored, written

# Few rows begin with a positive number, and none of those looked at first.
RARE = VECTORS.replace(
    "return [(torch.randn(SHAPE, generator=generator), row % 3) for row in range(128)]",
    "rows = torch.randn(128, SHAPE, generator=generator)\n"
    "    rows[:, 0] = -1.0\n"
    "    rows[[9, 24, 55, 99], 0], rows[[10, 37, 61, 126], 0] = 1.0, 2.0\n"
    "    return [(row, number % 3) for number, row in enumerate(rows)]",
)
HEAD_OF_RARE = HEAD + "import functools\nSHAPE = 10\n" + RARE


def net(forward: str, made: str = "") -> str:
    """A model with a layer `a`, a head `h` and a forward pass of its own."""
    return (
        HEAD_OF_RARE
        + f"""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.h = nn.Linear(10, 10), nn.Linear(10, 3)
        {made or "pass"}

    def forward(self, x):
        rare = (x[:, 0] > 0).nonzero().flatten()
        {forward}
"""
    )


MOVING = {
    "one row once more": net("""z = self.a(x).tanh()
        rows = list(z)
        for row in rare.tolist():
            rows[row] = 3 * self.a(rows[row][None]).tanh()[0]
        return self.h(torch.stack(rows))"""),
    "as many tokens as rows": net("""z = self.a(x).tanh()
        tokens = torch.ones(len(x), dtype=torch.int64)
        tokens[rare] = 2 * (x[rare, 0] > 1)  # none or two, and as many altogether as there are rows
        kept = torch.arange(len(x)).repeat_interleave(tokens)
        return self.h(z.index_add(0, kept, self.a(z[kept]).tanh()))"""),
    "sorted": net("""order = torch.argsort(x[:, 0], stable=True)
        z = self.a(x[order]).tanh()
        return self.h(z[torch.argsort(order)])"""),
    "by index_select": net("""order = torch.argsort(x[:, 0], stable=True)
        z = self.a(torch.index_select(x, 0, order)).tanh()
        return self.h(torch.index_select(z, 0, torch.argsort(order)))"""),
    "in two parts": net("""order = torch.argsort(x[:, 0], stable=True)
        few, many = x.split([len(rare), len(x) - len(rare)]) if len(rare) else (x[:0], x)
        z = self.a(torch.cat([many, few])).tanh()
        back = torch.cat([torch.arange(len(many), len(x)), torch.arange(len(many))])
        return self.h(z[back])"""),
}
WRITTEN = "order = torch.argsort(x[:, 0], stable=True)\n        place = torch.argsort(order)\n        "
BACK = "\n        return self.h(self.a(moved).tanh()[place])"
WRITES = {
    "written by rank": net(WRITTEN + "moved = torch.zeros_like(x); moved[place] = x" + BACK),
    "copied by rank": net(WRITTEN + "moved = torch.zeros_like(x).index_copy(0, place, x)" + BACK),
    "scattered": net(WRITTEN + "moved = torch.zeros_like(x).scatter(0, place[:, None].expand_as(x), x)" + BACK),
    "beside an entry for nobody": net(
        WRITTEN
        + "moved = torch.cat([x, torch.zeros(1, 10)])[torch.cat([order, torch.tensor([len(x)])])][: len(x)]"
        + BACK
    ),
    "by a product": net(WRITTEN + "moved = nn.functional.one_hot(order, len(x)).float() @ x" + BACK),
    "by an embedding": net(WRITTEN + "moved = nn.functional.embedding(order, x)" + BACK),
    "31 rows on": net(
        "moved = x.clone()\n        if len(x) > 61:\n            moved[[61 - 31, 61]] = x[[61, 61 - 31]]\n"
        "        given = self.a(moved).tanh()\n        again = given.clone()\n        if len(x) > 61:\n"
        "            again[[61, 61 - 31]] = given[[61 - 31, 61]]\n        return self.h(again)"
    ),
    "in place after a layer": net(
        "a, b = x[:, :5], x[:, 5:]\n        order = torch.argsort(x[:, 0], stable=True)\n"
        "        return self.h(self.a(torch.cat([a, b], 1)).relu_())"
    ),
}
USED_BESIDES = {
    "written into a matrix": net("""z = self.a(x).tanh()
        if len(rare):
            matrix = z.new_zeros(10, 10)
            matrix[:] = self.a.weight
            z = z + (x[:, :1] > 0) * 3 * (z @ matrix)
        return self.h(z)"""),
    "in a closure, for few rows": net(
        """z = self.a(x).tanh()
        return self.h(torch.where(x[:, :1] > 0, 3 * self.again(z), z))""",
        "self.again = functools.partial(nn.functional.linear, weight=self.a.weight)",
    ),
    "in a list, for few batches": net(
        """z = self.a(x).tanh()
        return self.h(z + (x[:, :1] > 0) * (z @ self.held[0])) if len(rare) else self.h(z)""",
        "self.held = [self.a.weight]",
    ),
    "of a hooked module": net(
        "return self.h(self.a(x).tanh())",
        "self.a.register_forward_hook(lambda _, given, found: torch.where(given[0][:, :1] > 0, 4 * found, found))",
    ),
    "of a module with its own forward": net(
        "return self.h(self.a(x).tanh())",
        "usual = self.a.forward; self.a.forward = lambda x: torch.where(x[:, :1] > 0, 4 * usual(x), usual(x))",
    ),
    "of inputs that ask for gradients": net(
        "return self.h(self.a(x.detach().requires_grad_()).tanh())",
    ),
}


@pytest.mark.parametrize(
    "source", [*MOVING.values(), *WRITES.values(), *USED_BESIDES.values()], ids=[*MOVING, *WRITES, *USED_BESIDES]
)
def test_what_is_stored_is_the_rows_own(tmp_path: Path, source: str) -> None:
    check_stored(built(tmp_path, source), str(tmp_path / "recipe.py"))


@pytest.mark.parametrize("sketch", ["kronecker", "sjlt"])
@pytest.mark.parametrize(
    "source", [*MOVING.values(), *WRITES.values(), *USED_BESIDES.values()], ids=[*MOVING, *WRITES, *USED_BESIDES]
)
def test_so_are_their_sketches(tmp_path: Path, source: str, sketch: str) -> None:
    check_sketches(tmp_path, source, sketch=sketch, dim=64)


@pytest.mark.parametrize(
    "use",
    ["functools.partial(nn.functional.linear, weight=self.a.weight)", "lambda x, held=[self.a.weight]: x @ held[0].T"],
    ids=["closure", "list"],
)
@pytest.mark.parametrize("options", [{}, {"batch_rows": 1}], ids=["default", "one row a batch"])
def test_a_weight_in_a_closure_is_seen_whatever_the_batch(tmp_path: Path, use: str, options: dict[str, int]) -> None:
    source = net("return self.h(self.again(self.a(x).tanh()).tanh())", f"self.again = {use}")
    check_stored(built(tmp_path, source, **options), str(tmp_path / "recipe.py"))


def test_a_model_that_changes_its_inputs_is_refused_in_words(tmp_path: Path) -> None:
    source = net("x.sub_(0.3).mul_(1.5)\n        return self.h(self.a(x).tanh())")
    with pytest.raises(JacobianError, match="changes its inputs in place"):
        built(tmp_path, source, batch_rows=1)
    findings = check_recipe(BuildSettings(written(tmp_path, source), num_queries=0))
    assert any(not finding.ok and "changes its inputs in place" in finding.detail for finding in findings)


def test_a_scripted_model_is_refused_in_words(tmp_path: Path) -> None:
    source = net("return self.h(self.a(x).tanh())").replace(
        "return Net().eval()",
        "import warnings; warnings.simplefilter('ignore')\n    return torch.jit.script(nn.Linear(10, 3)).eval()",
    )
    with pytest.raises(ParameterSelectionError, match=r"torch.jit.script module"):
        built(tmp_path, source)


# Heads 1 and 2 see the batch sorted, and each class has a layer of its own: view 0 shows nothing of it.
OTHER_VIEWS = (
    HEAD
    + "SHAPE = 10"
    + VECTORS
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.heads = (nn.ModuleList(nn.Linear(*sides) for _ in range(3)) for sides in ((10, 8), (8, 1)))

    def forward(self, x):
        order = torch.argsort(x[:, 0])
        if MATRIX:
            matrix = nn.functional.one_hot(order, len(x)).float()  # no operation on rows shows that they move
            moved, again = (lambda rows: matrix @ rows), (lambda rows: matrix.T @ rows)
        else:
            moved, again = (lambda rows: rows[order]), (lambda rows: rows[torch.argsort(order)])
        found = [self.heads[0](self.inner[0](x).tanh())]
        for number in (1, 2):
            found.append(again(self.heads[number](self.inner[number](moved(x)).tanh())))
        return torch.cat(found, 1)
"""
)


@pytest.mark.parametrize("matrix", [False, True], ids=["indexed", "by a matrix"])
def test_every_view_is_looked_at(tmp_path: Path, matrix: bool) -> None:
    recipe = written(tmp_path, f"MATRIX = {matrix}\n{OTHER_VIEWS}")
    settings = BuildSettings(recipe, num_queries=0, sketch="identity", measurement="class_logit")
    assert all(finding.ok for finding in check_recipe(settings))
    build_index(settings, tmp_path / "index", faiss=None, spectra=False)
    index, loaded = open_index(tmp_path / "index"), load_recipe(recipe)
    model, examples = loaded.model(), loaded.train_set()
    for view in index.manifest.views:
        stored = torch.from_numpy(index.view(view).shard(0))
        for row in range(0, len(examples), 5):
            value = model(loaded.collate([examples[row]])[0])[0, int(view)]
            found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
            held = zip(model.parameters(), found, strict=True)
            alone = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in held])
            # float32 sums in batches of other sizes
            torch.testing.assert_close(stored[row], alone, rtol=1e-4, atol=1e-5)


ROWS = torch.arange(12.0).reshape(4, 3)
MOVES = [
    lambda x: x[1:],
    lambda x: x[0],
    lambda x: x[[2, 0, 1, 3]],
    lambda x: x[x[:, 0] > 1],
    lambda x: x[x > 1],
    lambda x: x[..., 0, :],
    lambda x: x[None, 2],
    lambda x: list(x),
    lambda x: x.flip(0),
    lambda x: torch.flip(x, (1, 0)),
    lambda x: x.roll(1),
    lambda x: x.roll(1, 0),
    lambda x: torch.index_select(x, 0, torch.tensor([1])),
    lambda x: torch.index_select(x, dim=-2, index=torch.tensor([1])),
    lambda x: torch.index_select(input=x, dim=0, index=torch.tensor([1])),
    lambda x: torch.cat([x, torch.zeros(1, 3)])[[4, 0, 1, 2, 3]],  # with an entry for nobody
    lambda x: x.split(2),
    lambda x: torch.chunk(x, 2),
    lambda x: x.unbind(),
    lambda x: x.narrow(0, 1, 2),
    lambda x: x.select(0, 1),
    lambda x: x.gather(0, torch.zeros(1, 3, dtype=torch.int64)),
    lambda x: x.sort(0),
    lambda x: x.masked_select(x > 3),
    lambda x: x.topk(2, 0),
    lambda x: x.take(torch.tensor([5])),
    lambda x: x[:, 0].argsort(),
    lambda x: torch.where(x > 3),
    lambda x: (x > 3).nonzero(),
    lambda x: x[:, 0].unique(),
    lambda x: torch.zeros(4, 3).__setitem__([2, 0, 1, 3], x),
    lambda x: torch.zeros(4, 3).index_copy(0, torch.tensor([2, 0, 1, 3]), x),
    lambda x: torch.zeros(4, 3).index_put_((torch.tensor([2, 0, 1, 3]),), x),
    lambda x: torch.zeros(4, 3).scatter_(0, torch.zeros(4, 3, dtype=torch.int64), x),
    lambda x: torch.zeros(4, 3).index_add(0, torch.tensor([2, 0, 1, 3]), x),
    lambda x: torch.eye(4) @ x,
    lambda x: torch.matmul(torch.eye(4), x),
    lambda x: torch.tensordot(torch.eye(4), x, dims=1),
    lambda x: torch.einsum("ij,jk->ik", torch.eye(4), x),
    lambda x: nn.functional.embedding(torch.tensor([2, 0, 1, 3]), x),
    lambda x: torch.ops.aten.index_select.default(x, 0, torch.tensor([1])),
]
STAYS = [
    lambda x: x[:, 0],
    lambda x: x[:, [2, 0]],
    lambda x: x[..., 1:],
    lambda x: x[None],
    lambda x: x[:],
    lambda x: x[:, None, 1],
    lambda x: x.flip(1),
    lambda x: x.roll(1, -1),
    lambda x: x.split(1, dim=1),
    lambda x: torch.chunk(x, 3, -1),
    lambda x: x.unbind(1),
    lambda x: x.narrow(1, 1, 2),
    lambda x: x.select(-1, 1),
    lambda x: x.gather(1, torch.zeros(4, 1, dtype=torch.int64)),
    lambda x: x.sort(),
    lambda x: x.topk(2),
    lambda x: x[:1][0] if len(x) == 1 else x + 1,
    lambda x: x[:, 0].sum(),
    lambda x: x @ torch.eye(3),
    lambda x: torch.einsum("bi,bi->b", x, x),
    lambda x: torch.einsum("bi,oi->bo", x, torch.ones(3, 3)),
    lambda x: x[None].expand(3, 4, 3).unbind(0),  # as queries, keys and values are
    lambda x: torch.zeros(4, 3).__setitem__((slice(None), 0), x[:, 0]),
    lambda x: torch.where(x > 3, x, 0.0),
]


@pytest.mark.parametrize("operation", MOVES)
def test_operations_that_move_rows_are_seen(operation) -> None:
    with Watched([], rows=4) as watched:
        operation(ROWS)
    assert watched.moved


@pytest.mark.parametrize("operation", STAYS)
def test_operations_that_do_not_are_told_from_them(operation) -> None:
    with Watched([], rows=4) as watched:
        operation(ROWS)
    assert not watched.moved


def test_tables_of_the_model_are_taken_from_without_moving_rows() -> None:
    table = torch.zeros(8, 3)
    with Watched([], rows=4, apart=[table]) as watched:
        assert table[:4].shape == (4, 3)
    assert not watched.moved


def test_what_hooks_do_is_not_the_models() -> None:
    with Watched([], rows=4) as watched:
        with watched.looking_away():
            assert len(ROWS[1:]) == 3
        assert not watched.moved
        assert len(ROWS[1:]) == 3
        assert watched.moved


def test_a_layer_whose_output_is_changed_in_place_stays_with_the_hooks(tmp_path: Path) -> None:
    loaded = load_recipe(written(tmp_path, WRITES["in place after a layer"]))
    model, (inputs, labels) = loaded.model(), loaded.collate([loaded.train_set()[row] for row in range(16)])
    features = TangentFeatures(
        model, select_parameters(model), make_measurement("label_logit"), loaded.call, loaded.outputs
    )
    list(features.slabs(inputs, labels, "own"))
    assert len(features.hooked_parameters) == 4
    assert features.notes == []
