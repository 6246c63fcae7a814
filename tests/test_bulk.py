"""Scoring files of any length: the numbers of one call, memory of a piece, taken up where it stopped."""

import os
import tracemalloc

import numpy as np
import pytest

from jaxad import bulk
from jaxad.bulk import read_scores, score_file
from jaxad.data import DataError, read_table, table_blocks
from jaxad.detectors import KNNDetector

X = np.random.default_rng(0).normal(size=(53, 3)).round(3)
DETECTOR = KNNDetector().fit(np.random.default_rng(1).normal(size=(200, 3)))


@pytest.fixture(params=[".csv", ".npy", ".npz", ".parquet"])
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
    elif request.param == ".npy":
        np.save(path, X)
    else:
        np.savez(path, X=X)
    return path


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


@pytest.mark.parametrize("kind", [".npy", ".csv"])
def test_memory_is_that_of_a_piece(tmp_path, kind):
    class Free:
        """Costs nothing."""

        calibration_scores_, offset_ = DETECTOR.calibration_scores_, DETECTOR.offset_

        def score_samples(self, X):
            return -np.abs(X[:, 0])

    peaks = []
    for rows in (20_000, 80_000):
        x = np.random.default_rng(0).normal(size=(rows, 8)).round(3)
        path = tmp_path / f"{rows}{kind}"
        if kind == ".npy":
            np.save(path, x)
        else:
            np.savetxt(path, x, delimiter=",", header=",".join("abcdefgh"), comments="", fmt="%.3f")
        tracemalloc.start()
        score_file(Free(), path, tmp_path / "scores.csv", rows=1_000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + 500_000


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
