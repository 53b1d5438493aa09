"""API keys: who may ask at all. Keys are compared by digest in constant time."""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

SHORTEST_KEY = 16


class ApiKeys:
    """The keys a service knows, held as digests.

    Attributes:
        count: How many keys there are.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        """Remember the digests of keys.

        Args:
            keys: The keys.

        Raises:
            ValueError: If there is none, or one is too short to resist guessing.
        """
        kept = list(keys)
        if not kept:
            raise ValueError("the API keys file holds no key; write one key a line")
        short = [number for number, key in enumerate(kept, 1) if len(key) < SHORTEST_KEY]
        if short:
            raise ValueError(f"API key number {short[0]} has fewer than {SHORTEST_KEY} characters")
        self._digests = [hashlib.sha256(key.encode()).digest() for key in kept]
        self.count = len(kept)

    @classmethod
    def read(cls, path: Path) -> "ApiKeys":
        """Read one key a line; empty lines and lines starting with # are skipped.

        Args:
            path: The file.

        Returns:
            The keys.
        """
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        return cls(line for line in lines if line and not line.startswith("#"))

    def know(self, authorization: str | None) -> bool:
        """Say whether an Authorization header carries a known key.

        Args:
            authorization: The header's value, None where it is absent.

        Returns:
            Whether it is ``Bearer`` with a known key. Every key is compared, so time tells nothing about them.
        """
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        found = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(found)
