"""Blind sheets: two responses side by side, nobody knows whose, and a rating of 1 to 7.

Every rater gets a sheet of their own, in an order of their own, with the version on the left in
half of the rows. The key says which; it is a file apart. A cell that a spreadsheet would take for
a formula gets an apostrophe in front.
"""

import csv
import hashlib
import io
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from annotation.evaluation.verdicts import IDENTICAL, MOST, Pair, Rating
from data_contracts.base import Contract
from data_contracts.durable import existing, write_durably
from data_contracts.errors import UserError

SheetFormat = Literal["csv", "jsonl"]
SCALE = (
    "rating: 1 response 1 is much better, 2 better, 3 slightly better, 4 about the same, "
    "5 response 2 is slightly better, 6 better, 7 much better"
)
_COLUMNS: tuple[str, ...] = ("item", "prompt", "response_1", "response_2", SCALE, "comment")
_MIDDLE = MOST + 1
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class KeyItem(Contract):
    """What a row of a sheet stands for."""

    prompt_id: str
    domain: str
    is_swapped: bool
    """Whether response 1 is the opponent's."""


class Key(Contract):
    """Who is who in a set of sheets."""

    version: str
    opponent: str
    items: dict[str, KeyItem]
    """By item, over all sheets."""
    identical: tuple[KeyItem, ...]
    """Pairs of equal responses: ties that no rater was asked for."""


@dataclass(frozen=True)
class Reading:
    """What came back."""

    ratings: list[Rating]
    num_unanswered: int
    """Of the sheets' rows, those that have been taken out included."""
    num_raters: int
    """Who rated anything."""
    num_identical: int


def write_sheets(
    pairs: Sequence[Pair],
    folder: Path,
    key_file: Path,
    *,
    num_raters: int,
    kind: SheetFormat = "csv",
    seed: int | None = None,
) -> list[Path]:
    """Write a sheet for each rater, and the key.

    Raises UserError when the key or a sheet is there already (they may be in use), when the key
    would lie in the raters' folder, when a folder cannot be one, or when there is nothing to rate.
    """
    if key_file.exists():
        raise UserError(
            f"{key_file} is there already, and the sheets made with it can be read with no other",
            "Give another --key and --output",
        )
    if key_file.resolve().parent.is_relative_to(folder.resolve()):
        raise UserError(f"{key_file} would lie with the raters' sheets", "Keep the key elsewhere")
    files = [folder / f"rater-{rater}.{kind}" for rater in range(1, num_raters + 1)]
    if there := next((file for file in files if file.exists()), None):
        raise UserError(
            f"{there} is there already, and may hold a rater's work", "Give another --output"
        )
    for place in (folder, key_file.parent):
        if (found := existing(place)).is_file():
            raise UserError(f"{found} is a file and no folder", "Give another --output or --key")
    asked = [pair for pair in pairs if not pair.is_identical]
    if not asked:
        raise UserError("All responses are the same", "Compare versions that differ")
    chance = random.SystemRandom() if seed is None else random.Random(seed)
    token = _token(asked, chance)
    items: dict[str, KeyItem] = {}
    sheets = []
    for rater in range(1, num_raters + 1):
        rows, key = _sheet(f"{token}-r{rater}", asked, chance)
        items |= key
        sheets.append(rows)
    key = Key(
        version=pairs[0].version,
        opponent=pairs[0].opponent,
        items=items,
        identical=tuple(_key_item(pair, False) for pair in pairs if pair.is_identical),
    )
    key_file.parent.mkdir(parents=True, exist_ok=True)
    write_durably(key_file, key.model_dump_json(indent=1).encode())  # before any sheet needs it
    key_file.chmod(0o600)
    folder.mkdir(parents=True, exist_ok=True)
    for file, rows in zip(files, sheets, strict=True):
        write_durably(file, _FORMATS[kind](rows))
    return files


def read_sheets(files: Sequence[Path], key_file: Path) -> tuple[Key, Reading]:
    """The ratings of filled sheets; a rater is known by the name of the file.

    Raises UserError, with file and row, for an item that the key does not know, one that stands
    there or in another file twice, or a rating that is not 1 to 7. An empty rating is counted.
    """
    try:
        key = Key.model_validate_json(_text(key_file))
    except ValidationError:
        raise UserError(f"{key_file} is no key", "Give the file that `sheet` wrote") from None
    ratings, num_unanswered, names = [], 0, set()
    read_in: dict[str, Path] = {}
    for file in files:
        if file.stem in names:
            raise UserError(f"Two sheets are called {file.stem}", "Name files after their raters")
        names.add(file.stem)
        given = _given(file, key)
        if twice := next((item for item in given if item in read_in), None):
            raise UserError(
                f"{file} and {read_in[twice]} are copies of one sheet: both have item {twice}",
                "Read one of them",
            )
        read_in |= dict.fromkeys(given, file)
        sheets = {_sheet_of(item) for item in given}
        num_rows = sum(_sheet_of(item) in sheets for item in key.items)
        num_unanswered += num_rows - sum(degree is not None for degree in given.values())
        for item, degree in given.items():
            if degree is not None:
                known = key.items[item]
                own = degree if known.is_swapped else -degree
                ratings.append(Rating(known.prompt_id, known.domain, file.stem, own))
    if not ratings:
        raise UserError(
            f"None of {num_unanswered} rows has a rating", "Fill in the column `rating`: 1 to 7"
        )
    num_raters = len({rating.rater for rating in ratings})
    ratings += [Rating(pair.prompt_id, pair.domain, IDENTICAL, 0) for pair in key.identical]
    return key, Reading(ratings, num_unanswered, num_raters, len(key.identical))


def _token(pairs: Sequence[Pair], chance: random.Random) -> str:
    """What the items of a key begin with, so that no other key takes them for its own."""
    content = [[pair.prompt_id, pair.response, pair.other] for pair in pairs]
    drawn = json.dumps([content, chance.getrandbits(64)])
    return hashlib.sha256(drawn.encode()).hexdigest()[:6]


def _sheet_of(item: str) -> str:
    """What the items of one rater's sheet begin with."""
    return item.rpartition("q")[0]


def _sheet(
    name: str, pairs: Sequence[Pair], chance: random.Random
) -> tuple[list[dict[str, str]], dict[str, KeyItem]]:
    """Rows in random order; the version is response 1 in half of them (one more or less)."""
    order = chance.sample(list(pairs), len(pairs))
    sides = [i % 2 == 0 for i in range(len(order))]
    chance.shuffle(sides)
    rows, key = [], {}
    for number, (pair, is_swapped) in enumerate(zip(order, sides, strict=True), start=1):
        item = f"{name}q{number:04d}"
        first, second = (pair.response, pair.other)[:: -1 if is_swapped else 1]
        values = (item, dialogue(pair.messages), first, second, "", "")
        rows.append(dict(zip(_COLUMNS, values, strict=True)))
        key[item] = _key_item(pair, is_swapped)
    return rows, key


def _key_item(pair: Pair, is_swapped: bool) -> KeyItem:
    return KeyItem(prompt_id=pair.prompt_id, domain=pair.domain, is_swapped=is_swapped)


def dialogue(messages: Sequence[dict[str, str]]) -> str:
    """A prompt as one text; who speaks is said where there are several turns."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.lstrip(" ").startswith(_FORMULA) else cell


def _to_csv(rows: list[dict[str, str]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, _COLUMNS, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows({name: harmless(value) for name, value in row.items()} for row in rows)
    return out.getvalue().encode("utf-8-sig", errors="replace")  # Excel reads UTF-8 by the mark


def _to_jsonl(rows: list[dict[str, str]]) -> bytes:
    return "".join(f"{json.dumps(_short(row), ensure_ascii=True)}\n" for row in rows).encode()


def _short(row: dict[str, str]) -> dict[str, Any]:
    """JSON names the scale once, beside the rating."""
    return {
        **{name: row[name] for name in ("item", "prompt", "response_1", "response_2")},
        "scale": SCALE.removeprefix("rating: "),
        "rating": None,
        "comment": "",
    }


_FORMATS = {"csv": _to_csv, "jsonl": _to_jsonl}


def _given(file: Path, key: Key) -> dict[str, int | None]:
    """Rating of each item of a file, −3 (response 1 is much better) … 3; None for an empty one."""
    found: dict[str, int | None] = {}
    for number, row in _rows(file):
        where = f"{file}, row {number}"
        item = str(row.get("item") or "").strip()
        if item not in key.items:
            raise UserError(
                f"{where}: the key has no item of this name",
                "Read a sheet with the key that was made with it, and leave `item` as it is",
            )
        if item in found:
            raise UserError(f"{where}: item {item} stands there twice", "Remove one of the rows")
        found[item] = _degree(row.get("rating"), where)
    return found


def _degree(value: Any, where: str) -> int | None:
    text = str("" if value is None else value).strip().removesuffix(".0")
    if not text:
        return None
    if text not in {str(point) for point in range(1, 2 * _MIDDLE)}:
        raise UserError(f"{where}: the rating is no number from 1 to 7", "Correct it or empty it")
    return int(text) - _MIDDLE


def _rows(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """Rows of a sheet by their number in the file, as a spreadsheet shows it."""
    text = _text(file)
    try:
        if file.suffix.lower() in (".jsonl", ".json"):
            lines = enumerate(text.split("\n"), start=1)
            rows = [(number, dict(json.loads(line))) for number, line in lines if line.strip()]
        else:
            # Excel goes by the country
            found = re.match(r'"?item"?([;\t])', text)
            delimiter = found.group(1) if found else ","
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
            rows = [
                (number, {(name or "").partition(":")[0].strip(): v for name, v in row.items()})
                for number, row in enumerate(reader, start=2)
            ]
    except (ValueError, TypeError, csv.Error, AttributeError) as error:
        raise UserError(
            f"{file} cannot be read as a sheet: {type(error).__name__}",
            "Save it as CSV (UTF-8) or JSON lines, the columns as they were",
        ) from None
    for number, row in rows:
        for column in ("item", "rating"):
            if column not in row:
                raise UserError(
                    f"{file}, row {number}: there is no column `{column}`",
                    "Leave the names of the columns as they were, in the first row",
                )
    return rows


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} cannot be read: {type(error).__name__}", "Correct the path; files are UTF-8"
        ) from None
