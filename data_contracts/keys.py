"""The key of a stage run: equal exactly when the result would be."""

import hashlib
import json
import math
from typing import Any

from data_contracts.base import StageConfig

_EXACT_INTEGERS = 2**53


def stage_key(stage: str, stage_version: str, config: StageConfig) -> str:
    """sha256 in hex of what decides the stage's result.

    That is: the stage, its VERSION, and the meaning of its config, which holds the seed and every
    input as digest and contract version. Not in it: paths, processes, addresses, the git commit.
    """
    content = {"stage": stage, "stage_version": stage_version, "config": config.meaning()}
    return hashlib.sha256(canonical_json(content)).hexdigest()


def canonical_json(value: Any) -> bytes:
    """One spelling for each JSON value: sorted keys, no spaces, and 1.0 written as 1."""
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _canonical(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float):
        return _canonical_float(value)
    return value


def _canonical_float(value: float) -> float | int | str:
    if not math.isfinite(value):
        return str(value)  # JSON has no word for it; "no clipping" may well be inf
    if value.is_integer() and abs(value) < _EXACT_INTEGERS:
        return int(value)  # so that a recipe may say 1 or 1.0, and -0.0 is 0
    return value
