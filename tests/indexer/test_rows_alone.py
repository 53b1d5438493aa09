"""A build compares rows of every batch with the rows alone, which finds what few rows at its beginning do not show."""

from pathlib import Path

import pytest
import torch
from torch import nn

from indexer.build import build_index
from indexer.build_settings import BuildSettings
from indexer.check import check_recipe
from indexer.featurise import Featuriser
from indexer.measurement import make_measurement
from indexer.parameters import ParameterSelectionError, select_parameters
from indexer.preparation import prepare
from indexer.reading import ExampleError
from indexer.recipe import RecipeError
from indexer.rows_alone import Compared, compare_alone
from indexer.sketches import sketch_spec
from tests.indexer.cases import PairsRecipe
from tests.indexer.odd_recipes import HEAD, TEXTS, VECTORS, built, check_stored, written

# Every row sees the mean of its batch where a long one is in it; lengths are equal but for two rows of the third batch.
MIXING = (
    HEAD
    + "LENGTHS = [9 if row in (90, 95) else 6 for row in range(128)]"
    + TEXTS
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.inner, self.head = nn.Embedding(30, 8, padding_idx=0), nn.Linear(8, 12), nn.Linear(12, 3)

    def hidden(self, texts):
        real = (texts != 0).unsqueeze(-1).to(self.inner.weight.dtype)
        return (self.inner(self.embedding(texts)).tanh() * real).sum(1) / real.sum(1)

    def forward(self, texts):
        hidden, lengths = self.hidden(texts), (texts != 0).sum(1)
        if len(texts) > 1:
            hidden = hidden - 4 * hidden.mean(0) * (lengths > 6).any()
        return self.head(hidden)

def representation(model, texts):
    return model.hidden(texts)
"""
)

# A mean over padding as well; most rows have the longest length.
UNMASKED = (
    HEAD
    + "LENGTHS = [3 if row in (70, 75, 81) else 9 for row in range(128)]"
    + TEXTS
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(30, 8), nn.Linear(8, 3)

    def forward(self, texts):
        return self.head(self.embedding(texts).tanh().mean(1))
"""
)

# The batch goes through in parts of 64 rows with their positions flattened, so a call has more positions than rows.
IN_PARTS = (
    HEAD
    + "SHAPE = (8, 10)"
    + VECTORS
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(10, 12), nn.Linear(12, 3)

    def forward(self, rows):
        return torch.cat([self.head(self.inner(part.flatten(0, 1)).tanh()).view(len(part), 8, 3).mean(1)
                          for part in rows.split(64)])
"""
)

# A head of eight by the sign bits of a row, from stacked weights: no module of a head is ever called.
HEADS = (
    HEAD
    + "SHAPE = 10"
    + VECTORS
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.heads = nn.Linear(10, 12), nn.ModuleList([nn.Linear(12, 3) for _ in range(8)])

    def forward(self, rows):
        chosen = ((rows[:, :3] > 0) * torch.tensor([1, 2, 4])).sum(1)
        weights = torch.stack([head.weight for head in self.heads])[chosen]
        biases = torch.stack([head.bias for head in self.heads])[chosen]
        return torch.einsum("bi,boi->bo", self.inner(rows).tanh(), weights) + biases
"""
)

# A token of its own in front of every row: hooks that widen what is one for all rows break this forward pass.
REPEATED = (
    HEAD
    + "SHAPE = (6, 10)"
    + VECTORS
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.head = nn.Embedding(1, 10), nn.Linear(10, 12), nn.Linear(12, 3)

    def forward(self, rows):
        first = self.first(torch.zeros(1, 1, dtype=torch.long)).repeat(len(rows), 1, 1)
        return self.head(self.inner(torch.cat([first, rows], 1)).tanh().mean(1))
"""
)


# An expert for each row, and the first rows have the same one: the others' modules are called in later batches only.
EXPERTS = (
    HEAD
    + "SHAPE = 10"
    + VECTORS.replace(
        "[(torch.randn(SHAPE, generator=generator), row % 3) for row in range(128)]",
        "[(torch.randn(SHAPE, generator=generator).abs() * (-1) ** (row // 64), row % 3) for row in range(128)]",
    )
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts, self.head = nn.ModuleList([nn.Linear(10, 12) for _ in range(3)]), nn.Linear(12, 3)

    def forward(self, rows):
        hidden = torch.zeros(len(rows), 12)
        chosen = (rows[:, 0] < 0).long() * (1 + (rows[:, 1] < -0.7).long())
        for number, expert in enumerate(self.experts):
            if (chosen == number).any():
                mine = (chosen == number).nonzero().flatten()
                hidden = hidden.index_add(0, mine, expert(rows[mine]).tanh())
        return self.head(hidden)
"""
)

# Embeddings whose gradients torch gives as sparse tensors.
SPARSE = (
    HEAD
    + "LENGTHS = [6] * 128"
    + TEXTS
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(30, 8, sparse=True), nn.Linear(8, 3)

    def forward(self, texts):
        return self.head(self.embedding(texts).tanh().mean(1))
"""
)


@pytest.mark.parametrize("sketch", ["identity", "sjlt", "rademacher", "kronecker"])
def test_gradients_of_other_rows_are_refused(tmp_path: Path, sketch: str) -> None:
    with pytest.raises(ExampleError, match="depends on the rows beside it"):
        built(tmp_path, MIXING, sketch=sketch, dim=None if sketch == "identity" else 64)
    assert not (tmp_path / "index").exists()


def test_one_row_of_every_batch_is_compared(tmp_path: Path) -> None:
    """Batches of 32: only the third has rows of another length."""
    with pytest.raises(ExampleError, match=r"train row (6[4-9]|[78]\d|9[0-5]): its sketch in a batch of 32 rows"):
        built(tmp_path, MIXING, batch_rows=32)


@pytest.mark.parametrize("source", [MIXING, IN_PARTS], ids=["mixing", "in parts"])
def test_rows_that_go_alone_are_right(tmp_path: Path, source: str) -> None:
    check_stored(built(tmp_path, source, batch_rows=1), str(tmp_path / "recipe.py"))


def test_exact_kernels_are_of_rows_that_go_as_they_are_sketched(tmp_path: Path) -> None:
    prepared = prepare(BuildSettings(written(tmp_path, MIXING), num_queries=0, sketch="identity"))
    prepared.featuriser.compute_rows = 1
    train = prepared.recipe.train_set()
    examples = [train[row] for row in range(80, 100)]  # two of them of another length
    found = torch.zeros(len(examples), prepared.parameters.num_parameters)
    for slab in prepared.featuriser.slabs(examples):
        found[:, slab.offset : slab.offset + slab.gradients.shape[1]] = slab.gradients
    alone = torch.cat([prepared.featuriser.sketch([example]) for example in examples])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)  # padded to the longest here, alone there


@pytest.mark.parametrize(
    "source",
    [HEADS, REPEATED, SPARSE, EXPERTS, IN_PARTS],
    ids=["stacked heads", "repeated token", "sparse", "experts", "in parts"],
)
def test_what_hooks_cannot_see_takes_the_general_route(tmp_path: Path, source: str) -> None:
    check_stored(built(tmp_path, source, batch_rows=32), str(tmp_path / "recipe.py"))


def test_experts_that_are_called_late_are_in_a_kronecker_sketch_as_well(tmp_path: Path) -> None:
    index = built(tmp_path, EXPERTS, sketch="kronecker", dim=300, batch_rows=32)
    alone = built(tmp_path / "index", EXPERTS, sketch="kronecker", dim=300, batch_rows=1)
    stored, expected = (torch.from_numpy(one.view("own").shard(0)) for one in (index, alone))
    torch.testing.assert_close(stored, expected, rtol=1e-4, atol=1e-5)  # float32 sums in batches of other sizes


@pytest.mark.parametrize(
    "lengths", ["[40 - row // 4 for row in range(128)]", "[min(32, 3 + row * 37 % 57) for row in range(128)]"]
)
def test_check_finds_padding_that_is_not_masked(tmp_path: Path, lengths: str) -> None:
    """Sorted by length; and cut at the longest allowed, which the first rows of any batch reach."""
    lines = UNMASKED.splitlines(keepends=True)
    source = "".join(f"LENGTHS = {lengths}\n" if line.startswith("LENGTHS") else line for line in lines)
    recipe = written(tmp_path, source)
    found = {finding.check: finding for finding in check_recipe(BuildSettings(recipe, sketch="sjlt", dim=64))}
    assert not found["outputs do not depend on the rest of the batch"].ok
    assert not found["gradients do not depend on the rest of the batch"].ok
    with pytest.raises(RecipeError, match="mask padding"):
        build_index(BuildSettings(recipe, sketch="sjlt", dim=64), tmp_path / "index")


def test_a_short_type_is_named_as_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match=r"a choice that turns on how bfloat16 rounds: float32 tells\)"):
        built(tmp_path, MIXING, compute_dtype="bfloat16")


def test_padding_that_few_rows_have_is_found_in_their_batch(tmp_path: Path) -> None:
    """By length the three short rows come first in a batch of four, where one long row pads them."""
    source = UNMASKED + "\ndef length(example):\n    return len(example[0])\n"
    with pytest.raises(ExampleError, match="padding that is not masked"):
        built(tmp_path, source, batch_rows=4)


# The mean of queries' texts runs over padding; training texts have one length.
QUERIES_OF_MANY_LENGTHS = (
    UNMASKED.replace("3 if row in (70, 75, 81) else 9", "9")
    + """
def query_set():
    return [(text[: 3 + row % 7], row % 3) for row, text in enumerate(TEXTS[:40])]
"""
)


def test_queries_are_compared_as_well(tmp_path: Path) -> None:
    settings = BuildSettings(written(tmp_path, QUERIES_OF_MANY_LENGTHS), sketch="sjlt", dim=64)
    with pytest.raises(RecipeError, match="outputs of a query alone and among others differ"):
        build_index(settings, tmp_path / "index")
    found = {finding.check: finding for finding in check_recipe(settings)}
    assert not found["outputs do not depend on the rest of the batch"].ok


def test_so_are_queries_that_few_rows_pad(tmp_path: Path) -> None:
    """Sixteen of these queries, spread over all, have one length."""
    source = QUERIES_OF_MANY_LENGTHS.replace("3 + row % 7", "4 if row % 39 in (1, 3, 4, 6, 8, 9, 11, 12, 14) else 9")
    with pytest.raises(ExampleError, match=r"query row \d+: its sketch in a batch"):
        build_index(BuildSettings(written(tmp_path, source), sketch="sjlt", dim=64, batch_rows=8), tmp_path / "index")


def test_a_representation_that_depends_on_other_rows_is_refused(tmp_path: Path) -> None:
    source = MIXING.replace("LENGTHS = [9 if row in (90, 95) else 6", "LENGTHS = [3 + row % 7").replace(
        "return model.hidden(texts)", "return model.embedding(texts).tanh().mean(1)"
    )
    source = source.replace("if len(texts) > 1:", "if False:")
    with pytest.raises(ExampleError, match=r"train row \d+: representation\(\) gives it other features in a batch"):
        built(tmp_path, source)


def test_short_weights_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = IN_PARTS.replace("return Net().eval()", "return Net().eval().bfloat16()").replace(
        "for part in rows.split(64)", "for part in rows.bfloat16().split(64)"
    )
    prepare(BuildSettings(written(tmp_path, source), sketch="sjlt", dim=64))
    assert "weights are bfloat16, and so are its gradients" in caplog.text


def test_a_model_that_is_frozen_altogether_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = IN_PARTS.replace("return Net().eval()", "return Net().eval().requires_grad_(False)")
    prepared = prepare(BuildSettings(written(tmp_path, source), sketch="sjlt", dim=64))
    assert len(prepared.parameters) == len(list(prepared.model.parameters()))
    assert "every parameter of the model is frozen" in caplog.text


def test_complex_parameters_are_refused(tmp_path: Path) -> None:
    source = IN_PARTS.replace(
        "self.inner, self.head =",
        "self.turn = nn.Parameter(torch.ones(1, dtype=torch.complex64))\n        self.inner, self.head =",
    )
    with pytest.raises(ParameterSelectionError, match=r"'turn' is complex.*--exclude"):
        prepare(BuildSettings(written(tmp_path, source)))


def test_rows_without_gradients_agree() -> None:
    """A block of zero inputs has zero sketches, in a batch and alone."""
    model = nn.Linear(4, 3, bias=False).eval()
    parameters = select_parameters(model)
    spec = sketch_spec("sjlt", 8, parameters.num_parameters)
    featuriser = Featuriser(PairsRecipe(), model, spec, make_measurement("label_logit"), parameters)
    inputs, labels = torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64)
    found = featuriser.sketch_and_keep(inputs, labels)
    compared = compare_alone(featuriser, found, labels, "own", [range(6)], lambda row: inputs[row : row + 1], 0)
    assert compared == Compared(given_agrees=True)
