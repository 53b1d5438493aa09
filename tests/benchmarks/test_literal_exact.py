"""The judge of exact selections agrees with the rules, and sees a pick that is not theirs."""

import pytest
import torch

from attribution.candidates import DenseCandidates
from attribution.infogain import select_infogain
from attribution.infoloss import select_infoloss
from attribution.posterior import SetPosterior, cross_products, spectrum_of
from benchmarks.literal_exact import LiteralRules


@pytest.fixture(params=["infogain", "infoloss"])
def selection(request):
    """A rule, sketches, a query, σ², and the picks of the project's own selection."""
    generator = torch.Generator().manual_seed(17)
    sketches = torch.randn(300, 24, generator=generator)
    query = torch.randn(24, generator=generator).double()
    wide, noise = sketches.double(), 3.0
    if request.param == "infogain":
        steps = select_infogain(query, DenseCandidates(wide), noise, budget=8)
    else:
        posterior = SetPosterior(spectrum_of(wide), noise)
        given = posterior.of_query(query, cross_products([wide], query), lambda positions: wide[positions])
        steps = select_infoloss(given, torch.arange(300), budget=8, candidates=DenseCandidates(wide))
    return request.param, sketches, query, noise, [step.position for step in steps]


def test_a_selection_is_found_to_be_the_rule_s_own(selection):
    rule, sketches, query, noise, picks = selection
    judged = LiteralRules(sketches, noise).judge(rule, query, picks)
    assert (judged.picks, judged.best) == (8, 8)


def test_a_wrong_pick_is_found(selection):
    rule, sketches, query, noise, picks = selection
    wrong = [*picks[:3], *reversed(picks[3:])]
    judged = LiteralRules(sketches, noise).judge(rule, query, wrong)
    assert judged.best < judged.picks
    assert judged.worst_relative > 1e-3
