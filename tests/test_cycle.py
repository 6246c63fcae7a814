"""The cycle: what is kept, how it is judged, and that it stands back where it does not help."""

import copy
import doctest
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import jaxad
from sklearn.ensemble import IsolationForest

from jaxad.data import read_table
from jaxad.detectors import CycleDetector, KNNDetector, MahalanobisDetector
from jaxad.detectors import taught as estimator
from jaxad.detectors.persistence import load_detector, save_detector
from jaxad.generation import Kind, cycle
from jaxad.metrics import auroc
from jaxad.reports.cycle_page import write_cycle_report


def normal_rows(count, seed=0):
    """Three columns; the third is the sum of the others, nearly."""
    rng = np.random.default_rng(seed)
    ab = rng.normal(size=(count, 2))
    return np.column_stack([ab, ab.sum(axis=1) + 0.1 * rng.normal(size=count)])


def broken_rows(count, seed=1):
    """Every column normal, the sum wrong."""
    rows = normal_rows(count, seed)
    rows[:, 2] = np.random.default_rng(seed + 1).permutation(rows[:, 2])
    return rows


@pytest.fixture(autouse=True, scope="module")
def few_rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimator, "GENERATED_ROWS", 350)
        yield


@pytest.mark.parametrize("module", [cycle, estimator], ids=["functions", "estimator"])
def test_the_examples_in_the_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_kept_kind_has_a_tenth():
    rng = np.random.default_rng(0)
    kind = rng.choice(7, size=3000, p=[0.7, 0.2, 0.04, 0.03, 0.02, 0.008, 0.002])
    kept = rng.random(3000) < 0.9
    weights = cycle.balance(kind, kept)
    assert weights.sum() == pytest.approx(1)
    assert not weights[~kept].any()
    for code in range(7):
        share, enough = weights[kind == code].sum(), (kept & (kind == code)).sum() >= cycle.FEWEST_OF_A_KIND
        assert share >= 0.1 - 1e-9 if enough else share == 0
    assert not cycle.balance(kind, np.zeros(3000, bool)).any()


def test_strength_follows_how_easily_anomalies_are_told_apart():
    assert cycle.adjusted(1.2, 0.96) == pytest.approx(1.0)
    assert cycle.adjusted(1.0, 0.55) == pytest.approx(1.2)
    assert cycle.adjusted(1.0, 0.8) == 1.0


def test_a_head_learns_what_it_is_shown_and_a_left_out_kind_is_not_shown():
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(500, 2)).astype(np.float32)
    right, up = (rng.normal(size=(100, 2)).astype(np.float32) + shift for shift in ([6, 0], [0, 6]))
    anomalies = jnp.asarray(np.concatenate([right, up]))
    weights = jnp.asarray([np.ones(200), np.repeat([1, 0], 100)], jnp.float32)
    heads = cycle.train_heads(jax.random.key(0), jnp.asarray(normals), anomalies, weights, num_steps=200)
    both, only_right = (jax.tree.map(lambda leaf, i=i: leaf[i], heads) for i in (0, 1))
    logit = lambda head, rows: float(cycle.head_logits(head, jnp.asarray(rows)).mean())  # noqa: E731
    assert logit(both, right) > 1 > -1 > logit(both, normals)
    assert logit(both, up) > 1
    assert logit(only_right, right) > 1 > logit(only_right, up)
    # Smoothed targets: no logit wants to be larger than this.
    assert logit(both, right) < np.log(0.975 / 0.025) + 1


def test_gain_is_the_difference_of_two_areas():
    assert cycle.gain(np.array([[0, 1], [0, 0]]), np.array([[0.5, 2], [5, 5]])) == pytest.approx(1 - 0.75)
    assert cycle.gain(np.array([[0, 1], [0, 9]]), np.array([[0.5, 2], [0, 0]])) < 0
    # What was trusted before counts in both: here it finds everything already.
    assert cycle.gain(np.array([[0, 1], [0, 0], [0, 0]]), np.array([[0.5, 2], [9, 9], [1, 1]])) == 0
    assert cycle.artefact(np.zeros(5), np.ones(5)) == 1.0


@pytest.fixture(scope="module")
def fitted():
    detector = CycleDetector(MahalanobisDetector(), rounds=1, num_steps=300)
    return detector.fit(normal_rows(400), anomalies=broken_rows(6))


def test_it_reports_its_round(fitted):
    (row,) = fitted.rounds_
    assert row["strength"] == 1.0
    assert set(row["kept"]) == {Kind(code).name.lower() for code in (0, 1, 3, 4, 5, 6, 7)}
    assert all(-1 <= gain <= 1 for gain in (*row["gains"].values(), row["kind_gain"], row["known_gain"]))
    assert row["sure_gain"] <= row["kind_gain"] == pytest.approx(np.mean(list(row["gains"].values())))
    assert 0 <= row["artefact"] <= 1
    assert fitted.accepted_ == (hasattr(fitted, "direction_") or hasattr(fitted, "head_"))
    assert fitted.reason_.endswith("the first detector stands alone") != fitted.accepted_


@pytest.mark.slow
def test_the_direction_to_known_anomalies_is_taken_where_it_helps_those_left_out():
    """Large in the first two columns is wrong, and as far from the middle as many a normal row."""
    rng = np.random.default_rng(0)
    wrong = rng.normal(size=(60, 8)) * 0.5 + [2, 2, *[0] * 6]
    rows = rng.normal(size=(400, 8))
    detector = CycleDetector(MahalanobisDetector(), rounds=1, num_steps=300).fit(rows, anomalies=wrong[:5])
    assert detector.known_gain_ > 0.1
    assert detector.direction_[:2].min() > 2 * np.abs(detector.direction_[2:8]).max()
    new = np.concatenate([rng.normal(size=(300, 8)), wrong[5:]])
    labels = np.repeat([0, 1], [300, 55])
    before, after = (auroc(labels, -d.score_samples(new)) for d in (detector.first_, detector))
    assert after > before + 0.1


@pytest.mark.parametrize(
    ("gains", "kept"), [((-0.01, 0.02, -0.02, 0.03, -0.03), True), ((-0.02, -0.01, -0.03, -0.02, -0.02), False)]
)
def test_a_direction_that_harms_those_left_out_for_certain_is_not_taken(monkeypatch, gains, kept):
    monkeypatch.setattr(estimator._Known, "gains", lambda *_: list(gains))
    rng = np.random.default_rng(0)

    def seen(rows):
        return estimator._Rows(np.zeros(len(rows)), rows)

    rows = rng.normal(size=(100, 3))
    stage = estimator._Stage(rows, rows, seen(rng.normal(size=(50, 3))), np.zeros(100), seen)
    detector = CycleDetector()
    known = estimator._Known.of(rng.normal(size=(6, 3)) + 3, stage)
    parts, said = detector._learn_direction(stage, known)
    assert detector.known_gain_ == pytest.approx(np.mean(gains))
    assert (len(parts) == 1) == hasattr(detector, "direction_") == kept
    assert said.endswith(f"on those left out and is {'kept' if kept else 'left out'}; ")
    # What comes next is judged beside it, for each fold by the version that has not seen the fold.
    assert [len(trusted) for trusted in known.trusted] == [int(kept)] * 5
    for fold, trusted in zip(known.folds, known.trusted, strict=True):
        for part in trusted:
            left = np.delete(known.rows, fold, axis=0)
            np.testing.assert_array_equal(part.score.args[0], cycle.direction(rows, left))


def test_few_normal_rows_still_learn_the_direction(tmp_path):
    """30 rows, none of which can be set aside."""
    rng = np.random.default_rng(0)
    wrong = rng.normal(size=(105, 4)) * 0.5 + [2, 2, 0, 0]
    rows, test = rng.normal(size=(30, 4)), np.concatenate([rng.normal(size=(300, 4)), wrong[5:]])
    detector = CycleDetector(MahalanobisDetector()).fit(rows, anomalies=wrong[:5])
    assert detector.accepted_
    assert detector.reason_.endswith("on those left out and is kept; the cycle needs 100 normal rows, got 30")
    before, after = (auroc(np.repeat([0, 1], [300, 100]), -d.score_samples(test)) for d in (detector.first_, detector))
    assert after > before + 0.05
    # The threshold is set by rows that were not in what scored them.
    assert (detector.predict(rng.normal(size=(2000, 4))) == -1).mean() < 0.15
    save_detector(detector, tmp_path / "model")
    loaded = load_detector(tmp_path / "model")
    np.testing.assert_allclose(loaded.score_samples(test), detector.score_samples(test), rtol=1e-6)
    # Fewer, or a single known anomaly, which cannot be left out: nothing.
    for count, known in ((19, 5), (30, 1)):
        alone = CycleDetector(MahalanobisDetector()).fit(rows[:count], anomalies=wrong[:known])
        np.testing.assert_array_equal(alone.score_samples(test), alone.first_.score_samples(test))
        assert alone.reason_.endswith("the first detector stands alone")


def test_of_few_rows_none_is_scored_by_what_it_was_in(monkeypatch):
    rng = np.random.default_rng(0)
    rows, known = rng.normal(size=(30, 3)), rng.normal(size=(3, 3)) + 2
    seen = []

    def fit(self, X, y=None):
        seen.append(X)
        return original(self, X)

    original = MahalanobisDetector.fit
    monkeypatch.setattr(MahalanobisDetector, "fit", fit)
    detector = CycleDetector(MahalanobisDetector()).fit(rows, anomalies=known)
    assert [len(each) for each in seen] == [30, *[24] * 5]
    left_out = [{tuple(row) for row in rows} - {tuple(row) for row in each} for each in seen[1:]]
    assert sorted(map(len, left_out)) == [6] * 5
    assert len(set.union(*left_out)) == 30
    # By hand: a row's score is the mean of both, each fitted without the row's fold.
    first = np.empty(30)
    along = np.empty(30)
    standardised = np.clip((rows - rows.mean(axis=0)) / rows.std(axis=0), -10, 10)
    far = np.clip((known - rows.mean(axis=0)) / rows.std(axis=0), -10, 10)
    for each in left_out:
        fold = np.array([tuple(row) in each for row in rows])
        first[fold] = -original(MahalanobisDetector(), rows[~fold]).score_samples(rows[fold])
        along[fold] = standardised[fold] @ cycle.direction(standardised[~fold], far)
    expected = (cycle.Scale(*detector.scorer_.first_scale)(first) + cycle.Scale.fit(along)(along)) / 2
    np.testing.assert_allclose(detector.calibration_scores_, -expected, rtol=1e-4, atol=1e-5)
    # And what the direction adds is judged on each known anomaly by directions that have not seen it.
    gains, known_first = [], -detector.first_.score_samples(known)
    for i in range(3):
        others, along = np.delete(far, i, axis=0), np.empty(30)
        for each in left_out:
            fold = np.array([tuple(row) in each for row in rows])
            along[fold] = standardised[fold] @ cycle.direction(standardised[~fold], others)
        scale, its = cycle.Scale(*detector.scorer_.first_scale), cycle.Scale.fit(along)
        alone = np.array([scale(known_first[i]), its(far[i] @ cycle.direction(standardised, others))])
        gains.append(cycle.gain(np.stack([scale(first), its(along)]), alone[:, None]))
    assert detector.known_gain_ == pytest.approx(np.mean(gains), abs=1e-9)


@pytest.mark.parametrize(("gain", "kept"), [(-0.01, False), (0.01, True)])
def test_a_direction_that_harms_is_left_out_of_few_rows_too(monkeypatch, gain, kept):
    monkeypatch.setattr(cycle, "gain", lambda *_: gain)
    rng = np.random.default_rng(0)
    rows, test = rng.normal(size=(30, 3)), rng.normal(size=(20, 3))
    detector = CycleDetector(KNNDetector()).fit(rows, anomalies=rng.normal(size=(3, 3)) + 2)
    assert detector.accepted_ == kept
    alone = KNNDetector().fit(rows)
    assert np.array_equal(detector.score_samples(test), alone.score_samples(test)) != kept
    assert np.array_equal(detector.p_values(test), alone.p_values(test)) != kept


@pytest.mark.slow
def test_no_gain_means_the_first_detector_to_the_bit():
    """Whatever the gain: a head that sees the generator is refused."""
    detector = CycleDetector(KNNDetector(), rounds=1, num_steps=300)  # shapes that are compiled already
    rows, new = normal_rows(400), broken_rows(30)
    calls = iter((0.9, 0.5))  # of the head, of the first detector
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cycle, "artefact", lambda *_: next(calls))
        detector.fit(rows)
    assert not detector.accepted_
    assert "learned the generator" in detector.reason_
    alone = KNNDetector().fit(rows)
    np.testing.assert_array_equal(detector.score_samples(new), alone.score_samples(new))
    np.testing.assert_array_equal(detector.predict(new), alone.predict(new))
    np.testing.assert_array_equal(detector.p_values(new), alone.p_values(new))


@pytest.mark.slow
def test_known_anomalies_teach_what_the_first_detector_cannot_see():
    """A blob inside a ring: the norm sees nothing there, the head is shown six of it."""
    rng = np.random.default_rng(0)

    def ring(count):
        angle = rng.uniform(0, 2 * np.pi, count)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1) * 3 + 0.4 * rng.normal(size=(count, 2))

    detector = CycleDetector(MahalanobisDetector(), rounds=1, num_steps=800)
    detector.fit(ring(400), anomalies=0.3 * rng.normal(size=(6, 2)))
    assert detector.accepted_, detector.reason_
    test = np.concatenate([ring(200), 0.3 * rng.normal(size=(100, 2))])
    labels = np.repeat([0, 1], [200, 100])
    before, after = (auroc(labels, -d.score_samples(test)) for d in (detector.first_, detector))
    assert before < 0.2
    assert after > before + 0.3
    # All that was accepted is in the scores that the threshold is set by (of the detector without these rows), all on one scale.
    assert "round 1 adds" in detector.reason_
    again = detector.score_samples(detector._in_units(detector.normals_))
    assert np.abs(detector.calibration_scores_ - again).mean() < 0.08  # .04; with the head left out .12
    # The threshold was set on rows that nothing was fitted on.
    assert (detector.predict(ring(1000)) == -1).mean() < 0.15


def test_generated_rows_are_in_the_units_of_the_data(fitted):
    made = fitted.generate(350, seed=3)
    assert made.x.shape == made.mask.shape == (350, 3)
    assert set(np.asarray(made.kind)) == {0, 1, 3, 4, 5, 6, 7}
    np.testing.assert_array_equal(made.x, fitted.generate(350, seed=3).x)
    assert not np.array_equal(made.x, fitted.generate(350, seed=4).x)
    # Where nothing was changed the rows are normal rows, but for the rounding of float32.
    kept = ~np.asarray(made.mask)
    assert kept.any()
    near = np.abs(made.x[:, None] - normal_rows(400)[None]).min(axis=1)
    assert near[kept].max() < 1e-5


def test_saved_and_loaded_it_scores_the_same(fitted, tmp_path):
    save_detector(fitted, tmp_path / "model")
    loaded = load_detector(tmp_path / "model")
    new = normal_rows(30, seed=5)
    np.testing.assert_allclose(loaded.score_samples(new), fitted.score_samples(new), rtol=1e-6)
    assert loaded.rounds_ == fitted.rounds_
    assert loaded.reason_ == fitted.reason_


def test_the_page_shows_what_the_rounds_gained_and_kept_and_how_severe_anomalies_are(fitted, tmp_path):
    page = write_cycle_report(fitted, tmp_path / "page.html", strengths=(0.5, 1.0)).read_text()
    (row,) = fitted.rounds_
    rows = dict(re.findall(r"<tr><th>([^<]*)</th><td>([^<]*)</td>", page))
    assert rows["accuracy of the two-sample test"] == f"{row['c2st']:.3f}"
    assert rows["kept: dependency"] == str(row["kept"]["dependency"])
    assert rows["gain on known anomalies"] == f"{row['known_gain']:+.4f}"
    assert rows["artefact: AUROC of the head"] == f"{row['artefact']:.3f}"
    made = fitted.generate(350, strength=0.5)
    p = fitted.p_values(made.x)[np.asarray(made.kind) == Kind.GLOBAL]
    assert rows["global"] == f"{np.median(p):.3f} ({np.mean(p <= fitted.false_alarm_rate):.0%})"
    assert ("accepted" if fitted.accepted_ else "closed") + f"</strong>: {fitted.reason_}" in page
    assert page.count("<svg") == 2
    assert "Training stops after 5 looks without a new best" in page
    assert not re.search(r'(href|src)="(?![#]|data:)', page)
    # Rounds need not have the same kinds, nor gains at all.
    other = copy.copy(fitted)
    other.rounds_ = [row, {"strength": 1.2, "kept": {"local": 3}}]
    page = write_cycle_report(other, tmp_path / "page.html", strengths=(1.0,)).read_text()
    assert dict(re.findall(r"<tr><th>([^<]*)</th><td>[^<]*</td><td>([^<]*)</td>", page))["kept: dependency"] == "0"


@pytest.mark.parametrize(
    ("anomalies", "message"),
    [
        (np.zeros((2, 4)), "finite rows of the 3 columns"),
        (np.zeros((0, 3)), "finite rows of the 3 columns"),
        ([[np.nan, 0, 0]], "finite rows of the 3 columns"),
        (normal_rows(400)[:2], "identical"),
    ],
)
def test_bad_anomalies_are_refused_before_anything_is_fitted(anomalies, message):
    detector = CycleDetector(num_steps=10**8)
    with pytest.raises(ValueError, match=message):
        detector.fit(normal_rows(400), anomalies=anomalies)
    assert not hasattr(detector, "first_")


def test_bad_settings_are_refused(fitted):
    with pytest.raises(ValueError, match="rounds"):
        CycleDetector(rounds=0).fit(normal_rows(200))
    unfit = CycleDetector(IsolationForest())
    with pytest.raises(ValueError, match="IsolationForest does not keep"):
        unfit.fit(normal_rows(200))
    assert not hasattr(unfit, "first_")
    again = copy.copy(fitted).set_params(detector=KNNDetector()).fit(normal_rows(50))
    with pytest.raises(ValueError, match="no denoiser"):
        again.generate(10)
    with pytest.raises(ValueError, match="strength"):
        fitted.generate(10, strength=0.0)
    with pytest.raises(ValueError, match="at least one row for each"):
        fitted.generate(3)
    with pytest.raises(ValueError, match="no denoiser"):
        CycleDetector(KNNDetector()).fit(normal_rows(50)).generate(10)


# --------------------------------------------------------------------------------------------------------------- command line


def test_made_on_the_command_line_and_read_as_a_table(fitted, tmp_path, capsys):
    save_detector(fitted, tmp_path / "model", extra={"columns": None})
    out = tmp_path / "made.npz"
    assert jaxad("generate", tmp_path / "model", "--out", out, "--count", "350", "--seed", "3") == 0
    table = read_table(out)
    np.testing.assert_array_equal(table.x, fitted.generate(350, seed=3).x)
    assert table.y.all()
    with np.load(out) as stored:
        assert set(stored["kind"]) >= {"local", "dependency", "hard"}
        assert stored["mask"].shape == (350, 3)
        np.testing.assert_allclose(stored["p"], fitted.p_values(table.x))
        card = json.loads(str(stored["card"]))
    assert card["strength"] == 1.0
    assert set(card["severity"]) == set(np.unique([Kind(int(k)).name.lower() for k in fitted.generate(350).kind]))
    assert jaxad("generate", tmp_path / "model", "--out", tmp_path / "absent" / "made.npz") == 2
    before = out.read_bytes()
    assert jaxad("generate", tmp_path / "model", "--out", out) == 2
    assert "never replace a file" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert jaxad("generate", tmp_path / "model", "--out", tmp_path / "weak.npz", "--strength", "-1") == 2
    assert jaxad("generate", tmp_path / "model", "--out", tmp_path / "weak.npz", "--strength", "1", "2") == 2
    assert jaxad("generate", tmp_path / "model", "--out", tmp_path / "new", "--pictures", tmp_path) == 2
    assert "made by an image detector, got a CycleDetector" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.npz", "model"]


def test_a_cycle_on_the_command_line_takes_labelled_rows_and_a_file(tmp_path, capsys):
    rows, few = normal_rows(60), broken_rows(3)
    labelled = np.column_stack([np.concatenate([rows, few]), np.repeat([0, 1], [60, 3])])
    np.savetxt(tmp_path / "rows.csv", labelled, delimiter=",", header="a,b,c,bad", comments="")
    np.savetxt(tmp_path / "more.csv", broken_rows(2, seed=9)[:, [2, 0, 1]], delimiter=",", header="c,a,b", comments="")
    words = ("cycle", tmp_path / "rows.csv", "--label-column", "bad", "--out", tmp_path / "model")
    assert jaxad(*words, "--anomalies", tmp_path / "more.csv") == 2  # it has no column of labels
    np.savetxt(
        tmp_path / "more.csv",
        np.column_stack([broken_rows(2, seed=9)[:, [2, 0, 1]], [1, 1]]),
        delimiter=",",
        header="c,a,b,bad",
        comments="",
    )
    assert jaxad(*words, "--anomalies", tmp_path / "more.csv") == 0
    said = capsys.readouterr().out
    assert "the cycle needs 100 normal rows, got 60" in said
    assert "60 normal rows, 5 known anomalies" in said
    assert isinstance(load_detector(tmp_path / "model"), CycleDetector)
    assert "the cycle needs 100 normal rows, got 60" in (tmp_path / "model" / "report.html").read_text()
    page = tmp_path / "absent" / "page.html"
    assert jaxad(*words[:-1], tmp_path / "other", "--report", page) == 2
    assert not (tmp_path / "other").exists()
    assert jaxad("generate", tmp_path / "model", "--out", tmp_path / "made.npz") == 2
    assert "no denoiser" in capsys.readouterr().err
