"""The log's lines: JSON, failures by place and type, libraries' records by the same rule."""

import json
import logging
from typing import Any

import pytest
import structlog

from service import logs

SECRET = "what-the-client-sent"


def fail() -> None:
    try:
        int(SECRET)
    except ValueError as error:
        raise RuntimeError(f"cannot read {SECRET}") from error


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize("level", ["debug", "info"])
def test_a_failure_is_logged_by_its_places_and_with_messages_at_debug_only(capsys, level: str):
    logs.configure(level)
    try:
        fail()
    except RuntimeError as error:
        structlog.get_logger("service").error("request failed", exc_info=error)
        logging.getLogger("some.library").error("Failed with %s\nand more: %s", SECRET, SECRET, exc_info=True)
    ours, theirs = lines(capsys)
    for line in (ours, theirs):
        assert "ValueError" in line["exception"]
        assert "RuntimeError" in line["exception"]
        assert "in fail" in line["exception"]
        assert (SECRET in str(line)) == (level == "debug")
    assert theirs["logger"] == "some.library"
    assert theirs["event"].startswith("Failed with")


def test_libraries_are_heard_once_and_from_warnings_on(capsys):
    logs.configure("info")
    logs.configure("info")
    logging.getLogger("some.library").warning("careful")
    logging.getLogger("some.library").info("not so important")
    assert [line["event"] for line in lines(capsys)] == ["careful"]


def test_a_chain_that_bites_its_tail_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert logs.places_of(first).count("ValueError") == 2
