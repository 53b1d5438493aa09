"""The pages on the API and on settings agree with the code: requests valid, tables of codes and settings complete."""

import inspect
import json
import os
import re
from pathlib import Path
from types import ModuleType

import pytest

from indexer.attributor import errors as attributor_errors
from service import engine, errors
from service.about import ABOUT
from service.problems import HTTP_ERRORS
from service.schemas.answers import Answer, ScoresResponse
from service.schemas.groups import InformationRequest, InformationResponse
from service.schemas.questions import AttributionRequest, BatchRequest, ScoresRequest, SketchesRequest
from service.schemas.revisions import Reloaded, ReloadRequest
from service.settings import Settings
from service.validation import CODES

PAGE = Path("docs/http-api.md")
CONFIGURATION = Path("docs/configuration.md")
REQUESTS = {
    "attributions": AttributionRequest,
    "attributions/batch": BatchRequest,
    "scores": ScoresRequest,
    "information": InformationRequest,
    "sketches": SketchesRequest,
    "reload": ReloadRequest,
}
ANSWERS = {"attributions": Answer, "scores": ScoresResponse, "information": InformationResponse, "reload": Reloaded}


def codes_of(module: ModuleType, base: type) -> set[str]:
    return {value.code for _, value in inspect.getmembers(module, inspect.isclass) if issubclass(value, base)}


def codes_by_status() -> dict[int, set[str]]:
    found: dict[int, set[str]] = {status: {code} for status, (code, _) in HTTP_ERRORS.items()}
    for _, value in inspect.getmembers(errors, inspect.isclass):
        if issubclass(value, errors.ServiceError):
            found.setdefault(value.status, set()).add(value.code)
    asked = codes_of(attributor_errors, attributor_errors.QuestionError) - {"invalid_question"}
    wrong = set(CODES.values()) - {"invalid_json"}
    found[422] |= asked | wrong | {"invalid_request", "invalid_value", "noise_too_small"}
    return found


def code_row(status: int) -> str:
    return f"| {status} | {' '.join(f'`{code}`' for code in sorted(codes_by_status()[status]))} |"


def settings_table() -> str:
    lines = ["| flag | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, (), False) else f"`{field.default}`"
        lines.append(
            f"| `--{name.replace('_', '-')}` · `NATTRIBUTE_{name.upper()}` | {default} | {field.description} |"
        )
    return "\n".join(lines)


@pytest.fixture(scope="module")
def page() -> str:
    text = PAGE.read_text(encoding="utf-8")
    if os.environ.get("NATTRIBUTE_WRITE_SNAPSHOTS"):
        for status in codes_by_status():
            text = re.sub(rf"^\| {status} \| .*$", lambda _, status=status: code_row(status), text, flags=re.MULTILINE)
        PAGE.write_text(text, encoding="utf-8")
    return text


def test_every_request_on_the_page_is_valid_and_every_answer_complete(page: str) -> None:
    requests = re.findall(r"```\nPOST /v1/indexes/digits/(\S+)\n```\n```json\n(.*?)```", page, re.DOTALL)
    assert {resource for resource, _ in requests} == set(REQUESTS)
    for resource, body in requests:
        REQUESTS[resource].model_validate(json.loads(body))
    answers = re.findall(
        r"POST /v1/indexes/digits/(\S+)\n```\n```json\n[^`]*```\n```\n200 application/json\n```\n```json\n(.*?)```",
        page,
        re.DOTALL,
    )
    for resource, body in answers:
        if resource in ANSWERS:
            model = ANSWERS[resource]
            shown = json.loads(body)
            model.model_validate(shown)
            assert set(shown) == set(model.model_fields)


@pytest.mark.parametrize("status", sorted(codes_by_status()))
def test_every_code_is_on_the_page(page: str, status: int) -> None:
    assert code_row(status) in page, "stale: run NATTRIBUTE_WRITE_SNAPSHOTS=1 pytest tests/service"


def test_every_setting_is_on_the_page_of_settings() -> None:
    text = CONFIGURATION.read_text(encoding="utf-8")
    if os.environ.get("NATTRIBUTE_WRITE_SNAPSHOTS"):
        text = re.sub(r"^\| flag \|.*(\n\|.*)*$", lambda _: settings_table(), text, flags=re.MULTILINE)
        CONFIGURATION.write_text(text, encoding="utf-8")
    assert settings_table() in text, "stale: run NATTRIBUTE_WRITE_SNAPSHOTS=1 pytest tests/service"


def test_the_settings_file_on_the_page_is_one(tmp_path: Path) -> None:
    shown = re.search(r"```toml\n(.*?)```", CONFIGURATION.read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None
    (tmp_path / "service.toml").write_text(shown[1])
    settings = Settings(settings=tmp_path / "service.toml")
    assert settings.index_directories().keys() == {"digits", "cifar10"}


def test_the_page_says_what_nats_do_not_mean(page: str) -> None:
    flat = " ".join(page.split())
    assert ABOUT[0].partition(":")[2].strip(" .") in flat


def test_the_four_lines_are_those_of_the_engine(page: str) -> None:
    assert engine.__doc__ is not None
    lines = [line.strip() for line in engine.__doc__.partition("::\n")[2].splitlines() if line.strip()]
    for line in lines:
        assert line in page
