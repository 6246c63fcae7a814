"""Sweeps and many files on a local Ray cluster of two workers: the records of the serial run, taken up and stopped as it is."""

import os
import signal
import sys
import types
import warnings
from functools import partial

import numpy as np
import pytest
from command_line import jaxad
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor

from jaxad import data
from jaxad.detectors import ImageDetector, KNNDetector, catalogue
from jaxad.detectors.persistence import save_detector
from jaxad.evaluation import sweep
from jaxad.runtime import cluster
from jaxad.shipping import bulk

needs_ray = pytest.mark.skipif(not cluster.find_spec("ray"), reason="Ray is not installed: pip install 'jaxad[ray]'")
LOADERS = {name: partial(data.builtin, name) for name in ("wine_0", "wine_1")}
X = np.random.default_rng(0).normal(size=(40, 3))


def forest(seed):
    return IsolationForest(n_estimators=10, random_state=seed)


def neighbours(seed):
    return LocalOutlierFactor(novelty=True)


class Broken:
    """What this file defines the workers cannot import: Ray sends it by value."""

    def fit(self, X, y=None):
        raise ValueError("this detector likes no rows")

    score_samples = fit


def broken(seed):
    return Broken()


def dies_once(marker, seed):
    """A detector whose worker is killed the first time."""
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return forest(seed)


DETECTORS = {"forest": forest, "lof": neighbours}


@pytest.fixture(scope="module")
def two_workers():
    """One cluster for the whole file: to start it takes seconds."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'jaxad[ray]'")
    here = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(here)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Ray leaves files and sockets to the collector
        with cluster.on_ray(workers=2) as elsewhere:
            yield elsewhere
    ray.cloudpickle.unregister_pickle_by_value(here)


def essence(records):
    return [(*record.cell, record.num_train, record.num_test, record.commit, record.device) for record in records]


def assert_same_records(found, expected, out, expected_out):
    assert essence(found) == essence(expected)
    for record, other in zip(found, expected, strict=True):
        assert record.auroc == pytest.approx(other.auroc, abs=1e-6)
        labels, scores = sweep.read_scores(out, record)
        expected_labels, expected_scores = sweep.read_scores(expected_out, other)
        np.testing.assert_array_equal(labels, expected_labels)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_sweep_on_two_workers_is_the_serial_one(two_workers, tmp_path):
    what = {"seeds": (0, 1), "progress": False}
    expected = sweep.run(LOADERS, DETECTORS, out=tmp_path / "here", **what)
    seen = []
    found = sweep.run(LOADERS, DETECTORS, out=tmp_path / "ray", elsewhere=two_workers, on_cell=seen.append, **what)
    assert_same_records(found, expected, tmp_path / "ray", tmp_path / "here")
    assert sorted(record.cell for record in seen) == sorted(record.cell for record in expected)

    # The records of one are taken up by the other: nothing is computed again.
    def never(*_):
        raise AssertionError("this must not be called")

    assert sweep.run(LOADERS, dict.fromkeys(DETECTORS, never), out=tmp_path / "ray", **what) == found
    assert sweep.run(LOADERS, DETECTORS, out=tmp_path / "here", elsewhere=never, **what) == expected


@pytest.mark.slow
def test_a_part_of_table_1_on_two_workers(two_workers, data_dir, tmp_path):
    loaders = {name: partial(data.adbench, name, data_dir) for name in ("29_Pima", "37_Stamps")}
    detectors = catalogue.choose(("iforest", "ocsvm", "copod", "knn", "norm", "dte-np"))
    what = {"seeds": (44,), "protocol": "dte", "progress": False}
    expected = sweep.run(loaders, detectors, out=tmp_path / "here", **what)
    found = sweep.run(loaders, detectors, out=tmp_path / "ray", elsewhere=two_workers, **what)
    assert_same_records(found, expected, tmp_path / "ray", tmp_path / "here")


@pytest.mark.slow
def test_an_error_stops_the_sweep_as_here_and_keeps_what_is_done(two_workers, tmp_path):
    detectors = {"forest": forest, "broken": broken}
    for elsewhere in (None, two_workers):
        out = tmp_path / str(elsewhere is None)
        with pytest.raises(ValueError, match="this detector likes no rows"):
            sweep.run({"wine_0": LOADERS["wine_0"]}, detectors, out=out, progress=False, elsewhere=elsewhere)
    assert [record.detector for record in sweep.read_results(tmp_path / "True")] == ["forest"]
    detectors["broken"] = neighbours
    records = sweep.run(
        {"wine_0": LOADERS["wine_0"]}, detectors, out=tmp_path / "False", progress=False, elsewhere=two_workers
    )
    assert [record.detector for record in records] == ["forest", "broken"]


@pytest.mark.slow
def test_a_cell_whose_worker_dies_is_computed_again(two_workers, tmp_path):
    dying = {"forest": partial(dies_once, str(tmp_path / "marker"))}
    [found] = sweep.run(LOADERS | {}, dying, out=tmp_path / "ray", progress=False, elsewhere=two_workers)[:1]
    assert (tmp_path / "marker").exists()
    [expected] = sweep.run(LOADERS, DETECTORS, out=tmp_path / "here", progress=False)[:1]
    assert found.auroc == expected.auroc


@pytest.mark.slow
def test_a_task_that_kills_every_worker_is_given_up_with_a_sentence(two_workers):
    def fatal():
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="task 1 of 1 lost its worker 4 times, out of memory perhaps"):
        list(two_workers(fatal, [()]))


# -------------------------------------------------------------------------------------------------------------------- many files


@pytest.fixture
def model(tmp_path):
    save_detector(KNNDetector().fit(np.random.default_rng(1).normal(size=(60, 3))), tmp_path / "model")
    for number in range(3):
        np.save(tmp_path / f"rows_{number}.npy", X[: 10 + number] + number)
    return tmp_path / "model"


def files_of(tmp_path):
    return sorted(tmp_path.glob("rows_*.npy"))


@pytest.mark.slow
def test_many_files_on_two_workers_and_here(two_workers, model, tmp_path):
    files, seen = files_of(tmp_path), []

    def tell(file, scored):
        seen.append(file.name)

    here = bulk.score_files(model, files, tmp_path / "here", alpha=0.1, on_file=tell)
    assert seen == [file.name for file in files]
    ray = bulk.score_files(model, files, tmp_path / "ray", alpha=0.1, elsewhere=two_workers)
    assert [scored[:3] for scored in ray.values()] == [scored[:3] for scored in here.values()]
    assert [scored.rows for scored in here.values()] == [10, 11, 12]
    for file in files:
        name = f"{file.name}.csv"
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    # Only what is new or has changed is scored again, also after a line that a kill has cut short.
    np.save(files[1], X[:5])
    with (tmp_path / "ray" / bulk.FILES_SCORED).open("a") as records:
        records.write('{"file": "ro')
    seen.clear()
    again = bulk.score_files(model, files, tmp_path / "ray", alpha=0.1, on_file=tell, elsewhere=two_workers)
    assert seen == ["rows_1.npy"]
    assert [scored.rows for scored in again.values()] == [10, 5, 12]
    seen.clear()
    bulk.score_files(model, files, tmp_path / "ray", alpha=0.1, on_file=tell)
    assert seen == []
    bulk.score_files(model, files, tmp_path / "ray", alpha=0.2, on_file=tell)
    assert len(seen) == 3


@pytest.mark.slow
def test_files_that_cannot_be_scored_together(model, tmp_path):
    [first, *_] = files_of(tmp_path)
    for files, told in (([], "got 0 of 0 names"), ([first, tmp_path / "other" / first.name], "got 2 of 1 names")):
        with pytest.raises(ValueError, match=f"each of a name of its own, {told}"):
            bulk.score_files(model, files, tmp_path / "out")
    with pytest.raises(ValueError, match=r"1 of 2 files to score are missing, the first is .*none\.npy"):
        bulk.score_files(model, [first, tmp_path / "none.npy"], tmp_path / "out")
    pictures = ImageDetector(maps=False).fit(np.random.default_rng(0).normal(size=(12, 8, 8, 1)))
    save_detector(pictures, tmp_path / "image", extra={"pictures": {}})
    with pytest.raises(ValueError, match="was fitted on a folder of pictures"):
        bulk.score_files(tmp_path / "image", [first], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_many_files_on_the_command_line(model, tmp_path, capsys):
    files, out = files_of(tmp_path), tmp_path / "scores"
    assert jaxad("score-files", model, *files, "--out", out) == 0
    assert "3 files, 33 rows scored into" in capsys.readouterr().out
    assert jaxad("score-files", model, *files, "--out", out) == 0
    assert "3 files (3 of them by an earlier run), 33 rows" in capsys.readouterr().out
    assert jaxad("score", model, files[0], "--out", tmp_path / "one.csv") == 0
    assert (tmp_path / "one.csv").read_bytes() == (out / "rows_0.npy.csv").read_bytes()
    assert jaxad("score-files", model, *files, "--out", tmp_path / "a" / "b") == 2
    assert "expected the name of a folder in a folder that exists" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- without, mistakes


def test_without_ray_the_work_is_done_here(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="Ray is not installed .*the work is done here"), cluster.on_ray() as elsewhere:
        assert elsewhere is None
    with pytest.raises(ImportError, match=r"a Ray cluster at auto needs Ray: pip install 'jaxad\[ray\]'"):
        cluster.on_ray("auto").__enter__()


@pytest.mark.parametrize("asked", [{"cpus": 0}, {"gpus": -1}, {"workers": 0}])
def test_tasks_that_nobody_can_do(asked):
    with pytest.raises(ValueError, match="a task takes some share of a CPU or GPU, and needs a worker; got"):
        cluster.on_ray(**asked).__enter__()


@needs_ray
def test_what_ray_is_asked_for(monkeypatch):
    asked = {}
    import ray

    monkeypatch.setattr(ray, "init", lambda **settings: asked.update(settings))
    monkeypatch.setattr(ray, "shutdown", lambda: asked.update(closed=True))
    with cluster.on_ray("host:6379", gpus=0.25) as elsewhere:
        assert isinstance(elsewhere, types.FunctionType)
    assert asked["address"] == "host:6379"
    assert "num_cpus" not in asked
    assert asked["runtime_env"]["env_vars"]["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert asked["closed"]
