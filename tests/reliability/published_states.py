"""What a reader finds after an interruption: the old revision or the new one, whole, and answers that belong to it."""

import math
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from indexer.attributor import Attributor, Question
from sketchstore.layout import files_below
from sketchstore.reader import Index, open_index, verify_index
from tests.reliability.publications import OPERATIONS, copied, publish

NOTHING = "nothing"


def content(path: Path) -> dict[str, bytes]:
    """Every byte of an index but what is derived and the log, which no digest covers."""
    left_out = ("build-log.jsonl", "derived/")
    return {file: (path / file).read_bytes() for file in files_below(path) if not file.startswith(left_out)}


def answers(index: Index) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Answers about two of its queries, without times and without how they were searched."""
    attributor = Attributor(index)
    told = []
    for row, method in ((1, "infogain_approx"), (2, "infogain")):
        query = attributor.resolve_query_row(row)
        answer = asdict(attributor.answer(Question(query=query, method=method, budget=3, relative_noise=0.5)))
        information = answer.pop("information")
        del answer["timings_ms"], answer["search"], answer["warnings"]
        told.append((answer, information))
    return told


def same(found: list[Any], wanted: list[Any]) -> bool:
    """Whether answers are equal to the bit, but for sums over all rows, which may come from what is derived or not."""
    if [answer for answer, _ in found] != [answer for answer, _ in wanted]:
        return False
    pairs = [(here[key], there[key]) for (_, here), (_, there) in zip(found, wanted, strict=True) for key in here]
    return all(a == b or (isinstance(a, float) and math.isclose(a, b, rel_tol=1e-9)) for a, b in pairs)


@dataclass
class States:
    """The two revisions between which an operation must leave nothing.

    Attributes:
        name: The operation.
        base: The folder that it starts from.
        found: How often each was found.
    """

    name: str
    base: Path
    found: dict[str, int] = field(default_factory=lambda: {"old": 0, "new": 0})

    def __post_init__(self) -> None:
        self.operation = OPERATIONS[self.name]
        self._kept = {name: content(self.base / name) for name in ("points", "more")}
        self.done = done = copied(self.base, Path(tempfile.mkdtemp(dir=self.base.parent)) / "done")
        assert publish(self.name, done) == (0, "")
        assert verify_index(done / self.operation.subject) == []
        self._states = {}
        for state, folder in (("old", self.base), ("new", done)):
            path = folder / self.operation.subject
            self._states[state] = (content(path), answers(open_index(path))) if path.exists() else (NOTHING, None)
        self._derived = {file: (done / file).read_bytes() for file in files_below(done) if "/derived/" in file}

    def look(self, folder: Path) -> str:
        """Open everything in a folder as a reader would, and say which revision it found."""
        for name in {"points", "more"} - {self.operation.subject}:
            assert content(folder / name) == self._kept[name], f"{name} is not part of {self.name}, and changed"
        path = folder / self.operation.subject
        found = content(path) if path.exists() else NOTHING
        state = "old" if found == self._states["old"][0] else "new"
        wanted, answered = self._states[state]
        assert found == wanted, "neither the old revision nor the new one"
        if found != NOTHING:
            index = open_index(path)  # every digest, those of what is derived too
            assert same(answers(index), answered)
        self.found[state] += 1
        return state

    def again(self, folder: Path, status: int, said: str, before: str) -> None:
        """Check what the same command leaves when it is run again: the new revision, and nothing beside it."""
        already = self.operation.already
        assert status == 0 or (before == "new" and already is not None and already in said), said
        path = folder / self.operation.subject
        assert content(path) == self._states["new"][0]
        assert verify_index(path) == []
        assert not list(folder.glob("*.partial")), "litter beside the index"
        litter = [file for file in files_below(folder) if Path(file).name.endswith((".tmp", ".build", ".spool"))]
        assert not litter, litter
        if self.operation.derives:
            derived = {file: (folder / file).read_bytes() for file in files_below(folder) if "/derived/" in file}
            assert derived == self._derived
