"""Training rows that do not belong: found, named, left out; and clean rows stay."""

import numpy as np
import pandas as pd
import pytest
from command_line import jaxad

from jaxad.detectors import ConsensusDetector, KNNDetector, trimming
from jaxad.metrics import auroc

PLACES = np.arange(0, 200, 20)


def dirty(rows=400, seed=0, places=PLACES):
    """Ten rows far out, each by itself, among normal ones."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, 4))
    shape = (len(places), 4)
    X[places] = 30 * rng.choice([-1.0, 1.0], shape) + rng.normal(scale=6.0, size=shape)
    return X


def closed(**settings):
    return ConsensusDetector(num_networks=0, **settings)


@pytest.fixture(scope="module")
def fitted():
    return closed().fit(dirty())


def test_rows_far_out_are_left_out_and_named(fitted):
    assert set(PLACES) <= set(fitted.left_out_)
    assert len(fitted.left_out_) <= 13
    assert set(np.argsort(fitted.training_scores_)[:10]) == set(PLACES)
    # Left out means forgotten: all is as if they had not been there.
    assert len(fitted.calibration_scores_) == 400 - len(fitted.left_out_)


def test_what_was_left_out_no_longer_vouches_for_its_like(fitted):
    similar = dirty()[PLACES] + 0.01
    kept = closed(contamination=0.0).fit(dirty())
    assert (kept.p_values(similar) > 0.01).any()
    assert (fitted.p_values(similar) < 0.01).all()
    assert kept.training_scores_ is None
    assert len(kept.left_out_) == 0


def test_a_cluster_does_not_hide_itself():
    X = dirty()
    X[PLACES] = 30 + np.random.default_rng(1).normal(scale=0.3, size=(10, 4))
    nearest = -KNNDetector(n_neighbors=5).fit(X).score_samples(X)
    scores = -closed().fit(X).training_scores_
    apart = np.isin(np.arange(len(X)), PLACES)
    assert auroc(apart, nearest) < 0.9 < auroc(apart, scores)


@pytest.mark.parametrize("seed", range(3))
def test_clean_rows_stay(seed):
    rng = np.random.default_rng(seed)
    mixture = rng.normal(size=(600, 5)) + 4 * rng.integers(0, 3, (600, 1))
    assert len(closed().fit(mixture).left_out_) <= 6


def test_a_known_share_is_left_out():
    detector = closed(contamination=0.1).fit(dirty())
    assert len(detector.left_out_) == 80  # twice as many
    assert set(PLACES) <= set(detector.left_out_)
    assert trimming.belongs(np.arange(100.0), 0.4).sum() == 50


def test_at_most_a_fifth_is_plainly_apart():
    scores = np.concatenate([np.linspace(0, 1, 100), np.full(40, 1e3)])
    assert trimming.belongs(scores).sum() >= 0.8 * 140


def test_few_rows_are_kept_and_judged():
    for rows in (2, 3, 19):
        detector = closed().fit(np.r_[np.random.default_rng(0).normal(size=(rows - 1, 3)), [[50.0, 50, 50]]])
        assert len(detector.left_out_) == 0
        assert np.isfinite(detector.training_scores_).all()


def test_all_rows_alike():
    detector = closed().fit(np.ones((50, 3)))
    assert len(detector.left_out_) == 0


@pytest.mark.parametrize("share", [-0.1, 0.5, np.nan])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="contamination is a share of the training rows"):
        closed(contamination=share).fit(dirty())


# -------------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame(dirty(80, places=[0, 20, 40, 60]), columns=list("abcd"))  # too few for networks
    frame.insert(0, "part", [f"p{number}" for number in range(80)])
    frame["label"] = (np.arange(80) == 1).astype(int)
    frame.to_csv("rows.csv", index=False)
    return tmp_path


FIT = ("fit", "rows.csv", "--id-column", "part", "--label-column", "label", "--out", "model")


def test_training_scores_are_written(files, capsys):
    assert jaxad(*FIT, "--training-scores", "train.csv") == 0
    said = " ".join(capsys.readouterr().out.split())
    found = pd.read_csv("train.csv")
    assert list(found) == ["part", "anomaly_score", "left_out"]
    assert "p1" not in set(found.part)  # labelled anomalous: not learned from
    assert len(found) == 79
    left_out = found[found.left_out == 1].sort_values("anomaly_score", ascending=False)
    assert set(left_out.part) >= {"p0", "p20", "p40", "p60"}
    assert f"{len(left_out)} of 79 rows do not belong and were left out, part {left_out.part.iloc[0]}, " in said


def test_a_known_share_and_none(files, capsys):
    assert jaxad(*FIT, "--contamination", "0.1", "--training-scores", "train.jsonl") == 0
    assert pd.read_json("train.jsonl", lines=True).left_out.sum() == 16
    capsys.readouterr()
    assert jaxad(*FIT, "--contamination", "0") == 0
    assert "do not belong" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--training-scores", "train.csv", "--detector", "knn"), "the recommended detector alone judges"),
        (("--training-scores", "train.csv", "--contamination", "0"), "no row is judged"),
        (("--training-scores", "rows.csv"), "which it would replace"),
        (("--training-scores", "nowhere/train.csv"), "cannot be written"),
        (("--training-scores", "train.xls"), "written as .csv, .parquet or .jsonl"),
        (("--contamination", "0.7"), "at least 0 and below 0.5"),
        (("--contamination", "0.1", "--detector", "knn"), "--contamination: knn has no such setting"),
    ],
)
def test_what_cannot_be_is_said_at_once(files, capsys, words, message):
    before = (files / "rows.csv").read_bytes()
    assert jaxad(*FIT, *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (files / "model").exists()
    assert (files / "rows.csv").read_bytes() == before
