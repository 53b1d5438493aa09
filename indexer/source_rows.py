"""Finds the examples of an index's rows again, in the training sets that it was read from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

from indexer.reading import ExampleReader
from indexer.recipe import Example, Recipe, RecipeError
from sketchstore.manifest import Source
from sketchstore.reader import Index
from sketchstore.revising import sources_of


class SourceRows:
    """The sources of an index, each opened when a row of it is looked for.

    Args:
        index: The open index.
        load: Gives the recipe with the options of a source.

    Attributes:
        unreadable: What was said of sources that could not be opened.
    """

    def __init__(self, index: Index, load: Callable[[Source], Recipe]) -> None:
        self.unreadable: list[str] = []
        self._index = index
        self._load = load
        self._sources = sources_of(index.manifest)
        self._starts = list(accumulate((source.rows for source in self._sources[:-1]), initial=0))
        self._readers: dict[int, ExampleReader | None] = {}

    def examples(self, rows: Sequence[int]) -> dict[int, Example]:
        """Find the examples of rows by their ids: where they are expected, else by reading all that was read.

        Args:
            rows: Rows of the index.

        Returns:
            Row to example, in the order asked; rows whose id is nowhere are left out.
        """
        ids = {row: self._index.examples.id(row) for row in rows}
        found: dict[int, Example] = {}
        for row, wanted in ids.items():
            place = self._index.manifest.kept.place(row)
            number = bisect_right(self._starts, place) - 1
            position = self._sources[number].first_row + place - self._starts[number]
            self._look(number, position, {wanted: row}, found)
        for number, source in enumerate(self._sources):  # after a purge rows lie elsewhere
            missing = {wanted: row for row, wanted in ids.items() if row not in found}
            if not missing:
                break
            for position in range(source.first_row, source.first_row + source.rows):
                self._look(number, position, missing, found)
        return {row: found[row] for row in rows if row in found}

    def _look(self, number: int, position: int, wanted: dict[str, int], found: dict[int, Example]) -> None:
        reader = self._reader(number)
        if reader is None or position >= reader.num_rows:
            return
        example = reader.example(position)
        row = wanted.get(reader.id(example, position))
        if row is not None:
            found[row] = example

    def _reader(self, number: int) -> ExampleReader | None:
        if number not in self._readers:
            source = self._sources[number]
            try:
                recipe = self._load(source)
                reader = ExampleReader(recipe, recipe.train_set(), "train", id_prefix=source.id_prefix)
                self._readers[number] = reader
            except RecipeError as error:
                self.unreadable.append(str(error))
                self._readers[number] = None
        return self._readers[number]
