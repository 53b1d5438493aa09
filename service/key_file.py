"""The key file: one API key a line, plain or as its digest, with what it may do.

::

    # KEY [read|admin] [name=NAME] [indexes=NAME,NAME]
    sha256:5a0c… admin name=operator
    sha256:91fe… read name=dashboard indexes=digits,cifar10
    a-plain-key-of-sixteen-characters-or-more

A line that says nothing else is a read key for all indexes. docs/configuration.md has the reference.
"""

import hashlib
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SHORTEST_KEY = 16
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")
FORM = "KEY [read|admin] [name=NAME] [indexes=NAME,NAME]"


@dataclass(frozen=True)
class ApiKey:
    """One entry of a key file.

    Attributes:
        name: What the service calls the key in its log, and whose its jobs are; a new key of the same name has them.
        digest: SHA-256 of the key.
        kind: read or admin.
        indexes: The only indexes it is for; None: all.
        plain: Whether the file holds the key itself rather than its digest.
    """

    name: str
    digest: bytes
    kind: Literal["read", "admin"] = "read"
    indexes: frozenset[str] | None = None
    plain: bool = False


class KeyFileError(ValueError):
    """The key file cannot be used; the message names the line and what is allowed, and never what the line holds."""


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read a key file.

    Args:
        path: The file.

    Returns:
        Its keys, at least one, no two of the same name or digest.

    Raises:
        KeyFileError: If it cannot be read, holds plain keys and everybody on the machine may read it, or a line is not
            of the form.
    """
    try:
        with path.open(encoding="utf-8") as file:
            mode = path.stat().st_mode
            keys = parse_keys(file, str(path))
    except OSError as error:
        raise KeyFileError(f"the API keys file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise KeyFileError(f"the API keys file {path} is not text in UTF-8") from error
    if mode & (stat.S_IROTH | stat.S_IWOTH) and any(key.plain for key in keys):
        raise KeyFileError(
            f"the API keys file {path} holds plain keys and is open to everybody on this machine (mode "
            f"{stat.S_IMODE(mode):04o}): chmod 640 it, or store the keys as sha256:DIGEST"
        )
    if mode & stat.S_IWOTH:
        raise KeyFileError(
            f"everybody on this machine may write to the API keys file {path} (mode {stat.S_IMODE(mode):04o}): "
            "chmod 644 it"
        )
    return keys


def parse_keys(lines: Iterable[str], file: str = "the API keys file") -> tuple[ApiKey, ...]:
    """Read the lines of a key file; empty lines and those that start with # are skipped.

    Args:
        lines: The lines.
        file: What to call the file in refusals.

    Returns:
        The keys, in their order.

    Raises:
        KeyFileError: If a line is not of the form, two keys have one name or one digest, or there is no key.
    """
    keys: list[ApiKey] = []
    seen: dict[str | bytes, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        key = _parse(words, f"{file}, line {number}")
        for what, value in (("name", key.name), ("key", key.digest)):
            if value in seen:
                raise KeyFileError(f"{file}, line {number}: line {seen[value]} has the same {what}")
            seen[value] = number
        keys.append(key)
    if not keys:
        raise KeyFileError(f"{file} holds no key; write one a line, as {FORM}")
    return tuple(keys)


def _parse(words: list[str], place: str) -> ApiKey:
    secret, *rest = words
    stored = DIGEST.fullmatch(secret)
    if stored is None and secret.startswith("sha256:"):
        raise KeyFileError(f"{place}: sha256: is followed by the 64 hexadecimal digits of the key's SHA-256")
    if stored is None and len(secret) < SHORTEST_KEY:
        raise KeyFileError(f"{place}: the key has fewer than {SHORTEST_KEY} characters")
    if not secret.isascii():  # a header carries no other characters
        raise KeyFileError(f"{place}: the key has characters outside ASCII")
    digest = bytes.fromhex(stored[1]) if stored is not None else hashlib.sha256(secret.encode()).digest()
    # A digest of the digest: it names the key in logs, and gives away nothing that is in the file.
    name = f"key-{hashlib.sha256(digest).hexdigest()[:12]}"
    kind: Literal["read", "admin"] = "read"
    indexes: frozenset[str] | None = None
    seen: set[str] = set()
    for word in rest:
        what, equals, value = word.partition("=")
        if word in ("read", "admin"):
            what, kind = "kind", "admin" if word == "admin" else "read"
        elif equals and what == "name" and NAME.fullmatch(value):
            name = value
        elif equals and what == "indexes" and all(value.split(",")):
            indexes = frozenset(value.split(","))
        elif what in ("name", "indexes"):
            allowed = "1 to 64 of A-Z a-z 0-9 . _ -" if what == "name" else "names with commas between them, no spaces"
            raise KeyFileError(f"{place}: {what}= is followed by {allowed}")
        else:  # not quoted: it may be part of a key with a space in it
            raise KeyFileError(
                f"{place}: after the key stand read or admin, name=NAME, indexes=NAME,NAME; nothing else"
            )
        if what in seen:
            raise KeyFileError(f"{place}: the {what} is given twice")
        seen.add(what)
    return ApiKey(name, digest, kind, indexes, plain=stored is None)
