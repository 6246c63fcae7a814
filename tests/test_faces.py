"""PyOD's attributes, and pipelines on disk."""

import doctest
import json

import numpy as np
import pytest
from command_line import jaxad as command
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, RobustScaler, StandardScaler

from jaxad.denoisers import MLP
from jaxad.detectors import DiffusionDetector, KNNDetector, MahalanobisDetector, faces
from jaxad.detectors.faces import PyODDetector
from jaxad.detectors.persistence import load_detector, save_detector
from jaxad.runtime.checkpoint import CheckpointError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 4)) * [1.0, 10.0, 0.1, 1.0]
QUERIES = np.concatenate([X[:5], X[:5] + 5.0])


def test_pyods_own_detector_and_ours_agree():
    pyod = pytest.importorskip("pyod.models.knn").KNN(n_neighbors=5, contamination=0.1).fit(X)
    face = PyODDetector(KNNDetector(), contamination=0.1).fit(X)
    np.testing.assert_allclose(
        face.decision_function(QUERIES + 0.01), pyod.decision_function(QUERIES + 0.01), rtol=1e-4
    )
    assert face.decision_scores_.shape == pyod.decision_scores_.shape
    assert face.labels_.sum() == pyod.labels_.sum() == 12
    assert np.corrcoef(face.decision_scores_, pyod.decision_scores_)[0, 1] > 0.9
    assert set(face.predict(QUERIES)) <= {0, 1}
    probabilities = face.predict_proba(QUERIES)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    assert (probabilities[5:, 1] > probabilities[:5, 1]).all()


def test_the_threshold_follows_the_contamination_after_fit():
    face = PyODDetector(MahalanobisDetector()).fit(X)
    counts = [int(face.set_params(contamination=share).labels_.sum()) for share in (0.0, 0.1, 0.5)]
    assert counts == [0, 12, 60]


def test_what_is_refused():
    with pytest.raises(ValueError, match="contamination is a share"):
        PyODDetector(KNNDetector(), contamination=0.6).fit(X)
    with pytest.raises(NotFittedError):
        PyODDetector(KNNDetector()).predict(X)


PIPELINES = {
    "scaled": lambda: make_pipeline(StandardScaler(), KNNDetector()),
    "imputed": lambda: make_pipeline(SimpleImputer(), RobustScaler(), MahalanobisDetector()),
    "projected": lambda: make_pipeline(
        MinMaxScaler(feature_range=(-1, 1)),
        PCA(n_components=2, whiten=True),
        DiffusionDetector(MLP(width=8, depth=1), num_steps=20),
    ),
    "alone": lambda: make_pipeline(KNNDetector()),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_comes_back_with_its_scores(tmp_path, name):
    rows, queries = X.copy(), QUERIES.copy()
    if name == "imputed":
        rows[3, 1] = queries[2, 0] = np.nan
    pipeline = PIPELINES[name]().fit(rows)
    save_detector(pipeline, tmp_path / "model")
    loaded = load_detector(tmp_path / "model")
    np.testing.assert_array_equal(loaded.score_samples(queries), pipeline.score_samples(queries))
    np.testing.assert_array_equal(loaded.predict(queries), pipeline.predict(queries))
    assert [step for step, _ in loaded.steps] == [step for step, _ in pipeline.steps]


def test_the_command_line_scores_with_a_pipeline(tmp_path):
    pipeline = make_pipeline(StandardScaler(), KNNDetector()).fit(X)
    save_detector(pipeline, tmp_path / "model")
    np.save(tmp_path / "rows.npy", QUERIES)
    assert command("score", tmp_path / "model", tmp_path / "rows.npy", "--out", tmp_path / "scores.csv") == 0
    found = np.genfromtxt(tmp_path / "scores.csv", delimiter=",", names=True)
    np.testing.assert_allclose(found["anomaly_score"], -pipeline.score_samples(QUERIES))
    np.testing.assert_array_equal(found["flagged"], pipeline.predict(QUERIES) == -1)


def test_a_pipeline_with_code_in_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot save a .*FunctionTransformer: only jaxad's own"):
        save_detector(make_pipeline(FunctionTransformer(), KNNDetector()).fit(X), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content["steps"][0]["fitted"].pop("components_"),
        lambda content: content["steps"][0].update({"class": "FunctionTransformer"}),
        lambda content: content["steps"][0]["fitted"].update({"transform": 1}),
        lambda content: content["last"].update({"class": "StandardScaler"}),
        lambda content: content.update({"steps": 3}),
        lambda content: content.pop("last"),
    ],
)
def test_a_description_that_makes_no_pipeline_is_refused(tmp_path, spoil):
    save_detector(make_pipeline(PCA(n_components=2), KNNDetector()).fit(X), tmp_path / "model")
    (file,) = (tmp_path / "model").glob("*.json")
    description = json.loads(file.read_text())
    spoil(description["content"])
    file.write_text(json.dumps(description))
    with pytest.raises(CheckpointError):
        load_detector(tmp_path / "model")


def test_examples_in_docstrings():
    failed, attempted = doctest.testmod(faces)
    assert attempted
    assert not failed
