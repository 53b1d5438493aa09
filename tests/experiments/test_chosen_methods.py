"""``--methods``: what is refused, before anything is trained."""

import pytest

from experiments import chosen_methods
from experiments.chosen_methods import UnknownMethodError, check_methods


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


def test_ekfac_alone_needs_kronfluence(ekfac):
    ekfac(False)
    with pytest.raises(UnknownMethodError, match="kronfluence is not installed"):
        check_methods(["ekfac"], ["trak", "ekfac"])
    check_methods(["ekfac", "trak"], ["trak", "ekfac"])
    ekfac(True)
    check_methods(["ekfac"], ["trak", "ekfac"])
