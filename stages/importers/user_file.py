"""A file that a user brings: its path may change, its content may not."""

import os
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from data_contracts.artifacts import Digest, hash_file
from data_contracts.base import Contract
from data_contracts.errors import UserError


class UserFile(Contract):
    """A path outside the store, with the digest of what it held when the run was planned."""

    path: Path = Field(json_schema_extra={"in_key": False})
    sha256: Digest = ""
    """Of the file's bytes. Left out, it is computed when the configuration is read."""

    @model_validator(mode="before")
    @classmethod
    def _with_digest(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("path") and not values.get("sha256"):
            return {**values, "sha256": hash_file(existing_file(Path(values["path"])))}
        return values

    def checked_path(self) -> Path:
        """The path, once its content is known to be what the configuration names.

        Raises UserError when the file is missing or has changed.
        """
        if hash_file(existing_file(self.path)) != self.sha256:
            raise UserError(
                f"{self.path} has changed since this run was planned: its sha256 is not "
                f"{self.sha256[:12]}…",
                "Plan again, or leave sha256 out of the configuration to take the file as it is",
            )
        return self.path


def existing_file(path: Path) -> Path:
    """`path`, or UserError when there is no such file or it may not be read."""
    if not path.is_file():
        raise UserError(f"There is no file {path}", "Correct the path in the configuration")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} may not be read by this user", "Change its permissions")
    return path
