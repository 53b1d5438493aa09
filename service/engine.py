"""All indexes of one service, in process: what HTTP is a thin skin over, and what four lines of Python use.

::

    from service.engine import open_engine

    engine = open_engine("indexes/digits")
    answer = engine.attribute({"query": {"type": "row", "split": "query", "row": 12}, "budget": 10})
    print(answer.hits[0].id, answer.information.infogain_nats)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

from service import __version__
from service.about import ABOUT
from service.card import index_card
from service.errors import RevisionRefusedError, UnknownIndexError
from service.group_answers import information
from service.observer import Observer
from service.query_resolver import Check
from service.schemas.answers import Answer, AnswerFacts, Hit, ScoresResponse, SketchesResponse, StreamStart
from service.schemas.cards import IndexCard, Info, Limits
from service.schemas.groups import InformationRequest, InformationResponse
from service.schemas.questions import AttributionRequest, Method, ScoresRequest, SketchesRequest, Strategy
from service.schemas.revisions import Reloaded, ReloadRequest
from service.served_index import FileCheck, ServedIndex, never_stop
from service.settings import Settings
from service.watched import Watched

Result = TypeVar("Result")
LIBRARIES = ("torch", "numpy", "fastapi", "pydantic")


class Engine:
    """The open indexes by name.

    Attributes:
        names: The names, in the order they were given.
    """

    def __init__(self, indexes: Mapping[str, ServedIndex]) -> None:
        """Take open indexes.

        Args:
            indexes: At least one, by name.

        Raises:
            ValueError: If there is none.
        """
        if not indexes:
            raise ValueError("there is no index to serve")
        self._indexes = {name: Watched(served) for name, served in indexes.items()}
        self.names: Sequence[str] = tuple(indexes)

    @classmethod
    def open(cls, settings: Settings) -> "Engine":
        """Open every index the settings name, with its recipe.

        Args:
            settings: The settings.

        Returns:
            The engine.

        Raises:
            ValueError: If a recipe is given for an index that is not served.
        """
        directories, recipes = settings.index_directories(), settings.recipe_sources()
        stray = sorted(set(recipes) - set(directories))
        if stray:
            raise ValueError(
                f"--recipe names the index {stray[0]!r}, which is not served; served are {', '.join(directories)}"
            )
        return cls(
            {
                name: ServedIndex.open(
                    name,
                    directory,
                    recipe=recipes.get(name),
                    data_dir=settings.data_dir,
                    engine=settings.engine,
                    check=settings.check,
                )
                for name, directory in directories.items()
            }
        )

    def served(self, index: str | None = None) -> ServedIndex:
        """Return an open index, at the revision that its directory holds now.

        Args:
            index: Its name; None where there is only one.

        Returns:
            The index.
        """
        return self._watched(index).current()

    def questions_look(self, look: bool) -> None:
        """Choose whether questions look for a new revision, or whether :meth:`look` is called all the time.

        Args:
            look: Whether they do.
        """
        for watched in self._indexes.values():
            watched.looks = look

    def look(self, index: str) -> None:
        """Open the revision that an index's directory holds, where it is another one than is served.

        Args:
            index: Its name.
        """
        self._watched(index).look()

    def refusal(self, index: str) -> str | None:
        """Return why what an index's directory holds is not what is served; None where it is."""
        refusal = self._watched(index).refusal
        return None if refusal is None else refusal.reason

    def reload(
        self, asked: ReloadRequest | Mapping[str, Any] = MappingProxyType({}), index: str | None = None
    ) -> Reloaded:
        """Read an index's directory again, and serve the revision that it holds from now on.

        Args:
            asked: Which of its files are read before it answers.
            index: The index's name; not needed where there is only one.

        Returns:
            The revision that was served and the one that is.

        Raises:
            RevisionRefusedError: If the new one cannot be served; the old one goes on.
        """
        request = ReloadRequest.model_validate(asked)
        change = self._watched(index).reload(request.files)
        before = change.before.index.revision
        if change.refusal is not None:
            raise RevisionRefusedError(change.refusal.reason, before)
        return Reloaded(
            index=change.now.reference, previous_revision=before, changed=change.now.index.revision != before
        )

    def observe(self, observer: Observer) -> None:
        """Have somebody told what the indexes answer; who was told before is not told any more.

        Args:
            observer: Whom to tell.
        """
        for watched in self._indexes.values():
            watched.observe(observer)

    def open_now(self) -> Sequence[ServedIndex]:
        """Return the indexes as they are open now, without looking for new revisions."""
        return [watched.open_now for watched in self._indexes.values()]

    def check_name(self, index: str) -> None:
        """Refuse the name of an index that is not served; opens nothing.

        Args:
            index: The name.
        """
        self._watched(index)

    def ask(self, index: str | None, work: Callable[[ServedIndex], Result]) -> Result:
        """Do something with an open index; anew where its next revision is published meanwhile and files are gone.

        Args:
            index: Its name; None where there is only one.
            work: What to do; from first to last it sees one revision.

        Returns:
            What ``work`` returned.
        """
        return self._watched(index).ask(work)

    def _watched(self, index: str | None) -> Watched:
        """Find an index by its name.

        Returns:
            The index.

        Raises:
            UnknownIndexError: If there is none of this name, or no name was given and there are several.
        """
        if index is None and len(self._indexes) == 1:
            return next(iter(self._indexes.values()))
        if index not in self._indexes:
            raise UnknownIndexError(str(index), self.names)
        return self._indexes[index]

    def attribute(
        self, asked: AttributionRequest | Mapping[str, Any], index: str | None = None, check: Check = never_stop
    ) -> Answer:
        """Answer one attribution request.

        Args:
            asked: The request, as its schema or as the mapping that HTTP would carry as JSON.
            index: The index's name; not needed where there is only one.
            check: Called between steps; may raise to stop.

        Returns:
            The ordered subset with its nats.
        """
        request = AttributionRequest.model_validate(asked)
        return self.ask(index, lambda served: served.attribute(request, check))

    def stream(
        self, asked: AttributionRequest | Mapping[str, Any], index: str | None = None, check: Check = never_stop
    ) -> Iterator[StreamStart | Hit | AnswerFacts]:
        """Judge one attribution request and answer it part by part.

        Args:
            asked: The request.
            index: The index's name; not needed where there is only one.
            check: Called between steps; may raise to stop.

        Returns:
            The start, the hits, the answer without its hits; what can be refused has been when this returns.
        """
        request = AttributionRequest.model_validate(asked)
        return self.ask(index, lambda served: served.stream(request, check))

    def score(
        self, asked: ScoresRequest | Mapping[str, Any], index: str | None = None, check: Check = never_stop
    ) -> ScoresResponse:
        """Rescore a given set exactly.

        Args:
            asked: The request.
            index: The index's name; not needed where there is only one.
            check: Called between members; may raise to stop.

        Returns:
            Nats of the set and of each member.
        """
        request = ScoresRequest.model_validate(asked)
        return self.ask(index, lambda served: served.score(request, check))

    def inform(
        self,
        asked: InformationRequest | Mapping[str, Any],
        index: str | None = None,
        most_groups: int = 1000,
        check: Check = never_stop,
    ) -> InformationResponse:
        """Say what groups of training examples tell, and what their withdrawal costs.

        Args:
            asked: The request.
            index: The index's name; not needed where there is only one.
            most_groups: How many groups a metadata column may make.
            check: Called between groups; may raise to stop.

        Returns:
            Nats of every group.
        """
        request = InformationRequest.model_validate(asked)
        return self.ask(index, lambda served: information(served, request, most_groups, check))

    def sketch(
        self, asked: SketchesRequest | Mapping[str, Any], index: str | None = None, check: Check = never_stop
    ) -> SketchesResponse:
        """Turn queries into sketches.

        Args:
            asked: The request.
            index: The index's name; not needed where there is only one.
            check: Called between queries; may raise to stop.

        Returns:
            The sketches, in order.
        """
        request = SketchesRequest.model_validate(asked)
        return self.ask(index, lambda served: served.sketch(request, check))

    def card(self, index: str | None = None) -> IndexCard:
        """Return the card of an index."""
        watched = self._watched(index)
        served = watched.current()
        return index_card(served, None if watched.refusal is None else watched.refusal.reason)

    def info(self, limits: Mapping[str, int | float]) -> Info:
        """Describe the service.

        Args:
            limits: What its settings allow.

        Returns:
            Versions, limits, methods, statements.
        """
        return Info(
            name="nattribute",
            version=__version__,
            indexes=list(self.names),
            methods=list(get_args(Method)),
            strategies=list(get_args(Strategy)),
            limits=Limits.model_validate(limits),
            versions={library: version(library) for library in LIBRARIES},
            about=list(ABOUT),
        )


def open_engine(
    directory: str | PathLike[str],
    *,
    recipe: str | None = None,
    data_dir: str | PathLike[str] | None = None,
    engine: Literal["faiss", "brute_force"] = "faiss",
    check: FileCheck = "start",
) -> Engine:
    """Open one index directory for use without a server.

    Args:
        directory: The index directory.
        recipe: The recipe's file or built-in name; a built-in recipe named by the index needs none.
        data_dir: The folder of data files the recipe reads.
        engine: What searches the sketches.
        check: Whether files are compared with their digests now, "start", or before their first use, "use".

    Returns:
        An engine with this one index.
    """
    path = Path(directory)
    name = path.resolve().name
    return Engine(
        {
            name: ServedIndex.open(
                name,
                path,
                recipe=recipe,
                data_dir=None if data_dir is None else Path(data_dir),
                engine=engine,
                check=check,
            )
        }
    )
