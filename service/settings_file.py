"""Settings from a TOML file: the least of the sources, under flags and the environment."""

import difflib
import os
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

ENVIRONMENT_PREFIX = "NATTRIBUTE_"
#: The setting that names the file; it cannot stand in it.
FILE_SETTING = "settings"


class SettingsFileError(ValueError):
    """The settings file cannot be read, is no TOML, or holds a key that is no setting."""


def read_settings(path: Path, names: Collection[str]) -> dict[str, Any]:
    """Read a settings file.

    Args:
        path: The file.
        names: The names of all settings that may stand in it.

    Returns:
        Values by name, as TOML has them.

    Raises:
        SettingsFileError: If the file is not there, is no TOML, or holds another key.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsFileError(f"the settings file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsFileError(f"the settings file {path} is not TOML in UTF-8: {error}") from error
    for key in found:
        if key not in names:
            near = difflib.get_close_matches(key.replace("-", "_").lower(), names, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise SettingsFileError(
                f"{path}: {key!r} is no setting that may stand in this file; {hint}There are {', '.join(sorted(names))}"
            )
    return found


class SettingsFile(PydanticBaseSettingsSource):
    """The source of settings that pydantic-settings asks last; where no file is named, it has none."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the value of one setting; part of the interface, which asks for all at once here."""
        return self().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the settings of the file that an argument or the environment names."""
        path = self.current_state.get(FILE_SETTING)
        if not path:
            return {}
        return read_settings(Path(path), self.settings_cls.model_fields.keys() - {FILE_SETTING})


def explain(error: ValidationError, kind: type[BaseSettings], given: Mapping[str, Any]) -> list[str]:
    """Say of every wrong setting where it was given, what is wrong, and what is allowed.

    Args:
        error: What making the settings raised.
        kind: The settings' class.
        given: The flags by setting.

    Returns:
        One sentence for every mistake.
    """
    file = given.get(FILE_SETTING) or os.environ.get(f"{ENVIRONMENT_PREFIX}{FILE_SETTING.upper()}")
    in_file = read_settings(Path(file), kind.model_fields.keys() - {FILE_SETTING}) if file else {}
    told = []
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ")
        if not item["loc"]:  # about several settings at once
            told.append(message)
            continue
        name, *inside = item["loc"]
        variable = f"{ENVIRONMENT_PREFIX}{str(name).upper()}"
        if name in given:
            place = f"--{str(name).replace('_', '-')}"
        elif variable in os.environ:
            place = variable
        else:
            place = f"{file}: {name}" if name in in_file else str(name)
        place += "".join(f"[{part}]" for part in inside)
        told.append(
            f"{place}: {message}, not {item['input']!r}" if item["type"] != "value_error" else f"{place}: {message}"
        )
    return told


def misspelt_variables(kind: type[BaseSettings]) -> list[str]:
    """Find environment variables that look like a setting's and are none; unrelated ones with the prefix are let be.

    Args:
        kind: The settings' class.

    Returns:
        One sentence for each.
    """
    settings = [name.upper() for name in kind.model_fields]
    told = []
    for variable in sorted(os.environ):
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name != variable and name not in settings:
            near = difflib.get_close_matches(name, settings, n=1, cutoff=0.8)
            if near:
                told.append(f"{variable} is no setting; did you mean {ENVIRONMENT_PREFIX}{near[0]}?")
    return told
