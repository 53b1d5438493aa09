import pytest

from indexer.sketches import SketchSpec, SketchSpecError, make_sketch, sketch_spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "fourier", "dim": 8}, "rademacher, gaussian, sjlt"),
        ({"family": "rademacher", "dim": 0}, "at least 1, got 0"),
        ({"family": "rademacher", "dim": 8.0}, "integer, got 8.0"),
        ({"family": "rademacher", "dim": True}, "integer, got True"),
        ({"family": "rademacher", "dim": 8, "seed": -1}, "from 0"),
        ({"family": "rademacher", "dim": 8, "seed": 2**64}, "from 0"),
        ({"family": "rademacher", "dim": 8, "options": {"buckets": 2}}, "no option 'buckets'"),
        ({"family": "sjlt", "dim": 8, "options": {"bucket": 2}}, "their options: buckets"),
        ({"family": "sjlt", "dim": 8, "options": {"buckets": 3}}, "divides dim 8, got 3"),
        ({"family": "sjlt", "dim": 8, "options": {"buckets": 0}}, "divides dim 8, got 0"),
    ],
)
def test_a_spec_that_means_nothing_is_refused(arguments, message) -> None:
    with pytest.raises(SketchSpecError, match=message):
        SketchSpec(**arguments)


def test_identity_takes_its_dimension_from_the_model() -> None:
    assert sketch_spec("identity", None, 30).dim == 30
    with pytest.raises(SketchSpecError, match="number of parameters = 30, got 12"):
        sketch_spec("identity", 12, 30)


def test_random_families_need_a_dimension() -> None:
    with pytest.raises(SketchSpecError, match="needs its dimension"):
        sketch_spec("rademacher", None, 30)


def test_a_sketch_needs_a_parameter() -> None:
    with pytest.raises(SketchSpecError, match="at least one parameter"):
        make_sketch(SketchSpec("rademacher", 8), 0)


@pytest.mark.parametrize("family", ["rademacher", "gaussian", "sjlt", "identity"])
def test_a_spec_survives_the_manifest(family: str) -> None:
    spec = sketch_spec(family, 8, 8, seed=2**64 - 1)
    written = spec.as_manifest()
    assert SketchSpec(**written) == spec
    assert written["options"] == ({"buckets": 4} if family == "sjlt" else {})
