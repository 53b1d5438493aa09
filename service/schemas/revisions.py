"""Reading an index's directory again: what is asked, and which revision answers from then on."""

from typing import Literal

from pydantic import Field

from service.schemas.answers import IndexReference
from service.schemas.values import Request, Response

NewFiles = Literal["new", "all"]


class ReloadRequest(Request):
    """Serve what the index's directory holds now."""

    files: NewFiles = Field(
        default="new",
        description="Which files of a new revision are compared with their digests before it answers: those that the "
        "served one does not share, or all. A shared one is compared before its first use in any case.",
    )


class Reloaded(Response):
    """The revision that answers from now on."""

    index: IndexReference = Field(description="The index, with the revision that is served now.")
    previous_revision: str = Field(description="The revision that was served when the request came.")
    changed: bool = Field(description="Whether they differ.")
