"""The traps as their files tell them: for `make traps`, and for docs/traps.md.

python tests/traps/trap_table.py > docs/traps.md
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
PAGE = """# What breaks RLHF code

Twenty-four mistakes that RLHF code is known for. Hardly one of them raises an error. That each
is not made here is shown by tests that drive the functions of the stages themselves, on two-layer
models, against values computed by hand or by a plain twin in float64. Every file lists the bugs
that were planted in the product, and against which it was seen to fail. `make traps` runs
all but the slow cases of them and prints this table with what holds.

| # | the trap | when it bites |
| --- | --- | --- |
"""


@dataclass(frozen=True)
class Trap:
    """One file of the suite."""

    number: int
    path: Path
    sentence: str
    """What the trap is."""
    bite: str
    """What it does to a run."""


def traps() -> list[Trap]:
    """All of them, in order. Raises ValueError for a file whose docstring has another form."""
    return [_read(path) for path in sorted(FOLDER.glob("test_trap_*.py"))]


def _read(path: Path) -> Trap:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraphs = [" ".join(text.split()) for text in docstring.split("\n\n")]
    head = re.fullmatch(r"Trap (\d+): (.+\.)", paragraphs[0])
    bites = [p.removeprefix("When it bites: ") for p in paragraphs if p.startswith("When it bites")]
    number = int(path.name.split("_")[2])
    if head is None or int(head[1]) != number or len(bites) != 1 or "- " not in docstring:
        raise ValueError(
            f"{path.name} does not begin with 'Trap {number}: …', followed by a paragraph "
            "'When it bites: …' and a list of planted bugs. Write its docstring as the others'."
        )
    return Trap(number, path, _sentence(head[2]), _sentence(bites[0]))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def page() -> str:
    """The content of docs/traps.md."""
    rows = [
        f"| [{trap.number}](../tests/traps/{trap.path.name}) | {trap.sentence} | {trap.bite} |\n"
        for trap in traps()
    ]
    return PAGE + "".join(rows)


if __name__ == "__main__":
    print(page(), end="")
