"""The GPU kernel gives the CPU's signs, run by Triton's interpreter, which is chosen before Triton is imported."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="the GPU kernel's interpreter is part of the triton package")

PROGRAM = """
import torch

from indexer.precision import Precision
from indexer.sketches import SketchSpec, make_sketch
from indexer.sketches.triton_signs import add_signed

FIRST = 2**32 - 6  # coordinates on both sides of what 32 bits count
generator = torch.Generator().manual_seed(0)
for dim, seed in ((3, 0), (129, 1), (384, 2**63 + 2**31 + 11)):
    sketch = make_sketch(SketchSpec("rademacher", dim, seed=seed), 2**33, 1)
    identity, columns = torch.eye(20), torch.zeros(20, dim)
    add_signed(identity, FIRST, columns, seed, sketch.scale)
    assert torch.equal(columns, sketch.columns(FIRST, 20)), f"other signs at dim {dim}, seed {seed}"
    # Not bfloat16: the interpreter holds it as integers and multiplies those.
    for rows, parameters, dtype in ((1, 1, "float32"), (70, 45, "float32"), (5, 45, "float16")):
        whole = torch.randn(rows, 2 * parameters, generator=generator)[:, ::2]  # not contiguous
        gradients = Precision(dtype, "cpu").rounded(whole)
        found = torch.ones(rows, dim)
        add_signed(gradients, FIRST, found, seed, sketch.scale, dtype)
        expected = 1.0 + gradients.double() @ sketch.columns(FIRST, parameters).double()
        # Rounded factors make exact products in any type, so float32 sums of 45 terms are all that differs.
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
print("same")
"""


def test_the_triton_kernel_gives_the_cpus_signs_and_products():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "same\n", done.stderr
