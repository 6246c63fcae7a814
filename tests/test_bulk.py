"""Scoring files of any length: the numbers of one call, memory of a piece, taken up where it stopped."""

import csv
import gc
import io
import os
import tracemalloc

import numpy as np
import pytest

from jaxad.data import DataError, PictureFiles, read_table, table_blocks
from jaxad.detectors import KNNDetector
from jaxad.shipping import bulk
from jaxad.shipping.bulk import read_scores, score_file, score_folder

X = np.random.default_rng(0).normal(size=(53, 3)).round(3)
DETECTOR = KNNDetector().fit(np.random.default_rng(1).normal(size=(200, 3)))


@pytest.fixture(params=[".csv", ".npy", ".npz", ".parquet", ".array_record"])
def table(request, tmp_path):
    path = tmp_path / f"table{request.param}"
    if request.param == ".csv":
        # Blank lines and names in quotes: rows are not lines.
        lines = [",".join(map(str, row)) + ("\n" if number % 7 == 0 else "") for number, row in enumerate(X)]
        path.write_text('"a",b,"c"\n' + "\n".join(lines) + "\n")
    elif request.param == ".parquet":
        pytest.importorskip("pyarrow")
        import pandas as pd

        pd.DataFrame(X, columns=list("abc")).to_parquet(path)
    elif request.param == ".array_record":
        write_records(path, X)
    elif request.param == ".npy":
        np.save(path, X)
    else:
        np.savez_compressed(path, X=X)
    return path


def write_records(path, rows):
    writer = pytest.importorskip("array_record.python.array_record_module").ArrayRecordWriter(str(path), "group_size:1")
    for row in rows:
        with io.BytesIO() as record:
            np.save(record, row)
            writer.write(record.getvalue())
    writer.close()


@pytest.mark.parametrize("rows", [1, 7, 52, 53, 1000])
def test_pieces_are_the_table(table, rows):
    pieces = list(table_blocks(table, rows=rows))
    assert [len(piece.x) for piece in pieces] == [min(rows, 53 - first) for first in range(0, 53, rows)]
    np.testing.assert_array_equal(np.concatenate([piece.x for piece in pieces]), read_table(table).x)
    for start in (0, 1, 20, 52):
        rest = [piece.x for piece in table_blocks(table, rows=rows, start=start)]
        np.testing.assert_array_equal(np.concatenate(rest), X[start:])
    assert list(table_blocks(table, rows=rows, start=53)) == []


def test_columns_stored_one_after_the_other(tmp_path):
    np.save(tmp_path / "x.npy", np.asfortranarray(X))
    np.testing.assert_array_equal(np.concatenate([piece.x for piece in table_blocks(tmp_path / "x.npy", rows=10)]), X)


def test_the_scores_are_those_of_one_call(table, tmp_path):
    out = tmp_path / "scores.csv"
    done = score_file(DETECTOR, table, out, rows=10)
    np.testing.assert_array_equal(read_scores(out), -DETECTOR.score_samples(X))
    assert (done.rows, done.taken_up, done.flagged) == (53, 0, (DETECTOR.predict(X) == -1).sum())
    assert sorted(os.listdir(tmp_path)) == ["scores.csv", table.name]


class Dying:
    """Scores so many pieces, then dies as a killed process does: without a word."""

    calibration_scores_, offset_ = DETECTOR.calibration_scores_, DETECTOR.offset_

    def __init__(self, calls):
        self.left = calls

    def score_samples(self, X):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return DETECTOR.score_samples(X)


@pytest.mark.parametrize("fdr", [None, 0.5])
@pytest.mark.parametrize("calls", [0, 1, 4])
def test_a_killed_run_is_taken_up(table, tmp_path, calls, fdr):
    whole, out = tmp_path / "whole.csv", tmp_path / "scores.csv"
    score_file(DETECTOR, table, whole, rows=10, fdr=fdr)
    with pytest.raises(KeyboardInterrupt):
        score_file(Dying(calls), table, out, rows=10, fdr=fdr)
    with (tmp_path / "scores.csv.partial").open("ab") as file:
        file.write(b"53,half a li")  # written, but not yet noted, when the process was killed
    assert not out.exists()
    done = score_file(DETECTOR, table, out, rows=10, fdr=fdr)
    assert done.taken_up == 10 * calls
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == sorted(["scores.csv", "whole.csv", table.name])


@pytest.mark.parametrize("change", ["data", "mark", "alpha", "note", "nothing"])
def test_another_job_is_not_taken_for_the_one_that_stopped(tmp_path, change):
    table, out = tmp_path / "x.npy", tmp_path / "scores.csv"
    np.save(table, X)
    with pytest.raises(KeyboardInterrupt):
        score_file(Dying(2), table, out, rows=10, mark="one")
    settings = {"rows": 10, "mark": "one"}
    if change == "data":
        np.save(table, np.concatenate([X[::-1], X[:1]]))
    elif change == "mark":
        settings["mark"] = "two"
    elif change == "alpha":
        settings["alpha"] = 0.3
    elif change == "note":
        (tmp_path / "scores.csv.partial.json").write_text('["so", "so"]')
    assert score_file(DETECTOR, table, out, **settings).taken_up == (20 if change == "nothing" else 0)
    np.testing.assert_array_equal(read_scores(out), -DETECTOR.score_samples(np.load(table)))


def test_a_report_is_that_of_the_whole_file(tmp_path):
    np.save(tmp_path / "x.npy", np.concatenate([X, 9 + X]))
    done = score_file(DETECTOR, tmp_path / "x.npy", tmp_path / "scores.csv", rows=10, fdr=0.1)
    expected = DETECTOR.discoveries(np.concatenate([X, 9 + X]), alpha=0.1)
    flagged = [line.split(",")[3] == "1" for line in (tmp_path / "scores.csv").read_text().splitlines()[1:]]
    assert flagged == expected.tolist()
    assert done.flagged == expected.sum() >= 53


def test_bad_rows_are_told_by_their_number_and_nothing_is_left(tmp_path):
    spoilt = X.copy()
    spoilt[33, 1] = np.nan
    np.save(tmp_path / "x.npy", spoilt)
    with pytest.raises(DataError, match="counted from row 30"):
        score_file(DETECTOR, tmp_path / "x.npy", tmp_path / "scores.csv", rows=10)
    assert os.listdir(tmp_path) == ["x.npy"]


class Free:
    """Costs nothing."""

    calibration_scores_, offset_ = DETECTOR.calibration_scores_, DETECTOR.offset_

    def score_samples(self, X):
        return -np.abs(X[:, 0])


def peak_of(path, out):
    """Bytes that Python holds at most while it scores."""
    gc.collect()
    tracemalloc.start()
    score_file(Free(), path, out, rows=1_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("kind", [".npy", ".csv", ".npz", pytest.param(".array_record", marks=pytest.mark.slow)])
def test_memory_is_that_of_a_piece(tmp_path, kind):
    peaks = []
    for rows in (5_000, 20_000) if kind == ".array_record" else (20_000, 80_000):
        x = np.random.default_rng(0).normal(size=(rows, 8)).round(3)
        path = tmp_path / f"{rows}{kind}"
        if kind == ".npy":
            np.save(path, x)
        elif kind == ".npz":
            np.savez_compressed(path, X=x, y=np.zeros(rows, np.uint8))
        elif kind == ".array_record":
            write_records(path, x)
        else:
            np.savetxt(path, x, delimiter=",", header=",".join("abcdefgh"), comments="", fmt="%.3f")
        score_file(
            Free(), path, tmp_path / "scores.csv", rows=1_000
        )  # what is imported or made once is no memory of rows
        peaks.append(peak_of(path, tmp_path / "scores.csv"))
    bound = 1.3 * peaks[0] + 500_000
    # Once in a process a table of Python's own (most likely that of interned strings) grows by megabytes, whoever is measured.
    assert peaks[1] < bound or peak_of(path, tmp_path / "scores.csv") < bound


def test_the_note_is_written_after_the_rows(tmp_path, monkeypatch):
    """The other way round, a kill in between would lose rows."""
    np.save(tmp_path / "x.npy", X)
    sizes, write = [], bulk._write_note

    def seen(note, content):
        sizes.append(((tmp_path / "scores.csv.partial").stat().st_size, content[2]))
        write(note, content)

    monkeypatch.setattr(bulk, "_write_note", seen)
    score_file(DETECTOR, tmp_path / "x.npy", tmp_path / "scores.csv", rows=10)
    assert len(sizes) == 6
    assert all(on_disk == noted for on_disk, noted in sizes)


# ------------------------------------------------------------------------------------------------------------ archives and records


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_labels_come_along_with_the_rows_of_an_archive(tmp_path, save):
    y = np.arange(53) % 2
    save(tmp_path / "x.npz", X=X, y=y)
    pieces = list(table_blocks(tmp_path / "x.npz", rows=10, start=5))
    np.testing.assert_array_equal(np.concatenate([piece.x for piece in pieces]), X[5:])
    labels = [piece.y for piece in pieces if piece.y is not None]
    np.testing.assert_array_equal(np.concatenate(labels), y[5:])


def test_an_archive_whose_columns_lie_one_after_the_other_is_read_whole(tmp_path):
    np.savez(tmp_path / "x.npz", X=np.asfortranarray(X))
    np.testing.assert_array_equal(np.concatenate([piece.x for piece in table_blocks(tmp_path / "x.npz", rows=9)]), X)


def test_archives_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, X=X, y=np.zeros(50))
    with pytest.raises(DataError, match="a label for each of 53 rows, got 50"):
        next(table_blocks(path, rows=10))
    np.savez(path, X=X)
    with pytest.raises(DataError, match="at most 100 bytes at once"):
        next(table_blocks(path, rows=10, max_bytes=100))
    whole = bytearray(path.read_bytes())
    whole[whole.index(X[50].tobytes())] ^= (
        1  # found by the checksum, in the last piece: the file is not taken for whole
    )
    path.write_bytes(whole)
    with pytest.raises(DataError, match="CRC"):
        score_file(DETECTOR, path, tmp_path / "scores.csv", rows=10)
    assert os.listdir(tmp_path) == ["x.npz"]


def test_records_that_do_not_fit_are_refused_by_number(tmp_path):
    path = tmp_path / "x.array_record"
    write_records(path, [X[0], X[1], X[2, :2]])
    with pytest.raises(DataError, match="3 features in every record, got 2 in record 2"):
        read_table(path)
    write_records(path, [X[0], X])
    with pytest.raises(DataError, match=r"record 1: .*shape \(53, 3\)"):
        read_table(path)
    path.write_bytes(b"no records at all")
    with pytest.raises(DataError, match="expected a file of ArrayRecord"):
        read_table(path)


# ------------------------------------------------------------------------------------------------------------------------ pictures


class Bright:
    """A detector of bright pictures that counts what it is given at once, and may die."""

    calibration_scores_, offset_ = np.linspace(-1.0, 0.0, 50), -0.5

    def __init__(self, calls=10**6):
        self.left, self.most = calls, 0

    def score_samples(self, X):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.most = max(self.most, len(X))
        return -X.mean(axis=(1, 2, 3)) / 255


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(23):
        name = 'a, "b".png' if number == 22 else f"{number:02}.png"
        Image.new("L", (16, 12), 10 * number).save(folder / name)
    return folder


@pytest.mark.parametrize("fdr", [None, 0.5])
@pytest.mark.parametrize("calls", [0, 1, 4])
def test_a_folder_is_scored_in_pieces_and_taken_up(pictures, tmp_path, calls, fdr):
    whole, out, detector = tmp_path / "whole.csv", tmp_path / "scores.csv", Bright()
    files = PictureFiles(pictures, size=8)
    assert score_folder(detector, files, whole, fdr=fdr, most_bytes=5 * 64).rows == 23
    assert detector.most == 5  # of 64 bytes each: never the whole folder
    with pytest.raises(KeyboardInterrupt):
        score_folder(Bright(calls), files, out, fdr=fdr, most_bytes=5 * 64)
    assert not out.exists()
    assert score_folder(Bright(), files, out, fdr=fdr, most_bytes=5 * 64).taken_up == 5 * calls
    assert out.read_bytes() == whole.read_bytes()
    with out.open(newline="", encoding="utf-8") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [file.name for file in files.files]
    np.testing.assert_array_equal(read_scores(out), -Bright().score_samples(files[:]))


def test_another_folder_or_a_broken_picture_starts_anew_or_leaves_nothing(pictures, tmp_path):
    out = tmp_path / "scores.csv"
    with pytest.raises(KeyboardInterrupt):
        score_folder(Bright(2), PictureFiles(pictures, size=8), out, most_bytes=5 * 64)
    (pictures / "03.png").write_bytes((pictures / "03.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"03\.png"):
        score_folder(Bright(), PictureFiles(pictures, size=8), out, most_bytes=5 * 64)
    assert sorted(os.listdir(tmp_path)) == ["pictures"]


# ---------------------------------------------------------------------------------------------------------------- files of scores


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff", b"row,p_value\r\n0,0.5\r\n", b"row,anomaly_score\r\n0,x\r\n", b"row,anomaly_score\r\n0\r\n"),
        b"row,anomaly_score\r\n0,nan\r\n",
    ],
)
def test_a_damaged_file_of_scores_is_refused_by_name(tmp_path, content):
    (tmp_path / "scores.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"scores\.csv: expected"):
        read_scores(tmp_path / "scores.csv")
