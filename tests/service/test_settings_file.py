"""Settings from a TOML file: what it may hold, what wins over it, and what is said of a mistake in it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import command
from service.settings import Settings
from service.settings_file import SettingsFileError


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1", **environment}).invoke(command(), list(arguments))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "service.toml"
    path.write_text(
        'index = ["a=x", "b=y"]\nrecipe = ["a=digits"]\nport = 9000\nmax_budget = 7\ndeadline_seconds = 2.5\n'
        'check = "start"\nallow_unauthenticated = true\njob_store = "jobs.sqlite3"\n'
    )
    return path


def test_a_file_sets_every_kind_of_setting(file: Path):
    settings = Settings(settings=file)
    assert settings.index == ("a=x", "b=y")
    assert settings.recipe_sources() == {"a": "digits"}
    assert (settings.port, settings.max_budget, settings.deadline_seconds) == (9000, 7, 2.5)
    assert (settings.check, settings.allow_unauthenticated, settings.job_store) == ("start", True, Path("jobs.sqlite3"))
    assert settings.queue == Settings().queue


def test_flags_win_over_the_environment_and_that_over_the_file(file: Path, monkeypatch):
    monkeypatch.setenv("NATTRIBUTE_SETTINGS", str(file))
    assert Settings().port == 9000
    monkeypatch.setenv("NATTRIBUTE_PORT", "9001")
    assert Settings().port == 9001
    assert Settings(port=9002).port == 9002
    assert Settings(index=("c=z",)).index == ("c=z",)


def test_a_flag_names_another_file_than_the_environment(file: Path, tmp_path: Path, monkeypatch):
    other = tmp_path / "other.toml"
    other.write_text("port = 9009\n")
    monkeypatch.setenv("NATTRIBUTE_SETTINGS", str(file))
    assert Settings(settings=other).port == 9009
    assert Settings(settings=other).max_budget == 1000


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_bugdet = 3", ["'max_bugdet'", "did you mean max_budget", "api_keys_file"]),
        ("max-budget = 3", ["'max-budget'", "did you mean max_budget"]),
        ("[service]\nport = 3", ["'service'"]),
        ('settings = "other.toml"', ["'settings' is no setting that may stand in this file"]),
        ("port = ", ["not TOML"]),
        ("port = 1\nport = 2", ["not TOML"]),
    ],
)
def test_what_is_no_setting_is_refused_with_the_file_and_what_there_is(tmp_path: Path, text: str, told: list[str]):
    path = tmp_path / "service.toml"
    path.write_text(text)
    with pytest.raises(SettingsFileError) as refused:
        Settings(settings=path)
    for words in [str(path), *told]:
        assert words in str(refused.value)
    ended = invoke("--settings", str(path))
    assert ended.exit_code == 2
    assert str(path) in ended.output


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(SettingsFileError, match=r"nowhere\.toml cannot be read"):
        Settings(settings=tmp_path / "nowhere.toml")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(SettingsFileError, match="UTF-8"):
        Settings(settings=tmp_path / "binary")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("port = 70000", ["port: ", "less than or equal to 65535", "70000"]),
        ('engine = "magic"', ["engine: ", "'faiss' or 'brute_force'", "'magic'"]),
        ("index = [1]", ["index[0]: ", "valid string"]),
        ('recipe = ["digits"]', ["recipe: ", "NAME=FILE"]),
        ('max_budget = "many"', ["max_budget: ", "valid integer", "'many'"]),
    ],
)
def test_a_bad_value_is_refused_with_its_place_and_what_is_allowed(tmp_path: Path, text: str, told: list[str]):
    path = tmp_path / "service.toml"
    path.write_text(text)
    ended = invoke("--settings", str(path))
    assert ended.exit_code == 2
    assert f"error: {path}: {told[0]}" in ended.output
    for words in told:
        assert words in ended.output


def test_the_place_of_a_bad_value_is_where_it_was_taken_from(file: Path):
    assert "error: NATTRIBUTE_PORT: " in invoke("--settings", str(file), NATTRIBUTE_PORT="many").output
    assert "error: --port: " in invoke("--settings", str(file), "--port", "many", NATTRIBUTE_PORT="1").output
    both = invoke("--settings", str(file), "--port", "many", "--engine", "magic").output
    assert "error: --port: " in both
    assert "error: --engine: " in both


def test_the_file_may_not_open_the_service_to_everybody_either(tmp_path: Path):
    path = tmp_path / "service.toml"
    path.write_text('index = ["a=x"]\nhost = "0.0.0.0"\n')
    ended = invoke("--settings", str(path))
    assert ended.exit_code == 2
    assert "--allow-unauthenticated" in ended.output


def test_a_misspelt_variable_is_warned_of_and_an_unrelated_one_is_not():
    warned = invoke(
        NATTRIBUTE_MAX_BUGET="3", NATTRIBUTE_DATA="data", NATTRIBUTE_CACHE="cache", NATTRIBUTE_EXTRAS="text"
    )
    assert warned.output.count("warning") == 1
    assert "NATTRIBUTE_MAX_BUGET is no setting; did you mean NATTRIBUTE_MAX_BUDGET?" in warned.output
