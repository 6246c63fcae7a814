"""The test that tells whether the house is right: a detector in one file of forty lines, listed in one place, and nothing else told.

``tests/strangers/median_detector.py`` is not in the library. Its one line is an entry point, as a package of its own would have it in
its pyproject.toml; here it stands in the metadata of a package that is not installed but lies on the path.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from jaxad import KNNDetector, data, fit_many, load_detector, save_detector
from jaxad.detectors import Detector, catalogue, estimator
from jaxad.detectors.explanation import gradients, nearest_normal, shapley_contributions
from jaxad.detectors.scorer import stack
from jaxad.evaluation import sweep
from jaxad.runtime.sharding import data_mesh
from jaxad.shipping.bundle import load_scorer
from jaxad.shipping.export import export_detector

HOME = Path(__file__).parent / "strangers"
sys.path.insert(0, str(HOME))
from median_detector import MedianDetector  # noqa: E402

RNG = np.random.default_rng(0)
# A column of time stamps, whose digits float32 alone would lose.
X = RNG.normal(size=(200, 4)) * [1.0, 10.0, 1e-3, 60.0] + [0.0, 5.0, 0.0, 1.7e9]
NEW = RNG.normal(size=(60, 4)) * [2.0, 20.0, 2e-3, 120.0] + [0.0, 5.0, 0.0, 1.7e9]


@pytest.fixture(scope="module", autouse=True)
def listed(tmp_path_factory):
    """The one line: ``median = "median_detector:MedianDetector"``, in the metadata of the stranger's package."""
    place = tmp_path_factory.mktemp("site")
    info = place / "median_detector-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: median-detector\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[jaxad.detectors]\nmedian = median_detector:MedianDetector\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        estimator.listed_elsewhere.cache_clear()
        yield place
    estimator.listed_elsewhere.cache_clear()


@pytest.fixture(scope="module")
def detector():
    return MedianDetector().fit(X)


def test_it_is_short():
    assert len((HOME / "median_detector.py").read_text().splitlines()) <= 40


@parametrize_with_checks([MedianDetector()])
def test_contract(estimator, check):
    check(estimator)


def test_scores_threshold_and_p_values(detector):
    assert isinstance(detector, Detector)
    scores = detector.score_samples(NEW)
    np.testing.assert_allclose(detector.score_samples(NEW[::-1])[::-1], scores, rtol=1e-6)
    assert (detector.predict(NEW, alpha=0.2) == -1).sum() >= (detector.predict(NEW, alpha=0.05) == -1).sum()
    assert ((detector.p_values(NEW) > 0) & (detector.p_values(NEW) <= 1)).all()
    again, where = detector.score_and_where(NEW)
    np.testing.assert_allclose(again, scores, rtol=1e-6)
    np.testing.assert_allclose(where.max(axis=1), -scores, rtol=1e-6)
    with pytest.raises(ValueError, match="this KNNDetector cannot tell where"):
        KNNDetector().fit(X).where(NEW)


def test_saved_and_loaded(detector, tmp_path):
    save_detector(detector, tmp_path / "saved")
    np.testing.assert_array_equal(load_detector(tmp_path / "saved").score_samples(NEW), detector.score_samples(NEW))


@pytest.mark.parametrize("soft", [False, True])
def test_exported_and_served(soft, tmp_path):
    starlette = pytest.importorskip("starlette.testclient")
    from jaxad.shipping import serve
    from jaxad.shipping.bodies import DEFAULT

    detector = MedianDetector(soft=soft).fit(X)
    export_detector(detector, tmp_path / "bundle")
    bundle = load_scorer(tmp_path / "bundle")
    expected = detector.score_samples(NEW)
    np.testing.assert_allclose(bundle.score_samples(NEW), expected, rtol=1e-4)
    np.testing.assert_allclose(bundle.where(NEW), detector.where(NEW), rtol=1e-4)
    assert bundle.where_threshold_ == detector.where_threshold_
    with starlette.TestClient(serve.application(bundle, DEFAULT)) as client:
        answer = client.post(
            "/score", content=json.dumps({"rows": NEW[:3].tolist()}), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 200
        np.testing.assert_allclose(answer.json()["score"], expected[:3], rtol=1e-4)
        assert "where" not in answer.json()
        body, headers = json.dumps({"rows": NEW[:3].tolist()}), {"content-type": "application/json"}
        answer = client.post("/score?where=1", content=body, headers=headers).json()
        np.testing.assert_allclose(answer["where"], detector.where(NEW[:3]), rtol=1e-4)
        assert answer["where_threshold"] == detector.where_threshold_
        assert client.post("/score?where=2", content=body, headers=headers).status_code == 400


def test_explained():
    detector = MedianDetector(soft=True).fit(X)
    reference = nearest_normal(NEW[:3], X)
    base, contributions = shapley_contributions(detector, NEW[:3], reference)
    np.testing.assert_allclose(base + contributions.sum(axis=1), -detector.score_samples(NEW[:3]), rtol=1e-4)
    assert np.isfinite(gradients(detector, NEW)).all()


def test_on_a_mesh_and_as_a_fleet(detector):
    mesh = data_mesh()
    assert mesh.size == 8
    scores = -detector.score_samples(NEW)
    rows = jnp.asarray(detector.standardiser_(NEW))
    spec = jax.sharding.PartitionSpec(mesh.axis_names[0])
    cut = jax.shard_map(detector.scorer_, mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_allclose(cut(rows[:56]), scores[:56], rtol=1e-5)
    others = fit_many([MedianDetector() for _ in range(3)], [X, X + 1.0, 2.0 * X])
    both = jax.vmap(lambda scorer: scorer(rows))(stack([other.scorer_ for other in others]))
    np.testing.assert_allclose(both[0], scores, rtol=1e-5)
    assert both.shape == (3, 60)


def test_in_a_sweep_by_its_name(tmp_path):
    chosen = catalogue.choose(["median", "knn"])
    records = sweep.run({"wine_0": data.wine}, chosen, out=tmp_path / "sweep", progress=False)
    assert [record.detector for record in records] == ["median", "knn"]
    assert records[0].auroc > 0.8


def test_on_the_command_line(listed, tmp_path):
    np.save(tmp_path / "rows.npy", X)
    np.save(tmp_path / "new.npy", NEW)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HOME), str(listed), *sys.path])}

    def jaxad(*words):
        done = subprocess.run(
            [sys.executable, "-m", "jaxad.cli", *map(str, words)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "median fitted on 200 rows" in jaxad(
        "fit", tmp_path / "rows.npy", "--out", tmp_path / "model", "--detector", "median"
    )
    jaxad("export", tmp_path / "model", "--out", tmp_path / "bundle")
    expected = -MedianDetector().fit(X).score_samples(NEW)
    for model in ("model", "bundle"):
        jaxad("score", tmp_path / model, tmp_path / "new.npy", "--out", tmp_path / f"{model}.csv")
        table = np.genfromtxt(tmp_path / f"{model}.csv", delimiter=",", names=True)
        np.testing.assert_allclose(table["anomaly_score"], expected, rtol=1e-4)
