"""The Grafana dashboard, the alerts and Prometheus' configuration ask for nothing that /metrics does not have."""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.anyio

MONITORING = Path("docker/monitoring")
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana/dashboards/nattribute.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))
UNIT_TESTS = yaml.safe_load((MONITORING / "alerts_test.yml").read_text(encoding="utf-8"))
#: Labels that Prometheus itself adds, or that a histogram's buckets have.
OWN_LABELS = {"le", "job", "instance"}
ROW = {"type": "row", "split": "query", "row": 1}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        yield variable["name"], variable["query"]["query"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["target"]["expr"]
    for rule in ALERTS["groups"][0]["rules"]:
        yield rule["alert"], rule["expr"]


async def samples(http: httpx.AsyncClient) -> dict[str, set[str]]:
    """The labels of every sample's name, after requests that make each."""
    for asked in ({"query": ROW, "available": True}, {"query": ROW, "budget": 0}):
        await http.post("/v1/indexes/own/attributions", json=asked)
    await http.get("/v1/indexes/own/examples/3/content")
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families((await http.get("/metrics")).text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


async def test_every_query_names_metrics_and_labels_that_exist(http: httpx.AsyncClient) -> None:
    known = await samples(http)
    for title, query in queries():
        asked = re.findall(r"\b((?:nattribute|process)_\w+)(?:\{([^}]*)\})?", query)
        assert asked or query.startswith("up{"), f"{title} asks for no metric: {query}"
        for name, matchers in asked:
            assert name in known, f"{title}: there is no {name}"
            labels = set(re.findall(r"(\w+) *(?:=~|!~|!=|=)", matchers)) - OWN_LABELS
            assert labels <= known[name], f"{title}: {name} has no label {labels - known[name]}"
        grouped = {label for group in re.findall(r"\b(?:by|on) \(([\w, ]*)\)", query) for label in group.split(", ")}
        assert grouped - OWN_LABELS - {""} <= set().union(*(known[name] for name, _ in asked), set()), title


async def test_every_metric_is_on_the_dashboard(http: httpx.AsyncClient) -> None:
    shown = {name for title, query in queries() for name in re.findall(r"\bnattribute_\w+", query)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    existing = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for name in await samples(http)
        if name.startswith("nattribute_") and not name.endswith("_created")
    }
    assert existing - families == {"nattribute_build_info"}


async def test_legends_name_labels_of_their_query(http: httpx.AsyncClient) -> None:
    for panel in panels():
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= set(re.findall(r"\w+", target["expr"])) | {"index"}, panel["title"]


async def test_the_dashboard_is_one_that_grafana_can_provision() -> None:
    source = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())
    uid = source["datasources"][0]["uid"]
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    compose = yaml.safe_load(Path("docker-compose.yml").read_text(encoding="utf-8"))["services"]
    provider = yaml.safe_load((MONITORING / "grafana/provisioning/dashboards/nattribute.yml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    assert f"./docker/monitoring/grafana/dashboards:{folder}:ro" in compose["grafana"]["volumes"]
    assert {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]} == {uid}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells


async def test_prometheus_scrapes_the_name_that_both_services_have() -> None:
    compose = yaml.safe_load(Path("docker-compose.yml").read_text(encoding="utf-8"))["services"]
    scraped = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"][0]
    host, _, port = scraped["static_configs"][0]["targets"][0].partition(":")
    for name in ("service", "service-gpu"):
        assert host in compose[name]["networks"]["default"]["aliases"]
        assert host in compose[name]["environment"]["NATTRIBUTE_ALLOWED_HOSTS"].split()
        assert compose[name]["ports"][0].endswith(f":{port}")


@pytest.mark.parametrize("check", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")])
async def test_promtool_has_nothing_to_say_about_the_alerts(check: tuple[str, ...]) -> None:
    result = promtool(*check, folder=MONITORING)
    assert result.returncode == 0, result.stdout + result.stderr


async def test_promtool_has_nothing_to_say_about_the_configuration(tmp_path: Path) -> None:
    stated = (MONITORING / "prometheus.yml").read_text(encoding="utf-8")
    at = "/etc/prometheus/alerts.yml"  # where compose mounts it
    assert stated.count(at) == 1
    shutil.copy(MONITORING / "alerts.yml", tmp_path)
    (tmp_path / "prometheus.yml").write_text(stated.replace(at, "alerts.yml"), encoding="utf-8")
    result = promtool("check", "config", "prometheus.yml", folder=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(ALERTS['groups'][0]['rules'])} rules found" in result.stdout


async def test_the_unit_tests_would_find_an_alert_that_is_never_raised(tmp_path: Path) -> None:
    shutil.copy(MONITORING / "alerts_test.yml", tmp_path)
    silenced = copy.deepcopy(ALERTS)
    for rule in silenced["groups"][0]["rules"]:
        rule["expr"] = f"({rule['expr']}) and vector(0) > 1"
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(silenced), encoding="utf-8")
    result = promtool("test", "rules", "alerts_test.yml", folder=tmp_path)
    assert result.returncode == 1
    missed = set(re.findall(r'alertname="(\w+)"', result.stdout + result.stderr))
    assert missed == {rule["alert"] for rule in silenced["groups"][0]["rules"]}


async def test_every_alert_has_a_unit_test_that_raises_it_and_one_that_does_not() -> None:
    raised: dict[str, set[bool]] = {}
    for test in UNIT_TESTS["tests"]:
        checks = test["promql_expr_test"]
        fired = [re.findall(r'alertname="(\w+)"', str(check["exp_samples"])) for check in checks]
        for alert in {alert for each in fired for alert in each}:
            raised[alert] = {alert in each for each in fired}
    assert raised == {rule["alert"]: {True, False} for rule in ALERTS["groups"][0]["rules"]}


def promtool(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool (Debian's package prometheus) is not installed")
    return subprocess.run([found, *arguments], cwd=folder, capture_output=True, text=True, check=False)
