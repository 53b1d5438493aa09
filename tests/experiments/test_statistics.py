"""McNemar's exact test against scipy's binomial test, and against values counted by hand."""

import pytest

from experiments.statistics import mcnemar_p


def pairs(only_first: int, only_second: int, same: int = 3) -> tuple[list[bool], list[bool]]:
    both = [True, False] * same
    return [True] * only_first + [False] * only_second + both, [False] * only_first + [True] * only_second + both


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    # 2 · (heads of n throws at most as many as the rarer) / 2ⁿ: 2 · (1 + 6) / 64, 2 · 1 / 64, 2 · 1 / 2.
    [(0, 0, 1.0), (1, 5, 14 / 64), (6, 0, 2 / 64), (1, 0, 1.0), (2, 2, 1.0)],
)
def test_the_p_value_is_the_share_of_throws_as_one_sided(only_first, only_second, expected):
    assert mcnemar_p(*pairs(only_first, only_second)) == pytest.approx(expected)


def test_it_is_the_binomial_test_of_the_queries_that_differ():
    stats = pytest.importorskip("scipy.stats")
    for only_first in range(6):
        for only_second in range(9):
            if only_first + only_second:
                expected = stats.binomtest(only_first, only_first + only_second).pvalue
                assert mcnemar_p(*pairs(only_first, only_second)) == pytest.approx(expected)


def test_shares_of_other_queries_are_refused():
    with pytest.raises(ValueError, match="zip"):
        mcnemar_p([True], [True, False])
