import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings


def test_defaults_bind_loopback():
    assert Settings().host == "127.0.0.1"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "service.example"])
def test_a_reachable_address_without_keys_is_refused(host):
    with pytest.raises(ValidationError, match="--allow-unauthenticated"):
        Settings(host=host)
    assert Settings(host=host, allow_unauthenticated=True).host == host
    assert Settings(host=host, api_keys_file=Path("keys")).host == host


def test_the_environment_is_read_and_arguments_win(monkeypatch):
    monkeypatch.setenv("NATTRIBUTE_PORT", "9001")
    monkeypatch.setenv("NATTRIBUTE_INDEX", "a=x b=y")
    monkeypatch.setenv("NATTRIBUTE_RECIPE", "a=digits")
    settings = Settings()
    assert settings.port == 9001
    assert settings.index_directories() == {"a": Path("x"), "b": Path("y")}
    assert settings.recipe_sources() == {"a": "digits"}
    assert Settings(port=9002).port == 9002


def test_a_directory_alone_is_served_under_its_own_name():
    assert Settings(index=("some/digits",)).index_directories() == {"digits": Path("some/digits")}


def test_index_root_serves_every_published_directory(tmp_path):
    for name in ("a", "b", "c.partial", "d"):
        (tmp_path / name).mkdir()
    for name in ("a", "b", "c.partial"):
        (tmp_path / name / "manifest.json").write_text("{}")
    assert list(Settings(index_root=tmp_path).index_directories()) == ["a", "b"]


def test_two_directories_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two indexes are called 'a'"):
        Settings(index=("a=x", "a=y")).index_directories()


@pytest.mark.parametrize("recipe", ["digits", "=digits", "a="])
def test_a_recipe_without_name_or_source_is_refused(recipe):
    with pytest.raises(ValidationError, match="NAME=FILE"):
        Settings(recipe=(recipe,))


def test_workers_together_have_no_more_threads_than_there_are_cores(monkeypatch):
    monkeypatch.setattr("service.settings.usable_cores", lambda: 8)
    assert Settings(workers=2).num_threads == 4
    assert Settings(workers=16).num_threads == 1
    assert Settings(workers=2, threads=8).num_threads == 8


def test_the_limit_holds_in_the_threads_that_compute():
    # The calling thread's own limit is not inherited: FAISS would take every core in a worker's thread.
    program = (
        "from service.threads import limit_threads\n"
        "limit_threads(3)\n"
        "import faiss, threading\n"
        "thread = threading.Thread(target=lambda: print(faiss.omp_get_max_threads()))\n"
        "thread.start(), thread.join()\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "3\n"
