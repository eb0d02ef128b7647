"""Types of form fields and path parts, with the bounds that the database sets."""

from typing import Annotated, Literal

from fastapi import Form, Path, Query

from data_contracts.ratings import Rating

MAX_ID = 2**31 - 1

RowId = Annotated[int, Path(ge=1, le=MAX_ID)]
Week = Annotated[int, Path(ge=0, le=MAX_ID)]
WeekQuery = Annotated[int | None, Query(ge=0, le=MAX_ID)]
AfterQuery = Annotated[int | None, Query(ge=1, le=MAX_ID)]
AfterField = Annotated[int | None, Form(ge=1, le=MAX_ID)]
Text = Annotated[str, Form(max_length=1_000)]
Choice = Annotated[str, Form(pattern=f"^(left|right)-({'|'.join(Rating)})$")]
""" "left-better", "right-negligibly_better", …"""
SafetyAnswer = Annotated[Literal["", "safe", "unsafe"], Form()]
SubmissionId = Annotated[str, Form(pattern=r"^[A-Za-z0-9_-]{8,64}$")]

Shown = Annotated[str, Form(max_length=64)]
"""`labelling.fingerprint` of the sides that the page shows; a client without a page
of its own may leave it out, and has to know what it judges."""


def is_safe(answer: str) -> bool | None:
    """A safety field's answer; None where nothing was chosen."""
    return None if not answer else answer == "safe"
