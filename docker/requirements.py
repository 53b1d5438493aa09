"""Print the dependencies that pyproject.toml states for some extras: an image layer holds them without the sources.

python docker/requirements.py cpu,text > requirements.txt
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = [extra for extra in sys.argv[1].split(",") if extra]
unknown = sorted(set(extras) - set(project["optional-dependencies"]))
if unknown:
    sys.exit(f"no extra {unknown[0]!r}; there are {', '.join(sorted(project['optional-dependencies']))}")
wanted = [*project["dependencies"], *(each for extra in extras for each in project["optional-dependencies"][extra])]
sys.stdout.write("\n".join(dict.fromkeys(wanted)) + "\n")
