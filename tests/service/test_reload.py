"""A service told to read an index's directory again, or watching it: the new revision answers once it is proven."""

import gc
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from indexer.derive import derive
from service.app import create_app
from service.async_client import AsyncClient
from service.cli import command
from service.client import Client, ProblemError
from service.engine import Engine, open_engine
from service.local_server import local_server
from service.schemas.jobs import AttributionsJob
from service.settings import Settings
from sketchstore.default_noise import store_default_noise
from sketchstore.publish import take_name
from sketchstore.reader import open_index
from sketchstore.remove import remove_rows
from tests.index_factory import make_index, resign
from tests.reliability.test_damage import flip_bit

QUESTION = {"query": {"type": "row", "split": "query", "row": 1}, "budget": 5}
RELOAD = "/v1/indexes/margin/reload"
SHARD = "sketches/margin/00000.safetensors"


@pytest.fixture
def path(index_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(index_root / "margin", tmp_path / "margin"))


@pytest.fixture
def rebuilt(tmp_path: Path) -> Path:
    """Another index, to be published in place of the first as a build with --overwrite does."""
    index = make_index(tmp_path / "elsewhere", name="margin", view="margin", num_rows=50, num_queries=20, seed=5)
    return index.path


def publish(new: Path, target: Path) -> None:
    """Give a finished directory an index's name, as the last step of a build does."""
    partial = target.with_name(f"{target.name}.partial")
    partial.mkdir(exist_ok=True)
    content = partial / "content"
    shutil.move(new, content)
    take_name(content, target, partial)


@asynccontextmanager
async def served(path: Path, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(index=(f"margin={path}",), **options)
    app = create_app(settings, Engine.open(settings))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http,
    ):
        yield http


def still() -> dict[str, Any]:
    """A watch that does not look for the length of a test: only a reload changes what is served."""
    return {"watch_seconds": 1e5}


@pytest.mark.anyio
@pytest.mark.parametrize("check", ["use", "start"])
async def test_a_reload_serves_what_was_published_and_says_from_what_to_what(
    path: Path, rebuilt: Path, check: str
) -> None:
    before, after = open_index(path).revision, open_index(rebuilt).revision
    async with served(path, check=check, **still()) as http:
        unchanged = (await http.post(RELOAD, json={})).json()
        assert unchanged == {
            "index": {"name": "margin", "revision": before}, "previous_revision": before, "changed": False,
        }  # fmt: skip
        assert (await http.post("/v1/indexes/margin/attributions", json=QUESTION)).status_code == 200
        publish(rebuilt, path)
        # What the first question mapped is there for the next one, though the directory is deleted.
        assert (await http.post("/v1/indexes/margin/attributions", json=QUESTION)).json()["index"]["revision"] == before
        assert (await http.get("/v1/indexes/margin")).json()["revision"] == before
        reloaded = (await http.post(RELOAD, json={"files": "all"})).json()
        assert reloaded == {
            "index": {"name": "margin", "revision": after}, "previous_revision": before, "changed": True,
        }  # fmt: skip
        assert (await http.post("/v1/indexes/margin/attributions", json=QUESTION)).json()["index"]["revision"] == after
        card = (await http.get("/v1/indexes/margin")).json()
        assert (card["revision"], card["num_rows"]) == (after, 50)
        assert (await http.post(RELOAD, json={})).json()["changed"] is False


@pytest.mark.anyio
async def test_what_questions_have_picked_up_is_no_change_any_more(path: Path, rebuilt: Path) -> None:
    after = open_index(rebuilt).revision
    async with served(path) as http:
        publish(rebuilt, path)
        assert (await http.post("/v1/indexes/margin/attributions", json=QUESTION)).json()["index"]["revision"] == after
        reloaded = (await http.post(RELOAD, json={})).json()
        assert (reloaded["previous_revision"], reloaded["changed"]) == (after, False)


def flip(file: str) -> Callable[[Path], str]:
    def damage(path: Path) -> str:
        flip_bit(path / file)
        return file

    return damage


def cut(path: Path) -> str:
    file = "columns/squared_norms.margin.npy"
    (path / file).write_bytes((path / file).read_bytes()[:-8])
    return file


def drop(path: Path) -> str:
    (path / "examples.parquet").unlink()
    return "examples.parquet"


def spoil_derived(path: Path) -> str:
    derive(open_index(path))
    return flip("derived/faiss/margin/all.faiss")(path)


@pytest.mark.anyio
@pytest.mark.parametrize("look", [True, False], ids=["questions look", "only reloads"])
@pytest.mark.parametrize(
    "damage", [flip(SHARD), flip("queries/margin.safetensors"), flip("manifest.json"), cut, drop, spoil_derived]
)
async def test_a_damaged_revision_is_refused_by_the_files_name_and_the_old_one_goes_on(
    path: Path, rebuilt: Path, damage: Callable[[Path], str], look: bool
) -> None:
    sound = Path(shutil.copytree(rebuilt, rebuilt.with_name("sound")))
    after = open_index(sound).revision
    async with served(path, **({} if look else still())) as http:
        first = (await http.post("/v1/indexes/margin/attributions", json=QUESTION)).json()
        file = damage(rebuilt)
        publish(rebuilt, path)
        for _ in range(2):
            again = (await http.post("/v1/indexes/margin/attributions", json=QUESTION)).json()
            assert (again["index"], again["hits"]) == (first["index"], first["hits"])
        refused = await http.post(RELOAD, json={})
        assert (refused.status_code, refused.json()["code"]) == (409, "revision_refused")
        assert refused.json()["detail"].startswith(f"{file}: ")
        assert first["index"]["revision"] in refused.json()["detail"]
        assert file in (await http.get("/v1/indexes/margin")).json()["warnings"][0]
        assert 'nattribute_revision_refused{index="margin"} 1.0' in (await http.get("/metrics")).text
        publish(sound, path)
        assert (await http.post(RELOAD, json={})).json()["index"]["revision"] == after
        assert "refused" not in (await http.get("/v1/indexes/margin")).json()["warnings"][0]
        assert 'nattribute_revision_refused{index="margin"} 0.0' in (await http.get("/metrics")).text


@pytest.mark.anyio
async def test_a_file_mended_in_place_is_served_after_a_reload(path: Path, rebuilt: Path) -> None:
    whole = (rebuilt / SHARD).read_bytes()
    async with served(path) as http:
        flip_bit(rebuilt / SHARD)
        publish(rebuilt, path)
        assert (await http.post(RELOAD, json={})).status_code == 409
        (path / SHARD).write_bytes(whole)
        assert (await http.post(RELOAD, json={})).json()["changed"] is True


@pytest.mark.anyio
async def test_a_directory_that_is_gone_is_refused_without_its_path(path: Path) -> None:
    async with served(path, **still()) as http:
        path.rename(path.with_name("moved"))
        refused = await http.post(RELOAD, json={})
        assert refused.status_code == 409
        assert refused.json()["detail"].startswith("there is no index in its directory")
        assert str(path.parent) not in refused.text
        assert (await http.post("/v1/indexes/margin/attributions", json=QUESTION)).status_code == 200
        path.with_name("moved").rename(path)
        assert (await http.post(RELOAD, json={})).status_code == 200
        assert "refused" not in (await http.get("/v1/indexes/margin")).text


@pytest.mark.anyio
async def test_a_link_to_another_directory_is_another_revision(path: Path, rebuilt: Path, tmp_path: Path) -> None:
    link, after = tmp_path / "current", open_index(rebuilt).revision
    link.symlink_to(path)
    async with served(link, **still()) as http:
        link.unlink()
        link.symlink_to(rebuilt)
        assert (await http.post(RELOAD, json={})).json()["index"]["revision"] == after
        assert (await http.post("/v1/indexes/margin/attributions", json=QUESTION)).json()["index"]["revision"] == after


@pytest.mark.anyio
async def test_files_that_both_revisions_share_are_read_only_if_asked_for(path: Path) -> None:
    flip_bit(path / SHARD)
    async with served(path, **still()) as http:
        removed = remove_rows(open_index(path, check="sizes"), ["train:5"])
        reloaded = (await http.post(RELOAD, json={})).json()
        assert reloaded["index"]["revision"] == removed.revision
        answer = await http.post("/v1/indexes/margin/attributions", json=QUESTION | {"method": "infogain"})
        assert (answer.status_code, answer.json()["code"]) == (503, "damaged_index")
        remove_rows(open_index(path, check="sizes"), ["train:6"])
        refused = await http.post(RELOAD, json={"files": "all"})
        assert (refused.status_code, refused.json()["detail"].partition(":")[0]) == (409, SHARD)


@pytest.mark.anyio
async def test_a_watch_serves_a_new_revision_without_a_question(path: Path, rebuilt: Path) -> None:
    after = open_index(rebuilt).revision
    settings = Settings(index=(f"margin={path}",), watch_seconds=0.02)
    engine = Engine.open(settings)
    app = create_app(settings, engine)
    async with app.router.lifespan_context(app):
        publish(rebuilt, path)
        until = time.monotonic() + 60
        while engine.served("margin").index.revision != after:
            assert time.monotonic() < until
            time.sleep(0.01)
    # Without the watch, questions look again.
    removed = remove_rows(open_index(path), ["train:5"])
    assert engine.served("margin").index.revision == removed.revision


def test_a_revision_whose_recipe_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    from indexer.build import build_index
    from indexer.build_settings import BuildSettings
    from service.errors import RevisionRefusedError
    from tests.service.test_queries_by_example import RECIPE

    recipe = tmp_path / "recipe.py"
    recipe.write_text(Path(RECIPE).read_text())
    path = tmp_path / "points"
    build_index(BuildSettings(recipe=str(recipe), measurement="margin", threads=1), path)
    engine = open_engine(path, recipe=str(recipe), check="use")
    revision = engine.card().revision
    recipe.write_text("syntax error")
    resign(path, {"default_relative_noise": 0.5})
    with pytest.raises(RevisionRefusedError, match=revision):
        engine.reload()
    assert engine.card().revision == revision


def mapped(path: Path) -> int:
    """Memory maps and descriptors of this process in an index's directories, deleted ones included."""
    maps = sum(f"{path}" in line for line in Path("/proc/self/maps").read_text().splitlines())
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found += str(descriptor.readlink()).startswith(str(path))
        except OSError:  # closed meanwhile
            continue
    return maps + found


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Let go of by reference counts alone: the collector may come late, and holds maps until then."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("check", ["use", "start"])
def test_the_old_revision_is_let_go_when_its_last_request_is_over(
    path: Path, rebuilt: Path, check: Any, no_collector: None
) -> None:
    after = open_index(rebuilt).revision
    engine = open_engine(path, check=check)
    engine.questions_look(False)
    old = engine.attribute(QUESTION)
    parts = engine.stream(QUESTION)
    next(parts)
    held = mapped(path)
    assert held
    publish(rebuilt, path)
    assert engine.reload().changed
    assert engine.attribute(QUESTION).index.revision == after
    streamed = list(parts)
    assert [part.row for part in streamed[:-1]] == [hit.row for hit in old.hits]
    assert streamed[-1].index.revision == old.index.revision
    del parts, streamed
    deleted = [
        line for line in Path("/proc/self/maps").read_text().splitlines() if f"{path}" in line and "deleted" in line
    ]
    assert not deleted
    assert mapped(path) <= held


def test_a_revision_whose_files_a_question_missed_is_let_go(path: Path, rebuilt: Path, no_collector: None) -> None:
    after = open_index(rebuilt).revision
    engine = open_engine(path, check="use")
    engine.questions_look(False)
    engine.sketch({"queries": [QUESTION["query"]]})
    publish(rebuilt, path)
    assert engine.attribute(QUESTION).index.revision == after  # the shards were deleted before they were needed
    assert not [
        line for line in Path("/proc/self/maps").read_text().splitlines() if f"{path}" in line and "deleted" in line
    ]


@pytest.mark.anyio
async def test_a_job_under_way_ends_with_one_revision(path: Path, rebuilt: Path, tmp_path: Path) -> None:
    before, after = open_index(path).revision, open_index(rebuilt).revision
    settings = Settings(index=(f"margin={path}",), job_store=tmp_path / "jobs.sqlite3", job_threads=1, **still())
    engine = Engine.open(settings)
    app = create_app(settings, engine)
    async with app.router.lifespan_context(app):
        jobs = app.state.service.jobs
        requests = [{"query": {"type": "row", "row": number % 20}, "budget": 10} for number in range(400)]
        asked = AttributionsJob.model_validate({"type": "attributions", "index": "margin", "requests": requests})
        job = jobs.submit(asked, None)
        while not jobs.store.get(job.id).done:
            time.sleep(0.005)
        publish(rebuilt, path)
        assert engine.reload(index="margin").index.revision == after
        middle = jobs.store.get(job.id)
        while jobs.store.get(job.id).finished is None:
            time.sleep(0.01)
        over = jobs.store.get(job.id)
        revisions = {item["body"]["index"]["revision"] for _, item in jobs.store.items(over)}
        assert middle.done < 400
        assert (over.state, over.done, revisions) == ("done", 400, {over.revision})
        assert over.revision in (before, after)
        late = jobs.submit(asked, None)
        while jobs.store.get(late.id).finished is None:
            time.sleep(0.01)
        assert jobs.store.get(late.id).revision == after


@pytest.mark.slow
def test_reloads_from_several_clients_and_questions_meanwhile(path: Path, rebuilt: Path) -> None:
    revisions = {open_index(path).revision, open_index(rebuilt).revision}
    twin = Path(shutil.copytree(path, path.with_name("twin")))
    with local_server(path, "--watch-seconds", "1000") as url, Client(url) as client:
        over, seen, errors = threading.Event(), set(), []

        def ask() -> None:
            try:
                with Client(url) as asking:
                    while not over.is_set():
                        seen.add(asking.attribute("margin", QUESTION["query"], budget=5).index.revision)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        # A question that lacks a file of the deleted directory may open the new revision before the reload does.
        new, old = open_index(rebuilt).revision, open_index(twin).revision
        publish(rebuilt, path)
        assert client.reload("margin").index.revision == new
        publish(twin, path)
        assert client.reload("margin", files="all").index.revision == old
        over.set()
        for thread in threads:
            thread.join(60)
        assert not errors
        assert seen <= revisions
        with pytest.raises(ProblemError, match="no index is called"):
            client.reload("other")


@pytest.mark.slow
def test_the_command_reloads_and_says_what_is_served(path: Path, rebuilt: Path, tmp_path: Path) -> None:
    before, after = open_index(path).revision, open_index(rebuilt).revision
    keys, admin, reader = (tmp_path / name for name in ("keys", "admin", "reader"))
    admin.write_text("a-key-that-nobody-guesses\n")
    reader.write_text("another-key-that-nobody-guesses\n")
    keys.write_text(f"{admin.read_text().strip()} admin\n{reader.read_text().strip()} read\n")
    keys.chmod(0o600)
    options = ("--watch-seconds", "1000", "--api-keys-file", str(keys))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(command(), ["reload", *arguments])

    with local_server(path, *options) as url:
        assert run("margin", "--url", url).exit_code == 1
        assert "admin key" in run("margin", "--url", url, "--api-key-file", str(reader)).output
        known = ("--url", url, "--api-key-file", str(admin))
        unchanged = run("margin", *known)
        assert (unchanged.exit_code, unchanged.output) == (0, f"margin is served at revision {before}, as before\n")
        publish(rebuilt, path)
        changed = run("margin", "--all", *known)
        assert changed.output == f"margin is served at revision {after}, was {before}\n"
        cut(path)
        (path / "manifest.json").touch()
        refused = run("margin", *known)
        assert refused.exit_code == 1
        assert "columns/squared_norms.margin.npy" in refused.output
        assert run("other", *known).exit_code == 1
    assert run("margin", *known).exit_code == 1


@pytest.mark.anyio
async def test_the_asynchronous_client_reloads(path: Path, rebuilt: Path) -> None:
    after = open_index(rebuilt).revision
    settings = Settings(index=(f"margin={path}",), **still())
    app = create_app(settings, Engine.open(settings))
    async with (
        app.router.lifespan_context(app),
        AsyncClient("http://service", transport=httpx.ASGITransport(app)) as client,
    ):
        publish(rebuilt, path)
        reloaded = await client.reload("margin")
        assert (reloaded.index.revision, reloaded.changed) == (after, True)


def test_the_card_says_that_the_noise_was_tuned_on_other_rows(path: Path) -> None:
    store_default_noise(open_index(path), 10.0, {"method": "gp_evidence"})
    assert not any("tuned on" in warning for warning in open_engine(path).card().warnings)
    rows = open_index(path).num_rows
    remove_rows(open_index(path), ["train:3"])
    card = open_engine(path).card()
    assert (
        f"default_relative_noise 10 was tuned on {rows:,} rows, the index now has {rows - 1:,}: `indexer tune` again"
        in (card.warnings)
    )
    assert (card.default_relative_noise, card.noise_tuning["of_other_rows"]) == (10.0, True)
