"""A job that evaluates subsets is made in steps, so that it shows progress and goes on where it was."""

from collections.abc import Iterator

import pytest

from service.engine import Engine
from service.jobs.evaluation import EvaluationWork
from service.jobs.stored_job import Item
from service.schemas.jobs import EvaluationJob


class Kept:
    """Items as a job's store has them."""

    def __init__(self, items: list[Item]) -> None:
        self._items = items

    def positions(self) -> set[int]:
        return {position for position, _ in self._items}

    def items(self) -> Iterator[Item]:
        return iter(self._items)


def work(engine: Engine, queries: int) -> EvaluationWork:
    rows = [{"type": "row", "split": "query", "row": row % 20} for row in range(queries)]
    asked = EvaluationJob.model_validate(
        {"type": "evaluation", "index": "margin", "queries": rows, "groups": {"by": "source"}, "relative_noise": 1.0}
    )
    return EvaluationWork(engine.served("margin"), asked, 100, "job")


@pytest.mark.parametrize(("queries", "steps"), [(1, 1), (15, 15), (40, 20), (100, 17)])
def test_small_jobs_have_steps_too(engine: Engine, queries: int, steps: int) -> None:
    made = list(work(engine, queries).run(Kept([]), lambda: None))
    assert len(made) == steps
    assert [position for chunk in made for position, _ in chunk] == list(range(queries))


def test_what_is_stored_is_not_made_again_and_the_rest_has_the_same_bits(engine: Engine) -> None:
    whole = list(work(engine, 40).run(Kept([]), lambda: None))
    stored = [item for chunk in whole[:7] for item in chunk]
    assert list(work(engine, 40).run(Kept(stored), lambda: None)) == whole[7:]
