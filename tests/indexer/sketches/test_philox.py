import subprocess
import sys

import numpy as np
import pytest
import torch

from indexer.sketches.philox import Stream, parameter_words, words

ALL = 0xFFFFFFFF

# The known answers that the authors publish with their implementation (philox4x32, 10 rounds).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_generator_gives_its_authors_known_answers(counter, key, expected) -> None:
    output = words(tuple(torch.tensor(word) for word in counter), key)
    assert tuple(output.tolist()) == expected


def test_words_of_a_parameter_do_not_depend_on_where_a_block_starts() -> None:
    cpu = torch.device("cpu")
    whole = parameter_words(7, Stream.RADEMACHER, 2**32 - 5, 10, 3, cpu)
    part = parameter_words(7, Stream.RADEMACHER, 2**32 - 2, 4, 2, cpu)
    assert torch.equal(whole[3:7, :8], part)


def test_streams_share_no_words() -> None:
    drawn = [parameter_words(7, stream, 0, 50, 4, torch.device("cpu")).flatten().tolist() for stream in Stream]
    assert len(set().union(*drawn)) == sum(map(len, drawn))


@pytest.mark.slow  # compiles with numba from nothing
def test_kernels_compile_where_nothing_can_be_written() -> None:
    # An installation that its user may not write to, without a home: numba has no cache folder left.
    program = (
        "from numba.core import caching\n"
        "caching.FunctionCache._impl_class._locator_classes = []\n"
        "import numpy as np\n"
        "from indexer.sketches import kernels\n"
        "out = np.zeros((2, 40), np.uint32)\n"
        "kernels.fill_signs(out, np.uint64(0), 0, np.uint32(0), np.uint32(0))\n"
        "print(int((out >> 31).sum()))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    signs = parameter_words(0, Stream.RADEMACHER, 0, 2, 1, torch.device("cpu")).numpy()
    bits = (signs[:, :2, None] >> np.arange(32)) & 1
    assert int(done.stdout) == int(bits.reshape(2, 64)[:, :40].sum())
