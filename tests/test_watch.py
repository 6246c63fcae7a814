"""Watching a stream: alarms that begin and end, a state that survives, files that grow."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from command_line import jaxad as run

from jaxad.detectors import KNNDetector, SeriesDetector
from jaxad.shipping.watching import Watcher


def wave(points, seed=0):
    rng = np.random.default_rng(seed)
    time = np.arange(points)[:, None]
    return np.sin(2 * np.pi * time / 40 + np.arange(8)) + 0.1 * rng.normal(size=(points, 8))


def live(seed=2):
    series = wave(900, seed)
    series[300:340, 2] += 3.0
    return series


@pytest.fixture(scope="module")
def detector():
    return SeriesDetector(causal=True, false_alarm_rate=0.0005).fit(wave(2500))


def test_an_alarm_begins_and_is_over_once(detector):
    watcher = Watcher(detector)
    begins, over = watcher.see(live())
    assert begins.begins
    assert not over.begins
    assert 300 <= begins.point < 330
    assert 340 < over.point < 480
    assert begins.channels[0] == 2
    assert over.score > begins.score
    assert watcher.seen == 900


@pytest.mark.parametrize("pieces", [1, 7, 256, 900])
def test_it_does_not_matter_how_the_points_come(detector, pieces):
    whole, series = list(Watcher(detector).see(live())), live()
    watcher, found = Watcher(detector), []
    for start in range(0, 900, pieces):
        found += watcher.see(series[start : start + pieces])
    assert [(each.begins, each.point, each.channels) for each in found] == [
        (each.begins, each.point, each.channels) for each in whole
    ]


def test_scores_are_the_detectors(detector):
    np.testing.assert_allclose(Watcher(detector).scores(live()), -detector.score_samples(live()), rtol=5e-3, atol=1e-3)


def test_the_state_survives(detector, tmp_path):
    series, first, second = live(), Watcher(detector), Watcher(detector)
    before = list(first.see(series[:320]))
    first.save(tmp_path / "state.npz", offset=17)
    assert second.load(tmp_path / "state.npz", "offset") == [17]
    assert [each.point for each in (*before, *second.see(series[320:]))] == [
        each.point for each in Watcher(detector).see(series)
    ]


def test_a_state_of_another_model_or_no_state_is_refused(detector, tmp_path):
    other = Watcher(SeriesDetector(causal=True).fit(wave(400)[:, :2]))
    other.save(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="of another model"):
        Watcher(detector).load(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("nothing")
    with pytest.raises(ValueError, match="expected the state of a watch"):
        Watcher(detector).load(tmp_path / "text.npz")


def test_who_cannot_watch_says_so():
    with pytest.raises(ValueError, match="by a SeriesDetector, got KNNDetector"):
        Watcher(KNNDetector().fit(wave(50)))
    with pytest.raises(ValueError, match="causal=True"):
        Watcher(SeriesDetector().fit(wave(400)))


# ------------------------------------------------------------------------------------------------------- on the command line


def frame(series, start=0):
    columns = {f"sensor_{number}": column.round(4) for number, column in enumerate(series.T)}
    times = pd.date_range("2026-01-01", periods=len(series) + start, freq="1min")[start:]
    return pd.DataFrame({"time": times} | columns)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watch")
    frame(wave(2500)).to_csv(folder / "normal.csv", index=False)
    options = ("--kind", "series", "--causal", "--false-alarm-rate", "0.0005")
    assert run("fit", folder / "normal.csv", *options, "--out", folder / "model") == 0
    return folder / "model"


def alarms(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def test_a_growing_file_is_followed_and_a_restart_goes_on(model, tmp_path, capsys):
    file, state = tmp_path / "live.csv", tmp_path / "state.npz"
    rows = frame(live())
    capsys.readouterr()
    rows.to_csv(file, index=False)
    assert run("watch", model, file, "--once") == 0
    whole = alarms(capsys)
    assert [each["alarm"] for each in whole] == ["begins", "is over"]
    assert whole[0]["channels"][0] == "sensor_2"
    assert whole[0]["at"].startswith("2026-01-01 05:")
    text = file.read_text().splitlines(keepends=True)
    # Cut in the middle of a line: that line comes with the rest.
    file.write_text("".join(text[:320]) + text[320][:9])
    assert run("watch", model, file, "--once", "--state", state) == 0
    first = alarms(capsys)
    file.write_text("".join(text))
    assert run("watch", model, file, "--once", "--state", state) == 0
    assert [(each["alarm"], each["at"]) for each in first + alarms(capsys)] == [
        (each["alarm"], each["at"]) for each in whole
    ]


def test_points_from_standard_input(model, capsys, monkeypatch):
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO(frame(live()[:400]).to_csv(index=False)))
    assert run("watch", model, "-") == 0
    said = alarms(capsys)
    assert said[0]["alarm"] == "begins"
    assert 300 <= said[0]["point"] < 330


def test_what_is_no_stream_is_refused(model, tmp_path, capsys):
    assert run("watch", model, tmp_path / "nothing.csv") == 2
    assert "found nothing" in capsys.readouterr().err
    frame(wave(60)).drop(columns="sensor_3").to_csv(tmp_path / "less.csv", index=False)
    assert run("watch", model, tmp_path / "less.csv", "--once") == 2
    assert "expected the column 'sensor_3'" in " ".join(capsys.readouterr().err.split())
    np.save(tmp_path / "rows.npy", wave(60))
    assert run("fit", tmp_path / "rows.npy", "--detector", "knn", "--out", tmp_path / "knn") == 0
    assert run("watch", tmp_path / "knn", tmp_path / "less.csv", "--once") == 2
    assert "was not fitted on a time series" in " ".join(capsys.readouterr().err.split())
