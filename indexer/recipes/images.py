"""What the image recipes share: examples that keep their integer pixels, their previews, and images from requests.

An image in a request is read, never repaired.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from indexer.recipe import UNLABELLED, RecipeInputError


class ImageExample(NamedTuple):
    """One image as the model reads it, with the integers it came from.

    Attributes:
        inputs: What the model reads, float32.
        label: The label, or −1.
        pixels: The stored integers ``[h, w]`` (grey) or ``[3, h, w]`` (RGB), uint8.
        release_row: Position in the data set as released, −1 for an image from a request.
    """

    inputs: Tensor
    label: int
    pixels: NDArray[np.uint8]
    release_row: int


class ImageDataset:
    """Images and labels in memory as integers; an item is made when it is asked for.

    Args:
        pixels: uint8 ``[n, h, w]`` or ``[n, 3, h, w]``.
        labels: Integers ``[n]``.
        release_rows: Positions in the data set as released ``[n]``.
        normalise: Turns pixels of shape ``[b, …]`` into float32 inputs ``[b, …]``.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: NDArray[np.integer[Any]],
        release_rows: NDArray[np.integer[Any]],
        normalise: Any,
    ) -> None:
        self.pixels = pixels
        self.labels = labels
        self.release_rows = release_rows
        self._normalise = normalise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> ImageExample:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row}; this data set has rows 0 to {len(self) - 1}")
        pixels = self.pixels[row]
        inputs: Tensor = self._normalise(torch.from_numpy(pixels[None]))[0]
        return ImageExample(inputs, int(self.labels[row]), pixels, int(self.release_rows[row]))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all inputs and labels as two tensors, for training."""
        return self._normalise(torch.from_numpy(self.pixels)), torch.from_numpy(self.labels.astype(np.int64))


def preview_image(pixels: NDArray[np.uint8], *, max_value: int = 255, smallest_side: int = 0) -> Image.Image:
    """Draw stored pixels as an image.

    Args:
        pixels: ``[h, w]`` grey or ``[3, h, w]`` RGB.
        max_value: Pixel value of white.
        smallest_side: Enlarge by a whole factor (every pixel a square) until the image is at least this wide.

    Returns:
        The image.
    """
    scaled = pixels if max_value == 255 else np.rint(pixels.astype(np.float64) * 255 / max_value).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(scaled if scaled.ndim == 2 else scaled.transpose(1, 2, 0)))
    factor = max(1, math.ceil(smallest_side / image.width))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def pixels_from_content(
    content: Mapping[str, Any], *, height: int, width: int, channels: int, max_value: int = 255
) -> NDArray[np.uint8]:
    """Read an image of one exact size from ``{"image": base64}`` or ``{"pixels": nested lists}``.

    Nothing is resized, cropped, rounded to a colour or guessed: an image of another size or with colours where grey is
    needed is refused. An image whose channels are equal counts as grey, and opaque transparency is dropped.

    Args:
        content: The JSON object of a request.
        height: Height in pixels.
        width: Width in pixels.
        channels: 1 for grey, 3 for RGB.
        max_value: Largest pixel value of the data set; images are scaled from 255 to it, ``pixels`` are in its units.

    Returns:
        uint8 ``[h, w]`` or ``[3, h, w]``.

    Raises:
        RecipeInputError: Naming the field and what would be accepted.
    """
    shape = f"{height} × {width}" + (" × 3" if channels == 3 else "")
    allowed = (
        f'either {{"image": base64 of a {width}x{height} image file}} or '
        f'{{"pixels": {shape} whole numbers from 0 to {max_value}}}'
    )
    fields = sorted(set(content) - {"image", "pixels"})
    if fields:
        raise RecipeInputError(f"unknown field {fields[0]!r}", pointer=f"/{fields[0]}", allowed=allowed)
    if len(content) != 1:
        raise RecipeInputError("give exactly one of 'image' and 'pixels'", allowed=allowed)
    if "image" in content:
        return _decode(content["image"], height, width, channels, max_value, allowed)
    nested = content["pixels"]
    _check_nested(nested, (height, width, 3)[: 2 if channels == 1 else 3], max_value, "/pixels", allowed)
    array = np.array(nested, dtype=np.uint8)
    return array if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _check_nested(value: Any, shape: tuple[int, ...], max_value: int, pointer: str, allowed: str) -> None:
    if not shape:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value != value or value in (math.inf, -math.inf) or value != int(value):
            raise RecipeInputError(f"{value!r} is not a whole number", pointer=pointer, allowed=allowed)
        if not 0 <= value <= max_value:
            raise RecipeInputError(f"{value!r} is not from 0 to {max_value}", pointer=pointer, allowed=allowed)
        return
    if not isinstance(value, list) or len(value) != shape[0]:
        got = f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__
        raise RecipeInputError(f"expected a list of {shape[0]}, got {got}", pointer=pointer, allowed=allowed)
    for position, entry in enumerate(value):
        _check_nested(entry, shape[1:], max_value, f"{pointer}/{position}", allowed)


def _decode(text: Any, height: int, width: int, channels: int, max_value: int, allowed: str) -> NDArray[np.uint8]:
    def refuse(message: str) -> RecipeInputError:
        return RecipeInputError(message, pointer="/image", allowed=allowed)

    if not isinstance(text, str):
        raise refuse(f"expected base64 text, got {type(text).__name__}")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise refuse("this is not base64 (a data: prefix is not part of it)") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a decompression bomb is announced by a warning
            image = Image.open(io.BytesIO(data), formats=("PNG", "BMP", "GIF", "JPEG", "WEBP", "TIFF"))
            if image.size != (width, height):  # known from the header: nothing large is ever decoded
                raise refuse(f"the image is {image.width}x{image.height}, this model reads {width}x{height}")
            if image.mode in ("I", "F", "I;16", "I;16B", "I;16L"):
                raise refuse(f"the image has mode {image.mode}; 8 bits a channel are read")
            rgba = np.asarray(image.convert("RGBA"))
    except (UnidentifiedImageError, OSError, SyntaxError, Warning, Image.DecompressionBombError) as error:
        raise refuse(f"this is not an image that can be read ({type(error).__name__})") from None
    if (rgba[..., 3] != 255).any():
        raise refuse("the image is partly transparent; draw it on a background first")
    rgb = rgba[..., :3]
    if channels == 3:
        return np.ascontiguousarray(rgb.transpose(2, 0, 1))
    if (rgb != rgb[..., :1]).any():
        raise refuse("the image has colours; this model reads grey")
    grey = rgb[..., 0]
    if max_value == 255:
        return np.ascontiguousarray(grey)
    return np.rint(grey.astype(np.float64) * max_value / 255).astype(np.uint8)


def unlabelled(pixels: NDArray[np.uint8], normalise: Any) -> ImageExample:
    """Make an example without a label from pixels of a request.

    Args:
        pixels: The pixels.
        normalise: Turns pixels of shape ``[b, …]`` into float32 inputs.

    Returns:
        The example.
    """
    return ImageExample(normalise(torch.from_numpy(pixels[None]))[0], UNLABELLED, pixels, -1)
