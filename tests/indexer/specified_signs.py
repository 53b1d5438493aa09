"""The sign of docs/sketches.md, read from the page itself, for tests that check entries against the specification."""

from pathlib import Path

_PAGE = (Path(__file__).parents[2] / "docs/sketches.md").read_text("utf-8")
_NAMESPACE: dict = {}
exec(_PAGE.partition("```python\n")[2].partition("```")[0], _NAMESPACE)
sign = _NAMESPACE["sign"]
