"""The tables of rates at the end of a run."""

from rich.console import Console

from flows.report import rates_tables


def row(measure: str, version: str, group: str, rate: float) -> dict[str, object]:
    return {"measure": measure, "version": version, "group": group} | {
        "rate": rate,
        "low": rate / 2,
        "high": (1 + rate) / 2,
    }


def test_versions_down_and_turns_across() -> None:
    rates = [row("retention", "v1", f"turn {t}", 1 / t) for t in (1, 2)]
    rates += [row("retention", "v2", "turn 1", 1.0), row("false_refusal", "v1", "all", 0.1)]
    tables = rates_tables(rates)
    assert [table.title for table in tables] == [
        "Harmless prompts refused",
        "Instruction of turn 1 kept (Table 30)",
    ]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(tables[1])
    lines = capture.get().splitlines()
    (first,) = [line for line in lines if "v1" in line]
    (second,) = [line for line in lines if "v2" in line]
    assert "1.00 [0.50, 1.00]" in first
    assert "0.50 [0.25, 0.75]" in first
    assert "–" in second
    assert rates_tables([]) == []
