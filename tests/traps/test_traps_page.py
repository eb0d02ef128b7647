"""docs/traps.md says what the files of the suite say."""

from pathlib import Path

from trap_table import page, traps


def test_the_page_is_made_from_the_docstrings():
    found = (Path(__file__).parents[2] / "docs" / "traps.md").read_text(encoding="utf-8")
    assert found == page(), "run: python tests/traps/trap_table.py > docs/traps.md"


def test_every_trap_has_one_file():
    assert [trap.number for trap in traps()] == list(range(1, 25))
