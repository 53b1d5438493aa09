import pytest

from service.authentication import ApiKeys

KEYS = ["correct-horse-battery", "staple-staple-staple"]


@pytest.mark.parametrize("key", KEYS)
def test_every_known_key_is_known(key):
    assert ApiKeys(KEYS).know(f"Bearer {key}")
    assert ApiKeys(KEYS).know(f"bearer {key}")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic correct-horse-battery", KEYS[0], "Bearer x"])
def test_everything_else_is_not(header):
    assert not ApiKeys(KEYS).know(header)


def test_the_file_may_hold_comments_and_empty_lines(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# ours\n\n{KEYS[0]}\n  {KEYS[1]}  \n")
    keys = ApiKeys.read(path)
    assert keys.count == 2
    assert keys.know(f"Bearer {KEYS[1]}")


@pytest.mark.parametrize("text", ["", "# nothing\n", "short\n"])
def test_a_file_without_a_usable_key_is_refused(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ValueError, match="key"):
        ApiKeys.read(path)
