"""One entry point for the paper's experiments.

    python -m experiments NAME --size small|paper --out DIR [--config NAME] [--data-dir DIR] [--queries N] [--seeds N]
        [--methods A,B] [--device auto|cpu|cuda]
    python -m experiments --list

Progress with the time left goes to the standard error, the table to the standard output, and NAME.json, NAME.csv and
NAME.png into DIR. A run that was interrupted continues when it is started again with the same arguments.
"""

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.catalogue import Experiment, experiments
from experiments.chosen_methods import UnknownMethodError
from experiments.devices import DEVICES, DeviceError, on_device
from experiments.journal import DamagedFileError, OtherSettingsError, claim, unclaim
from experiments.report import Report, print_report, write_report
from experiments.retrained_mlp import TooManyQueriesError
from experiments.units import StoppedError
from indexer.build import BuildInterruptedError
from indexer.recipe import RecipeError
from indexer.terminal import duration, progress_on
from sketchstore.errors import IndexDirectoryError


def main() -> None:
    """Parse the command line, run the experiment, print and write what came out."""
    known = experiments()
    if sys.argv[1:] == ["--list"]:
        sys.stdout.write("\n".join(known) + "\n")
        return
    listed = "\n".join(f"  {name:22}{_described(experiment)}" for name, experiment in known.items())
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description=f"{__doc__}\nexperiments:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=[*known], metavar="NAME", help="which experiment")
    parser.add_argument(
        "--size", choices=["smoke", "small", "paper"], required=True, help="smoke is for tests and means nothing"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for results and what is needed to continue")
    parser.add_argument("--config", help="data set and network, of those listed; default: the first of them")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=os.environ.get("NATTRIBUTE_DATA"),
        help="folder with the data sets; default: the environment's NATTRIBUTE_DATA",
    )
    parser.add_argument(
        "--queries", type=int, help="how many queries, where an experiment asks about queries one by one"
    )
    parser.add_argument("--seeds", type=int, help="how many of its seeds, where an experiment has several")
    parser.add_argument(
        "--methods",
        help="which of its methods, with commas, where an experiment can leave some out; in brittleness an information "
        "method may be METHOD@NOISE, its relative noise named and not tuned, or METHOD@each-size, tuned at each size",
    )
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="auto",
        help="where networks of images are trained, indexed and scored; default: cuda where torch has it",
    )
    arguments = parser.parse_args()
    experiment = known[arguments.name]
    if not_a_folder := [
        path for path in (arguments.out, *arguments.out.parents) if path.exists() and not path.is_dir()
    ]:
        parser.error(f"argument --out: {not_a_folder[0]} is a file; give a folder")
    configuration = arguments.config or next(iter(experiment.configurations))
    if configuration not in experiment.configurations:
        allowed = ", ".join(experiment.configurations)
        parser.error(f"argument --config: {arguments.name} has no {configuration!r}; allowed are {allowed}")
    settings = experiment.configurations[configuration][arguments.size]
    if arguments.queries is not None:
        if not hasattr(settings, "queries"):
            parser.error(f"{arguments.name} has no --queries")
        stored = getattr(settings, "stored_queries", None)
        if not 1 <= arguments.queries <= (stored or arguments.queries):
            parser.error(
                f"argument --queries: {arguments.queries}; allowed are 1 to {stored or 'as many as there are'}"
            )
        settings = replace(settings, queries=arguments.queries)
    if arguments.seeds is not None:
        if not hasattr(settings, "seeds"):
            parser.error(f"{arguments.name} has no --seeds")
        if not 1 <= arguments.seeds <= len(settings.seeds):
            parser.error(f"argument --seeds: {arguments.seeds}; allowed are 1 to {len(settings.seeds)}")
        settings = replace(settings, seeds=settings.seeds[: arguments.seeds])
    if arguments.methods is not None:
        if not hasattr(settings, "methods"):
            parser.error(f"{arguments.name} has no --methods")
        settings = replace(settings, methods=tuple(arguments.methods.split(",")))
    try:
        settings = on_device(settings, arguments.device)
        experiment.check(settings)
    except (DeviceError, UnknownMethodError) as error:
        parser.error(str(error))
    run = f"{arguments.name}, configuration {configuration}, size {arguments.size}"
    began = time.monotonic()
    report, files = _run(experiment, settings, arguments, run)
    console = Console()
    print_report(report, console)
    console.print(f"{duration(time.monotonic() - began)}; written: {', '.join(str(file) for file in files)}")


def _run(experiment: Experiment, settings: Any, arguments: argparse.Namespace, run: str) -> tuple[Report, list[Path]]:
    # What can be mended from outside is one line; a traceback is left for mistakes of this program.
    out: Path = arguments.out
    try:
        claim(out, run)
        with progress_on(Console(stderr=True)) as progress:
            report = experiment.run(settings, arguments.data_dir, out, progress)
        return report, write_report(report, out, arguments.name)
    except (StoppedError, BuildInterruptedError, KeyboardInterrupt):
        sys.stderr.write(f"{arguments.name}: stopped; start it again with the same arguments to go on\n")
        sys.exit(130)
    except (RecipeError, TooManyQueriesError) as error:
        unclaim(out)
        sys.exit(f"{arguments.name}: {error}")
    except (DamagedFileError, IndexDirectoryError, OtherSettingsError) as error:
        sys.exit(f"{arguments.name}: {error}")
    except OSError as error:
        sys.exit(f"{arguments.name}: {error.filename or 'the system'}: {error.strerror or error}")


def _described(experiment: Experiment) -> str:
    if len(experiment.configurations) == 1:
        return experiment.title
    return f"{experiment.title}; --config {', '.join(experiment.configurations)}"


if __name__ == "__main__":
    main()
