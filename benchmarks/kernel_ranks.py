"""Do sketched kernel values order training rows as the exact ones do? Rank correlation per query, on real features.

Queries and training rows of one label, so that label logits compare; for each query, Spearman's correlation of its
sketched with its exact kernel values over the training rows; mean and minimum over queries, for every family and d.

Example:
    python -m benchmarks.kernel_ranks fashion-mnist --data-dir DATA --dims 1024 4096 --json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import Report, print_json
from indexer.exact_kernel import exact_kernel
from indexer.featurise import Featuriser
from indexer.kernel_errors import kernel_errors, random_pairs
from indexer.kronecker_dims import fitted_kronecker_spec
from indexer.measurement import make_measurement
from indexer.ntk import ntk_scales
from indexer.parameters import select_parameters
from indexer.reading import ExampleReader
from indexer.recipe_file import load_recipe
from indexer.sketches import sketch_spec


def rows_of_label(reader: ExampleReader, label: int, count: int) -> list[Any]:
    """The first examples of a label."""
    found: list[Any] = []
    for row in range(reader.num_rows):
        example = reader.example(row)
        if int(reader.recipe.label(example)) == label:
            found.append(example)
        if len(found) == count:
            break
    return found


def rank_correlations(sketched: Tensor, exact: Tensor) -> list[float]:
    """Spearman's correlation of each row of two matrices [q, n]."""
    first, second = (values.argsort(1).argsort(1).double() for values in (sketched, exact))
    return [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(first, second, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Command line; None takes the process's.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--option", action="append", default=[], help="KEY=VALUE for the recipe")
    parser.add_argument("--families", nargs="+", default=["kronecker", "sjlt"])
    parser.add_argument("--dims", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--label", type=int, default=3)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--no-ntk", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    envelope = Report("benchmarks.kernel_ranks", vars(options))
    recipe = load_recipe(
        options.recipe, data_dir=options.data_dir, options=dict(text.split("=", 1) for text in options.option)
    )
    model, measurement = recipe.model(), make_measurement("label_logit")
    gain = None if options.no_ntk else recipe.ntk_gain
    parameters = select_parameters(model, scales=None if gain is None else ntk_scales(model, gain))
    train = ExampleReader(recipe, recipe.train_set(), "train")
    queries = ExampleReader(recipe, recipe.query_set() or [], "query")
    examples = rows_of_label(queries, options.label, options.queries)
    count = len(examples)
    examples += rows_of_label(train, options.label, options.rows)
    inputs, _ = recipe.collate(examples[:2])
    with torch.no_grad():
        num_outputs = recipe.outputs(recipe.call(model, inputs)).shape[1]

    def featuriser(family: str, dim: int) -> Featuriser:
        if family == "kronecker":
            spec = fitted_kronecker_spec(recipe, model, measurement, parameters, train, num_outputs, dim=dim, seed=0)
        else:
            spec = sketch_spec(family, None if family == "identity" else dim, parameters.num_parameters)
        return Featuriser(recipe, model, spec, measurement, parameters, compute_rows=256)

    pairs = random_pairs(len(examples), 1000)
    first = featuriser("kronecker", options.dims[0])
    exact = exact_kernel(first.slabs(examples), len(examples), pairs, first.sketch_ranges)
    found = []
    for family in options.families:
        for dim in options.dims:
            of_family = featuriser(family, dim)
            sketches = of_family.sketch(examples).double()
            errors = kernel_errors(of_family.spec, exact, sketches, pairs, parameters)
            kernel = sketches @ sketches.T
            ranks = rank_correlations(kernel[:count, count:], exact.kernel[:count, count:])
            line = {"family": family, "dim": dim, "mean": sum(ranks) / count, "least": min(ranks), "kernel": errors}
            found.append(line)
            if not options.json:
                sys.stdout.write(f"{family:12}{dim:8} rank correlation {line['mean']:.3f}, least {min(ranks):.3f}; ")
                sys.stdout.write(f"spread {errors['spread_over_theory']:.2f} of theory\n")
    if options.json:
        print_json(envelope.finish({"num_parameters": parameters.num_parameters, "found": found}))


if __name__ == "__main__":
    main()
