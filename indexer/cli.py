"""The command `indexer`: builds index directories, checks and describes them, answers a question without a server.

Results go to the standard output, everything else to the standard error.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from attribution.errors import AttributionError
from indexer import __version__
from indexer.attributor import QuestionError
from indexer.batches import BatchError
from indexer.build import BuildInterruptedError
from indexer.build_settings import BuildSettingsError
from indexer.cli_build import build, check, plan
from indexer.cli_coreset import coreset
from indexer.cli_directory import derive_command, info, verify
from indexer.cli_query import flag_of, query
from indexer.cli_upkeep import append, merge, remove, tune
from indexer.jacobians import JacobianError
from indexer.measurement import MeasurementError
from indexer.out_of_memory import BlockMemoryError
from indexer.parameters import ParameterSelectionError
from indexer.reading import ExampleError, UnstableDataError
from indexer.recipe import RecipeCodeError, RecipeDataError, RecipeError
from indexer.recipe_failure import is_of_recipe, said
from indexer.sketches.spec import SketchSpecError
from indexer.targets import TargetError
from indexer.workers import WorkerDiedError
from sketchstore.errors import CorruptIndexError, FaissFactoryError, IndexDirectoryError
from sketchstore.manifest import FORMAT_VERSION

app = typer.Typer(
    name="indexer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"indexer {__version__} (index format {FORMAT_VERSION})")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """Turn a trained model and its training set into an index directory of gradient sketches."""


app.command()(build)
app.command()(plan)
app.command()(check)
app.command()(info)
app.command()(verify)
app.command()(query)
app.command()(coreset)
app.command("derive")(derive_command)
app.command()(append)
app.command()(merge)
app.command()(remove)
app.command()(tune)


USAGE_ERRORS: tuple[type[Exception], ...] = (
    BuildSettingsError,
    FaissFactoryError,
    MeasurementError,
    ParameterSelectionError,
    SketchSpecError,
    QuestionError,
    RecipeError,
    TargetError,
)
WORK_ERRORS: tuple[type[Exception], ...] = (
    AttributionError,
    BatchError,
    ExampleError,
    FloatingPointError,  # a training whose loss is no number any more
    IndexDirectoryError,
    JacobianError,
    BlockMemoryError,
    UnstableDataError,
    WorkerDiedError,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: exit 0 done, 1 failed or damaged, 2 wrong usage, 130 stopped by Ctrl-C.

    Args:
        arguments: Words after the program's name; None takes the process's own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(words, prog_name="indexer")
    except (BuildInterruptedError, KeyboardInterrupt) as error:
        resumed = [word for word in words if word != "--overwrite"]
        again = shlex.join(["indexer", *resumed, *([] if "--resume" in words else ["--resume"])])
        stopped = str(error) or "stopped at once; finished blocks are kept"
        typer.echo(f"{stopped}:\n  {again}" if words[:1] in (["build"], ["append"]) else "stopped", err=True)
        sys.exit(130)
    except (*USAGE_ERRORS, *WORK_ERRORS) as error:
        flag = flag_of(error.pointer) if isinstance(error, QuestionError) else None
        typer.echo(f"error: {'' if flag is None else f'{flag}: '}{error}", err=True)
        usage = isinstance(error, USAGE_ERRORS) and not isinstance(error, RecipeCodeError | RecipeDataError)
        missing = isinstance(error, FileNotFoundError | FileExistsError) and not isinstance(error, CorruptIndexError)
        sys.exit(2 if usage or missing else 1)
    except Exception as error:
        if is_of_recipe(error):  # a part of the recipe that is called amid the work, or its model
            typer.echo(f"error: the recipe's code or model raised {said(error)}", err=True)
        elif isinstance(error, OSError):  # a disk that is full, a file that may not be read: no mistake of this program
            typer.echo(f"error: {error.filename or 'the system'}: {error.strerror or error}", err=True)
        else:
            raise
        sys.exit(1)


if __name__ == "__main__":
    main()
