"""Text files as people have them: read as they were written, said in words, remembered for the next file."""

import bz2
import gzip
import json
import lzma
import zipfile

import numpy as np
import pandas as pd
import pytest
from command_line import jaxad

from jaxad.data import DataError, read_table, table_blocks
from jaxad.data.dialect import Dialect, found, remembered

ROWS = np.array([[20.5, -1.25, 3.0], [21.25, 0.5, 1543008.0], [19.0, 2.75, 12.0], [18.5, 1.0, 7.0]])
NAMES = ("temp", "press", "flow")


def written(separator=",", decimal=".", names=NAMES, before="", numbered=False, ends="\n"):
    lines = [] if names is None else [separator.join([""] * numbered + list(names))]
    for number, row in enumerate(ROWS):
        cells = [f"{value:g}" if value < 1e5 else f"{value:.0f}" for value in row]
        lines.append(separator.join([str(number)] * numbered + [cell.replace(".", decimal) for cell in cells]))
    return before + ends.join(lines) + ends


@pytest.mark.parametrize(
    ("text", "encoding", "words"),
    [
        (written(), "utf-8", ""),
        (written(), "utf-8-sig", ""),
        (written(";", ","), "utf-8", "separated by semicolons, decimal commas"),
        (written(";"), "utf-8", "separated by semicolons"),
        (written("\t", ",", ends="\r\n"), "utf-8", "separated by tabs, decimal commas"),
        (written("|"), "utf-8", "separated by bars"),
        (written(names=None), "utf-8", "no line of names: columns are called column_1, column_2, ..."),
        (
            written(";", ",", names=None),
            "utf-8",
            "separated by semicolons, decimal commas, no line of names: columns are called",
        ),
        (written(before="# of machine 3\n# in May\n"), "utf-8", "2 lines before the table passed over"),
        (written(";", ",", before="sep=;\n"), "utf-8", "separated by semicolons, decimal commas, 1 lines before"),
        (written(before="SEP=;\n"), "utf-8", "1 lines before the table passed over"),  # which lies
        (written(numbered=True), "utf-8", "an unnamed first column of row numbers left out"),
        (written(names=("größe", *NAMES[1:])), "latin-1", "Windows-1252 (or Latin-1)"),
        (written(), "utf-16", "UTF-16"),
        (written("\t"), "utf-16-be", "separated by tabs, UTF-16-BE"),
        (written().replace("1543008", '"1,543,008"'), "utf-8", "thousands separated by ','"),
        (
            written(";", ",").replace("1543008", "1.543.008,0"),
            "utf-8",
            "separated by semicolons, decimal commas, thousands separated by '.'",
        ),
    ],
)
def test_a_file_is_read_as_it_was_written(tmp_path, text, encoding, words):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode(encoding))
    assert found(path).words().startswith(words)
    assert bool(found(path).words()) == bool(words)
    table = read_table(path)
    np.testing.assert_array_equal(table.x, ROWS)
    assert len(table.columns) == 3
    np.testing.assert_array_equal(np.concatenate([piece.x for piece in table_blocks(path, rows=3)]), ROWS)
    # What was found out survives JSON, as a model keeps it.
    assert remembered(json.loads(json.dumps(found(path)._asdict()))) == found(path)


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_packed(tmp_path, ending, pack):
    path = tmp_path / f"t.tsv{ending}"
    path.write_bytes(pack(written("\t").encode()))
    np.testing.assert_array_equal(read_table(path).x, ROWS)
    bomb = tmp_path / f"bomb.csv{ending}"
    bomb.write_bytes(pack(b"a,b\n" + b"1,2\n" * 2**20))
    with pytest.raises(DataError, match="bytes unpacked, got more"):
        read_table(bomb, max_bytes=2**20)
    path.write_bytes(pack(written().encode())[:-9])
    with pytest.raises(DataError, match=r"damaged|cannot be read"):
        read_table(path)


def test_a_zip_archive_of_one_file(tmp_path):
    path = tmp_path / "t.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inside.csv", written(";", ","))
    np.testing.assert_array_equal(read_table(path).x, ROWS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other.csv", written())
    with pytest.raises(DataError, match="a zip archive of one file, got 2"):
        read_table(path)


def test_json_lines_and_feather(tmp_path):
    frame = pd.DataFrame(ROWS, columns=list(NAMES))
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    frame.to_feather(tmp_path / "t.feather")
    for name in ("t.jsonl", "t.feather"):
        table = read_table(tmp_path / name, label_column=None)
        np.testing.assert_array_equal(table.x, ROWS)
        assert table.columns == NAMES
        np.testing.assert_array_equal(
            np.concatenate([piece.x for piece in table_blocks(tmp_path / name, rows=3)]), ROWS
        )
    (tmp_path / "more.jsonl").write_text('{"a": 1}\n' * 5 + '{"a": 1, "b": 2}\n')
    with pytest.raises(DataError, match="expected the fields a in every line, got 'b' too"):
        list(table_blocks(tmp_path / "more.jsonl", rows=5))
    for name, content in (("x.jsonl", b'{"a": 1}\n{"a"'), ("x.feather", b"ARROW1\0\0" + bytes(40))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"damaged|cannot be read"):
            read_table(tmp_path / name)


@pytest.mark.parametrize("name", ["t.pkl", "t.pickle", "t.joblib"])
def test_a_pickle_is_refused_unopened(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    with pytest.raises(DataError, match=r"a pickle is not opened, .* save the table as"):
        read_table(tmp_path / name)


def test_what_a_stranger_wrote_is_no_dialect():
    plain = Dialect()._asdict()
    for wrong in (
        None,
        [],
        {},
        plain | {"separator": "(a+)+"},
        plain | {"encoding": "rot13"},
        plain | {"skipped": 10**9},
    ):
        assert remembered(wrong) is None


def test_three_rows_are_read_as_the_training_file_was(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(50, 10, (60, 3)), columns=list(NAMES))
    frame.to_csv("euro.csv", sep=";", decimal=",", index=False)
    assert jaxad("fit", "euro.csv", "--out", "model", "--detector", "knn") == 0
    assert "euro.csv is read as separated by semicolons, decimal commas" in " ".join(capsys.readouterr().out.split())
    # Nothing in these tells: every number could be 1 234 thousands as well.
    (tmp_path / "new.csv").write_text("flow;temp;press\n50,125;48,250;51,375\n")
    assert jaxad("score", "model", "new.csv", "--out", "scores.csv") == 0
    pd.DataFrame([[48.25, 51.375, 50.125]], columns=list(NAMES)).to_parquet("same.parquet")
    assert jaxad("score", "model", "same.parquet", "--out", "same.csv") == 0
    assert pd.read_csv("scores.csv").equals(pd.read_csv("same.csv"))
    # Plainly the same columns, written in another way.
    frame.to_csv("plain.csv", index=False)
    assert jaxad("score", "model", "plain.csv", "--out", "plain_scores.csv") == 0
    assert jaxad("score", "model", "euro.csv", "--out", "scores.csv") == 0
    assert pd.read_csv("plain_scores.csv").equals(pd.read_csv("scores.csv"))
    frame.rename(columns={NAMES[0]: "heat"}).to_csv("other.csv", index=False)
    assert jaxad("score", "model", "other.csv", "--out", "scores.csv") == 2
    assert "separated by semicolons, as in the file that was learned from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("39, State-gov, 77516\n50, Private, 83311\n38, Private, 215646\n", False),
        ("age,work,weight\n50,Private,83311\n38,Private,215646\n", True),
        ("a,b\nc,d\ne,f\n", True),
        ("0,1,2\n1.5,2.5,3.5\n", True),
        ("id,0,1\nx,1.5,2\ny,2,4\n", True),
        ("0,5,2\n1.5,2.5,3.5\n", False),
        ("tcp,1,?\nudp,2,3\nudp,3,4\n", False),
        ("1,?\n2,3\n3,4\n", False),
        ("1\n2\n3\n", False),
    ],
)
def test_a_line_of_names_is_told_from_a_row(tmp_path, text, header):
    path = tmp_path / "t.csv"
    path.write_text(text)
    assert found(path).header is header


def test_a_line_without_an_end_is_refused_at_once(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"1," * 2**20))
    for read in (read_table, lambda path: next(table_blocks(path))):
        with pytest.raises(DataError, match="a first line of more than 1048576 bytes"):
            read(path)
