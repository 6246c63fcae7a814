"""Time series: what the views see, points beside streams, shares of channels, files in order of time."""

import doctest
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from command_line import jaxad as run

from jaxad.data import DataError
from jaxad.data.series_suites import series_collections, tsb_ad
from jaxad.detectors import SeriesDetector
from jaxad.detectors import series as of_series
from jaxad.detectors.persistence import load_detector, save_detector
from jaxad.metrics import auroc
from jaxad.metrics.events import marked_events
from jaxad.shipping.export import export_detector


def waves(points=1500, channels=1, seed=0):
    rng, time = np.random.default_rng(seed), np.arange(points)
    phases = np.arange(channels)
    return np.sin(2 * np.pi * time[:, None] / 50 + phases) + 0.1 * rng.normal(size=(points, channels))


def broken(kind, channels=1):
    """A series with an anomaly from 700 to 730, and its labels."""
    series, labels = waves(1500, channels, seed=1), np.zeros(1500, int)
    labels[700:730] = 1
    channel = channels // 2
    if kind == "stuck":
        series[700:730, channel] = series[700, channel]
    elif kind == "spike":
        series[700:730:5, channel] += 2.0
    elif kind == "faster":
        series[700:730, channel] = np.sin(2 * np.pi * np.arange(30) / 12)
    elif kind == "level":
        series[700:730, channel] += 1.5
    elif kind == "dependency":
        series[700:730, channel] = -series[700:730, channel]
    return series, labels


@pytest.fixture(scope="module")
def fitted():
    kept = {}

    def fit(channels, causal=False):
        if (channels, causal) not in kept:
            kept[channels, causal] = SeriesDetector(causal=causal).fit(waves(1200, channels))
        return kept[channels, causal]

    return fit


@pytest.mark.parametrize("channels", [1, 3, 10])
@pytest.mark.parametrize("kind", ["stuck", "spike", "faster", "level", "dependency"])
def test_stretches_unlike_all_before_score_high(fitted, channels, kind):
    series, labels = broken(kind, channels)
    scores = -fitted(channels).score_samples(series)
    assert scores.shape == (1500,)
    assert scores.dtype == np.float64
    assert 670 <= scores.argmax() < 760
    assert auroc(labels, scores) > 0.95


def test_normal_points_are_flagged_at_about_the_rate(fitted):
    p = np.concatenate([fitted(3).p_values(waves(4000, 3, seed)) for seed in (5, 6, 7)])
    assert 0.01 < np.mean(p <= 0.05) < 0.11  # points of a series hang together: far fewer of them count than there are


@pytest.mark.parametrize("channels", [1, 3, 10])
def test_parts_of_channels_add_up_and_point_to_the_one(fitted, channels):
    series, _ = broken("level", channels)
    detector = fitted(channels)
    scores, where = detector.score_and_where(series)
    assert where.shape == (1500, channels)
    np.testing.assert_allclose(where.sum(axis=1), -scores, rtol=1e-4)
    assert where[715].argmax() == channels // 2


def test_pieces_are_the_whole(fitted, monkeypatch):
    """A point's score depends on points near it, so a series of any length is scored in pieces that overlap."""
    series = waves(3000, 3, seed=4)
    series[1010:1040, 1] = 0.0
    detector = fitted(3)
    whole = -np.asarray(jax.jit(detector.scorer_)(jnp.asarray(detector.standardiser_(series))))
    np.testing.assert_allclose(detector.score_samples(series), whole, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(of_series, "CHUNKS", (256,))
    np.testing.assert_allclose(detector.score_samples(series), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channels", [1, pytest.param(3, marks=pytest.mark.slow), 10])
def test_a_stream_gives_the_scores_of_the_batch(fitted, channels):
    """To what float32 tells apart: where training values lie close together evidence is steep in them."""
    detector = fitted(channels, causal=True)
    series, labels = broken("level", channels)
    rows = jnp.asarray(detector.standardiser_(series))
    state, scores = jax.jit(lambda scorer, rows: jax.lax.scan(scorer.step, scorer.init(), rows))(detector.scorer_, rows)
    np.testing.assert_allclose(-np.asarray(scores), detector.score_samples(series), rtol=5e-3, atol=1e-3)
    assert int(state.count) == 1500
    assert auroc(labels, np.asarray(scores)) > 0.8  # windows go on holding an event that is over


def test_a_causal_score_knows_nothing_of_what_follows(fitted):
    series = waves(1500, 3, seed=2)
    changed = series.copy()
    changed[800:] += 3.0
    before, after = (fitted(3, causal=True).score_samples(each) for each in (series, changed))
    np.testing.assert_allclose(before[:800], after[:800], rtol=1e-4, atol=1e-4)
    assert after[810] < before[810]


def test_a_fleet_of_streams(fitted):
    detector = fitted(3, causal=True)
    fleet = jnp.stack([jnp.asarray(detector.standardiser_(waves(60, 3, seed))) for seed in range(4)])
    states = jax.vmap(lambda _: detector.scorer_.init())(jnp.arange(4))
    step = jax.jit(jax.vmap(detector.scorer_.step))
    for at in range(60):
        states, scores = step(states, fleet[:, at])
    alone = [-detector.score_samples(waves(60, 3, seed))[-1] for seed in range(4)]
    np.testing.assert_allclose(scores, alone, rtol=1e-4, atol=2e-4)


# -------------------------------------------------------------------------------------------------------------------- gaps


@pytest.fixture(scope="module")
def with_gaps():
    kept = {}

    def fit(channels, causal=False):
        if (channels, causal) not in kept:
            kept[channels, causal] = SeriesDetector(causal=causal, allow_gaps=True).fit(waves(1200, channels))
        return kept[channels, causal]

    return fit


def hidden(series, share, seed=0):
    return np.where(np.random.default_rng(seed).random(series.shape) < share, np.nan, series)


@pytest.mark.parametrize("channels", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_anomalies_are_found_whatever_is_missing(with_gaps, channels):
    for kind, share in (("faster", 0.1), ("level", 0.5)):
        series, labels = broken(kind, channels)
        assert auroc(labels, -with_gaps(channels).score_samples(hidden(series, share))) > 0.9, (kind, share)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_missing_is_no_reason(with_gaps, channels):
    """Neither values here and there nor a block of 100 points make normal points anomalous."""
    detector = with_gaps(channels)
    for share in (0.1, 0.5):
        assert np.mean(detector.p_values(hidden(waves(3000, channels, 10), share)) <= 0.05) < 0.15, share
    series = waves(1500, channels, seed=12)
    for start in range(50, 1400, 250):
        series[start : start + 100] = np.nan
    assert np.mean(detector.p_values(series) <= 0.05) < 0.15


def test_parts_of_channels_add_up_with_gaps(with_gaps):
    series, _ = broken("level", 3)
    scores, where = with_gaps(3).score_and_where(hidden(series, 0.2))
    np.testing.assert_allclose(where.sum(axis=1), -scores, rtol=1e-4)
    assert where[715].argmax() == 1


@pytest.mark.parametrize("channels", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_stream_with_gaps_gives_the_scores_of_the_batch(with_gaps, channels):
    detector = with_gaps(channels, causal=True)
    series = hidden(broken("level", channels)[0], 0.2)[500:1000]
    series[400:460] = np.nan
    rows = jnp.asarray(detector.standardiser_(series))
    _, scores = jax.jit(lambda scorer, rows: jax.lax.scan(scorer.step, scorer.init(), rows))(detector.scorer_, rows)
    np.testing.assert_allclose(-np.asarray(scores), detector.score_samples(series), rtol=5e-3, atol=2e-3)


@pytest.mark.slow
def test_gaps_in_training_too(with_gaps):
    series, labels = broken("level", 3)
    detector = SeriesDetector(allow_gaps=True).fit(hidden(waves(1200, 3), 0.2))
    assert auroc(labels, -detector.score_samples(hidden(series, 0.2, seed=1))) > 0.95
    with pytest.raises(ValueError, match="channel 1 holds no value"):
        SeriesDetector(allow_gaps=True).fit(np.column_stack([waves(100)[:, 0], np.full(100, np.nan)]))


def test_a_stream_asks_for_a_detector_that_looks_back_only(fitted):
    with pytest.raises(ValueError, match="causal=True"):
        fitted(3).scorer_.init()


def test_the_saved_one_scores_alike(fitted, tmp_path):
    detector, (series, _) = fitted(3), broken("stuck", 3)
    save_detector(detector, tmp_path / "model")
    loaded = load_detector(tmp_path / "model")
    np.testing.assert_allclose(loaded.score_samples(series), detector.score_samples(series), rtol=1e-6)


def test_a_program_of_single_rows_is_refused(fitted, tmp_path):
    with pytest.raises(ValueError, match="cannot export SeriesDetector: it scores a row by the rows scored with it"):
        export_detector(fitted(3), tmp_path / "bundle")


def test_the_same_seed_gives_the_same_scores():
    series, _ = broken("stuck", 3)
    first, second = (SeriesDetector(random_state=3).fit(waves(400, 3)).score_samples(series) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_each_view_alone_is_a_detector():
    series, labels = broken("faster", 2)
    for view in of_series.NAMES:
        scores = -SeriesDetector(views=(view,)).fit(waves(600, 2)).score_samples(series)
        assert auroc(labels, scores) > 0.7, view


def test_constant_channels_are_tripwires():
    train = np.column_stack([waves(600, 1)[:, 0], np.full(600, 7.0)])
    detector = SeriesDetector().fit(train)
    series = np.column_stack([waves(600, 1, seed=3)[:, 0], np.full(600, 7.0)])
    usual = detector.score_samples(series)
    series[300:310, 1] = 8.0
    assert detector.score_samples(series)[305] < usual.min()


def test_farther_is_more_anomalous_and_finite(fitted):
    scores = []
    for size in (1.0, 3.0, 1e2, 1e5, 1e30):
        series = waves(600, 3, seed=2)
        series[300:320, 1] += size
        scores.append(fitted(3).score_samples(series).min())
    assert np.isfinite(scores).all()
    assert (np.diff(scores[:4]) < 0).all()


@pytest.mark.parametrize(
    ("series", "message"),
    [
        (np.zeros((31, 2)), "at least 32 points, got 31"),
        (np.zeros((40, 1025)), "at most 1024 channels, got 1025"),
        (np.full((40, 2), np.nan), "NaN"),
        (np.zeros((1, 3)), "minimum of 2 is required"),
    ],
)
def test_what_is_no_series_is_refused(series, message):
    with pytest.raises(ValueError, match=message):
        SeriesDetector().fit(series)


def test_short_series_and_unknown_views():
    series = waves(40, 2)
    assert np.isfinite(SeriesDetector().fit(series).score_samples(waves(5, 2))).all()
    with pytest.raises(ValueError, match="views are some of nearest, shape"):
        SeriesDetector(views=("nearest", "farthest")).fit(series)
    with pytest.raises(ValueError, match="expecting 2 features"):
        SeriesDetector().fit(series).score_samples(waves(50, 3))


# ------------------------------------------------------------------------------------------------------------------- files


def sensors(points=900, seed=0, **columns):
    rng, time = np.random.default_rng(seed), np.arange(points)
    heat = 20 + 5 * np.sin(2 * np.pi * time / 96) + 0.3 * rng.normal(size=points)
    frame = {"time": pd.date_range("2026-01-01", periods=points, freq="15min"), "heat": heat.round(3)}
    frame |= {"flow": (3 + 0.1 * heat).round(4), "pump": np.where(np.sin(2 * np.pi * time / 48) > 0, "on", "off")}
    return pd.DataFrame(frame | columns)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    sensors().to_csv(folder / "normal.csv", index=False)
    run("fit", folder / "normal.csv", "--kind", "series", "--out", folder / "model")
    return folder / "model"


def test_from_a_csv_of_sensors_to_marked_stretches(model, tmp_path, capsys):
    new = sensors(600, seed=1, label=0)
    new.loc[300:320, "heat"] += 8.0
    new.loc[300:320, "label"] = 1
    new[["label", "pump", "heat", "time", "flow"]].to_csv(tmp_path / "new.csv", index=False)
    asked = ("--out", tmp_path / "scores.csv", "--events", tmp_path / "events.csv", "--label-column", "label")
    run("score", model, tmp_path / "new.csv", *asked)
    said = capsys.readouterr().out
    assert "VUS-PR" in said
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert list(scores) == ["time", "anomaly_score", "p_value", "flagged", "channel"]
    assert len(scores) == 600
    events = pd.read_csv(tmp_path / "events.csv")
    found = events[(events.start <= "2026-01-04 06:00:00") & (events.end >= "2026-01-04 04:00:00")]
    assert len(found) == 1
    assert found.channels.iloc[0].startswith("heat")


def test_the_clock_is_named_and_its_gaps_are_said(tmp_path, capsys):
    frame = sensors().drop(index=range(400, 430))
    frame.to_csv(tmp_path / "gap.csv", index=False)
    run("fit", tmp_path / "gap.csv", "--kind", "series", "--out", tmp_path / "model")
    said = " ".join(capsys.readouterr().out.split())
    assert "'time' is the clock: a point every 15 minutes" in said
    assert "1 gaps in the clock, the longest 7.75 hours" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.iloc[::-1], "runs backwards in row 1"),
        (lambda frame: frame.assign(y=np.arange(len(frame)) % 2), "looks like labels"),
        (lambda frame: frame.head(20), "at least 32 points"),
    ],
)
def test_bad_files_are_refused_before_any_work(tmp_path, capsys, change, message):
    change(sensors()).to_csv(tmp_path / "bad.csv", index=False)
    assert run("fit", tmp_path / "bad.csv", "--kind", "series", "--out", tmp_path / "model") != 0
    assert message in " ".join(capsys.readouterr().err.split())


def test_files_with_gaps(model, tmp_path, capsys):
    new = sensors(300, seed=1)
    new.loc[100:110, "heat"] = np.nan
    new.to_csv(tmp_path / "new.csv", index=False)
    assert run("score", model, tmp_path / "new.csv", "--out", tmp_path / "scores.csv") != 0
    assert "nothing in row 100 (counting from 0), column 'heat'" in " ".join(capsys.readouterr().err.split())
    new.to_csv(tmp_path / "normal.csv", index=False)
    assert run("fit", tmp_path / "normal.csv", "--kind", "series", "--out", tmp_path / "gaps") == 0
    assert run("score", tmp_path / "gaps", tmp_path / "new.csv", "--out", tmp_path / "scores.csv") == 0
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 300


def test_options_of_tables_and_of_series_are_told_apart(model, tmp_path, capsys):
    sensors().to_csv(tmp_path / "rows.csv", index=False)
    for options, message in (
        (("fit", "--causal"), "say --kind series"),
        (
            ("fit", "--kind", "series", "--contamination", "0.1"),
            "--contamination means nothing for a file of a time series",
        ),
    ):
        assert run(options[0], tmp_path / "rows.csv", *options[1:], "--out", tmp_path / "m") != 0
        assert message in " ".join(capsys.readouterr().err.split())
    sensors().drop(columns="heat").to_csv(tmp_path / "less.csv", index=False)
    assert run("score", model, tmp_path / "less.csv", "--out", tmp_path / "scores.csv") != 0
    assert "expected the column 'heat'" in " ".join(capsys.readouterr().err.split())


def test_an_event_is_where_the_score_is_half_of_its_peak():
    scores = np.array([0.0, 2.0, 4.0, 6.0, 4.0, 2.0, 2.0])
    where = np.stack([0.9 * scores, 0.1 * scores], axis=1)
    assert marked_events(scores >= 2, scores, where, ("a", "b")) == [
        {"start": 2, "end": 4, "peak": 3, "score": 6.0, "channels": "a"}
    ]


def test_collections_are_cut_as_their_authors_cut_them(data_dir):
    found = series_collections(data_dir)
    counts = pd.Series([each.collection for each in found]).value_counts().to_dict()
    assert counts == {"SMAP": 54, "NAB": 52, "SKAB": 34, "MSL": 27, "SMD": 4, "UCR": 4, "ECG": 3, "Symbols": 2}
    for each in found:
        assert each.train.shape[1] == each.test.shape[1]
        assert each.labels.shape == (len(each.test),)
        assert each.labels.any()


@pytest.mark.parametrize(
    "module", ["detectors.series", "metrics.events", "data.clock", "generation.happenings", "shipping.watching"]
)
def test_the_examples_in_the_docstrings(module):
    failed, attempted = doctest.testmod(importlib.import_module(f"jaxad.{module}"))
    assert attempted or module == "data.clock"
    assert not failed


def test_tsb_ads_layout(tmp_path):
    rows = pd.DataFrame({"value": np.arange(100.0), "Label": [0] * 90 + [1] * 10})
    rows.to_csv(tmp_path / "001_NAB_id_1_Facility_tr_40_1st_91.csv", index=False)
    (found,) = tsb_ad(tmp_path)
    assert (found.collection, len(found.train), len(found.test), found.labels.sum()) == ("NAB", 40, 100, 10)
    with pytest.raises(DataError, match="layout"):
        list(tsb_ad(tmp_path / "nothing"))


def test_what_is_remembered_is_json(model):
    assert json.loads((model / "detector.json").read_text())
