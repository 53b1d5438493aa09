"""Print the dependencies that pyproject.toml states for one extra: an image layer holds them without the sources."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
sys.stdout.write("\n".join([*project["dependencies"], *project["optional-dependencies"][sys.argv[1]]]) + "\n")
