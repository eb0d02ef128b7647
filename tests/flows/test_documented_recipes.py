"""Every recipe that a page shows whole is one that `rlhf` takes."""

import re
from pathlib import Path

import pytest

from flows.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy" / "README.md"]


def recipes() -> list[tuple[str, str]]:
    """Page and text of every YAML block that extends a recipe; lines apart are parts of one."""
    return [
        (page.name, block)
        for page in PAGES
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
        if re.search(r"^extends:", block, re.MULTILINE)
    ]


def test_there_are_some() -> None:
    assert {page for page, _ in recipes()} >= {"README.md", "annotation.md", "dialogues.md"}


@pytest.mark.parametrize(("page", "text"), recipes(), ids=lambda part: part[:20])
def test_a_shown_recipe_is_taken(page: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert load_recipe(str(file)).name == "mine"


def test_the_deployments_recipe_can_ask_annotators() -> None:
    labels = ["collect_preferences.method=annotations", "collect_preferences.deliveries=/d"]
    recipe = load_recipe(str(ROOT / "deploy" / "recipe.yaml"), labels)
    assert recipe.collect_preferences.method == "annotations"
