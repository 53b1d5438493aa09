"""``attribution-service``: one command, whose flags are the settings, and ``reload`` for one that runs."""

import gc
import inspect
import socket
from typing import Annotated, Any, get_origin

import typer
from pydantic import ValidationError
from rich.console import Console

from service import __version__, logs
from service.cli_reload import reload
from service.settings import Settings
from service.settings_file import ENVIRONMENT_PREFIX, explain, misspelt_variables
from service.threads import limit_threads, usable_cores


def serve(**given: Any) -> None:
    r"""Serve attribution requests over HTTP against index directories.

    Every flag is also an environment variable and a key of the TOML file that --settings names; flags win over the
    environment, and that over the file.

    Example: attribution-service --index digits=indexes/digits --port 8000
    """  # noqa: DOC501 - the docstring is the help
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    flags = {name: value for name, value in given.items() if value not in (None, [])}
    for warning in misspelt_variables(Settings):
        errors.print(f"warning: {warning}", markup=False)
    try:
        settings = Settings(**flags)
        if not settings.index_directories():
            raise ValueError("no index to serve: give --index NAME=DIR, or --index-root DIR")
    except ValidationError as error:
        for told in explain(error, Settings, flags):
            errors.print(f"error: {told}", markup=False)
        raise typer.Exit(2) from None
    except ValueError as error:
        errors.print(f"error: {error}", markup=False)
        raise typer.Exit(2) from None
    logs.configure_libraries(settings.log_level)
    limit_threads(settings.num_threads)
    raise typer.Exit(run(settings, errors))


def run(settings: Settings, errors: Console) -> int:
    """Open the indexes, listen, and serve until told to stop.

    Args:
        settings: What to serve.
        errors: Where refusals are printed.

    Returns:
        The exit status: 0 after a signal, 1 when an index was refused or the port is taken.
    """
    logs.configure(settings.log_level)
    # Late, so that --help and usage errors answer without loading torch.
    import torch

    from attribution.cores import limit_cores
    from indexer.recipe import RecipeError
    from service.app import create_app
    from service.draining_server import DrainingServer
    from sketchstore.errors import IndexDirectoryError

    # A full collection walks all that torch and its friends define: half a second in which nothing is answered, for
    # objects that live to the end. What is opened later, and closed when a revision is replaced, is collected as ever.
    gc.collect()
    gc.freeze()
    torch.set_num_threads(settings.num_threads)
    # Scans are shared by all requests, so they get all cores; what each request computes alone gets its share.
    limit_cores(settings.threads or usable_cores())
    try:
        app = create_app(settings)
    except (IndexDirectoryError, RecipeError, ValueError, OSError) as error:
        errors.print(f"error: {error}", markup=False)
        return 1
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        errors.print(f"error: cannot listen on {settings.host} port {settings.port}: {error.strerror}", markup=False)
        return 1
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    # For a person, on standard output; standard error is the log, and all of it is JSON.
    print(f"attribution-service listens on http://{host}:{listener.getsockname()[1]}", flush=True)
    DrainingServer(app, app.state.service).run(sockets=[listener])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Bind a listening socket.

    Args:
        host: The address.
        port: The port; 0 takes a free one.

    Returns:
        The socket.

    Raises:
        OSError: If the address is not ours or the port is taken.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def print_version(asked: bool) -> None:
    """Print the version and stop, where it was asked for.

    Args:
        asked: Whether it was.

    Raises:
        Exit: If it was.
    """
    if asked:
        typer.echo(f"attribution-service {__version__}")
        raise typer.Exit


def command() -> Any:
    """Make the command: :func:`serve` with one option for every setting, and what is told to a running service.

    Returns:
        A Typer app.
    """
    shown_version = typer.Option("--version", is_eager=True, callback=print_version, help="Print the version and stop.")
    parameters = [
        inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        inspect.Parameter(
            "version", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, shown_version]
        ),
    ]
    for name, field in Settings.model_fields.items():
        annotation = field.annotation
        repeatable = get_origin(annotation) is tuple
        kind = list[str] if repeatable else bool if annotation is bool else str
        default = field.get_default()
        shown = "" if default in (None, (), False) else f"default: {default}; "
        option = typer.Option(
            f"--{name.replace('_', '-')}",
            help=f"{field.description} ({shown}env: {ENVIRONMENT_PREFIX}{name.upper()})",
            show_default=False,
        )
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
            )
        )

    def attribution_service(context: typer.Context, version: bool, **given: Any) -> None:
        if context.invoked_subcommand is None:
            serve(**given)

    attribution_service.__doc__ = serve.__doc__
    attribution_service.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    attribution_service.__annotations__ = {item.name: item.annotation for item in parameters}
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.callback(invoke_without_command=True)(attribution_service)
    app.command()(reload)
    return app


def main() -> None:
    """Run the command line."""
    command()(prog_name="attribution-service")


if __name__ == "__main__":
    main()
