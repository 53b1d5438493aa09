"""Turns what a recipe shows for an example into what the examples table keeps: a small PNG, text, or a JSON object."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from indexer.reading import ExampleError, ExampleReader
from indexer.recipe import Example
from indexer.recipe_failure import said

MAX_SIDE = 160
MAX_CHARACTERS = 2000

Preview = bytes | str | Mapping[str, Any] | None


def preview_of(reader: ExampleReader, example: Example, row: int) -> Preview:
    """Make the preview of one example.

    Images larger than 160 pixels are made smaller, text longer than 2,000 characters is cut and ends in "…".

    Args:
        reader: The split, whose recipe knows how to show an example.
        example: The example.
        row: Its row, for the message.

    Returns:
        PNG bytes, text, a JSON object, or None.

    Raises:
        ExampleError: If the recipe raises or gives something else.
    """
    try:
        shown = reader.recipe.preview(example)
    except Exception as error:
        raise ExampleError(reader.split, row, f"preview() raised {said(error)}") from error
    match shown:
        case None:
            return None
        case Image.Image():
            return png_bytes(shown)
        case str():
            return shown if len(shown) <= MAX_CHARACTERS else shown[: MAX_CHARACTERS - 1] + "…"
        case Mapping():
            return shown
        case _:
            kind = type(shown).__name__
            raise ExampleError(reader.split, row, f"preview() gave a {kind}; give a PIL image, text, a dict or None")


def png_bytes(image: Image.Image) -> bytes:
    """Encode an image as PNG, at most 160 pixels wide and high.

    Args:
        image: The image.

    Returns:
        The file's bytes.
    """
    if max(image.size) > MAX_SIDE:
        image = image.copy()
        image.thumbnail((MAX_SIDE, MAX_SIDE))
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        image = image.convert("RGB")
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
