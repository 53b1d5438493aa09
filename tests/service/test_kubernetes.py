"""The Kubernetes objects of docs/operations.md: kubelet would start a service of them, and what it asks is answered."""

import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer.main
import yaml

from service.app import create_app
from service.cli import command
from service.draining_server import MARGIN_SECONDS
from service.settings import Settings
from tests.test_containers import filled_in
from tests.test_project import ROOT, SERVICES, dockerfile_stages

pytestmark = pytest.mark.anyio

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
OBJECTS: dict[str, dict[str, Any]] = {
    found["kind"]: found
    for block in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    for found in yaml.safe_load_all(block)
    if "kind" in found  # others are of docker compose
}
POD: dict[str, Any] = OBJECTS["Deployment"]["spec"]["template"]["spec"]
CONTAINER: dict[str, Any] = POD["containers"][0]
MOUNTS: dict[str, dict[str, Any]] = {mount["mountPath"]: mount for mount in CONTAINER["volumeMounts"]}
PROBES = {name: CONTAINER[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
KEYS = {kind: f"a-{kind}-key-of-the-test" for kind in ("whole", "limited")}
#: What kubelet and Prometheus write into Host: the address of the pod.
POD_ADDRESS = "10.244.1.7:8000"


def environment() -> dict[str, str]:
    """The variables of the image and of the pod, with those that Kubernetes adds for the Service."""
    found = dict(re.findall(r"(NATTRIBUTE_\w+)=(\S+)", dockerfile_stages()["service"]))
    if POD.get("enableServiceLinks", True):
        name = OBJECTS["Service"]["metadata"]["name"].upper().replace("-", "_")
        found |= {f"{name}_PORT": "tcp://10.96.0.7:8000", f"{name}_SERVICE_HOST": "10.96.0.7"}
    return found | {each["name"]: each["value"] for each in CONTAINER["env"]}


def settings_of(arguments: list[str], variables: dict[str, str], patch: pytest.MonkeyPatch) -> Settings:
    for name, value in variables.items():
        patch.setenv(name, value)
    given = typer.main.get_command(command()).make_context("attribution-service", list(arguments)).params
    return Settings(**{name: value for name, value in given.items() if name != "version" and value not in (None, ())})


@pytest.fixture
def stated(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of the container, as they are written."""
    return settings_of(CONTAINER["args"], environment(), monkeypatch)


@pytest.fixture
def mounted(tmp_path: Path, index_root: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The same where each mount is a folder here: small indexes, a key file, an empty folder for jobs."""
    lines = (
        f"sha256:{hashlib.sha256(KEYS['whole'].encode()).hexdigest()} read name=whole",
        f"sha256:{hashlib.sha256(KEYS['limited'].encode()).hexdigest()} read name=limited indexes=own",
    )
    for path, mount in MOUNTS.items():
        (tmp_path / mount["name"]).mkdir()
        if mount["name"] == "keys":
            (tmp_path / "keys" / key_file_of_the_console()).write_text("\n".join(lines))
        assert path.startswith("/")
    folders = {path: tmp_path / mount["name"] for path, mount in MOUNTS.items()} | {"/indexes": index_root}

    def here(text: str) -> str:
        return next((f"{folder}{text[len(path) :]}" for path, folder in folders.items() if text.startswith(path)), text)

    arguments = [here(each) for each in CONTAINER["args"]]
    return settings_of(arguments, {name: here(value) for name, value in environment().items()}, monkeypatch)


@pytest.fixture
async def pod(mounted: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(mounted)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url=f"http://{POD_ADDRESS}") as client,
    ):
        yield client


def key_file_of_the_console() -> str:
    """The name under which the Secret that the page's command makes holds the key file."""
    name = next(volume["secret"]["secretName"] for volume in POD["volumes"] if "secret" in volume)
    found = re.search(rf"^\$ kubectl create secret generic {name} --from-file=(\w+)", PAGE, re.MULTILINE)
    assert found, f"no command makes the Secret {name}"
    return found[1]


def paths(settings: Settings) -> Iterator[Path]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Path):
            yield value


async def test_arguments_and_variables_are_settings_of_a_service_that_starts(stated: Settings) -> None:
    assert (stated.host, stated.port) == ("0.0.0.0", 8000)
    assert not stated.allow_unauthenticated
    assert stated.api_keys_file is not None
    assert stated.api_keys_file.name == key_file_of_the_console()


async def test_every_path_of_the_settings_is_mounted(stated: Settings) -> None:
    assert len(list(paths(stated))) >= 3
    for path in paths(stated):
        assert any(path.is_relative_to(mount) for mount in MOUNTS), path
    assert stated.job_store is not None
    assert not MOUNTS[str(stated.job_store.parent)].get("readOnly")


async def test_mounts_and_volumes_are_each_others_and_those_of_compose() -> None:
    volumes = [volume["name"] for volume in POD["volumes"]]
    assert sorted(volumes) == sorted(mount["name"] for mount in MOUNTS.values())
    of_compose = {volume.split(":")[1]: volume.endswith(":ro") for volume in filled_in(SERVICES["service"]["volumes"])}
    del of_compose["/data"]  # for recipes that read files; the example has none
    of_compose |= dict.fromkeys(SERVICES["service"]["tmpfs"], False)
    here = {path: mount.get("readOnly", False) for path, mount in MOUNTS.items() if mount["name"] != "keys"}
    assert here == of_compose


async def test_ports_and_labels_are_those_of_the_service(stated: Settings) -> None:
    assert CONTAINER["ports"] == [{"name": "http", "containerPort": stated.port}]
    spec, labels = OBJECTS["Service"]["spec"], OBJECTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert [port["targetPort"] for port in spec["ports"]] == ["http"]
    assert spec["selector"] == labels == OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"]
    assert OBJECTS["Service"]["metadata"]["name"] in stated.allowed_hosts


async def test_one_process_owns_the_job_store() -> None:
    spec = OBJECTS["Deployment"]["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}


async def test_the_pod_is_confined_as_compose_and_the_image_are() -> None:
    user = re.search(r"USER (\d+):(\d+)", dockerfile_stages()["service"])
    assert user
    context = POD["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (int(user[1]), int(user[2]), 10001)
    # What the Pod Security standard `restricted` wants.
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": SERVICES["service"]["cap_drop"]},
    }
    assert all({"secret", "persistentVolumeClaim", "emptyDir"} & set(volume) for volume in POD["volumes"])
    memory = filled_in(SERVICES["service"]["mem_limit"])
    assert CONTAINER["resources"]["limits"]["memory"] == memory.replace("g", "Gi")


async def test_grace_is_longer_than_the_longest_stop(stated: Settings) -> None:
    margin = re.search(r"after `deadline_seconds` and (\d+)\s+seconds", PAGE)
    assert margin
    assert int(margin[1]) >= 2 * MARGIN_SECONDS  # for requests, and for connections that do not close
    assert POD["terminationGracePeriodSeconds"] > stated.deadline_seconds + int(margin[1])
    assert SERVICES["service"]["stop_grace_period"] == f"{POD['terminationGracePeriodSeconds']}s"


async def test_probes_ask_what_the_app_answers_without_a_key(pod: httpx.AsyncClient) -> None:
    for name, probe in PROBES.items():
        assert probe["httpGet"]["port"] == "http"
        answer = await pod.get(probe["httpGet"]["path"])
        assert answer.status_code == 200, f"{name}: {answer.text}"
    assert PROBES["livenessProbe"]["httpGet"]["path"] != PROBES["readinessProbe"]["httpGet"]["path"]


async def test_prometheus_needs_a_key_that_is_not_limited(pod: httpx.AsyncClient) -> None:
    assert (await pod.get("/metrics")).status_code == 401
    for kind, status in (("limited", 403), ("whole", 200)):
        answer = await pod.get("/metrics", headers={"Authorization": f"Bearer {KEYS[kind]}"})
        assert answer.status_code == status


async def test_clients_ask_by_the_services_names_and_no_others(pod: httpx.AsyncClient) -> None:
    key = {"Authorization": f"Bearer {KEYS['whole']}"}
    name = OBJECTS["Service"]["metadata"]["name"]
    for tail in ("", ".default", ".default.svc", ".default.svc.cluster.local"):
        assert (await pod.get("/v1/indexes", headers=key | {"Host": f"{name}{tail}:8000"})).status_code == 200
    assert (await pod.get("/v1/indexes", headers=key | {"Host": "elsewhere.example"})).status_code == 421
    assert (await pod.get("/v1/jobs", headers=key)).status_code == 200
