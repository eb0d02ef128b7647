"""Every row that docs/data_formats.md shows is taken as it stands there."""

import json
import re
from pathlib import Path

import pytest

from stages.importers.reading import Record
from stages.importers.rows import Dropped
from stages.importers.source import IMPORTERS

PAGE = Path(__file__).parents[3] / "docs" / "data_formats.md"
_SHOWN = re.compile(r"^`(\w+)`[^`\n]*.*\n\n```json\n(.+)\n```", re.MULTILINE)


def shown_rows() -> dict[str, str]:
    """Format → the JSON row below the paragraph that begins with its name."""
    return dict(_SHOWN.findall(PAGE.read_text()))


def test_every_format_of_rows_is_shown():
    assert shown_rows().keys() == IMPORTERS.keys() - {"text"}


@pytest.mark.parametrize(("name", "line"), shown_rows().items(), ids=shown_rows())
def test_a_shown_row_is_read(name: str, line: str):
    row = IMPORTERS[name](Record(PAGE.name, "the row", json.loads(line)))
    assert not isinstance(row, Dropped)
