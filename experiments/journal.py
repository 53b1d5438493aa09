"""Finished units of an experiment's work, one JSON line each, so that an interrupted run continues where it stopped.

And no other run does: a folder belongs to one, and a journal to its settings.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class OtherSettingsError(ValueError):
    """The folder holds a run with other settings."""


def claim(folder: Path, run: str) -> None:
    """Say in a folder which run it belongs to, so that no other one takes its networks and indexes for its own.

    Args:
        folder: The folder; made when absent.
        run: Experiment, configuration and size.

    Raises:
        OtherSettingsError: If the folder belongs to another run.
    """
    file = folder / "run.txt"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(run + "\n", encoding="utf-8")
    elif (found := file.read_text(encoding="utf-8").strip()) != run:
        raise OtherSettingsError(f"{folder} holds a run of {found}; this is {run}. Give another --out, or remove it.")


class Journal:
    """Values by key, saved as they are added.

    Args:
        path: The file; made with its folder when absent. A last line that was cut off is dropped.
        settings: What the values depend on. Kept in the first line.

    Raises:
        OtherSettingsError: If the file was begun with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._values: dict[str, Any] = {}
        given = json.loads(json.dumps(settings))
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):
            path.write_text("".join(whole), encoding="utf-8")
        if not whole:
            self._append({"settings": given})
            return
        found = json.loads(whole[0])["settings"]
        if found != given:
            keys = found.keys() | given.keys()
            differing = sorted(key for key in keys if found.get(key) != given.get(key))
            raise OtherSettingsError(
                f"{path} was begun with other settings: {', '.join(differing)} differ. "
                "Give another --out, or remove it."
            )
        for line in whole[1:]:
            entry = json.loads(line)
            self._values[entry["key"]] = entry["value"]

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

    def _append(self, entry: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
