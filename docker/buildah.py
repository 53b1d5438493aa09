"""buildah, on a store of images of its own."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Buildah:
    """Runs buildah on a store of its own, so that it neither sees nor leaves anything elsewhere.

    Args:
        store: The folder of images.
        driver: buildah's storage driver: overlay, or vfs where that cannot be mounted.
    """

    def __init__(self, store: Path, driver: str) -> None:
        self._options = ["--root", str(store / "images"), "--runroot", str(store / "run"), "--storage-driver", driver]

    def __call__(self, *arguments: str) -> str:
        """Run a command; what it says goes to the terminal, what it answers comes back."""  # noqa: DOC201
        command = ["buildah", *self._options, *arguments]
        return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()

    @contextmanager
    def mounted(self, image: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Mount an image.

        Args:
            image: Its name.

        Yields:
            Its files, and its configuration.
        """
        container = self("from", "--pull-never", image)
        try:
            config = json.loads(self("inspect", container))["Docker"]["config"]
            yield Path(self("mount", container)), config
        finally:
            self("rm", container)
