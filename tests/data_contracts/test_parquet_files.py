import errno
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from valid_rows import VALID_ROWS

from data_contracts import parquet
from data_contracts.errors import ContractError, UserError
from data_contracts.parquet import check_file, iter_batches, read_table, write_table
from data_contracts.tables import DOCUMENTS, PREFERENCES, PROMPTS

ROW = VALID_ROWS["preferences"]


def rows(count, **changes):
    return [{**ROW, "preference_id": f"p{n}", **changes} for n in range(count)]


def documents(start, count, text="text"):
    return pa.RecordBatch.from_pylist(
        [{"document_id": f"d{n}", "source": "s", "text": text} for n in range(start, start + count)]
    )


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "sub" / "table.parquet"
    assert write_table(path, rows(10), PREFERENCES) == 10
    return path


def test_a_folder_is_read_as_one_table_in_order_of_name(tmp_path):
    for name, start in (("b", 5), ("a", 0)):
        write_table(tmp_path / f"{name}.parquet", [documents(start, 5)], DOCUMENTS)
    (tmp_path / ".c.parquet.123.tmp").write_text("left by a kill")
    table = read_table(tmp_path, DOCUMENTS)
    assert table["document_id"].to_pylist() == [f"d{n}" for n in range(10)]
    assert [batch.num_rows for batch in iter_batches(tmp_path, DOCUMENTS, 3)] == [3, 2, 3, 2]


def test_ids_are_unique_over_a_folder(tmp_path):
    for name in "ab":
        write_table(tmp_path / f"{name}.parquet", [documents(0, 5)], DOCUMENTS)
    with pytest.raises(ContractError, match="repeats an id in 10 rows"):
        read_table(tmp_path, DOCUMENTS)
    with pytest.raises(ContractError, match="repeats an id"):
        list(iter_batches(tmp_path, DOCUMENTS))


def test_row_groups_are_bounded_by_rows_and_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 100)
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 40_000)
    batches = [documents(0, 7), documents(7, 250), documents(257, 30, text="x" * 4000)]
    path = tmp_path / "t.parquet"
    assert write_table(path, iter(batches), DOCUMENTS) == 287
    file = pq.ParquetFile(path)
    sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    assert sum(sizes) == 287
    assert max(sizes) <= 100
    assert sizes[-1] <= 10
    ids = read_table(path, DOCUMENTS)["document_id"].to_pylist()
    assert ids == [f"d{n}" for n in range(287)]


def test_identical_rows_give_identical_files(tmp_path, path):
    other = tmp_path / "other.parquet"
    write_table(other, read_table(path, PREFERENCES), PREFERENCES)
    assert other.read_bytes() == path.read_bytes()


# ---- other programs' files


def test_other_programs_strings_are_accepted(tmp_path, path):
    frame = read_table(path, PREFERENCES).to_pandas()
    frame["rating"] = pd.Categorical(frame["rating"])
    frame = frame.drop(columns=["category"])
    other = tmp_path / "pandas.parquet"
    frame.to_parquet(other)
    assert check_file(other, "preferences") == 10
    with pytest.raises(ContractError, match="names no table contract"):
        read_table(other, PREFERENCES)
    large = pa.Table.from_pandas(frame, preserve_index=False)
    assert write_table(path, large, PREFERENCES) == 10
    assert read_table(path, PREFERENCES).schema == PREFERENCES.schema


def test_missing_and_foreign_columns_and_types_are_refused(path):
    table = read_table(path, PREFERENCES)
    for broken, problem in (
        (table.drop_columns("rejected"), "'rejected': is missing"),
        (table.append_column("note", table["chosen"]), "'note': is no part of"),
        (table.set_column(4, "batch", table["batch"].cast("int64")), "'batch': has type int64"),
        (table.set_column(8, "messages", table["chosen"]), "'messages': has type string"),
    ):
        with pytest.raises(ContractError, match=problem):
            write_table(path, broken, PREFERENCES)
        other = path.with_name("other.parquet")
        pq.write_table(broken, other)
        with pytest.raises(ContractError, match=problem):
            read_table(other, PREFERENCES)
        with pytest.raises(ContractError, match=problem):
            check_file(other, "preferences")
    assert read_table(path, PREFERENCES).num_rows == 10


def test_rows_are_checked_on_the_way_in(path):
    table = read_table(path, PREFERENCES)
    broken = table.set_column(9, "chosen", table["rejected"])
    pq.write_table(broken.replace_schema_metadata(table.schema.metadata), path)
    for read in (read_table, lambda *a: list(iter_batches(*a))):
        with pytest.raises(ContractError, match="equals 'rejected' in 10 rows"):
            read(path, PREFERENCES)
    with pytest.raises(ContractError, match="equals 'rejected'"):
        check_file(path, "preferences")


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    texts = pa.array([b"fine", b"\xff\xfe"], pa.binary()).view(pa.string())
    ids = pa.array(["a", "b"])
    table = pa.table({"document_id": ids, "source": ids, "text": texts})
    with pytest.raises(ContractError, match="'text': holds bytes that are not UTF-8"):
        write_table(tmp_path / "t.parquet", table, DOCUMENTS)


# ---- versions


def other_version(contract, version, schema=None):
    return replace(contract, version=version, schema=schema or contract.schema)


def test_another_contract_or_major_version_is_refused(tmp_path, path):
    with pytest.raises(ContractError, match="holds preferences, not prompts"):
        read_table(path, PROMPTS)
    with pytest.raises(ContractError, match="holds preferences, not prompts"):
        check_file(path, "prompts")
    write_table(path, rows(1), other_version(PREFERENCES, "2.0"))
    with pytest.raises(ContractError, match=r"preferences/2\.0.*Major versions do not mix"):
        read_table(path, PREFERENCES)


def test_minor_versions_read_each_other(path):
    field = pa.field("seconds", pa.float32(), nullable=True)
    newer = other_version(PREFERENCES, "1.1", PREFERENCES.schema.append(field))
    assert read_table(path, newer)["seconds"].null_count == 10
    write_table(path, rows(3, seconds=2.0), newer)
    assert read_table(path, PREFERENCES).schema == PREFERENCES.schema
    assert read_table(path, newer)["seconds"].to_pylist() == [2.0] * 3


# ---- damage


def test_damage_is_one_paragraph_naming_the_file(path):
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    for damaged in (whole[:-5], whole[: len(whole) // 2], b"", b"PAR1" * 9, bytes(flipped)):
        path.write_bytes(damaged)
        for read in (read_table, lambda *a: list(iter_batches(*a))):
            with pytest.raises(UserError, match="damaged, cut short") as caught:
                read(path, PREFERENCES)
            assert str(path) in str(caught.value)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_table(tmp_path / "none.parquet", PROMPTS)
    with pytest.raises(UserError, match=r"holds no .parquet file"):
        read_table(tmp_path, PROMPTS)
    (tmp_path / "loop.parquet").symlink_to("loop.parquet")
    with pytest.raises(UserError, match=r"Cannot read .*loop.parquet"):
        read_table(tmp_path / "loop.parquet", PROMPTS)


def test_a_full_disk_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device .*Free space") as caught:
        write_table(path, rows(3), PREFERENCES)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_write_that_fails_midway_leaves_nothing(tmp_path):
    """A real failing write(2), from a limit on the size of files."""
    script = """
        import os, resource, sys
        from pathlib import Path
        from data_contracts.errors import UserError
        from data_contracts.parquet import write_table
        from data_contracts.tables import DOCUMENTS
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        rows = [{"document_id": str(n), "source": "s", "text": os.urandom(99).hex()}
                for n in range(3000)]
        try:
            write_table(Path(sys.argv[1]), rows, DOCUMENTS)
        except UserError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "t.parquet")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "File too large" in done.stdout
    assert "t.parquet" in done.stdout
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_rows_is_not_blamed_on_the_file(tmp_path):
    def batches():
        yield documents(0, 3)
        (tmp_path / "the input").read_bytes()

    with pytest.raises(FileNotFoundError, match="the input"):
        write_table(tmp_path / "t.parquet", batches(), DOCUMENTS)
    assert os.listdir(tmp_path) == []
