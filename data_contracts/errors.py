"""Errors that a user can act on. The command line prints the paragraph and exits with 2."""

from collections.abc import Sequence

_LONGEST_ID = 60  # an "id" column that really holds text must not end up in a log


class UserError(ValueError):
    """What is wrong and what to do about it, as one paragraph."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{_sentence(self.problem)} {_sentence(self.remedy)}".strip()


class StoreError(UserError):
    """The store cannot give what was asked for, or cannot keep what was handed to it."""


class ContractError(UserError):
    """A table breaks its contract.

    Names file, column, check, number of rows and the first row ids. It never quotes the offending
    value: prompts are private, and error texts end up in logs and in the Prefect database.
    """

    def __init__(
        self,
        file: str,
        column: str,
        check: str,
        count: int,
        row_ids: Sequence[str],
        remedy: str,
    ) -> None:
        self.file = file
        self.column = column
        self.check = check
        self.count = count
        self.row_ids = tuple(row_ids)
        super().__init__(_contract_problem(file, column, check, count, row_ids), remedy)
        # BaseException rebuilds itself from args when it crosses a process boundary.
        self.args = (file, column, check, count, self.row_ids, remedy)


def _contract_problem(
    file: str, column: str, check: str, count: int, row_ids: Sequence[str]
) -> str:
    where = f"{file}: column {column!r}" if column else file
    if count == 0:
        return f"{where}: {check}"
    rows = "1 row" if count == 1 else f"{count:,} rows"
    shown = ", ".join(_short(row_id) for row_id in row_ids)
    named = f" ({'first ' if count > len(row_ids) else ''}id: {shown})" if shown else ""
    return f"{where}: {check} in {rows}{named}"


def _short(row_id: str) -> str:
    return row_id if len(row_id) <= _LONGEST_ID else row_id[: _LONGEST_ID - 1] + "…"


def _sentence(text: str) -> str:
    flat = " ".join(text.split())
    return flat if not flat or flat[-1] in ".!?" else flat + "."
