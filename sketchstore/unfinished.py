"""The unfinished build beside its target: ``name.partial/`` with plan, scales, journal, lock and the index to be."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import filelock
from pydantic import TypeAdapter, ValidationError

from sketchstore.digests import digest_json
from sketchstore.errors import (
    BuildInProgressError,
    DamagedBuildError,
    IndexExistsError,
    ResumeMismatchError,
    UnfinishedBuildError,
    listed,
)
from sketchstore.layout import PARTIAL_SUFFIX, write_file
from sketchstore.plan import BuildPlan
from sketchstore.publish import PUBLISHING, REPLACED

PLAN = "plan.json"
SCALES = "scales.json"
JOURNAL = "journal.jsonl"
LOCK = "lock"
REPLACES = "replaces"
"""Its presence says that the build was begun to replace an index at its target."""
CONTENT = "index"
CURE = "Build anew with --overwrite instead of --resume."


def partial_path(path: Path) -> Path:
    """Where an index is built before it is published.

    Args:
        path: Where it will be.

    Returns:
        ``name.partial`` beside it.
    """
    return path.with_name(path.name + PARTIAL_SUFFIX)


def appending_path(path: Path) -> Path:
    """Where rows are sketched before they are appended to an index.

    Args:
        path: The index directory.

    Returns:
        ``name.appending.partial`` beside it.
    """
    return path.with_name(f"{path.name}.appending{PARTIAL_SUFFIX}")


def take_lock(partial: Path) -> filelock.BaseFileLock:
    """Make sure that nobody else builds here.

    Args:
        partial: ``name.partial``.

    Returns:
        The lock, held until it is released or the process ends.

    Raises:
        BuildInProgressError: If another process holds it.
    """
    lock = filelock.FileLock(partial / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise BuildInProgressError(f"another process is building {partial}; wait for it, or stop it") from error
    return lock


def put_back(partial: Path, target: Path) -> None:
    """Give an index its name again, where a kill came when nothing had it (`publish.take_name`).

    Args:
        partial: ``name.partial``, locked.
        target: Where the index is published.
    """
    if (partial / REPLACED).exists() and not os.path.lexists(target):
        os.rename(partial / REPLACED, target)


def clear(partial: Path, target: Path) -> None:
    """Delete ``name.partial``, the lock last: whoever takes it after this must find nothing that is still to go.

    The plan goes first: without it there is no build to resume, and one that has been published is known by its index.

    Args:
        partial: ``name.partial``, locked.
        target: Where the index is published.
    """
    put_back(partial, target)
    with suppress(OSError):  # what has just been published is not to fail by this; somebody else may have a lock by now
        (partial / PLAN).unlink(missing_ok=True)
        for entry in partial.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != LOCK:
                entry.unlink()
        (partial / LOCK).unlink(missing_ok=True)
        partial.rmdir()


def was_published(target: Path, partial: Path) -> bool:
    """Whether a kill came between the rename that published and the clean-up after it.

    Args:
        target: Where the index is published.
        partial: ``name.partial``.

    Returns:
        True if the index there is the one that this build was publishing.
    """
    try:
        revision = json.loads((partial / PUBLISHING).read_bytes())["revision"]
        found = json.loads((target / "manifest.json").read_bytes())["revision"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return False
    return bool(revision == found)


def refuse_what_is_there(target: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to build where something is, as far as that can be said before there is a plan.

    Args:
        target: Where the index will be published.
        resume: Whether an unfinished build is continued.
        overwrite: Whether what is there is replaced.

    Raises:
        IndexExistsError: If there is something at ``target``, and it is neither to be replaced nor the unfinished
            build's own.
        UnfinishedBuildError: If there is an unfinished build, and neither ``resume`` nor ``overwrite`` is set.
    """
    partial = partial_path(target)
    started = (partial / PLAN).exists()
    own = resume and (not started or (partial / PUBLISHING).exists() or (partial / REPLACES).exists())
    if os.path.lexists(target) and not overwrite and not own:
        raise IndexExistsError(f"{target} exists. Choose another --out, or replace it with --overwrite.")
    if started and not resume and not overwrite:
        raise UnfinishedBuildError(
            f"{partial} holds an unfinished build. Continue it with --resume, or discard it with --overwrite."
        )


def prepare(partial: Path, plan: BuildPlan, *, keep: bool, replaces: bool) -> None:
    """Make ``name.partial`` ready for writing: checked against the plan, or emptied, and free of half-written files.

    Args:
        partial: ``name.partial``, locked.
        plan: The build plan.
        keep: Whether to continue what is there.
        replaces: Whether an index at the target is to be replaced, by this process or one that resumes.
    """
    if keep:
        planned = _read_plan(partial / PLAN)
        plan.check_resumes(planned, str(partial))
    else:
        for entry in partial.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != LOCK:
                entry.unlink()
    if replaces:
        write_file(partial / REPLACES, b"")
    if not keep:  # last: with its plan a build has begun
        write_file(partial / PLAN, (plan.model_dump_json(indent=2) + "\n").encode())
    (partial / CONTENT).mkdir(exist_ok=True)
    (partial / PUBLISHING).unlink(missing_ok=True)
    for leftover in [*partial.rglob(".*.tmp"), *partial.rglob(".*.spool")]:
        leftover.unlink()


def _read_plan(path: Path) -> BuildPlan:
    """Read the plan of an unfinished build.

    Returns:
        The plan.

    Raises:
        DamagedBuildError: If it is none.
    """
    try:
        return BuildPlan.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise DamagedBuildError(f"{path} is not the plan of a build any more. {CURE}") from error


def write_scales(path: Path, scales: dict[str, int]) -> None:
    """Store the scale exponents of a build, with their digest: other ones would give every sketch another length.

    Args:
        path: scales.json.
        scales: Exponents by view.
    """
    write_file(path, json.dumps({"exponents": scales, "blake3": digest_json(scales)}).encode())


def read_scales(path: Path, plan: BuildPlan) -> dict[str, int] | None:
    """The scale exponents that the build has fixed.

    Args:
        path: scales.json.
        plan: The build plan.

    Returns:
        Exponents by view; None while a float16 build has none; zeros for float32.

    Raises:
        ResumeMismatchError: If they are of other views.
        DamagedBuildError: If they are not as they were written.
    """
    if plan.dtype == "float32":
        return dict.fromkeys(plan.views, 0)
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_bytes())
        scales = TypeAdapter(dict[str, int]).validate_python(stored["exponents"], strict=True)
        sound = stored["blake3"] == digest_json(scales)
    except (ValueError, TypeError, KeyError, OSError):
        sound = False
    if not sound:
        raise DamagedBuildError(f"{path} does not hold the scales of this build any more. {CURE}")
    if set(scales) != set(plan.views):
        raise ResumeMismatchError(f"{path} has scales of {listed(scales)}, the plan has {listed(plan.views)}")
    return scales
