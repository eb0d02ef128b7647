"""How one instance of the service runs."""

from typing import Final
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from data_contracts.base import Contract
from data_contracts.ratings import Domain

DEFAULT_SYSTEM_NAME: Final = "RLHF annotation"


class LiveModel(Contract):
    """A model variant behind an OpenAI-compatible endpoint."""

    url: str
    """Up to and without "/chat/completions", for instance http://127.0.0.1:8001/v1."""
    model: str
    temperatures: tuple[float, ...] = Field(default=(0.7, 1.0), min_length=1)
    """One is drawn for every response."""
    api_key: str | None = Field(default=None, repr=False)

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        parts = urlsplit(url)  # ValueError from here or from the port is a refusal
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError("give http://HOST:PORT/…")
        return url


class AnnotationSettings(Contract):
    """What the page offers, and how strictly cookies are kept."""

    product: str = DEFAULT_SYSTEM_NAME
    """Name in the page's header."""
    domains: tuple[Domain, ...] = tuple(Domain)
    """Tasks that are offered."""
    live_models: tuple[LiveModel, ...] = Field(default=(), max_length=2)
    """Two variants that answer prompts written on the page; without them there is no writing."""
    max_new_tokens: int = Field(default=512, gt=0)
    """Length of a live response."""
    secure_cookies: bool = False
    """Send cookies over HTTPS only: set it wherever the service is not on this machine alone."""
