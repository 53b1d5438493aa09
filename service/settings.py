"""Every setting of the service, once: its default, its bounds, its help. Flags, variables and the file follow it.

The command line turns each field into a flag, pydantic-settings reads the same field from ``NATTRIBUTE_<UPPER>`` and
from the TOML file that ``settings`` names, and docs/configuration.md lists them. Flags win over the environment, and
that over the file.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from service.hosts import plain_host
from service.settings_file import ENVIRONMENT_PREFIX, SettingsFile
from service.threads import usable_cores

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


class Settings(BaseSettings):
    """What one service process serves, where it listens, and what it refuses."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="forbid", frozen=True, validate_default=True)

    settings: Path | None = Field(
        default=None,
        description="A TOML file of these settings; flags win over the environment, and that over the file.",
    )
    index: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="An index to serve, as NAME=DIR or DIR; repeatable (in the environment: separated by spaces).",
    )
    index_root: Path | None = Field(
        default=None,
        description="A folder; every directory in it that holds a manifest.json is served under its own name.",
    )
    recipe: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="The recipe of an index, as NAME=FILE or NAME=BUILTIN; repeatable. A built-in one needs no flag.",
    )
    data_dir: Path | None = Field(default=None, description="The folder of data files that recipes read.")
    engine: Literal["faiss", "brute_force"] = Field(default="faiss", description="What searches the sketches.")
    check: Literal["use", "start"] = Field(
        default="use",
        description="When files are compared with their digests: each before its first use, or all at the start.",
    )

    watch_seconds: float = Field(
        default=0.0,
        ge=0,
        description="How often to look for newly published revisions in the background; questions are answered from "
        "the old one until the new one is opened and checked. 0: every question looks, and the first waits for that.",
    )

    host: str = Field(default="127.0.0.1", description="The address to bind; beyond loopback, API keys are required.")
    port: int = Field(default=8000, ge=0, le=65535, description="The port to bind; 0 takes a free one and prints it.")
    api_keys_file: Path | None = Field(
        default=None,
        description="A file with one API key a line and what it may do; requests need Authorization: Bearer KEY.",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="A host name that requests may be for, besides localhost, IP addresses and the bound host; * for "
        "any; repeatable (in the environment: separated by spaces).",
    )
    allow_unauthenticated: bool = Field(default=False, description="Serve beyond loopback without API keys.")

    max_body_bytes: int = Field(default=16 * 2**20, ge=1024, description="The largest request body, in bytes.")
    max_budget: int = Field(default=1000, ge=1, description="The largest budget of one attribution.")
    max_batch: int = Field(default=64, ge=1, description="The most requests in a batch, or queries to sketch, at once.")
    max_ids: int = Field(default=10_000, ge=1, description="The most ids in a filter or in one scores request.")
    max_queries: int = Field(default=1000, ge=1, description="The most queries of one question about groups.")
    max_groups: int = Field(default=1000, ge=1, description="The most groups of one question.")
    max_page: int = Field(default=1000, ge=1, description="The most examples in one page.")
    workers: int = Field(
        default=32,
        ge=1,
        description="How many requests are worked on at the same time. They share the scans of the index, so more "
        "workers than cores answer more.",
    )
    queue: int = Field(
        default=32, ge=0, description="How many requests may wait for a worker; beyond that the answer is 429."
    )
    deadline_seconds: float = Field(
        default=60.0,
        gt=0,
        description="How long one request may take, waiting included; beyond that the answer is 503.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="Threads of one computation (torch, FAISS, BLAS). Default: the cores divided by workers, at least "
        "1, so that requests computing at the same time do not fight for cores.",
    )
    job_store: Path | None = Field(
        default=None,
        description="The file that holds jobs and their results, on a disk that stays; made where it is missing. "
        "Without it jobs are refused.",
    )
    job_workers: int = Field(default=1, ge=1, description="How many jobs are done at the same time.")
    job_threads: int = Field(
        default=4, ge=1, description="How many requests of one job are answered at the same time; they share scans."
    )
    max_job_requests: int = Field(default=10_000, ge=1, description="The most requests or queries of one job.")
    max_queued_jobs: int = Field(default=1000, ge=1, description="How many jobs may wait; beyond that 429.")
    job_retention_seconds: float = Field(
        default=7 * 86400.0, gt=0, description="How long a job that is over is kept with its results."
    )
    otel: bool = Field(
        default=False,
        description="Send traces with OpenTelemetry (extra otel); its variables OTEL_* say where to.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least level that is logged."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources that are asked, the one that wins first."""
        return init_settings, env_settings, SettingsFile(settings_cls)

    @field_validator("index", "recipe", "allowed_hosts", mode="before")
    @classmethod
    def _split_words(cls, value: object) -> object:
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("recipe")
    @classmethod
    def _check_recipe(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            name, equals, source = item.partition("=")
            if not (name and equals and source):
                raise ValueError(f"a recipe is given as NAME=FILE or NAME=BUILTIN, not {item!r}")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(plain_host(host) for host in value)

    @model_validator(mode="after")
    def _check_exposure(self) -> "Settings":
        if self.host not in LOOPBACK_HOSTS and self.api_keys_file is None and not self.allow_unauthenticated:
            raise ValueError(
                f"host {self.host!r} is reachable from other machines and no API keys are set: give --api-keys-file, "
                "or bind 127.0.0.1, or say --allow-unauthenticated if something in front of the service checks who asks"
            )
        return self

    @property
    def num_threads(self) -> int:
        """Threads of one computation, as set or by default."""
        return self.threads if self.threads is not None else max(1, usable_cores() // self.workers)

    def index_directories(self) -> dict[str, Path]:
        """Return the directories to serve by name, ``index`` first and then what ``index_root`` holds.

        Returns:
            Directory by index name.

        Raises:
            ValueError: If two directories share a name, or ``index_root`` is not a folder.
        """
        directories: dict[str, Path] = {}
        pairs: list[tuple[str, Path]] = []
        for item in self.index:
            name, equals, path = item.partition("=")
            pairs.append((name, Path(path)) if equals else (Path(item).resolve().name, Path(item)))
        if self.index_root is not None:
            if not self.index_root.is_dir():
                raise ValueError(f"--index-root {self.index_root} is not a folder")
            pairs += [
                (path.parent.name, path.parent)
                for path in sorted(self.index_root.glob("*/manifest.json"))
                if not path.parent.name.endswith(".partial")
            ]
        for name, directory in pairs:
            if name in directories and directories[name].resolve() != directory.resolve():
                raise ValueError(f"two indexes are called {name!r}: {directories[name]} and {directory}")
            directories[name] = directory
        return directories

    def recipe_sources(self) -> dict[str, str]:
        """Return the recipe file or built-in name given for each index name."""
        return {name: source for name, _, source in (item.partition("=") for item in self.recipe)}

    def limits(self) -> dict[str, int | float]:
        """Return the limits a client needs to know, as ``/v1/info`` shows them."""
        names = (
            "max_body_bytes",
            "max_budget",
            "max_batch",
            "max_ids",
            "max_queries",
            "max_groups",
            "max_page",
            "max_job_requests",
            "max_queued_jobs",
            "job_retention_seconds",
            "workers",
            "queue",
            "deadline_seconds",
        )
        return {name: getattr(self, name) for name in names}
