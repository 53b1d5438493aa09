"""The app factory: settings and an engine become an ASGI app. Nothing happens at import."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import structlog
from anyio import to_thread
from fastapi import FastAPI

from service import __version__, documentation, problems
from service.authentication import ApiKeys, VisibleIndex
from service.engine import Engine
from service.hosts import AllowedHosts
from service.jobs.jobs import Jobs
from service.metrics import Metrics
from service.middleware import Gate
from service.observer import Observers
from service.revision_watch import RevisionWatch
from service.routes import (
    attributions,
    examples,
    indexes,
    info,
    information,
    jobs,
    operations,
    reload,
    scores,
    sketches,
)
from service.settings import Settings
from service.state import State
from service.tracing import Tracing, make_tracing
from service.workplace import Workplace

log = structlog.get_logger("service")

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def bare_app(settings: Settings, lifespan: Lifespan | None = None) -> FastAPI:
    """Make the app's routes and documentation without anything behind them.

    Args:
        settings: Where the limits are that the documentation states.
        lifespan: What runs around serving.

    Returns:
        An app that can describe itself and not yet answer.
    """
    app = FastAPI(
        title=documentation.TITLE,
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for resource in (info, indexes, reload, attributions, scores, information, sketches, examples, jobs, operations):
        app.include_router(resource.router, dependencies=[VisibleIndex])
    problems.install(app)
    documentation.install(app, settings)
    return app


def create_app(
    settings: Settings | None = None, engine: Engine | None = None, tracing: Tracing | None = None
) -> FastAPI:
    """Make the service's app; the indexes are opened here, before anything listens.

    Args:
        settings: What to serve and allow; None reads the environment.
        engine: An open engine; None opens the indexes that the settings name.
        tracing: What traces requests; None makes what the settings ask for.

    Returns:
        The app.
    """
    settings = settings or Settings()
    tracing = tracing or make_tracing(settings)
    engine = engine or Engine.open(settings)
    keys = ApiKeys.read(settings.api_keys_file) if settings.api_keys_file is not None else None
    hosts = AllowedHosts(settings.allowed_hosts, settings.host)
    workplace = Workplace(settings.workers, settings.queue)
    state = State(settings, engine, workplace, Metrics(workplace), tracing=tracing)

    state.jobs = Jobs(settings, engine, state.check_attribution) if settings.job_store is not None else None

    state.metrics.watch_service(lambda: state.ready, lambda: state.in_flight)
    state.metrics.watch_engine(engine)
    if state.jobs is not None:
        state.metrics.watch_jobs(state.jobs.count)
    state.metrics.watch_revisions(engine.names, lambda name: engine.refusal(name) is not None)
    engine.observe(Observers([state.metrics, tracing]))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watch = RevisionWatch(engine, settings.watch_seconds) if settings.watch_seconds else None
        if watch is not None:
            watch.start()
        if state.jobs is not None:
            state.jobs.start()
        state.ready = not state.draining  # a signal may come while the indexes are opened
        revisions = {served.name: served.index.revision for served in engine.open_now()}
        log.info("service begins", version=__version__, indexes=revisions)
        yield
        state.ready = False
        if state.jobs is not None:
            await to_thread.run_sync(state.jobs.stop)
        if watch is not None:
            watch.stop()
        await to_thread.run_sync(tracing.close)
        log.info("service is over")

    app = bare_app(settings, lifespan)
    app.state.service = state
    app.add_middleware(Gate, max_body_bytes=settings.max_body_bytes, keys=keys, hosts=hosts, state=state)
    return app
