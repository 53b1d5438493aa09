"""``attribution-service reload``: tell a running service that an index has a new revision."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.calls import DEFAULT_URL

KEY_VARIABLE = "NATTRIBUTE_API_KEY"


def reload(
    index: Annotated[str, typer.Argument(help="The name it is served by.")],
    url: Annotated[str, typer.Option(help="Where the service listens.", envvar="NATTRIBUTE_URL")] = DEFAULT_URL,
    all_files: Annotated[
        bool, typer.Option("--all", help="Also read the files that both revisions share, before the new one answers.")
    ] = False,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help=f"A file whose first line is the API key; or the environment variable {KEY_VARIABLE}."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait: the new files are read meanwhile.")] = 3600.0,
) -> None:
    r"""Have a running service serve what the index's directory holds now.

    Ends with 1 where the new revision is refused: the old one goes on answering.

    Example: attribution-service reload digits --url http://127.0.0.1:8000
    """  # noqa: DOC501 - the docstring is the help
    # Late, so that --help answers at once.
    import os

    import httpx

    from service.client import Client, NotOurServiceError, ProblemError

    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        key = os.environ.get(KEY_VARIABLE)
        if api_key_file is not None:
            key = api_key_file.read_text(encoding="utf-8").partition("\n")[0].strip()
        with Client(url, api_key=key, timeout=timeout) as client:
            reloaded = client.reload(index, "all" if all_files else "new")
    except (ProblemError, NotOurServiceError, httpx.HTTPError, OSError) as error:
        errors.print(f"error: {error}", markup=False)
        raise typer.Exit(1) from None
    now = reloaded.index.revision
    was = f", was {reloaded.previous_revision}" if reloaded.changed else ", as before"
    typer.echo(f"{index} is served at revision {now}{was}")
