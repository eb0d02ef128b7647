"""The base of every typed record: frozen, closed to unknown fields, with a canonical meaning."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python


class Contract(BaseModel):
    """A frozen record that refuses unknown fields.

    A field whose value cannot change a stage's result (a port, a number of processes) is declared
    `Field(..., json_schema_extra={"in_key": False})` and is left out of `meaning()`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        ser_json_inf_nan="strings",  # the default, null, cannot be read back into a float
    )

    def meaning(self) -> dict[str, Any]:
        """JSON-ready dictionary of the fields that can change a result, at every depth."""
        fields = type(self).model_fields
        return {
            name: _meaning_of(getattr(self, name))
            for name, field in fields.items()
            if _is_in_key(field)
        }


class StageConfig(Contract):
    """The base of every stage's configuration."""

    seed: int = 0
    """Seed of every random choice the stage makes."""


def _is_in_key(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return not (isinstance(extra, Mapping) and extra.get("in_key") is False)


def _meaning_of(value: Any) -> Any:
    if isinstance(value, Contract):
        return value.meaning()
    if isinstance(value, Mapping):
        return {_key_text(key): _meaning_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_meaning_of(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_meaning_of(item) for item in value), key=repr)
    return to_jsonable_python(value)


def _key_text(key: Any) -> str:
    return str(key.value if isinstance(key, Enum) else key)
