"""Turns an example sent by a client into a query by the very featuriser that sketched the training set.

The recipe parses it, the model has the weights that lie in the index. Nothing is trained and nothing is cached.
"""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import structlog
import torch
from torch import Tensor, nn

from indexer.batches import move
from indexer.featurise import Featuriser
from indexer.index_recipe import load_model
from indexer.jacobians import JacobianError
from indexer.out_of_memory import is_out_of_memory
from indexer.parameters import ParameterList
from indexer.recipe import UNLABELLED, Recipe, RecipeError, RecipeInputError
from indexer.recipe_failure import place_of
from indexer.sketches import make_sketch, sketch_spec
from service.errors import InvalidExampleError
from service.threads import usable_cores
from sketchstore.errors import IncompatibleSketchError
from sketchstore.reader import Index

log = structlog.get_logger("service")


@dataclass(frozen=True)
class SketchedExample:
    """An example as the attributor can take it.

    Attributes:
        sketch: float64 [d], in measurement units.
        view: The view it is comparable with.
        label: The class whose measurement was sketched; None where the measurement has none.
        predicted_label: The model's prediction; None where it predicts no class.
        seconds: What sketching cost.
        representation: Gives its penultimate features, float64 [k], or None where the recipe has none.
    """

    sketch: Tensor
    view: str
    label: int | None
    predicted_label: int | None
    seconds: float
    representation: Callable[[], Tensor | None]


class ExampleSketcher:
    """Sketches examples for one index. Reads the weights when they are first needed.

    Attributes:
        last_seconds: What the latest sketch cost, None before the first.
        failure: Why the model could not be loaded when that was last tried, None where it could or was not tried.
    """

    def __init__(self, index: Index, recipe: Recipe) -> None:
        """Tie an index to its recipe.

        Args:
            index: The open index.
            recipe: The recipe it was built with.
        """
        self._index = index
        self._recipe = recipe
        self._featuriser: Featuriser | None = None
        self._model: nn.Module | None = None
        self._loading = threading.Lock()
        # A sketch fills the memory of a batch and a core or more: others gain nothing by starting at once.
        self._sketching = threading.Semaphore(usable_cores())
        self.last_seconds: float | None = None
        self.failure: str | None = None

    def load(self) -> Featuriser:
        """Load the model with the index's weights, once; who comes meanwhile waits. A failure is tried again.

        Returns:
            What sketches.

        Raises:
            RecipeError: If the recipe cannot give the model.
            IncompatibleSketchError: If the model is not that of the weights.
        """
        with self._loading:
            if self._featuriser is None:
                try:
                    model = load_model(self._index, self._recipe, self._model)
                    self._featuriser = Featuriser.from_manifest(self._index.manifest, self._recipe, model)
                except (IncompatibleSketchError, RecipeError) as error:
                    self._fail(error)
                    raise
                self._model = self.failure = None
            return self._featuriser

    def try_model(self) -> None:
        """Make the recipe's model now, without the index's weights; where that fails, remember why."""
        with self._loading:
            try:
                self._model = self._recipe.architecture()
            except RecipeError as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self.failure != str(error):  # not at every request
            # Nothing that a client sent is in it: the model is made before any example is looked at.
            log.error("no queries by example", index=self._index.name, reason=str(error))
        self.failure, self._model = str(error), None

    def compile_kernels(self) -> None:
        """Compile the kernels of the sketch on the gradient of one parameter; reads no file of the index."""
        facts = self._index.manifest.sketch
        options = cast(Mapping[str, Any], facts.options)
        if facts.family != "identity":
            spec = sketch_spec(facts.family, facts.dim, facts.num_parameters, facts.seed, options)
            entries = [(entry.name, entry.shape, entry.ntk_scale) for entry in facts.parameters]
            parameters = ParameterList.of_entries(entries) if facts.family == "kronecker" else None
            sketch = make_sketch(spec, 1, parameters=parameters)
            sketch.add(torch.zeros(1, 1), 0, torch.zeros(1, facts.dim))

    def sketch(
        self, content: Mapping[str, Any], target: int | Literal["predicted", "true"], pointer: str
    ) -> SketchedExample:
        """Parse, predict, and sketch one example.

        Args:
            content: What the client sent.
            target: The class to explain.
            pointer: Where the query stands in the request, for refusals.

        Returns:
            Its sketch.

        Raises:
            InvalidExampleError: If the recipe or the model cannot take the content, or it has no such class.
        """
        example = self._parse(content, f"{pointer}/content")
        featuriser = self.load()
        outputs = self._outputs(featuriser, example, f"{pointer}/content")
        predicted = int(outputs.argmax()) if outputs.ndim == 1 and len(outputs) > 1 else None
        label = self._label(example, target, predicted, f"{pointer}/content")
        if label is not None and outputs.ndim == 1 and label >= len(outputs):
            raise InvalidExampleError(
                f"the model has the classes 0 to {len(outputs) - 1}, not {label}",
                pointer="/target/label",
                allowed={"ge": 0, "le": len(outputs) - 1},
            )
        view = self._view(label)
        try:
            with self._sketching:
                begun = time.perf_counter()
                sketched = featuriser.sketch([example], torch.tensor([UNLABELLED if label is None else label]), view)
        except JacobianError as error:
            raise InvalidExampleError(
                f"the model has no finite gradient at this example: {error}", pointer=f"{pointer}/content"
            ) from error
        except Exception as error:
            if place_of(error) is None or is_out_of_memory(error):
                raise
            raise InvalidExampleError(  # of the recipe's measurement(), most likely: its model took the example
                f"the recipe cannot measure this example: {type(error).__name__}: {error}", pointer=f"{pointer}/content"
            ) from error
        seconds = self.last_seconds = time.perf_counter() - begun
        features = partial(self._representation, featuriser, example, f"{pointer}/content")
        return SketchedExample(sketched[0].double(), view, label, predicted, seconds, features)

    def warm_up(self) -> None:
        """Load the model, and sketch one stored example where its preview is content the recipe reads.

        Compiles the kernels before the first request does, and measures what a sketch costs.

        Raises:
            InvalidExampleError: If a stored picture is not content that the recipe reads.
        """
        self.load()
        preview = self._index.examples.preview(0)
        if preview is None or preview[0] not in ("image/png", "application/json"):
            return
        if preview[0] == "image/png":
            content = {"image": base64.b64encode(preview[1]).decode()}
        else:
            content = json.loads(preview[1])
        try:
            for _ in range(2):
                self.sketch(content, "predicted", "/query")
        except InvalidExampleError:
            if preview[0] == "image/png":
                raise  # a recipe's own JSON need not be content that it reads

    def _representation(self, featuriser: Featuriser, example: Any, pointer: str) -> Tensor | None:
        with _blaming_the_content("the recipe reads the content, but representation() cannot take it", pointer):
            inputs, _ = self._recipe.collate([example])
            with torch.no_grad():
                features = self._recipe.representation(featuriser.model, move(inputs, featuriser.device))
            return None if features is None else features[0].float().cpu().double()

    def _parse(self, content: Mapping[str, Any], pointer: str) -> Any:
        with _blaming_the_content("the recipe cannot read the content", pointer):
            return self._recipe.parse(content)

    def _outputs(self, featuriser: Featuriser, example: Any, pointer: str) -> torch.Tensor:
        # What a user's parse() let through may be no example: too few numbers, or integers for floats.
        with _blaming_the_content("the recipe reads the content, but collate() cannot take it", pointer):
            inputs, _ = self._recipe.collate([example])
        with _blaming_the_content("the recipe reads the content, but the model cannot take it", pointer):
            return featuriser.outputs_batch(inputs)[0]

    def _label(
        self, example: Any, target: int | Literal["predicted", "true"], predicted: int | None, pointer: str
    ) -> int | None:
        if target == "predicted":
            return predicted
        if target == "true":
            with _blaming_the_content("the recipe reads the content, but label() cannot take it", pointer):
                label = int(self._recipe.label(example))
            if label == UNLABELLED:
                raise InvalidExampleError(
                    "the content carries no true label; ask for the predicted label or name one",
                    pointer="/target/label",
                    allowed=["predicted", "a label"],
                )
            return label
        return target

    def _view(self, label: int | None) -> str:
        views = self._index.views
        view = (
            next(iter(views)) if str(label) not in views and not all(name.isdigit() for name in views) else str(label)
        )
        if view not in views:
            raise InvalidExampleError(
                f"the index holds no view of class {label}",
                pointer="/target/label",
                allowed=[int(name) for name in views],
            )
        return view


@contextmanager
def _blaming_the_content(said: str, pointer: str) -> Iterator[None]:
    """Refuse the content for whatever a recipe raises in the block.

    A user's code meets content that its author did not think of; that is the content's fault, not the service's.

    Args:
        said: What cannot be done with the content.
        pointer: Where the content stands in the request.

    Raises:
        InvalidExampleError: If anything is raised but for want of memory.
    """
    try:
        yield
    except RecipeInputError as error:
        raise InvalidExampleError(str(error), pointer=pointer + error.pointer, allowed=error.allowed) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InvalidExampleError(f"{said}: {type(error).__name__}: {error}", pointer=pointer) from error
