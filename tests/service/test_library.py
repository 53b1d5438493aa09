"""The library without a server, in four lines: the example of the engine's docstring, run as it is written."""

import re
import textwrap
from pathlib import Path

import pytest

from service import engine


def test_the_four_lines_of_the_docstring_run(
    index_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "indexes").mkdir()
    (tmp_path / "indexes" / "digits").symlink_to(index_root / "margin")
    monkeypatch.chdir(tmp_path)
    assert engine.__doc__ is not None
    code = textwrap.dedent(engine.__doc__.partition("::\n")[2])
    assert len([line for line in code.splitlines() if line.strip()]) == 4
    exec(code.replace('"row": 12', '"row": 1'), {})
    assert re.fullmatch(r"train:\d+ 0\.\d+\n", capsys.readouterr().out)
