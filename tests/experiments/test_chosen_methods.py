"""``--methods``: what is refused, before anything is trained."""

import pytest

from experiments import chosen_methods
from experiments.chosen_methods import UnknownMethodError, check_methods, named_noise


@pytest.fixture
def ekfac(monkeypatch):
    """Sets whether kronfluence is installed."""
    return lambda there: monkeypatch.setattr(chosen_methods, "ekfac_is_available", lambda: there)


def test_an_unknown_method_is_named_with_those_allowed():
    with pytest.raises(UnknownMethodError, match="no method 'trac'; allowed are trak, ekfac"):
        check_methods(["trak", "trac"], ["trak", "ekfac"])


def test_a_method_named_twice_is_refused():
    with pytest.raises(UnknownMethodError, match="trak more than once; name every method once"):
        check_methods(["trak", "ekfac", "trak"], ["trak", "ekfac"])


def test_a_method_can_name_its_noise_where_it_has_one():
    assert named_noise("infogain@1e2") == ("infogain", 100.0)
    assert named_noise("infogain") == ("infogain", None)
    check_methods(["infogain", "infogain@100", "infogain@10", "trak"], ["infogain", "trak"], ["infogain"])
    with pytest.raises(UnknownMethodError, match="no method 'trak@1'; allowed are infogain, trak, and infogain@NOISE"):
        check_methods(["trak@1"], ["infogain", "trak"], ["infogain"])
    with pytest.raises(UnknownMethodError, match=r"infogain@1.0, infogain@1e0 more than once"):
        check_methods(["infogain@1.0", "infogain@1e0"], ["infogain"], ["infogain"])


@pytest.mark.parametrize("noise", ["", "0", "-1", "nan", "inf", "much"])
def test_a_noise_is_a_positive_number(noise):
    with pytest.raises(UnknownMethodError, match="a relative noise, a positive number"):
        check_methods([f"infogain@{noise}"], ["infogain"], ["infogain"])


def test_a_noise_can_be_asked_that_is_tuned_at_each_size():
    assert named_noise("infogain@each-size") == ("infogain", "each-size")
    check_methods(["infogain@each-size", "infogain@10", "infogain"], ["infogain", "trak"], ["infogain"])
    with pytest.raises(UnknownMethodError, match="and infogain@NOISE, or @each-size in the place of @NOISE"):
        check_methods(["trak@each-size"], ["infogain", "trak"], ["infogain"])


def test_ekfac_alone_needs_kronfluence(ekfac):
    ekfac(False)
    with pytest.raises(UnknownMethodError, match="kronfluence is not installed"):
        check_methods(["ekfac"], ["trak", "ekfac"])
    check_methods(["ekfac", "trak"], ["trak", "ekfac"])
    ekfac(True)
    check_methods(["ekfac"], ["trak", "ekfac"])
