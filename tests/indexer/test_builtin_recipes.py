"""The built-in recipes read their data exactly, train well enough, and take back what they show."""

import base64
import gzip
import io
import os
import struct
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from indexer.recipe import RecipeDataError, RecipeInputError, RecipeOptionError
from indexer.recipe_file import load_recipe
from indexer.recipes.cifar10 import ResNet9, read_binary_batch, read_npz_part
from indexer.recipes.fashion_mnist import read_idx

DATA = os.environ.get("NATTRIBUTE_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="NATTRIBUTE_DATA names no folder with the real data sets")


@pytest.mark.slow  # trains the recipe's model in full
def test_digits_trains_above_95_percent_and_splits_four_to_one():
    recipe = load_recipe("digits")
    train, queries = recipe.train_set(), recipe.query_set()
    assert (len(train), len(queries)) == (1437, 360)
    assert recipe.id(train[17], 17, "train") == "train:17"
    rows = {example.release_row for split in (train, queries) for example in (split[i] for i in range(len(split)))}
    assert rows == set(range(1797))
    model = recipe.model()
    inputs, labels = recipe.collate([queries[row] for row in range(len(queries))])
    with torch.no_grad():
        accuracy = float((recipe.outputs(recipe.call(model, inputs)).argmax(1) == labels).float().mean())
        features = recipe.representation(model, inputs)
    assert accuracy > 0.95
    assert features.shape == (360, 64)


def png(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_a_preview_sent_back_is_the_example_it_shows():
    recipe = load_recipe("digits")
    for row in range(0, 60, 7):
        example = recipe.train_set()[row]
        parsed = recipe.parse({"image": png(recipe.preview(example))})
        assert np.array_equal(parsed.pixels, example.pixels)
        assert torch.equal(parsed.inputs, example.inputs)
        assert parsed.label == -1
        assert torch.equal(recipe.parse({"pixels": example.pixels.tolist()}).inputs, example.inputs)


def noise(size, mode="L"):
    return Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[1], size[0])).convert(mode)


@pytest.mark.parametrize(
    ("content", "pointer", "message"),
    [
        ({}, "", "exactly one"),
        ({"pixels": [], "image": ""}, "", "exactly one"),
        ({"picture": ""}, "/picture", "unknown field"),
        ({"image": 7}, "/image", "expected base64 text, got int"),
        ({"image": "!!!"}, "/image", "not base64"),
        ({"image": "aGVsbG8="}, "/image", "not an image"),
        ({"image": png(noise((9, 8)))}, "/image", "9x8"),
        ({"image": png(noise((8, 8)).convert("I;16"))}, "/image", "8 bits"),
        (
            {"image": png(Image.merge("RGB", [noise((8, 8)), noise((8, 8)), Image.new("L", (8, 8))]))},
            "/image",
            "colours",
        ),
        ({"image": png(Image.new("RGBA", (8, 8), (1, 1, 1, 100)))}, "/image", "transparent"),
        ({"image": png(noise((8, 8)))[:-40]}, "/image", "not an image|not base64"),
        ({"pixels": 3}, "/pixels", "expected a list of 8, got int"),
        ({"pixels": [[0] * 8] * 7}, "/pixels", "a list of 7"),
        ({"pixels": [[0] * 8] * 7 + [[0] * 9]}, "/pixels/7", "a list of 9"),
        ({"pixels": [[0] * 8] * 7 + [[0] * 7 + [17]]}, "/pixels/7/7", "from 0 to 16"),
        ({"pixels": [[0] * 8] * 7 + [[0] * 7 + [-1]]}, "/pixels/7/7", "from 0 to 16"),
        ({"pixels": [[0.5] + [0] * 7] + [[0] * 8] * 7}, "/pixels/0/0", "not a whole number"),
        ({"pixels": [[float("nan")] + [0] * 7] + [[0] * 8] * 7}, "/pixels/0/0", "not a whole number"),
        ({"pixels": [[float("inf")] + [0] * 7] + [[0] * 8] * 7}, "/pixels/0/0", "not a whole number"),
        ({"pixels": [[True] + [0] * 7] + [[0] * 8] * 7}, "/pixels/0/0", "not a whole number"),
    ],
)
def test_content_that_is_not_such_an_image_is_refused_and_never_repaired(content, pointer, message):
    with pytest.raises(RecipeInputError, match=message) as caught:
        load_recipe("digits").parse(content)
    assert caught.value.pointer == pointer
    assert "8" in caught.value.allowed


def test_grey_images_in_other_modes_are_read_where_nothing_is_lost():
    recipe, image = load_recipe("digits"), noise((8, 8))
    expected = recipe.parse({"image": png(image)}).inputs
    for mode in ("RGB", "LA", "RGBA"):
        assert torch.equal(recipe.parse({"image": png(image.convert(mode))}).inputs, expected)


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(struct.pack(">I", size) for size in values.shape)
    return gzip.compress(header + values.tobytes())


@pytest.fixture
def fashion(tmp_path):
    generator = np.random.default_rng(0)
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for prefix, count in (("train", 40), ("t10k", 12)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx((np.arange(count) % 10).astype(np.uint8)))
    return tmp_path


def test_fashion_mnist_takes_a_fixed_quarter_in_the_order_of_the_release(fashion):
    recipe = load_recipe("fashion-mnist", data_dir=fashion, options={"epochs": "1"})
    train = recipe.train_set()
    rows = [recipe.metadata(train[row])["release_row"] for row in range(len(train))]
    assert len(rows) == 10
    assert rows == sorted(rows)
    again = load_recipe("fashion-mnist", data_dir=fashion / "fashion-mnist").train_set()
    assert [again[row].release_row for row in range(10)] == rows
    images = read_idx(fashion / "fashion-mnist" / "train-images-idx3-ubyte.gz")
    assert all(np.array_equal(train[row].pixels, images[rows[row]]) for row in range(10))
    whole = load_recipe("fashion-mnist", data_dir=fashion, options={"train_fraction": 1})
    assert (len(whole.train_set()), len(whole.query_set())) == (40, 12)
    model = recipe.model()
    assert [tuple(p.shape) for p in model.parameters()] == [(512, 784), (256, 512), (10, 256)]
    assert recipe.ntk_gain == pytest.approx(2**0.5)
    assert recipe.parse({"pixels": train[3].pixels.tolist()}).inputs.equal(train[3].inputs)


def test_files_that_are_not_the_data_set_are_refused_by_name(fashion, tmp_path):
    with pytest.raises(RecipeDataError, match="--data-dir"):
        load_recipe("fashion-mnist").train_set()
    with pytest.raises(RecipeDataError, match="no such folder"):
        load_recipe("fashion-mnist", data_dir=tmp_path / "nowhere").train_set()
    target = fashion / "fashion-mnist" / "train-images-idx3-ubyte.gz"
    sound = target.read_bytes()
    for content, message in (
        (sound[:-30], "not a sound gzip"),
        (b"plain", "not a sound gzip"),
        (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0"), "not an IDX file"),
        (gzip.compress(gzip.decompress(sound)[:-5]), "its header says"),
    ):
        target.write_bytes(content)
        with pytest.raises(RecipeDataError, match=message):
            load_recipe("fashion-mnist", data_dir=fashion).train_set()
    target.unlink()
    with pytest.raises(RecipeDataError, match="no such file"):
        load_recipe("fashion-mnist", data_dir=fashion).train_set()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fashion-mnist", {"train_fraction": "0"}),
        ("fashion-mnist", {"train_fraction": "nan"}),
        ("digits", {"epochs": 0}),
        ("digits", {"seed": -1}),
        ("digits", {"epoch": 1}),
        ("cifar10", {"device": "tpu"}),
        ("cifar10", {"augment": "maybe"}),
        ("cifar10", {"num_train": 50001}),
    ],
)
def test_option_values_out_of_range_are_refused(name, options):
    with pytest.raises(RecipeOptionError):
        load_recipe(name, options=options)


def write_both_forms(folder: Path, name: int | str, images: np.ndarray, labels: np.ndarray) -> None:
    binary, part = ("test_batch.bin", "test.npz") if name == "test" else (f"data_batch_{name}.bin", f"train-{name}.npz")
    records = np.concatenate([labels[:, None], images.reshape(len(images), -1)], axis=1)
    (folder / "binary").mkdir(exist_ok=True)
    (folder / "parts").mkdir(exist_ok=True)
    records.astype(np.uint8).tofile(folder / "binary" / binary)
    planes = images.copy()
    planes[:, 0] -= images[:, 1]
    planes[:, 2] -= images[:, 1]
    along = np.diff(planes, axis=3, prepend=np.zeros_like(planes[..., :1]))
    differences = np.diff(along, axis=2, prepend=np.zeros_like(along[:, :, :1]))
    np.savez_compressed(folder / "parts" / part, d=differences, y=labels)


def test_cifar10_binary_batches_and_parts_decode_alike(tmp_path):
    generator = np.random.default_rng(0)
    for name in (1, 2, 3, 4, 5, "test"):
        images = generator.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
        write_both_forms(tmp_path, name, images, generator.integers(0, 10, 4, dtype=np.uint8))
    binary, parts = (load_recipe("cifar10", data_dir=tmp_path / form) for form in ("binary", "parts"))
    for split in ("train_set", "query_set"):
        first, second = getattr(binary, split)(), getattr(parts, split)()
        assert len(first) == len(second) == (20 if split == "train_set" else 4)
        assert np.array_equal(first.pixels, second.pixels)
        assert np.array_equal(first.labels, second.labels)
    assert np.array_equal(first.pixels, images)
    limited = load_recipe("cifar10", data_dir=tmp_path / "parts", options={"num_train": 6})
    assert len(limited.train_set()) == 6
    assert limited.train_set()[5].inputs.shape == (3, 32, 32)


def test_cifar10_files_that_are_not_the_data_set_are_refused(tmp_path):
    with pytest.raises(RecipeDataError, match=r"neither data_batch_1\.bin"):
        load_recipe("cifar10", data_dir=tmp_path).train_set()
    (tmp_path / "data_batch_1.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(RecipeDataError, match="3073-byte records"):
        read_binary_batch(tmp_path / "data_batch_1.bin")
    (tmp_path / "data_batch_1.bin").write_bytes(b"\x0b" + b"\0" * 3072)
    with pytest.raises(RecipeDataError, match="labels up to 11"):
        read_binary_batch(tmp_path / "data_batch_1.bin")
    with pytest.raises(RecipeDataError, match="no such file"):
        read_binary_batch(tmp_path / "data_batch_2.bin")
    (tmp_path / "train-1.npz").write_bytes(b"zip?")
    with pytest.raises(RecipeDataError, match=r"not an \.npz"):
        read_npz_part(tmp_path / "train-1.npz")
    np.savez(tmp_path / "train-2.npz", d=np.zeros((2, 32, 32), dtype=np.uint8), y=np.zeros(2, dtype=np.uint8))
    with pytest.raises(RecipeDataError, match="not uint8"):
        read_npz_part(tmp_path / "train-2.npz")


def test_resnet9_has_the_paper_s_size_and_trains_one_epoch(tmp_path):
    model = ResNet9().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(6.6e6, rel=0.01)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    settings = load_recipe("cifar10").training()
    assert (settings.epochs, settings.batch_size, settings.peak_rate) == (24, 512, 0.5)
    assert (settings.momentum, settings.weight_decay, settings.peak_epoch) == (0.9, 5e-4, 5)


def test_cifar10_trains_and_caches(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    write_both_forms(tmp_path, 1, images, np.arange(6, dtype=np.uint8))
    recipe = load_recipe("cifar10", data_dir=tmp_path / "parts", options={"epochs": 1, "num_train": 6, "device": "cpu"})
    model = recipe.model()
    assert recipe.representation(model, recipe.collate([recipe.train_set()[0]])[0]).shape == (1, 512)


@needs_data
@pytest.mark.slow
def test_the_real_cifar10_parts_are_the_release():
    assert DATA is not None
    recipe = load_recipe("cifar10", data_dir=DATA)
    train, test = recipe.train_set(), recipe.query_set()
    digests = [sha256(array).hexdigest()[:8] for array in (train.pixels, train.labels, test.pixels, test.labels)]
    assert digests == ["9d5c2edd", "2b7cd2f2", "177777c3", "cec8a24a"]


@needs_data
@pytest.mark.slow
def test_the_real_fashion_mnist_trains_as_in_the_paper():
    assert DATA is not None
    recipe = load_recipe("fashion-mnist", data_dir=DATA)
    assert len(recipe.train_set()) == 15_000
    inputs, labels = recipe.query_set().tensors()
    with torch.no_grad():
        accuracy = float((recipe.model()(inputs).argmax(1) == labels).float().mean())
    assert accuracy > 0.85
