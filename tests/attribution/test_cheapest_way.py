import pytest

from attribution.cheapest_way import WAYS, PoolSizes, cheapest_way, columns_bytes, lists_bytes, scan_bytes


def sizes(rows, *, dim=4096, budget=50, look=4096):
    return PoolSizes(rows, dim, budget, look, sketch=4 * dim)


def test_bytes_are_counted_step_by_step():
    pool = sizes(1000, dim=64, budget=5, look=64)
    columns = scan = lists = 0
    for t in range(pool.budget):
        columns += (64 if t == 0 else 0) * 1000 + t * 8 * 1000  # t columns of float64
        scan += (64 if t == 0 else 12) * 1000 + t * 8 * 64  # bounds, and t old residuals
        lists += (4 * 64 if t == 0 else 32) * 1000 + t * 8 * 64
    assert (columns_bytes(pool), scan_bytes(pool), lists_bytes(pool)) == (columns, scan, lists)


@pytest.mark.parametrize("budget", [1, 2, 50, 500])
@pytest.mark.parametrize("rows", [1, 100, 4096])
def test_stored_columns_are_cheapest_where_rows_are_no_more_than_dimensions(rows, budget):
    assert cheapest_way(sizes(rows, budget=budget), WAYS, local=True) == "columns"


def test_many_picks_from_more_rows_than_dimensions_are_scanned_for():
    # 50 picks re-read 1,225 columns of 8 bytes a row: more than bounds of 12 bytes a row and step.
    assert cheapest_way(sizes(20_000, dim=512, look=512), WAYS, local=True) == "scan"
    assert cheapest_way(sizes(20_000, dim=512, look=512, budget=2), WAYS, local=True) == "columns"


def test_only_ways_at_hand_are_chosen():
    assert cheapest_way(sizes(100), ("lists", "scan"), local=True) == "scan"
    assert cheapest_way(sizes(100), ("lists",), local=True) == "lists"


def test_a_search_elsewhere_is_asked_once_where_columns_are_stored_and_for_lists_else():
    assert cheapest_way(sizes(10**6), ("lists", "columns"), local=False) == "columns"
    assert cheapest_way(sizes(10**6), ("lists",), local=False) == "lists"
