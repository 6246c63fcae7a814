"""ARFF and workbooks; and the small cases that a user's table stands for, on the command line."""

import lzma
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import jaxad

from jaxad.data import DataError, read_frame, read_table, table_columns

ARFF = """% a comment
@RELATION pumps

@attribute 'heat of pump' numeric
@attribute kind {'a b',"c"}
@attribute load real
@DATA
20.5,'a b',1
?,"c",2.5
% between
21,?,3
"""


def test_arff(tmp_path):
    path = tmp_path / "pumps.arff"
    path.write_text(ARFF.replace('"c",2', "c,2"))
    frame = read_frame(path)
    assert frame.columns.tolist() == ["heat of pump", "kind", "load"] == list(table_columns(path))
    assert frame["heat of pump"].tolist()[::2] == [20.5, 21.0]
    assert np.isnan(frame["heat of pump"][1])
    assert frame["kind"].tolist()[:2] == ["a b", "c"]
    assert pd.isna(frame["kind"][2])
    packed = tmp_path / "pumps.arff.xz"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    pd.testing.assert_frame_equal(read_frame(packed), frame)
    assert len(read_frame(path, rows=2)) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("heat,load\n1,2\n", "expected @attribute NAME KIND in line 1"),
        ("@relation r\n@data\n1\n", "expected ARFF, @attribute lines and then @data"),
        ("@relation r\n@attribute a numeric\n", "expected ARFF, @attribute lines and then @data"),
        ("@attribute a relational\n@data\n", "a table of its own"),
        ("@attribute a numeric\n@attribute a numeric\n@data\n1,2\n", "every attribute once"),
        ("@attribute a numeric\n@data\n1,2,3\n", "expected 1 values in every row"),
        ("@attribute a numeric\n@data\n", "at least one row, got none"),
    ],
)
def test_what_is_no_arff(tmp_path, text, expected):
    path = tmp_path / "a.arff"
    path.write_text(text)
    with pytest.raises(DataError, match=expected):
        read_frame(path)


def test_a_workbook(tmp_path):
    pytest.importorskip("openpyxl")
    frame = pd.DataFrame({"heat": [1.5, 2.5, None], "kind": ["a", None, "b"]})
    frame.to_excel(tmp_path / "book.xlsx", index=False)
    read = read_frame(tmp_path / "book.xlsx")
    assert read["heat"].tolist()[:2] == [1.5, 2.5]
    assert read["kind"][0] == "a"
    assert read.isna().to_numpy().sum() == 2
    numbers = pd.DataFrame({"heat": [1.5, 2.5], "load": [1, 2]})
    numbers.to_excel(tmp_path / "numbers.xlsx", index=False)
    np.testing.assert_array_equal(read_table(tmp_path / "numbers.xlsx").x, numbers.to_numpy())


def test_what_is_no_workbook(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    openpyxl.Workbook().save(tmp_path / "empty.xlsx")
    with pytest.raises(DataError, match="an empty sheet"):
        read_frame(tmp_path / "empty.xlsx")
    (tmp_path / "locked.xlsx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    with pytest.raises(DataError, match=r"got one with a password, or an old \.xls"):
        read_frame(tmp_path / "locked.xlsx")
    (tmp_path / "text.xlsx").write_text("heat,load\n1,2\n")
    with pytest.raises(DataError, match=r"an \.xlsx workbook"):
        read_frame(tmp_path / "text.xlsx")
    pd.DataFrame([[1, 2]], columns=["a", "a"]).to_excel(tmp_path / "twice.xlsx", index=False)
    with pytest.raises(DataError, match="a name of its own"):
        read_frame(tmp_path / "twice.xlsx")
    pd.DataFrame({"a": [1]}).to_excel(tmp_path / "large.xlsx", index=False)
    with pytest.raises(DataError, match="at most 5500 bytes unpacked"):
        next(iter([read_frame(tmp_path / "large.xlsx", max_bytes=5500)]))


# ------------------------------------------------------------------------------------- the cases beside the data

LEARNED = {
    "euro.csv": "3 columns, all numbers",
    "time.csv": "left out, since it spans less than two days or names days alone: timestamp",
    "gaps.csv": "this detector knows no gaps",
    "words.csv": "proto category 0.0% udp ok yes/no 0.0% True",
    "index.csv": "an unnamed first column of row numbers left out",
    "thousands.csv": "4 columns, all numbers",
    "noheader.csv": "columns are called column_1, column_2, ...",
    "tabs.tsv": "3 columns, all numbers",
    "dead.csv": "dead constant 0.0% 0 empty empty 100.0% (no value in it)",
    "ids.csv": "id identifier 0.0% 9007199254740993",
    "types.parquet": "ts time",
    "packed.csv.gz": "3 columns, all numbers",
    "lines.jsonl": "3 columns, all numbers",
    "arrow.feather": "3 columns, all numbers",
    "latin1.csv": "Windows-1252",
}
REFUSED = {
    "inf.csv": "found inf in row 5",
    "label_words.csv": "looks like labels (Normal 74, Anomaly 6)",
    "label_pm1.csv": "looks like labels (1 65, -1 15)",
    "weka.arff": "looks like labels (normal 80)",
    "two_names.csv": "'x' occurs 2 times",
    "never.pkl": "a pickle is not opened",
}
TOLD = {
    "inf.csv": (["--missing", "inf"], "this detector knows no gaps"),
    "label_words.csv": (
        ["--label-column", "label"],
        "labels: Normal 74 (normal), Anomaly 6; 6 rows labelled anomalous are left out",
    ),
    "label_pm1.csv": (
        ["--label-column", "label"],
        "labels: 1 65 (normal), -1 15; 15 rows labelled anomalous are left out",
    ),
    "weka.arff": (["--label-column", "class"], "proto category"),
    "words.csv": (["--columns", "ok=leave-out,temp=category"], "temp category"),
}


@pytest.fixture(scope="module")
def cases(data_dir) -> Path:
    folder = data_dir.parent / "cases" / "tables"
    if not folder.is_dir():
        pytest.skip("no cases beside the data directory")
    return folder


def said(capsys) -> str:
    captured = capsys.readouterr()
    return re.sub(r"\s+", " ", captured.out + captured.err)


@pytest.mark.parametrize("name", LEARNED)
def test_a_case_is_learned_from_and_scored(cases, tmp_path, capsys, name):
    assert jaxad("fit", cases / name, "--out", tmp_path / "model", "--detector", "knn") == 0
    assert LEARNED[name] in said(capsys)
    assert jaxad("score", tmp_path / "model", cases / name, "--out", tmp_path / "scores.csv") == 0
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 80


@pytest.mark.parametrize("name", REFUSED)
def test_a_case_is_refused_or_asked_about(cases, tmp_path, capsys, name):
    assert jaxad("fit", cases / name, "--out", tmp_path / "model", "--detector", "knn") == 2
    assert REFUSED[name] in said(capsys)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", TOLD)
def test_a_case_is_learned_from_once_it_is_told(cases, tmp_path, capsys, name):
    told, expected = TOLD[name]
    assert jaxad("fit", cases / name, "--out", tmp_path / "model", "--detector", "knn", *told) == 0
    assert expected in said(capsys)
    assert jaxad("score", tmp_path / "model", cases / name, "--out", tmp_path / "scores.csv") == 0


def test_an_unseen_level_is_odd_and_named(cases, tmp_path, capsys):
    assert jaxad("fit", cases / "words.csv", "--out", tmp_path / "model") == 0
    out = tmp_path / "scores.csv"
    assert jaxad("score", tmp_path / "model", cases / "words_new.csv", "--out", out, "--why", "2") == 0
    scores = pd.read_csv(out)
    odd = pd.read_csv(cases / "words_new.csv")["proto"] == "gre"
    assert scores["flagged"][odd].all()
    assert not scores["flagged"][~odd].any()
    assert scores["why"][odd].str.startswith("proto=gre (+").all()
    assert scores["why"][~odd].isna().all()


def test_columns_are_matched_by_name_and_a_new_one_is_named(cases, tmp_path, capsys):
    # dead.csv's first three columns; euro.csv has other separators.
    for name, drop in (("dead.csv", ["--drop", "dead", "empty"]), ("euro.csv", [])):
        model, out = tmp_path / name, tmp_path / f"{name}.scores.csv"
        assert jaxad("fit", cases / name, "--out", model, "--detector", "knn", *drop) == 0
        said(capsys)
        assert jaxad("score", model, cases / "order.csv", "--out", out) == 0
        assert "left out, since not learned from: extra" in said(capsys)
        frame = pd.read_csv(cases / "order.csv")[["temp", "press", "flow"]]
        frame.to_csv(tmp_path / "same.csv", index=False)
        assert jaxad("score", model, tmp_path / "same.csv", "--out", tmp_path / "same_scores.csv") == 0
        pd.testing.assert_frame_equal(pd.read_csv(out), pd.read_csv(tmp_path / "same_scores.csv"))


def test_look_says_all_and_learns_nothing(cases, tmp_path, capsys):
    assert jaxad("look", cases / "label_words.csv") == 0
    text = said(capsys)
    assert "80 rows of 4 columns, 0.0% of the cells are missing" in text
    assert "to be answered: column 'label' looks like labels" in text
    assert jaxad("look", cases / "gaps.csv", "--rows", "50") == 0
    assert "50 rows, the first of more of 3 columns" in said(capsys)
    assert jaxad("look", cases / "words.csv", "--columns", "proto=colour") == 2
    assert "expected one of number, category, time, leave-out" in said(capsys)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--columns", "heat"], '--columns is written "age=number'),
        (["--columns", "heat=number"], "has no column 'heat'"),
        (["--normal", "yes"], "name the column of labels with --label-column"),
        (["--label-column", "proto"], "which of them is normal"),
    ],
)
def test_bad_options(cases, tmp_path, capsys, options, expected):
    assert jaxad("fit", cases / "words.csv", "--out", tmp_path / "model", "--detector", "knn", *options) == 2
    assert expected in said(capsys)


def test_why_needs_a_detector_that_remembers_normal_rows(cases, tmp_path, capsys):
    assert jaxad("fit", cases / "euro.csv", "--out", tmp_path / "model", "--detector", "copod") == 0
    assert jaxad("score", tmp_path / "model", cases / "euro.csv", "--out", tmp_path / "s.csv", "--why", "1") == 2
    assert "remembers no normal rows to compare with" in said(capsys)
    assert not (tmp_path / "s.csv").exists()


def test_gaps_that_were_not_there_in_training(cases, tmp_path, capsys):
    model, out = tmp_path / "model", tmp_path / "s.csv"
    assert jaxad("fit", cases / "lines.jsonl", "--out", model) == 0
    assert jaxad("score", model, cases / "gaps.csv", "--out", out) == 2
    assert (
        "nothing in row 0 (counting from 0), column 'temp', and the model has learned from rows without gaps; fit it again with --gaps"
        in said(capsys)
    )
    assert not out.exists()
    assert jaxad("fit", cases / "lines.jsonl", "--out", model, "--gaps") == 0
    assert jaxad("score", model, cases / "gaps.csv", "--out", out) == 0
    bundle, again = tmp_path / "bundle", tmp_path / "again.csv"
    assert jaxad("export", model, "--out", bundle) == 0
    assert jaxad("score", bundle, cases / "gaps.csv", "--out", again) == 0
    ours, theirs = (pd.read_csv(file) for file in (out, again))
    np.testing.assert_allclose(theirs["anomaly_score"], ours["anomaly_score"], rtol=2e-3, atol=2e-3)
