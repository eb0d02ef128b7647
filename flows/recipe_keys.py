"""The dotted keys of a recipe, and what is wrong with one: the nearest known key, a short value."""

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel


def settings_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a record of settings."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in _models_in(field.annotation):
            yield from settings_keys(inner, f"{prefix}{name}.")


def problem(error: dict[str, Any], model: type[BaseModel]) -> str:
    """One of pydantic's errors as a reader of the record's keys needs it."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {key}{_did_you_mean(key, model)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if error["type"] in ("missing", "value_error"):
        return f"{key or 'the recipe'}: {message}"
    return f"{key}: {message}, not {_short(error['input'])}"


def _did_you_mean(key: str, model: type[BaseModel]) -> str:
    known = list(settings_keys(model))
    parent, _, leaf = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    for candidates, wanted in (
        (siblings, key),
        ([k for k in known if k.rpartition(".")[2] == leaf], leaf),
        (known, key),
    ):
        near = difflib.get_close_matches(wanted, candidates, n=1, cutoff=0.6)
        if near or (wanted == leaf and candidates):
            return f" (did you mean {(near or candidates)[0]}?)"
    return ""


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif not isinstance(annotation, type):
        for argument in get_args(annotation):
            yield from _models_in(argument)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
