"""Whose key a header carries."""

import hmac

import pytest

from service.authentication import ApiKeys
from service.key_file import parse_keys

KEYS = ["correct-horse-battery", "staple-staple-staple"]


def known() -> ApiKeys:
    return ApiKeys(parse_keys([f"{KEYS[0]} name=first", f"{KEYS[1]} admin name=second indexes=a"]))


def test_every_known_key_is_its_callers():
    for scheme in ("Bearer", "bearer"):
        first = known().caller(f"{scheme} {KEYS[0]}")
        second = known().caller(f"{scheme} {KEYS[1]}")
        assert first is not None
        assert second is not None
        assert (first.name, first.kind, first.indexes) == ("first", "read", None)
        assert (second.name, second.kind, second.indexes) == ("second", "admin", {"a"})


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", f"Basic {KEYS[0]}", KEYS[0], "Bearer x"])
def test_everything_else_is_nobodys(header):
    assert known().caller(header) is None


@pytest.mark.parametrize("key", [*KEYS, "an-unknown-key-of-this-length"])
def test_every_entry_is_compared_whichever_it_is(key, monkeypatch):
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    known().caller(f"Bearer {key}")
    assert compared == [entry.digest for entry in known().keys]
