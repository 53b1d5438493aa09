"""Whose key a request carries, and what routes ask of it. Keys are compared by digest in constant time."""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from service.caller import STRANGER, Caller
from service.errors import ForbiddenError, UnauthorizedError
from service.key_file import ApiKey, read_keys
from service.state import State, state_of

CALLER = "caller"


class ApiKeys:
    """The keys a service knows, held as digests.

    Attributes:
        keys: The entries of the key file.
    """

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        """Know some keys.

        Args:
            keys: The keys; see :func:`service.key_file.read_keys` for what it refuses.
        """
        self.keys = tuple(keys)
        self._callers = [(key.digest, Caller(key.name, key.kind, key.indexes)) for key in self.keys]

    @classmethod
    def read(cls, path: Path) -> "ApiKeys":
        """Read a key file.

        Args:
            path: The file.

        Returns:
            The keys.
        """
        return cls(read_keys(path))

    def caller(self, authorization: str | None) -> Caller | None:
        """Find whose key an Authorization header carries.

        Args:
            authorization: The header's value, None where it is absent.

        Returns:
            The caller; None where it is not ``Bearer`` with a known key. Every key is compared, whichever it is, so
            that time tells nothing about them.
        """
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        found: Caller | None = None
        for known, caller in self._callers:
            same = hmac.compare_digest(digest, known)
            found = caller if same else found
        return found if scheme.lower() == "bearer" else None


def _caller(request: Request) -> Caller:
    caller: Caller = request.scope[CALLER]
    return caller


# Dependencies wait for nothing and are async all the same: FastAPI hands each that is not to a pool of threads, which
# took a third of the time of a small request.
async def caller_of(request: Request) -> Caller:
    """Return who sent a request, as the gate found out."""
    return _caller(request)


async def require_visible_index(request: Request, service: Annotated[State, Depends(state_of)]) -> None:
    """Refuse a path whose index does not exist for the caller; for every route, before its parameters are judged.

    Judged here, an index that is hidden and one that is not there are refused alike, whatever else is wrong.

    Args:
        request: The request.
        service: The service.
    """
    index = request.path_params.get("index")
    if index is not None:
        _caller(request).check_index(index, service.engine.names)


async def require_admin(request: Request) -> None:
    """Refuse callers whose key is not an admin key: for whatever changes more than the caller's own jobs.

    Args:
        request: The request.

    Raises:
        UnauthorizedError: If the request came without a known key.
        ForbiddenError: If its key is a read key.
    """
    caller = _caller(request)
    if caller is STRANGER:
        raise UnauthorizedError
    if caller.kind != "admin":
        raise ForbiddenError("this needs an admin key, and the request's is a read key; see docs/configuration.md")


async def require_all_indexes(request: Request) -> None:
    """Refuse callers whose key is limited to some indexes: for what is about all of them at once.

    Args:
        request: The request.

    Raises:
        ForbiddenError: If the key is limited.
    """
    if _caller(request).indexes is not None:
        raise ForbiddenError("this is about all indexes at once, and the request's key is limited to some")


CallerOf = Annotated[Caller, Depends(caller_of)]
VisibleIndex = Depends(require_visible_index)
Admin = Depends(require_admin)
AllIndexes = Depends(require_all_indexes)
