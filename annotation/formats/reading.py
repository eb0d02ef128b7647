"""Reading one record after another, so that an error names its place in the file.

No error quotes a value: prompts are private, and error texts end up in logs. Ids are named.
"""

import json
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from annotation.formats.records import Record
from data_contracts.errors import UserError

REMEDY = "Correct it there, give the format that the file has, or export it again"

_LONGEST_ID = 60
"""Characters of an id in an error: an "id" that really holds text must not end up in a log."""


def read_record(
    place: str, given: Any, read: Callable[[Any], Record], path_to_id: tuple[str, ...]
) -> Record:
    """The record at a place of a file ("line 3").

    `path_to_id` says where the comparison's id stands in `given`. Raises UserError that names the
    place, the comparison where its id can be read, and the fields at fault.
    """
    try:
        return read(given)
    except ValidationError as error:
        problem, remedy = f"check {_fields(error)}", REMEDY
    except UserError as error:
        problem, remedy = error.problem, error.remedy
    except KeyError as error:  # a part that the format has, never a value
        problem, remedy = f"there is no {error}", REMEDY
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        problem, remedy = "it is built otherwise than the format says", REMEDY
    raise UserError(f"{place}{_named(given, path_to_id)}: {problem}", remedy)


def from_json(text: Any, what: str) -> Any:
    """What JSON text says; raises UserError, which calls the text `what`."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise UserError(f"{what}: this is no JSON that can be read", REMEDY) from None


def from_json_list(text: str) -> list[Any]:
    """The elements of a JSON list; raises UserError."""
    found = from_json(text, "the whole of it")
    if not isinstance(found, list):
        raise UserError("the whole of it: this is no JSON list", REMEDY)
    return found


def _fields(error: ValidationError) -> str:
    names = {".".join(str(part) for part in e["loc"]) for e in error.errors()}
    return ", ".join(sorted(names - {""})[:3]) or "its fields"


def _named(given: Any, path_to_id: tuple[str, ...]) -> str:
    for part in path_to_id:
        given = given.get(part) if isinstance(given, dict) else None
    if not isinstance(given, str):
        return ""
    shown = given if len(given) <= _LONGEST_ID else given[: _LONGEST_ID - 1] + "…"
    return f" (comparison {shown!r})"
