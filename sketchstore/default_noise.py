"""Changing the default noise of a published index: a new manifest over the same files, put in place in one step.

It is written beside the index and moved into it: a half-written file inside would be a stranger, and make the index
damaged.
"""

from collections.abc import Mapping

from pydantic import JsonValue

from sketchstore.earlier_rows import tuned_on_these
from sketchstore.layout import finish_file, write_file
from sketchstore.manifest import BUILD_LOG, MANIFEST
from sketchstore.reader import Index
from sketchstore.revising import check_unchanged, fields_of, locked, log_line, manifest_text
from sketchstore.storing import storing


def store_default_noise(index: Index, relative_noise: float | None, tuning: Mapping[str, JsonValue] | None) -> str:
    """Publish the next revision of an index: the same, with another default noise.

    Args:
        index: The open index.
        relative_noise: σ² in units of the mean squared norm that questions get by default; None for untuned.
        tuning: How it was found, on the rows that the index has; that is added (`earlier_rows.py`).

    Returns:
        The revision.
    """
    path = index.path.resolve()
    with locked(path) as partial:
        check_unchanged(index)
        fields = fields_of(index.manifest)
        fields["default_relative_noise"] = relative_noise
        fields["noise_tuning"] = None if tuning is None else tuned_on_these(tuning, index.num_rows)
        revision, text = manifest_text(fields)
        write_file(partial / MANIFEST, text)
        finish_file(partial / MANIFEST, path / MANIFEST)
        with storing(path / BUILD_LOG), (path / BUILD_LOG).open("a", encoding="utf-8") as stream:
            stream.write(log_line({"event": "tune", "relative_noise": relative_noise}))
    return revision
