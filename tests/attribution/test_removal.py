import pytest
import torch

from attribution.errors import NotPositiveDefiniteError
from attribution.posterior import SetPosterior, spectrum_of


def posterior_of(sketches, query, noise_variance):
    cross = sketches @ query
    return SetPosterior(spectrum_of(sketches), noise_variance).of_query(query, cross, lambda places: sketches[places])


@pytest.mark.parametrize("shape", [(20, 30), (30, 8)], ids=["kernel form", "gram form"])
@pytest.mark.parametrize("noise_variance", [1e-2, 1.0, 1e4])
@pytest.mark.parametrize("before", [0, 1, 4])
def test_removing_a_set_at_once_is_removing_its_members_in_order(shape, noise_variance, before, generator):
    sketches = torch.randn(*shape, generator=generator, dtype=torch.float64)
    query = torch.randn(shape[1], generator=generator, dtype=torch.float64)
    given = posterior_of(sketches, query, noise_variance)
    order = [7, 2, 11, 0, 19, 5, 3, 14]
    one_by_one, at_once = given.removal(), given.removal()
    for position in order:
        one_by_one.remove(position)
    for position in order[:before]:
        at_once.remove(position)
    at_once.remove_all(order[before:])
    assert at_once.positions == one_by_one.positions
    # The same sums in another order: only rounding, of quantities of order 1/σ², may differ.
    torch.testing.assert_close(at_once.increases, one_by_one.increases, rtol=1e-9, atol=0)
    torch.testing.assert_close(at_once.coefficients, one_by_one.coefficients, rtol=1e-8, atol=1e-12)
    for left, right in zip(at_once.factor, one_by_one.factor, strict=True):
        assert left == pytest.approx(right, rel=1e-7, abs=1e-9 / noise_variance)
    # Later removals go on from either state alike.
    left, right = at_once.remove(9), one_by_one.remove(9)
    torch.testing.assert_close(left.coefficients, right.coefficients, rtol=1e-8, atol=1e-12)


def test_removing_nothing_changes_nothing(generator):
    sketches = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    removal = posterior_of(sketches, sketches[0], 1.0).removal()
    removal.remove_all([])
    assert removal.positions == []
    assert float(removal.increases[0]) == 0.0


def test_a_row_orthogonal_to_the_query_and_to_all_others_costs_exactly_nothing():
    sketches = torch.eye(5, 7, dtype=torch.float64)
    query = torch.tensor([1.0, 1.0, 0, 0, 0, 0, 0], dtype=torch.float64)
    given = posterior_of(sketches, query, 0.5)
    assert given.increase([2, 3, 4]) == 0.0
    assert given.increase([2, 0, 3]) == given.increase([0]) > 0.0


def test_a_pivot_lost_to_rounding_is_refused_with_a_noise_that_works(generator):
    # Duplicates at a tiny noise: leaving out all but rounding of a direction leaves a pivot that is not positive.
    row = torch.randn(4, generator=generator, dtype=torch.float64)
    sketches = row.repeat(9, 1)
    noise_variance = 1e-17 * float(row @ row)
    with pytest.raises(NotPositiveDefiniteError) as caught:
        posterior_of(sketches, row, noise_variance).removal().remove_all(list(range(9)))
    works = caught.value.smallest_noise_variance * 10
    assert works > noise_variance
    posterior_of(sketches, row, works).removal().remove_all(list(range(9)))
