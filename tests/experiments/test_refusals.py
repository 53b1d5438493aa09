"""What can be mended from outside is said in one line, and a run that was refused claims no folder."""

import sys
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.frozen import frozen_network, load_frozen
from experiments.journal import DamagedFileError, claim
from tests.experiments.small_network import small_network


@pytest.fixture
def said(monkeypatch, capsys):
    """Runs a command that ends early, and returns its status and the last line it said."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["experiments", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        if isinstance(ended.value.code, str):
            return 1, ended.value.code
        return int(ended.value.code or 0), capsys.readouterr().err.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize("name", ["backdoor", "brittleness"])
@pytest.mark.parametrize("methods", ["nonsense", "infogain,infogain"])
def test_refused_methods_leave_no_folder(name, methods, tmp_path, said):
    status, line = said(name, "--size", "smoke", "--out", str(tmp_path / "out"), "--methods", methods)
    assert status == 2
    assert "no method 'nonsense'" in line or "infogain more than once" in line
    assert not (tmp_path / "out").exists()


def test_a_run_without_its_data_claims_no_folder(tmp_path, said):
    status, line = said("lds", "--size", "small", "--out", str(tmp_path), "--data-dir", str(tmp_path / "none"))
    assert status == 1
    assert line.startswith("lds: ")
    claim(tmp_path, "another run")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc, in which nobody can make a folder")
def test_a_folder_that_cannot_be_made_is_one_line(said):
    status, line = said("lds", "--size", "smoke", "--out", "/proc/foo")
    assert status == 1
    assert line == "lds: /proc/foo: No such file or directory"


def test_a_network_that_was_cut_off_is_named_with_the_cure(tmp_path, said):
    file = small_network(tmp_path, num_tuning=4, num_queries=10).file
    file.write_bytes(file.read_bytes()[:-100])
    for read in (load_frozen, frozen_network):
        with pytest.raises(DamagedFileError, match=r"network\.safetensors is cut off.*remove it"):
            read(file)
    status, line = said("lds", "--size", "smoke", "--out", str(tmp_path))
    assert status == 1
    assert line.startswith(f"lds: {file} is cut off")


def test_an_index_that_was_damaged_is_one_line(tmp_path, said, monkeypatch):
    monkeypatch.setenv("NATTRIBUTE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "manifest.json").write_text("{", encoding="utf-8")
    status, line = said("panels", "--size", "smoke", "--out", str(tmp_path))
    assert status == 1
    assert line.startswith("panels: ")
    assert "manifest.json" in line


def test_another_safetensors_file_is_no_network(tmp_path):
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"a": zeros(1)}, tmp_path / "network.safetensors")
    with pytest.raises(DamagedFileError, match="no frozen network"):
        load_frozen(tmp_path / "network.safetensors")
