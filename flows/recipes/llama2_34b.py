"""Llama 2 34B with the paper's numbers."""

from flows.presets import llama2
from flows.recipe import Recipe


def recipe() -> Recipe:
    """The paper's settings; sources come from the user's own file."""
    return llama2("34b")
