"""The comparison with other packages: this project's own half, and what the program says where a peer is missing."""

import json
import os
import sys

import pytest
import torch

from benchmarks import peers
from benchmarks.indexing_pass import Workload
from benchmarks.peer_passes.peer_pass import PeerPass, Task

DATA = os.environ.get("NATTRIBUTE_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="needs the folder of data sets, NATTRIBUTE_DATA")
SMALL = [
    "--data-dir",
    str(DATA),
    "--rows",
    "8",
    "--slow-rows",
    "4",
    "--batch-rows",
    "4",
    "--dim",
    "512",
    "--turns",
    "1",
]


@needs_data
def test_this_projects_passes_run_without_a_peer(capsys: pytest.CaptureFixture[str]) -> None:
    peers.main([*SMALL, "--model", "mlp", "--compare", "dense", "sjlt", "kronecker", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["num_parameters"] == 535_040
    assert found["peer_version"] is None
    families = {name: (line["family"], line["dim"], line["rows"]) for name, line in found["comparisons"].items()}
    assert families == {"dense": ("rademacher", 512, 4), "sjlt": ("sjlt", 512, 8), "kronecker": ("kronecker", 512, 8)}
    assert all(line["rows_per_second"] > 0 and "peer" not in line for line in found["comparisons"].values())


@needs_data
def test_weights_only_leaves_the_norms_of_a_convolutional_net_out(capsys: pytest.CaptureFixture[str]) -> None:
    peers.main([*SMALL, "--weights-only", "--compare", "kronecker", "--json"])
    assert json.loads(capsys.readouterr().out)["num_parameters"] == 6_573_120 - 2 * (64 + 3 * 128 + 256 + 3 * 512)


def workload(rows: int = 8) -> Workload:
    return peers.MODELS["mlp"](peers.options_of([*SMALL, "--rows", str(rows), "--model", "mlp"]))


@needs_data
def test_a_peer_is_given_every_row_and_timed_against_this_project() -> None:
    seen: list[torch.Tensor] = []

    def maker(task: Task) -> PeerPass:
        model = task.own_model()
        return PeerPass("forward", None, lambda inputs, labels: seen.append(model(inputs)))

    own = workload()
    found = peers.compare(own, peers.COMPARISONS["kronecker"], maker, peers.options_of(SMALL))
    with torch.no_grad():
        expected = own.model(own.inputs)
    torch.testing.assert_close(torch.cat(seen[1:]), expected)  # after the warm-up
    assert found["times_as_fast"] == pytest.approx(found["rows_per_second"] / found["peer"]["rows_per_second"])
    assert not found["peer"]["extrapolated"]


@needs_data
def test_a_failing_peer_is_reported_with_its_error() -> None:
    def maker(task: Task) -> PeerPass:
        raise ValueError(f"no d = {task.dim} here")

    found = peers.compare(workload(), peers.COMPARISONS["kronecker"], maker, peers.options_of(SMALL))
    assert found["error"] == "ValueError: no d = 512 here"
    assert "the peer failed: ValueError: no d = 512 here" in peers.sentence(found)


def test_blocks_that_were_not_run_are_computed() -> None:
    peer = PeerPass("dense", 4096, lambda inputs, labels: None, lambda inputs, labels: None, 41, 2)
    assert peer.extrapolated
    assert peer.whole_seconds(measured=30.0, gradients=4.0) == 4.0 + 41 * 13.0


def test_a_missing_peer_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trak", None)
    with pytest.raises(SystemExit, match=r"traker cannot be imported here .* docs/benchmarks\.md"):
        peers.main([*SMALL, "--peer", "traker"])
