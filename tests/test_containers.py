"""The compose file against the compose specification, and the lock file of the images against the project's pins."""

import re
import subprocess
import sys
from typing import Any

import compose_spec
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_project import COMPOSE, PROJECT, ROOT, SERVICES, dockerfile_stages, pins

LOCK = (ROOT / "docker" / "requirements.lock").read_text(encoding="utf-8")
#: What a CUDA build of torch pins itself, exactly.
OF_TORCH = ("nvidia-", "cuda-", "triton")


def filled_in(value: Any) -> Any:
    """A compose file as compose reads it where no variable is set."""
    if isinstance(value, dict):
        return {key: filled_in(each) for key, each in value.items() if not key.startswith("x-")}
    if isinstance(value, list):
        return [filled_in(each) for each in value]
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) if isinstance(value, str) else value


def test_compose_file_is_what_the_specification_allows() -> None:
    read = compose_spec.PyCompose.from_yaml(yaml.safe_dump(filled_in(COMPOSE)))
    assert sorted(read.service_names()) == sorted(SERVICES)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("service", "read_onli"), True),
        (("service", "build", "targett"), "service"),
        (("service", "depends_on", "digits-index", "condition"), "never"),
        (("service", "ports"), ["127.0.0.1:x:8000"]),
        (("prometheus", "healthcheck", "interval"), "often"),
    ],
)
def test_the_specification_would_find_a_mistake(path: tuple[str, ...], wrong: object) -> None:
    compose = filled_in(COMPOSE)
    place = compose["services"]
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = wrong
    with pytest.raises(ValueError, match=path[0]):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose))


def test_every_promised_profile_starts_what_it_is_for() -> None:
    found: dict[str, set[str]] = {}
    for name, service in SERVICES.items():
        for profile in service["profiles"]:
            found.setdefault(profile, set()).add(name)
    assert found == {
        "cpu": {"digits-index", "service"},
        "gpu": {"digits-index", "service-gpu"},
        "index": {"indexer"},
        "index-gpu": {"indexer-gpu"},
        "monitoring": {"prometheus", "grafana"},
    }


def test_foreign_images_have_an_exact_version_and_publish_on_loopback_only() -> None:
    foreign = {name: service for name, service in SERVICES.items() if "build" not in service}
    assert set(foreign) == {"prometheus", "grafana"}
    for service in foreign.values():
        assert re.search(r":v?\d+\.\d+\.\d+$|@sha256:[0-9a-f]{64}$", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_what_compose_mounts_from_the_project_exists() -> None:
    mounted = [volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]]
    files = [path for path in mounted if path.startswith("./")]
    assert len(files) == 4
    assert [path for path in files if not (ROOT / path).exists()] == []


# ---- the lock file ---------------------------------------------------------------------------------------------------


def entries() -> list[tuple[set[str], Requirement, list[str]]]:
    """Purposes, requirement and hashes of each entry."""
    found = []
    for entry in LOCK.split("# for: ")[1:]:
        purposes, requirement, *hashes = re.split(r"\s*\\?\n\s*", entry.strip())
        found.append((set(purposes.split()), Requirement(requirement), hashes))
    return found


def test_every_entry_has_the_version_of_the_pins_and_a_hash() -> None:
    for _, requirement, hashes in entries():
        assert len(hashes) == 1, requirement
        assert re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", hashes[0]), requirement
        name = canonicalize_name(requirement.name)
        if name in pins():
            assert str(requirement.specifier) == f"=={pins()[name]}", "stale: run python docker/lock.py"
        else:
            assert name.startswith(OF_TORCH), f"constraints.txt has no pin for {name}"


@pytest.mark.parametrize("purpose", ["core", "cpu", "gpu", "text", "lora", "otel"])
def test_the_lock_has_whatever_an_image_needs(purpose: str) -> None:
    extras = PROJECT["optional-dependencies"]
    stated = [*PROJECT["dependencies"], "setuptools"] if purpose == "core" else extras[purpose]
    locked = {
        canonicalize_name(requirement.name) for purposes, requirement, _ in entries() if {purpose, "core"} & purposes
    }
    missing = {canonicalize_name(Requirement(line).name) for line in stated} - locked - {"torch"}
    assert missing == set(), "stale: run python docker/lock.py"


def chosen(purposes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "docker/requirements.py", purposes]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def names(printed: str) -> set[str]:
    return set(re.findall(r"^([\w.-]+)==", printed, re.MULTILINE))


def test_images_take_further_extras_and_have_none_by_default() -> None:
    small, text = names(chosen("cpu,torch-cpu,").stdout), names(chosen("cpu,torch-cpu,text").stdout)
    assert small < text
    assert "transformers" in text - small
    assert "peft" not in text
    refused = chosen("cpu,txt")
    assert refused.returncode == 1
    assert "there are cpu, gpu, lora" in refused.stderr


def test_the_two_builds_of_torch_differ_in_their_hash_and_cuda_libraries() -> None:
    cpu, cuda = chosen("cpu,torch-cpu").stdout, chosen("cpu,torch-cuda").stdout
    hashes = [re.search(r"^torch==\S+ \\\n +--hash=(\S+)", printed, re.MULTILINE) for printed in (cpu, cuda)]
    assert all(hashes)
    assert hashes[0][1] != hashes[1][1]  # type: ignore[index]
    assert names(cpu) < names(cuda)
    assert all(name.startswith(OF_TORCH) for name in names(cuda) - names(cpu))


def test_images_install_nothing_without_its_hash() -> None:
    for kind, torch in (("cpu", "torch-${TORCH}"), ("gpu", "torch-cuda")):
        stage = dockerfile_stages()[f"dependencies-{kind}"]
        assert "ARG EXTRAS=\n" in stage
        assert f'docker/requirements.py "{kind},{torch},${{EXTRAS}}"' in stage
        installs = re.findall(r"pip install [^\n]*", stage)
        assert installs == ["pip install --require-hashes --only-binary :all: --requirement requirements.txt"]
        own = re.findall(r"pip install [^\n&]*", dockerfile_stages()[f"installed-{kind}"])
        assert [line.strip() for line in own] == ["pip install --no-index --no-build-isolation --no-deps ."]
