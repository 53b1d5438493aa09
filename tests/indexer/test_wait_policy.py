"""How the command's threads wait is settled before torch is loaded, and by its user where they have settled it."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from indexer.__main__ import main
assert "torch" not in sys.modules, "OpenMP reads the policy when torch is loaded"
sys.argv = ["indexer", "--version"]
try:
    main()
finally:
    assert "torch" in sys.modules
    print(os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.parametrize(("given", "expected"), [(None, "passive"), ("active", "active")])
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(given, expected):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == expected
