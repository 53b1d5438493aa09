"""Speed of sketching against a plain float32 product of the same shape, in the same run.

Shape of the Fashion-MNIST index: 1,024 rows, P = 535,040 parameters (784-512-256-10 without biases), d = 4096. A round
takes a slice of the parameters with R's slice already in memory, multiplies it plainly, then sketches it with the
random numbers made on the way; the two alternate, and each figure is a median over rounds. Beside them stands one read
of the gradients (their sum), the unit for sjlt. The last part sends random images through the whole featuriser:
forward, backward, gradients and sketch.

Example:
    OMP_NUM_THREADS=2 python -m benchmarks.sketching --json
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import Report, print_json, timed
from indexer.featurise import Featuriser
from indexer.jacobians import SLAB_BYTES
from indexer.measurement import make_measurement
from indexer.ntk import ntk_scales
from indexer.parameters import select_parameters
from indexer.sketches import Sketch, make_sketch, sketch_spec

WIDTHS = (784, 512, 256, 10)
NUM_PARAMETERS = sum(a * b for a, b in pairwise(WIDTHS))


class _Tensors:
    """The least a recipe can be: examples are (image, label) pairs."""

    def call(self, model: nn.Module, inputs: Any) -> Any:
        return model(inputs)

    def outputs(self, model_output: Any) -> Tensor:
        logits: Tensor = model_output
        return logits

    def collate(self, examples: Sequence[Any]) -> tuple[Any, Tensor]:
        return torch.stack([image for image, _ in examples]), torch.tensor([label for _, label in examples])


def _sketch_in_slabs(sketch: Sketch, gradients: Tensor, offset: int, out: Tensor) -> None:
    width = SLAB_BYTES // (4 * gradients.shape[0])
    for start in range(0, gradients.shape[1], width):
        slab = gradients[:, start : start + width]
        sketch.add(slab, offset + start, out)


def products(
    family: str, rows: int, dim: int, rounds: int, slices: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Alternate plain products and sketches over slices of the parameters.

    Args:
        family: A random sketch family.
        rows: b.
        dim: d.
        rounds: How many slices to time; a first one warms up.
        slices: How many slices P is cut into.
        clock: What seconds are read from.

    Returns:
        Medians, extrapolated to all of P.
    """
    sketch = make_sketch(sketch_spec(family, dim, NUM_PARAMETERS), NUM_PARAMETERS)
    size = NUM_PARAMETERS // slices
    gradients = torch.randn(rows, size)
    product, out, one_out = torch.empty(rows, dim), torch.empty(rows, dim), torch.zeros(1, dim)
    plain, sketched, alone, read = [], [], [], []
    for turn in range(rounds + 1):
        offset = turn % slices * size
        matrix = sketch.columns(offset, size)
        out.zero_()
        plain.append(timed(partial(torch.mm, gradients, matrix, out=product), clock)[0])
        read.append(timed(gradients.sum, clock)[0])
        sketched.append(timed(partial(_sketch_in_slabs, sketch, gradients, offset, out), clock)[0])
        alone.append(timed(partial(sketch.add, gradients[:1], offset, one_out), clock)[0])
        error = float((out - product).norm() / product.norm())
        if error > 1e-5:
            raise SystemExit(f"the sketch differs from the plain product by {error:.1e}")
    ratios = [a / b for a, b in zip(plain[1:], sketched[1:], strict=True)]
    flop = 2.0 * rows * dim * NUM_PARAMETERS
    plain_seconds, sketch_seconds = (statistics.median(times[1:]) * slices for times in (plain, sketched))
    return {
        "plain_product_seconds": plain_seconds,
        "plain_product_gflops": flop / plain_seconds / 1e9,
        "sketch_seconds": sketch_seconds,
        "sketch_gflops": flop / sketch_seconds / 1e9,
        "rate_against_plain_product": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "one_read_seconds": statistics.median(read[1:]) * slices,
        "reads": statistics.median(a / b for a, b in zip(sketched[1:], read[1:], strict=True)),
        "one_row_seconds": statistics.median(alone[1:]) * slices,
    }


def featurise(family: str, rows: int, dim: int) -> dict[str, float]:
    """Send random images through the whole featuriser.

    Args:
        family: A random sketch family.
        rows: b.
        dim: d.

    Returns:
        Seconds and examples per second of one block, and the seconds of a single example.
    """
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width, following in pairwise(WIDTHS):
        layers += [nn.Linear(width, following, bias=False), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).eval()
    parameters = select_parameters(model, scales=ntk_scales(model, math.sqrt(2)))
    featuriser = Featuriser(
        _Tensors(), model, sketch_spec(family, dim, NUM_PARAMETERS), make_measurement("label_logit"), parameters
    )
    examples = [(torch.rand(WIDTHS[0]), row % WIDTHS[-1]) for row in range(rows)]
    featuriser.sketch(examples[:1])
    one_seconds, _ = timed(lambda: featuriser.sketch(examples[:1]))
    before = featuriser.seconds.sketch_seconds
    block_seconds, _ = timed(lambda: featuriser.sketch(examples))
    return {
        "block_seconds": block_seconds,
        "examples_per_second": rows / block_seconds,
        "sketch_share": (featuriser.seconds.sketch_seconds - before) / block_seconds,
        "one_example_seconds": one_seconds,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Command line; None takes the process's.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["rademacher"], choices=["rademacher", "gaussian", "sjlt"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 256, 64])
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--slices", type=int, default=20, help="slices of the parameters; fewer need more memory")
    parser.add_argument("--threads", type=int, default=None, help="default: OMP_NUM_THREADS, else every core")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one thread's own CPU time: for a machine that others use; no featuriser",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.cpu_time:
        options.threads = 1
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    clock = time.thread_time if options.cpu_time else time.perf_counter
    envelope = Report("benchmarks.sketching", vars(options))
    figures: dict[str, Any] = {
        "shape": {"rows": options.rows, "parameters": NUM_PARAMETERS, "dim": options.dim},
        "featuriser": {
            family: {} if options.cpu_time else featurise(family, options.rows[0], options.dim)
            for family in options.families
        },
        "featuriser_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "sketch": {
            family: {
                str(rows): products(family, rows, options.dim, options.rounds, options.slices, clock)
                for rows in options.rows
            }
            for family in options.families
        },
    }
    report = envelope.finish(figures)
    if options.json:
        print_json(report)
        return
    for family in options.families:
        parts = {f"{rows} rows": found for rows, found in report["sketch"][family].items()}
        for part, found in {**parts, "featuriser": report["featuriser"][family]}.items():
            for name, value in found.items():
                sys.stdout.write(f"{family:12}{part:12}{name:32}{value:12.3f}\n")
    sys.stdout.write(f"peak memory with the featuriser: {report['featuriser_peak_bytes'] / 2**30:.2f} GiB\n")


if __name__ == "__main__":
    main()
