"""Reading a user's own table: every format, every way it can be wrong, and bytes flipped at random."""

import io
import os
import struct
import sys
import tracemalloc
import zipfile
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest

from jaxad.data import DataError, Dataset, read_table

X = np.array([[1.0, 2.0], [3.0, 4.5], [5.0, -6.0]])
Y = np.array([0, 0, 1])


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def npy_bytes(array=None, *, header=None, body=b""):
    """A ``.npy`` file; with ``header`` one that declares what it likes."""
    stream = io.BytesIO()
    if header is None:
        np.save(stream, array)
        return stream.getvalue()
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + body


def npz(path, compression=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content if isinstance(content, bytes) else npy_bytes(content))
    return path


@contextmanager
def peak_memory_below(limit):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


# Reading what is well formed


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("key", ["X", "x"])
def test_npz(tmp_path, compression, key):
    data = read_table(npz(tmp_path / "pumps.npz", compression, **{key: X, "y": Y, "other": np.array(["text"])}))
    assert (data.name, data.source, data.columns) == ("pumps", "pumps.npz", None)
    np.testing.assert_array_equal(data.x, X)
    np.testing.assert_array_equal(data.y, Y)
    assert data.y.dtype == np.int64


def test_npz_without_labels_and_npy(tmp_path):
    assert read_table(npz(tmp_path / "a.npz", X=X)).y is None
    data = read_table(write(tmp_path / "a.NPY", npy_bytes(X)))
    assert data.y is None
    np.testing.assert_array_equal(data.x, X)


@pytest.mark.parametrize(
    ("stored", "read"),
    [("f4", "f4"), (">f4", "f4"), ("f8", "f8"), (">f8", "f8"), ("f2", "f8"), ("i2", "f8"), ("u1", "f8"), ("?", "f8")],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_dtypes_and_memory_order(tmp_path, stored, read, order):
    array = np.asarray(np.abs(X).astype(stored), order=order)
    data = read_table(write(tmp_path / "a.npy", npy_bytes(array)))
    assert data.x.dtype == np.dtype(read)
    assert data.x.flags.c_contiguous
    assert data.x.flags.writeable
    np.testing.assert_array_equal(data.x, array.astype(read))


def test_csv(tmp_path):
    text = '﻿heat, load ,"site, no",broken\r\n1.5,2,True,0\r\n\r\n-3e2,99999999999999999999999,False,1\r\n'
    data = read_table(write(tmp_path / "a.csv", text), label_column="broken")
    assert data.columns == ("heat", "load", "site, no")
    np.testing.assert_array_equal(data.x, [[1.5, 2, 1], [-300, 1e23, 0]])
    np.testing.assert_array_equal(data.y, [0, 1])


def test_csv_column_called_label_is_a_feature_unless_named(tmp_path):
    path = write(tmp_path / "a.csv", "a,label\n1,0\n2,1\n")
    assert read_table(path).columns == ("a", "label")
    assert read_table(path).y is None
    assert read_table(path, label_column="label").columns == ("a",)


def test_csv_round_trips_doubles(tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 3)) * 10.0 ** np.arange(-100, 200, 100)
    pd.DataFrame(x, columns=list("abc")).to_csv(tmp_path / "a.csv", index=False)
    np.testing.assert_allclose(read_table(tmp_path / "a.csv").x, x, rtol=4e-16)


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "bad": [False, False, True]})
    frame.to_parquet(tmp_path / "a.parquet")
    data = read_table(tmp_path / "a.parquet", label_column="bad")
    assert data.columns == ("a", "b")
    np.testing.assert_array_equal(data.x, frame[["a", "b"]])
    np.testing.assert_array_equal(data.y, [0, 0, 1])
    frame[["b"]].astype("float32").to_parquet(tmp_path / "b.parquet")
    assert read_table(tmp_path / "b.parquet").x.dtype == np.float32


def test_one_class_is_fine_and_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    npz(tmp_path / "a.npz", X=X, y=np.zeros(3))
    assert read_table("~/a.npz").y.sum() == 0


# The Dataset itself


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros(3), None, r"shape \[rows, features\].*\(3,\).*reshape"),
        (np.zeros((0, 3)), None, "at least one row"),
        (np.zeros((3, 0)), None, "one feature"),
        (np.array([["a"]]), None, "real numbers.*<U1"),
        (np.zeros((1, 1), complex), None, "complex128"),
        (X, np.zeros(2), "2 labels for 3 rows"),
        (X, np.zeros((3, 1)), r"shape \[rows\].*ravel"),
        (X, np.array([1, 1, -1]), r"0 \(normal\) and 1 \(anomalous\), found -1;"),
        (X, np.array([0, 1, np.nan]), "found nan"),
        (X, np.array(["no", "no", "yes"]), "found 'no', 'yes'"),
        (X, np.array([{}, [], None], dtype=object)[[2, 2, 2]], "found None"),
    ],
)
def test_dataset_refuses(x, y, message):
    with pytest.raises(DataError, match=message):
        Dataset("toy", x, y, "test")


def test_dataset_columns():
    assert Dataset("toy", X, Y, "test", columns=["a", "b"]).columns == ("a", "b")
    with pytest.raises(DataError, match="3 names for 2 features"):
        Dataset("toy", X, Y, "test", columns=("a", "b", "c"))


# Bad files


def test_path_errors(tmp_path):
    with pytest.raises(DataError, match=r"ending in \.csv, \.tsv, .*, \.array_record, got '\.ods'"):
        read_table(tmp_path / "a.ods")
    with pytest.raises(DataError, match="no suffix"):
        read_table(tmp_path / "a")
    with pytest.raises(DataError, match=r"missing\.csv.*found nothing.*check the path"):
        read_table(tmp_path / "missing.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="got a directory"):
        read_table(tmp_path / "folder.csv")
    os.mkfifo(tmp_path / "pipe.csv")  # opening it would wait for ever
    with pytest.raises(DataError, match="not a regular file"):
        read_table(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="found nothing"):
        read_table("a\0.csv")


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".npz", ".parquet"])
def test_empty_and_foreign_files(tmp_path, suffix):
    with pytest.raises(DataError, match="empty file"):
        read_table(write(tmp_path / f"a{suffix}", b""))
    with pytest.raises(DataError, match=r"(fetch|save).*again|expected numbers"):
        read_table(write(tmp_path / f"b{suffix}", b"\x89PNG\r\n\x1a\n" + bytes(range(256))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\n", "got an empty file"),
        ("a,b\n", r"at least one row"),
        ("a,b\n1,2\n3,4\n5,six\n", r"column 'b', found 'six' in line 4; encode"),
        ('a,b\n"1\n",2\n\n3,x\n', r"column 'b', found 'x' in line 5"),
        ("a,when\n1,2020-01-01\n", r"column 'when', found '2020-01-01' in line 2"),
        (
            "a,b\n1,2\n3,\n,1\n",
            r"NaN \(a missing value\) in row 1 .*column 'b' \(2 of 6 values\); drop the rows or impute",
        ),
        ("a,b\n1,2\n-inf,1\n", r"found -inf in row 1 .*column 'a'"),
        ("a,b\n1,2\n1e999,1\n", r"found inf in row 1"),
        (",a\n0.5,2\n1,4\n", r"column 0 .*has none.*index=False"),
        ("a,b,a\n1,2,3\n", r"'a' occurs 2 times"),
        ("a,b\n1,2,3\n4,5,6\n", r"expected 2 values in every line, .* got 3 in line 2"),
        ("a,b\n1,2\n4,5,6\n", r"got 3 in line 3"),
        ('a,b\n1,"2\n3,4\n', r"EOF inside string"),
        (b"a,b\n1,\xff\n", r"column 'b', found '\xff' in line 2"),
        (b"a,b\n1,\x00\xff\n", r"text"),
        (f"a,b\n1,{'9' * 5000}\n", r"found inf|expected numbers|cannot be read"),
        (f'a,b\n1,"{"x" * 200_000}"\n', r"column 'b'|field larger"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path / "a.csv", text))


def test_bad_label_columns(tmp_path):
    path = write(tmp_path / "a.csv", "load,broken,site\n1,0,a\n2,2,b\n")
    with pytest.raises(DataError, match=r"label column 'brokn', but there is none; did you mean 'broken'\?"):
        read_table(path, label_column="brokn")
    with pytest.raises(DataError, match=r"'broken' holds 0 1, 2 1: which of them is normal\?"):
        read_table(write(tmp_path / "b.csv", "load,broken\n1,0\n2,2\n"), label_column="broken")
    with pytest.raises(DataError, match="found none in row 1"):
        read_table(write(tmp_path / "c.csv", "load,broken\n1,0\n2,\n"), label_column="broken")
    with pytest.raises(DataError, match=r"d\.csv: column 'broken' holds hot 1, cold 1: which of them is normal"):
        read_table(write(tmp_path / "d.csv", "load,broken\n1,hot\n2,cold\n"), label_column="broken")
    with pytest.raises(DataError, match="at least one column of features"):
        read_table(write(tmp_path / "e.csv", "broken\n1\n0\n"), label_column="broken")
    with pytest.raises(DataError, match="names a column"):
        read_table(npz(tmp_path / "a.npz", X=X), label_column="y")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "under one of the keys 'X' and 'x'.*it is empty"),
        ({"data": X, "y": Y}, "it holds data, y"),
        ({"X": X, "x": X}, "under one of the keys"),
        ({"X": X, "y": Y[:2]}, "2 labels for 3 rows"),
        ({"X": X, "y": Y.reshape(3, 1)}, r"key 'y': .*shape \[rows\].*ravel"),
        ({"X": X, "y": Y * 2 - 1}, "found -1"),
        ({"X": X[0]}, r"key 'X': .*shape \(2,\); reshape"),
        ({"X": X[:0]}, "at least one row"),
        ({"X": X[:, :0]}, "one feature"),
        ({"X": X.astype(str)}, "real numbers, got one of <U"),
        ({"X": X.astype(complex)}, "complex128"),
        ({"X": np.zeros(3, dtype=[("a", float)])}, "real numbers"),
        ({"X": X, "y": np.array(["a", "b", "c"])}, "key 'y': .*<U1"),
        ({"X": np.where(X > 4, np.nan, X)}, r"NaN \(a missing value\) in row 1 .*column 1 \(2 of 6"),
        ({"X": np.array([[1, -np.inf]])}, "found -inf in row 0"),
        ({"X": b""}, "cannot be read"),
        ({"X": b"\x93NUMPY\x01\x00"}, "cannot be read"),
        ({"X": b"\x93NUMPY\x09\x00\x10\x00" + b" " * 16}, "cannot be read"),
    ],
)
def test_bad_npz(tmp_path, members, message):
    with pytest.raises(DataError, match=message):
        read_table(npz(tmp_path / "a.npz", **members))


class Exploit:
    def __reduce__(self):
        return (sys.exit, ("a pickle was loaded",))


def test_pickles_are_never_loaded(tmp_path):
    pickled = np.array([[Exploit()]], dtype=object)
    for path in (npz(tmp_path / "a.npz", X=pickled), write(tmp_path / "a.npy", npy_bytes(pickled))):
        with pytest.raises(DataError, match="pickled objects, which are never loaded"):
            read_table(path)


def header(rows, columns=8, descr="<f8", fortran_order=False):
    return {"descr": descr, "fortran_order": fortran_order, "shape": (rows, columns)}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (2**31, "at most 8589934592 bytes.*declares 137438953472.*max_bytes"),
        (2**200, "at most 8589934592 bytes"),
        (2**20, r"declares 67108864 bytes.*but the file holds 64; .*truncated"),
        (-1, "at least one row"),
    ],
)
def test_header_that_declares_too_much(tmp_path, rows, message):
    lie = npy_bytes(header=header(rows), body=bytes(64))
    for path in (npz(tmp_path / "a.npz", X=lie), write(tmp_path / "a.npy", lie)):
        with peak_memory_below(8 * 2**20), pytest.raises(DataError, match=message):
            read_table(path)


def test_header_with_trailing_bytes_and_limits(tmp_path):
    with pytest.raises(DataError, match=r"declares 64 bytes.*holds 72"):
        read_table(write(tmp_path / "a.npy", npy_bytes(header=header(1), body=bytes(72))))
    for path in (
        npz(tmp_path / "a.npz", X=X),
        write(tmp_path / "b.npy", npy_bytes(X)),
        write(tmp_path / "c.csv", "a\n1\n"),
    ):
        with pytest.raises(DataError, match="at most 3 bytes"):
            read_table(path, max_bytes=3)


@pytest.mark.parametrize(
    "text",
    ["(" * 5000, "-" * 9000 + "1", "{'descr': 1\\d", "{'a': {[]: 1}}", "'" * 3, "\0" * 20, "{" + "1:1," * 2000 + "}"],
)
def test_header_that_is_hostile_python(tmp_path, text):
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
    with pytest.raises(DataError, match="cannot be read"):
        read_table(write(tmp_path / "a.npy", content))


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_zip_bombs_do_not_inflate(tmp_path, compression):
    """The member inflates to 256 MiB, the directory and the header say 64 bytes of numbers."""
    path = tmp_path / "a.npz"
    honest = npy_bytes(header=header(1))
    with zipfile.ZipFile(path, "w", compression) as archive, archive.open("X.npy", "w") as member:
        member.write(honest)
        for _ in range(32):
            member.write(bytes(2**23))
    size = len(honest) + 32 * 2**23
    content = path.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", len(honest) + 64))
    assert len(content) < 2**20
    message = "got zip method 12" if compression == zipfile.ZIP_BZIP2 else r"damaged|cannot be read"
    with peak_memory_below(96 * 2**20), pytest.raises(DataError, match=message):
        read_table(write(path, content))


def test_directory_and_header_lie_together(tmp_path):
    """Both promise 4 GiB less a little; the archive holds a hundred bytes."""
    rows = 2**26 - 100
    lie = npy_bytes(header=header(rows), body=bytes(64))
    path = npz(tmp_path / "a.npz", X=lie)
    content = path.read_bytes().replace(struct.pack("<I", len(lie)), struct.pack("<I", len(lie) - 64 + rows * 64))
    with peak_memory_below(8 * 2**20), pytest.raises(DataError, match=r"damaged|cannot be read"):
        read_table(write(path, content))


def test_encrypted_and_unknown_compression(tmp_path):
    good = npz(tmp_path / "a.npz", zipfile.ZIP_STORED, X=X).read_bytes()
    directory = good.index(b"PK\x01\x02")
    for offset in (8, 10):  # flags, method
        content = bytearray(good)
        for start in (directory + offset, offset - 2):
            content[start] = 99 if offset == 10 else content[start] | 1
        with pytest.raises(DataError, match=r"encrypted|zip method 99"):
            read_table(write(tmp_path / "b.npz", bytes(content)))


def test_names_that_leave_the_folder_are_harmless(tmp_path):
    path = tmp_path / "inner" / "a.npz"
    path.parent.mkdir()
    npz(path, X=X, **{"../../evil": X, "/tmp/evil": X})
    assert read_table(path).x.shape == X.shape
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.npz", "inner"]


def test_bad_parquet(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    frames = {
        "text": (pd.DataFrame({"a": [1, 2], "site": ["1", "x"]}), r"column 'site', found 'x' in row 1"),
        "dates": (pd.DataFrame({"a": pd.to_datetime(["2020-01-01"])}), r"column 'a', found Timestamp"),
        "lists": (pd.DataFrame({"a": [[1.0, 2.0]]}), r"column 'a', found array"),
        "missing": (pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}), r"NaN .*row 1 .*column 'a'"),
        "none": (pd.DataFrame({"a": []}, dtype=float), "at least one row"),
    }
    for name, (frame, message) in frames.items():
        frame.to_parquet(tmp_path / f"{name}.parquet")
        with pytest.raises(DataError, match=message):
            read_table(tmp_path / f"{name}.parquet")
    pd.DataFrame({"a": np.zeros(100_000)}).to_parquet(tmp_path / "wide.parquet")  # a few hundred bytes on disk
    with pytest.raises(DataError, match=r"at most 700000 bytes.*100000 rows x 1 columns"):
        read_table(tmp_path / "wide.parquet", max_bytes=700_000)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"pip install 'jaxad\[data\]'"):
        read_table(tmp_path / "wide.parquet")


# Damage at random


def damaged(content, rng):
    """``content`` with a few bytes changed, cut, removed or inserted."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        position = int(rng.integers(len(content)))
        match rng.integers(5):
            case 0:
                content[position] ^= 1 << int(rng.integers(8))
            case 1:
                content[position] = int(rng.integers(256))
            case 2:
                del content[position : position + int(rng.integers(1, 20))]
            case 3:
                content[position:position] = rng.bytes(int(rng.integers(1, 20)))
            case 4:
                del content[max(position, 1) :]
        if not content:
            content = bytearray(b"\0")
    return bytes(content)


def valid_files(folder):
    x = np.random.default_rng(0).normal(size=(6, 3))
    y = np.array([0, 0, 0, 0, 1, 1])
    yield ".npy", npy_bytes(x)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        yield ".npz", npz(folder / "valid.npz", method, X=x, y=y).read_bytes()
    yield ".csv", pd.DataFrame(x, columns=["a", "b b", "c"]).to_csv(index=False).encode()


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_read_or_refused(tmp_path, seed):
    rng = np.random.default_rng(seed)
    refusals = []
    for suffix, content in valid_files(tmp_path):
        for _ in range(150):
            path = write(tmp_path / f"damaged{suffix}", damaged(content, rng))
            try:
                assert np.isfinite(read_table(path).x).all()
            except DataError as error:
                refusals.append(str(error))
    assert len(refusals) > 200
    assert all("damaged" in refusal for refusal in refusals)
