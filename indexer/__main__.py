"""The command ``indexer``, also as ``python -m indexer``: settles how threads wait, then runs the command line.

After a product torch's OpenMP threads spin for milliseconds on a core each, in case another follows. Sketches alternate
products with kernels of their own threads, which then wait for that core: on two cores signs and product reached 83 %
of the plain product's rate, and 91 % with threads that sleep (docs/benchmarks.md).
"""

import os

WAIT_POLICY = "OMP_WAIT_POLICY"


def main() -> None:
    """Run the command line of this process.

    Raises:
        SystemExit: With 130, at a Ctrl-C before the command line is there; else as the command line ends.
    """
    # OpenMP reads it once, when torch is loaded; worker processes inherit it.
    os.environ.setdefault(WAIT_POLICY, "passive")
    try:
        from indexer.cli import main as run
    except KeyboardInterrupt:  # two seconds of imports: long enough for a Ctrl-C
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
