"""What deploy/README.md has an operator type works as it is written, and its tables are tables."""

import re
from itertools import pairwise
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "deploy" / "README.md").read_text()
QUESTIONS = re.compile(r"`prefect (work-pool|deployment|flow-run)")
"""Commands that ask a server, and so have to know which."""


def test_a_shell_knows_the_server_before_it_is_asked():
    asked = QUESTIONS.search(TEXT)
    assert asked is not None
    before = TEXT[: asked.start()]
    assert "export PREFECT_API_URL=http://127.0.0.1:4200/api\n" in before
    assert "`export PREFECT_API_AUTH_STRING=" in before


def test_docker_compose_is_told_the_file():
    commands = re.findall(r"docker compose [^`\n]*", TEXT)
    assert len(commands) > 3
    assert [c for c in commands if not c.startswith("docker compose --file deploy/")] == []


def test_no_row_stands_outside_a_table():
    """An empty line ends a table; what follows begins another, with a rule below its head."""
    lines = TEXT.splitlines()
    heads = [
        i for i, (above, line) in enumerate(pairwise(lines), 1) if line[:1] == "|" != above[:1]
    ]
    assert len(heads) > 2
    assert [lines[i] for i in heads if not lines[i + 1].startswith("| ---")] == []
