"""Blind sheets: nothing on them tells the sides, and what comes back is read with the key."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pytest

from annotation.evaluation.sheets import harmless, read_sheets, write_sheets
from annotation.evaluation.verdicts import IDENTICAL, Pair
from data_contracts.errors import UserError


def pair(i: int, response: str = "", other: str = "") -> Pair:
    return Pair(
        f"p{i}",
        "safety" if i % 4 == 0 else "helpfulness",
        [{"role": "user", "content": f"=HYPERLINK({i})"}],
        "v5",
        "sft",
        response or f"NEW {i}",
        other or f'OLD {i}, with "quotes"; and\nlines',
    )


PAIRS = [pair(i) for i in range(1, 12)] + [pair(12, "same", "same ")]


def written(tmp_path: Path, kind: str = "csv", **options) -> tuple[list[Path], Path]:
    key = tmp_path / "key" / "key.json"
    files = write_sheets(
        PAIRS, tmp_path / "out", key, kind=kind, **({"num_raters": 2, "seed": 1} | options)
    )
    return files, key


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text("utf-8-sig"), newline="")))


def rating_column(rows: list[dict[str, str]]) -> str:
    return next(name for name in rows[0] if name.startswith("rating"))


def fill(file: Path, prefers: str, *, delimiter: str = ",", point: int = 2) -> None:
    """Rate as somebody who always finds one version better: 2 on the left is 6 on the right."""
    rows = table(file)
    column = rating_column(rows)
    for row in rows:
        is_left = prefers in row["response_1"]
        row[column] = str(point if is_left else 8 - point)
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    file.write_text(out.getvalue(), "utf-8-sig")


def test_sides_are_hidden_and_halved(tmp_path: Path):
    files, key = written(tmp_path)
    for file in files:
        rows = table(file)
        assert len(rows) == 11  # the pair of equal responses is not asked
        left = Counter("NEW" in row["response_1"] for row in rows)
        assert sorted(left.values()) == [5, 6]
        for word in ("v5", "sft", "p1", "swap"):
            assert word not in file.read_text("utf-8-sig")
    assert table(files[0]) != table(files[1])
    assert key.stat().st_mode & 0o077 == 0
    assert "NEW" not in key.read_text()


def test_without_a_seed_nobody_can_tell(tmp_path: Path):
    first, _ = written(tmp_path / "a", num_raters=1, seed=None)
    second, _ = written(tmp_path / "b", num_raters=1, seed=None)
    assert table(first[0]) != table(second[0])  # equal once in 11! times


@pytest.mark.parametrize("delimiter", [",", ";"], ids=["comma", "semicolon"])
def test_ratings_come_back_from_the_versions_side(tmp_path: Path, delimiter: str):
    files, key = written(tmp_path)
    fill(files[0], "NEW", delimiter=delimiter)
    fill(files[1], "OLD", delimiter=delimiter, point=3)
    made_with, reading = read_sheets(files, key)
    assert (made_with.version, made_with.opponent) == ("v5", "sft")
    degrees = {(rating.rater, rating.degree) for rating in reading.ratings}
    assert degrees == {("rater-1", 2), ("rater-2", -1), (IDENTICAL, 0)}
    assert len(reading.ratings) == 2 * 11 + 1
    assert Counter(r.domain for r in reading.ratings)["safety"] == 2 * 2 + 1


def test_json_lines(tmp_path: Path):
    files, key = written(tmp_path, "jsonl", num_raters=1)
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert "much better" in rows[0]["scale"]
    rows[0]["rating"], rows[1]["rating"], rows[2]["rating"] = 4, 4.0, "4"
    files[0].write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, reading = read_sheets(files, key)
    assert [r.degree for r in reading.ratings] == [0, 0, 0, 0]
    assert reading.num_unanswered == 8


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "＝1"],
    ids=["equals", "plus", "minus", "at", "tab", "return", "newline", "spaces", "full-width"],
)
def test_no_cell_is_a_formula(cell: str):
    assert harmless(cell) == f"'{cell}"


def test_other_cells_are_as_they_were():
    for cell in ("a=b", "", "1-2", "'=x", "Ω"):
        assert harmless(cell) == cell


def test_the_prompts_of_a_sheet_are_no_formulas(tmp_path: Path):
    files, _ = written(tmp_path)
    assert {row["prompt"][:2] for row in table(files[0])} == {"'="}


def broken(tmp_path: Path, change) -> str:
    files, key = written(tmp_path)
    fill(files[0], "NEW")
    text = files[0].read_text("utf-8-sig")
    files[0].write_text(change(text), "utf-8-sig")
    with pytest.raises(UserError) as error:
        read_sheets(files[:1], key)
    return str(error.value)


def test_mistakes_name_file_and_row(tmp_path: Path):
    said = broken(tmp_path / "1", lambda text: text.replace("r1q0001", "r1q0099"))
    assert "rater-1.csv, row 2" in said
    said = broken(tmp_path / "2", lambda text: text.replace("r1q0002", "r1q0001"))
    assert "row 3" in said
    assert "twice" in said
    said = broken(tmp_path / "3", lambda text: text.replace(",6,", ",8,").replace(",2,", ",0,"))
    assert "1 to 7" in said
    assert "Give the file" not in said


def test_a_sheet_that_is_none(tmp_path: Path):
    files, key = written(tmp_path)
    with pytest.raises(UserError, match="has a rating"):
        read_sheets(files, key)  # as they went out
    with pytest.raises(UserError, match="no key"):
        read_sheets(files, files[0])
    with pytest.raises(UserError, match="cannot be read"):
        read_sheets([tmp_path / "absent.csv"], key)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_sheets([tmp_path / "bytes.csv"], key)


def test_an_old_key_is_never_lost_and_never_handed_out(tmp_path: Path):
    _, key = written(tmp_path)
    before = key.read_bytes()
    with pytest.raises(UserError, match="there already"):
        written(tmp_path)
    assert key.read_bytes() == before
    with pytest.raises(UserError, match="with the raters"):
        write_sheets(PAIRS, tmp_path / "x", tmp_path / "x" / "key.json", num_raters=1)
    with pytest.raises(UserError, match="are the same"):
        write_sheets(PAIRS[-1:], tmp_path / "y", tmp_path / "y.json", num_raters=1)


def test_a_sheet_is_not_read_with_another_key(tmp_path: Path):
    """Same versions and numbers of rows; other responses, or another order."""
    files, _ = written(tmp_path / "a", seed=1)
    for file in files:
        fill(file, "NEW")
    _, other_order = written(tmp_path / "b", seed=2)
    with pytest.raises(UserError, match="no item of this name"):
        read_sheets(files, other_order)
    others = [pair(i, other=f"OLDER {i}") for i in range(1, 12)]
    key = tmp_path / "c" / "key.json"
    write_sheets(others, tmp_path / "c" / "out", key, num_raters=2, seed=1)
    with pytest.raises(UserError, match="no item of this name"):
        read_sheets(files, key)


def test_a_sheet_that_may_be_filled_is_not_written_over(tmp_path: Path):
    files, _ = written(tmp_path)
    fill(files[0], "NEW")
    before = files[0].read_bytes()
    with pytest.raises(UserError, match="may hold a rater's work"):
        write_sheets(PAIRS, files[0].parent, tmp_path / "other.json", num_raters=1)
    assert files[0].read_bytes() == before
    assert not (tmp_path / "other.json").exists(), "or the corrected command would be refused"


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for folder, key in ((tmp_path / "file", tmp_path / "k"), (tmp_path / "s", tmp_path / "file/k")):
        with pytest.raises(UserError, match="is a file and no folder"):
            write_sheets(PAIRS, folder, key, num_raters=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("column", ["item", "rating"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_column_that_is_missing_is_named(tmp_path: Path, column: str, kind: str):
    files, key = written(tmp_path, kind)
    text = files[0].read_text("utf-8-sig")
    files[0].write_text(text.replace(f'"{column}', '"the other'), "utf-8")
    with pytest.raises(UserError, match=f"rater-1.{kind}, row .: there is no column `{column}`"):
        read_sheets(files, key)


def test_tabs_and_other_ends_of_the_name_are_read(tmp_path: Path):
    files, key = written(tmp_path)
    fill(files[0], "NEW", delimiter="\t")
    _, reading = read_sheets(files[:1], key)
    assert len(reading.ratings) == 12
    files, key = written(tmp_path / "json", "jsonl", num_raters=1)
    renamed = files[0].rename(files[0].with_suffix(".JSONL"))
    renamed.write_text(renamed.read_text().replace('"rating": null', '"rating": 4'))
    _, reading = read_sheets([renamed], key)
    assert len(reading.ratings) == 12


def test_rows_and_raters_that_are_missing_are_counted(tmp_path: Path):
    files, key = written(tmp_path)
    fill(files[0], "NEW")
    rows = table(files[0])
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows[:4])  # of eleven
    files[0].write_text(out.getvalue(), "utf-8-sig")
    _, reading = read_sheets(files, key)
    assert reading.num_unanswered == 7 + 11
    assert reading.num_raters == 1


def test_a_copy_of_a_sheet_is_no_second_rater(tmp_path: Path):
    files, key = written(tmp_path)
    fill(files[0], "NEW")
    copy = files[0].with_name("rater-1 (1).csv")
    copy.write_bytes(files[0].read_bytes())
    with pytest.raises(UserError, match="are copies of one sheet"):
        read_sheets([files[0], copy], key)
