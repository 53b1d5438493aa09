"""Finished units of an experiment's work, one JSON line each, so that an interrupted run continues where it stopped.

And no other run does: a folder belongs to one, and a journal to its settings.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_RUN = "run.txt"


class OtherSettingsError(ValueError):
    """The folder holds a run with other settings."""


class DamagedFileError(ValueError):
    """A file that an earlier run left cannot be read."""


def claim(folder: Path, run: str) -> None:
    """Say in a folder which run it belongs to, so that no other one takes its networks and indexes for its own.

    Args:
        folder: The folder; made when absent.
        run: Experiment, configuration and size.

    Raises:
        OtherSettingsError: If the folder belongs to another run.
    """
    file = folder / _RUN
    folder.mkdir(parents=True, exist_ok=True)
    found = file.read_text(encoding="utf-8", errors="replace").strip() if file.exists() else ""
    if not found:
        _replace(file, (run + "\n").encode())
    elif found != run:
        raise OtherSettingsError(f"{folder} holds a run of {found}; this is {run}. Give another --out, or remove it.")


def unclaim(folder: Path) -> None:
    """Take back the claim on a folder that has nothing else in it: its run was refused before it began.

    Args:
        folder: The folder.
    """
    if [file.name for file in folder.iterdir()] == [_RUN]:
        (folder / _RUN).unlink()


def _replace(path: Path, content: bytes) -> None:
    # A program that is killed amid this leaves the file as it was.
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class Journal:
    """Values by key, saved as they are added.

    Args:
        path: The file; made with its folder when absent. A last line that was cut off is dropped.
        settings: What the values depend on. Kept in the first line.

    Raises:
        OtherSettingsError: If the file was begun with other settings.
        DamagedFileError: If a line that is not cut off is no line of a journal; it says which.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._values: dict[str, Any] = {}
        given = json.loads(json.dumps(settings))
        *whole, cut = path.read_bytes().split(b"\n") if path.exists() else [b""]
        if cut:
            _replace(path, b"".join(line + b"\n" for line in whole))
        if not whole:
            self._append({"settings": given})
            return
        (found,) = self._read(1, whole[0], "settings")
        if found != given:
            keys = found.keys() | given.keys()
            differing = sorted(key for key in keys if found.get(key) != given.get(key))
            raise OtherSettingsError(
                f"{path} was begun with other settings: {', '.join(differing)} differ. "
                "Give another --out, or remove it."
            )
        for number, line in enumerate(whole[1:], start=2):
            key, value = self._read(number, line, "key", "value")
            self._values[key] = value

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return the value of a key, computed and saved if it is not there."""
        if key not in self._values:
            value = json.loads(json.dumps(compute()))
            self._append({"key": key, "value": value})
            self._values[key] = value
        return self._values[key]

    def _read(self, number: int, line: bytes, *names: str) -> list[Any]:
        try:
            entry = json.loads(line)
            return [entry[name] for name in names]
        except (ValueError, KeyError, TypeError):
            cure = "remove the file" if number == 1 else "remove the line"
            raise DamagedFileError(
                f"{self._path}, line {number}: no line of a journal; {cure}, and what it held is computed again"
            ) from None

    def _append(self, entry: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
