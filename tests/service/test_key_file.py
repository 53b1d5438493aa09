"""The key file: every form of line, and what is refused without saying what the line holds."""

import hashlib
from pathlib import Path

import pytest

from service.key_file import ApiKey, KeyFileError, parse_keys, read_keys

KEY = "correct-horse-battery"
OTHER = "staple-staple-staple"


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def stored(key: str) -> str:
    return f"sha256:{digest(key).hex()}"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_key_alone_is_a_read_key_for_everything():
    (key,) = parse_keys([KEY])
    assert (key.digest, key.kind, key.indexes, key.plain) == (digest(KEY), "read", None, True)


def test_a_line_says_kind_name_and_indexes_in_any_order():
    lines = ["# ours", "", f"  {stored(KEY)}  indexes=a,b admin name=operator ", f"{OTHER} read"]
    first, second = parse_keys(lines)
    assert first == ApiKey("operator", digest(KEY), "admin", frozenset({"a", "b"}), plain=False)
    assert second.kind == "read"


def test_an_unnamed_key_is_called_the_same_plain_or_stored_and_not_after_itself():
    (plain,), (kept,) = parse_keys([KEY]), parse_keys([stored(KEY)])
    assert plain.name == kept.name
    assert plain.name.removeprefix("key-") not in (KEY, digest(KEY).hex()[:12])
    assert parse_keys([OTHER])[0].name != plain.name


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("short", "fewer than 16"),
        ("sha256:abc", "64 hexadecimal"),
        ("schlüssel-mit-umlaut", "outside ASCII"),
        (f"{KEY} write", "read or admin"),
        (f"{KEY} color=blue", "read or admin"),
        (f"{KEY} name=", "1 to 64"),
        (f"{KEY} name=a/b", "1 to 64"),
        (f"{KEY} indexes=", "commas"),
        (f"{KEY} indexes=a,,b", "commas"),
        (f"{KEY} read admin", "twice"),
        (f"{KEY} name=a name=b", "twice"),
    ],
)
def test_a_wrong_line_is_refused_by_number_and_not_quoted(line, told):
    with pytest.raises(KeyFileError, match=told) as refused:
        parse_keys([OTHER, line], "keys")
    assert "keys, line 2" in str(refused.value)
    assert line.split()[0] not in str(refused.value).replace("sha256:", "")


@pytest.mark.parametrize("lines", [[KEY, f"{KEY} admin"], [KEY, stored(KEY)], [f"{KEY} name=a", f"{OTHER} name=a"]])
def test_a_key_or_name_that_stands_twice_is_refused(lines):
    with pytest.raises(KeyFileError, match="line 2: line 1 has the same"):
        parse_keys(lines)


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_a_file_without_a_key_is_refused(tmp_path, text):
    with pytest.raises(KeyFileError, match="holds no key"):
        read_keys(write(tmp_path / "keys", text))


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602])
def test_plain_keys_that_everybody_may_read_are_refused(tmp_path, mode):
    with pytest.raises(KeyFileError, match="chmod 640") as refused:
        read_keys(write(tmp_path / "keys", f"{stored(OTHER)}\n{KEY}\n", mode))
    assert KEY not in str(refused.value)


def test_digests_may_be_read_by_everybody_and_written_by_the_owner(tmp_path):
    path = write(tmp_path / "keys", f"{stored(KEY)}\n", 0o644)
    assert read_keys(path)[0].digest == digest(KEY)
    path.chmod(0o646)
    with pytest.raises(KeyFileError, match="write to the API keys file"):
        read_keys(path)


def test_a_group_may_read_plain_keys(tmp_path):
    assert len(read_keys(write(tmp_path / "keys", f"{KEY}\n{OTHER}\n", 0o640))) == 2


def test_a_file_that_is_not_there_or_is_no_text_is_refused(tmp_path):
    with pytest.raises(KeyFileError, match="cannot be read"):
        read_keys(tmp_path / "nowhere")
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(KeyFileError, match="UTF-8"):
        read_keys(tmp_path / "keys")
