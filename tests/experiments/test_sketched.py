"""What each experiment's index is of: the measurement, and whether with NTK scales (method.md sections 7 and 8)."""

from pathlib import Path
from typing import Any

import pytest

from experiments import coreset, information_sweeps, mislabelled, noise_tuning, stability
from experiments.indexing import Sketched
from indexer.progress import Silent

#: A network is trained first.
pytestmark = pytest.mark.slow


class AskedError(Exception):
    """Ends the run at its first index."""


@pytest.mark.parametrize(
    ("experiment", "measurement", "ntk"),
    [
        (coreset, "margin", False),
        (mislabelled, "margin", False),
        (information_sweeps, "class_logit", True),
        (stability, "label_logit", True),
        (noise_tuning, "class_logit", True),
    ],
)
def test_an_index_is_of_what_the_experiment_says(
    experiment: Any, measurement: str, ntk: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    found: list[Sketched] = []

    def catch(file: Path, place: Path, how: Sketched, *_: Any) -> None:
        found.append(how)
        raise AskedError

    monkeypatch.setattr(experiment, "frozen_index", catch)
    with pytest.raises(AskedError):
        experiment.run(experiment.SIZES["smoke"], None, tmp_path, Silent())
    assert [(how.measurement, how.ntk) for how in found] == [(measurement, ntk)]
