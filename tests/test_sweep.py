"""Sweeps: what lies on disk after success, kill and error, and that a second call goes on from there."""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor

from jaxad import data, metrics
from jaxad.evaluation import Evaluation, sweep

KEYS = [
    *("dataset", "detector", "protocol", "seed", "auroc", "average_precision", "fpr_at_95_tpr", "f1_at_k", "num_train"),
    *("num_test", "twin_share", "fit_seconds", "score_seconds", "commit", "device", "versions"),
]
DATASETS = {"wine_0": lambda: data.wine(0), "wine_1": lambda: data.wine(1)}
DETECTORS = {
    "forest": lambda seed: IsolationForest(n_estimators=10, random_state=seed),
    "lof": lambda seed: LocalOutlierFactor(novelty=True),
}
RECORD = Evaluation("wine", "knn", "clean", 0, 0.9, 0.8, 0.1, 0.7, 60, 3, 0.0, 0.1, 0.1, versions={"jax": "1"})


class Broken:
    def fit(self, X, y=None):
        raise RuntimeError("out of memory")

    score_samples = fit


def never(*_):
    raise AssertionError("this must not be called")


def sweep_quietly(out, datasets=DATASETS, detectors=DETECTORS, **settings):
    return sweep.run(datasets, detectors, out=out, progress=False, **settings)


def results_of(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def write_lines(path, *lines):
    path.write_bytes(b"\n".join(lines))
    return path


def line_of(record, **changes):
    return json.dumps({**{key: getattr(record, key) for key in KEYS}, **changes}).encode()


def test_one_line_per_cell_with_exactly_these_keys_and_the_scores_behind_it(tmp_path):
    records = sweep_quietly(tmp_path / "new" / "folder", seeds=(0, 3))
    out = tmp_path / "new" / "folder"
    assert [record.cell for record in records] == [
        (dataset, detector, "clean", seed) for dataset in DATASETS for seed in (0, 3) for detector in DETECTORS
    ]
    assert [list(line) for line in results_of(out)] == [KEYS] * 8
    assert sweep.read_results(out) == sweep.read_results(out / "results.jsonl") == records
    for record in records:
        labels, scores = sweep.read_scores(out, record)
        assert (labels.dtype, scores.dtype, len(scores)) == (np.uint8, np.float32, record.num_test)
        assert metrics.auroc(labels, scores) == pytest.approx(record.auroc, abs=1e-3)
    assert not [name for name in os.listdir(out / "scores") if not name.endswith(".npz")]
    assert sorted(os.listdir(out)) == ["results.jsonl", "scores"]
    assert (out / "scores" / "wine_0--lof--clean--3.npz").exists()


def test_finished_cells_are_neither_loaded_nor_computed_again(tmp_path):
    first = sweep_quietly(tmp_path)
    before = (tmp_path / "results.jsonl").read_bytes()
    again = sweep_quietly(tmp_path, dict.fromkeys(DATASETS, never), dict.fromkeys(DETECTORS, never), on_cell=never)
    assert again == first
    assert (tmp_path / "results.jsonl").read_bytes() == before
    told = []
    more = sweep_quietly(tmp_path, seeds=(0, 1), on_cell=told.append)
    assert len(more) == 8
    assert [record.seed for record in told] == [1, 1, 1, 1]
    assert (tmp_path / "results.jsonl").read_bytes().startswith(before)


def test_each_data_set_is_loaded_once(tmp_path):
    loads = []
    sweep_quietly(tmp_path, {"wine_0": lambda: loads.append(0) or data.wine(0)}, seeds=(0, 1))
    assert loads == [0]


def test_an_error_stops_the_run_and_keeps_what_is_done(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        sweep_quietly(tmp_path, detectors={**DETECTORS, "broken": lambda seed: Broken()})
    assert [line["detector"] for line in results_of(tmp_path)] == ["forest", "lof"]


def test_a_killed_run_loses_only_the_cell_in_flight(tmp_path):
    script = f"""
import os, signal
from sklearn.ensemble import IsolationForest
from jaxad import data
from jaxad.evaluation import sweep
class Killed(IsolationForest):
    def score_samples(self, X):
        os.kill(os.getpid(), signal.SIGKILL)
sweep.run({{"wine_0": data.wine}}, {{"forest": lambda seed: (Killed if seed == 2 else IsolationForest)(n_estimators=5)}},
          seeds=range(4), out={str(tmp_path)!r})
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [line["seed"] for line in results_of(tmp_path)] == [0, 1]
    told = []
    sweep_quietly(tmp_path, {"wine_0": data.wine}, {"forest": DETECTORS["forest"]}, seeds=range(4), on_cell=told.append)
    assert [record.seed for record in told] == [2, 3]


@pytest.mark.parametrize("kept", [1, 5, 60, -1])
def test_a_line_cut_short_is_ignored_and_its_cell_repeated_on_a_line_of_its_own(tmp_path, kept):
    whole = sweep_quietly(tmp_path)
    results = tmp_path / "results.jsonl"
    lines = results.read_bytes().splitlines()
    results.write_bytes(b"\n".join([*lines[:3], lines[3][:kept]]))
    assert sweep.read_results(tmp_path) == whole[:3]
    again = sweep_quietly(tmp_path)
    assert again[:3] == whole[:3]
    assert again[3].auroc == whole[3].auroc
    assert sweep.read_results(tmp_path) == again
    assert results.read_bytes().splitlines()[:3] == lines[:3]


def test_a_last_record_without_its_line_end_counts(tmp_path):
    write_lines(tmp_path / "results.jsonl", line_of(RECORD))
    sweep_quietly(tmp_path, {"wine_0": data.wine})
    assert [record.dataset for record in sweep.read_results(tmp_path)] == ["wine", "wine_0", "wine_0"]


@pytest.mark.parametrize(
    "foreign",
    [
        b"hello",
        b"[1, 2]",
        b'{"dataset": "wine"}',
        b"\xff\xfe",
        line_of(RECORD, more=1),
        line_of(RECORD, auroc=90.0),
        line_of(RECORD, auroc=float("nan")),
        line_of(RECORD, seed=True),
        line_of(RECORD, dataset=3),
        line_of(RECORD, fit_seconds=-1.0),
        line_of(RECORD, commit=7),
        line_of(RECORD, versions=None),
    ],
)
def test_a_foreign_line_is_refused_with_its_place_before_anything_is_written(tmp_path, foreign):
    path = write_lines(tmp_path / "results.jsonl", line_of(RECORD), foreign, b"")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"results\.jsonl, line 2"):
        sweep_quietly(tmp_path, dict.fromkeys(DATASETS, never))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["results.jsonl"]


def test_two_versions_in_one_file_are_fine_and_the_later_line_of_a_cell_counts(tmp_path):
    write_lines(
        tmp_path / "results.jsonl",
        line_of(RECORD),
        line_of(RECORD, seed=1, commit="abc"),
        line_of(RECORD, auroc=1),
        b"",
    )
    records = sweep.read_results(tmp_path)
    assert [(record.seed, record.auroc, record.commit) for record in records] == [(1, 0.9, "abc"), (0, 1, None)]


def test_an_unwritable_folder_is_reported_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="cannot write results to"):
            sweep_quietly(out, dict.fromkeys(DATASETS, never))
    (tmp_path / "results.jsonl").mkdir()
    with pytest.raises(OSError, match="cannot write results to"):
        sweep_quietly(tmp_path, dict.fromkeys(DATASETS, never))
    assert sorted(os.listdir(tmp_path)) == ["file", "results.jsonl"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_is_reported(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cannot write results to"):
        sweep_quietly(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": {}}, "at least one"),
        ({"detectors": {}}, "at least one"),
        ({"seeds": ()}, "at least one"),
        ({"protocol": "fancy"}, "unknown protocol"),
    ],
)
def test_nothing_to_do_is_said_before_the_folder_is_made(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        sweep_quietly(tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_a_loader_must_return_the_data_set_of_its_key(tmp_path):
    with pytest.raises(ValueError, match="'wine_0' returned a data set named 'wine_1'"):
        sweep_quietly(tmp_path, {"wine_0": DATASETS["wine_1"]})


def test_hostile_names_stay_in_the_folder_and_never_share_a_file(tmp_path):
    hostile = "../../a/b\0\n[red]"
    records = sweep_quietly(tmp_path / "out", {hostile: lambda: replace(data.wine(), name=hostile)})
    assert os.listdir(tmp_path) == ["out"]
    assert sweep.read_results(tmp_path / "out") == records
    assert sweep.read_scores(tmp_path / "out", records[0]) is not None
    names = ["a", "-", "--", "a-", "-a", "a-a", "a--a", "%2D", "a%2Da", "é" * 99, "é" * 98, "\ud800"]
    pairs = [replace(RECORD, dataset=dataset, detector=detector) for dataset in names for detector in names]
    assert len({sweep._scores_path(tmp_path, record) for record in pairs}) == len(pairs)


def test_scores_read_back_missing_damaged_or_of_another_run(tmp_path):
    assert sweep.read_scores(tmp_path, RECORD) is None
    (tmp_path / "scores").mkdir()
    path = sweep._scores_path(tmp_path, RECORD)
    sweep._write_scores(path, np.array([0, 1, 1]), np.array([1.0, 1e300, -1e300]))
    labels, scores = sweep.read_scores(tmp_path, RECORD)
    assert labels.tolist() == [0, 1, 1]
    assert np.isfinite(scores).all()
    assert scores[1] > scores[0] > scores[2]
    with pytest.raises(ValueError, match="its record says 9 rows"):
        sweep.read_scores(tmp_path, replace(RECORD, num_test=9))
    whole = path.read_bytes()
    array = io.BytesIO()
    np.save(array, scores)
    for damaged in (b"", b"PK\3\4", whole[:-30], whole[:60] + b"garbage" + whole[67:], array.getvalue()):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"knn.*holds no labels and scores"):
            sweep.read_scores(tmp_path, RECORD)


def test_no_results_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results at"):
        sweep.read_results(tmp_path)


def test_a_bar_on_stderr_and_nothing_on_stdout(tmp_path, capsys):
    sweep.run({"wine_0": data.wine}, DETECTORS, out=tmp_path)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2/2" in captured.err
