"""Print the hash-locked requirements of an image: the entries of docker/requirements.lock that are for some purposes.

python docker/requirements.py cpu,torch-cpu,text > requirements.txt

What everything needs (``core``) is always among them. ``pip install --require-hashes`` takes the result.
"""

import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parent / "requirements.lock"
MARK = "# for: "

entries = [
    (set(purposes.split()), requirement)
    for purposes, _, requirement in (
        entry.partition("\n") for entry in LOCK.read_text(encoding="utf-8").split(MARK)[1:]
    )
]
wanted = {purpose for purpose in sys.argv[1].split(",") if purpose}
known = set().union(*(purposes for purposes, _ in entries)) - {"core"}
unknown = sorted(wanted - known)
if unknown:
    sys.exit(f"no purpose {unknown[0]!r}; there are {', '.join(sorted(known))}")
sys.stdout.write("".join(requirement for purposes, requirement in entries if purposes & (wanted | {"core"})))
