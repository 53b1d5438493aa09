"""How the command line shows a stored example: metadata and texts; pictures have their place on a page, not here."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping

from sketchstore.examples import ExampleTable

WIDTH = 100
MOST_LETTERS = 300
"""Of what is no text, such as a list of numbers, so much is shown."""


def example_lines(examples: ExampleTable, row: int, *, indent: str = "   ") -> list[str]:
    """Write a stored example as lines of text.

    Args:
        examples: The table.
        row: The row.
        indent: What each line begins with.

    Returns:
        Its metadata in one paragraph, and its preview; none where it has neither. The label's name, which the built-in
        recipes also store as metadata, is left to whoever shows the label.
    """
    metadata = [
        f"{name} {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in examples.metadata(row).items()
        if value is not None and name != "label_name"
    ]
    told = _wrapped(", ".join(metadata), indent, indent) if metadata else []
    return [*told, *preview_lines(examples.preview(row), indent=indent)]


def preview_lines(preview: tuple[str, bytes] | None, *, indent: str = "   ") -> list[str]:
    """Write a preview as lines of text.

    Args:
        preview: Media type and content, as the examples table keeps it; None where there is none.
        indent: What each line begins with.

    Returns:
        The lines, wrapped; none for a picture, or where there is no preview.
    """
    if preview is None:
        return []
    media_type, content = preview
    if media_type.startswith("text/"):
        return _wrapped(content.decode(), indent, indent)
    if media_type != "application/json":
        return []
    shown = json.loads(content)
    assert isinstance(shown, Mapping)
    width = max((len(name) for name in shown), default=0)
    lines = []
    for name, value in shown.items():
        text = value if isinstance(value, str) else _short(value)
        lines += _wrapped(text, f"{indent}{name:<{width}}  ", indent + " " * (width + 2))
    return lines


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}… ({len(text)} characters)"


def _wrapped(text: str, first: str, others: str) -> list[str]:
    # Texts of a training set may hold anything; what would move a terminal's cursor is shown as such.
    text = "".join(letter if letter.isprintable() or letter.isspace() else "\ufffd" for letter in text)
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    ) or [first.rstrip()]
