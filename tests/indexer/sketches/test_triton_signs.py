"""The GPU kernel gives the CPU's signs, run by Triton's interpreter, which is chosen before Triton is imported."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="the GPU kernel's interpreter is part of the triton package")

PROGRAM = """
import sys

import torch

from indexer.precision import Precision
from indexer.sketches import SketchSpec, make_sketch
from indexer.sketches.triton_signs import add_signed

FIRST = 2**32 - 6  # coordinates on both sides of what 32 bits count
device = sys.argv[1]
generator = torch.Generator().manual_seed(0)
for dim, seed in ((3, 0), (129, 1), (384, 2**63 + 2**31 + 11)):
    sketch = make_sketch(SketchSpec("rademacher", dim, seed=seed), 2**33, 1)
    identity, columns = torch.eye(20, device=device), torch.zeros(20, dim, device=device)
    add_signed(identity, FIRST, columns, seed, sketch.scale)
    assert torch.equal(columns.cpu(), sketch.columns(FIRST, 20)), f"other signs at dim {dim}, seed {seed}"
    # Not bfloat16: the interpreter holds it as integers and multiplies those.
    for rows, parameters, dtype in ((1, 1, "float32"), (70, 45, "float32"), (5, 45, "float16")):
        whole = torch.randn(rows, 2 * parameters, generator=generator)[:, ::2]  # not contiguous
        gradients = Precision(dtype, device).rounded(whole.to(device))
        found = torch.ones(rows, dim, device=device)
        add_signed(gradients, FIRST, found, seed, sketch.scale, dtype)
        expected = 1.0 + gradients.double().cpu() @ sketch.columns(FIRST, parameters).double()
        # Rounded factors make exact products in any type, so float32 sums of 45 terms are all that differs.
        torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-5, atol=1e-5)
print("same")
"""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_triton_kernel_gives_the_cpus_signs_and_products(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, device],
        env={**os.environ, "TRITON_INTERPRET": "1" if device == "cpu" else "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "same\n", done.stderr
