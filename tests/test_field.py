"""What went wrong when people used the library: each kind of fault, with other values than the case in `shared/cases/field`."""

import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
from command_line import jaxad
from PIL import Image
from starlette.testclient import TestClient

from jaxad import export_detector, load_detector, load_scorer
from jaxad.cli.kinds import KINDS
from jaxad.data import DataError, read_table
from jaxad.data.doubts import doubts
from jaxad.detectors import ConformalDetector, KNNDetector, MahalanobisDetector, catalogue, estimator
from jaxad.detectors.catalogue import DETECTORS
from jaxad.metrics.calibration import threshold
from jaxad.runtime.files import put, unfinished
from jaxad.shipping import serve
from jaxad.shipping.bodies import Limits, Refusal, read_json
from jaxad.shipping.bulk import judged
from jaxad.standardiser import Standardiser

QUICK = {"ddpm": {"num_steps": 20}, "dit": {"num_steps": 5}, "dte-c": {"num_steps": 5}, "dte-ig": {"num_steps": 5}}
QUICK |= {"recommended": {"num_networks": 0}}
CLOSED = ("recommended", "knn", "knn-mean", "1nn", "dte-np", "copod", "ecod", "mahalanobis", "norm")
MIDDLE = np.array([0.0, 9.0, 0.0, 0.0])
ALL = (*CLOSED, *(name for name in QUICK if name != "recommended"))


def made(name):
    return catalogue.DETECTORS[name](0).set_params(**QUICK.get(name, {}))


@pytest.fixture(scope="module")
def fitted():
    kept = {}

    def fit(name, rows):
        if (name, rows) not in kept:
            kept[name, rows] = made(name).fit(np.random.default_rng(1).normal(size=(rows, 4)) + MIDDLE)
        return kept[name, rows]

    return fit


@pytest.fixture
def table(tmp_path):
    def write(name, rows, columns=("heat", "load", "flow")):
        path = tmp_path / name
        pd.DataFrame(rows, columns=list(columns)).to_csv(path, index=False)
        return path

    return write


RNG, USUAL = np.random.default_rng(0), np.array([20.0, 5.0, 1.0])
TRAIN, NEW = RNG.normal(size=(120, 3)) + USUAL, RNG.normal(size=(40, 3)) + USUAL


@pytest.fixture
def model(table, tmp_path, capsys):
    assert jaxad("fit", table("train.csv", TRAIN), "--out", tmp_path / "model", "--detector", "knn") == 0
    capsys.readouterr()
    return tmp_path / "model"


# ------------------------------------------------------------------------------------------------------------- 01, 17: files


def test_a_link_goes_on_pointing_to_its_file(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "real.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    whole = unfinished(link)
    assert whole.parent == target.parent  # on the same disk, so that it is replaced in one step
    whole.write_text("new")
    put(whole, link)
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path / "folder") == ["real.txt"]


def test_scores_go_into_a_pipe_a_device_and_the_file_behind_a_link(tmp_path, model, table):
    pipe, link, real = tmp_path / "pipe", tmp_path / "link.csv", tmp_path / "real.csv"
    os.mkfifo(pipe)
    real.write_text("old")
    link.symlink_to(real)
    came = []
    reader = threading.Thread(target=lambda: came.append(pipe.read_text()))
    reader.start()
    new = table("new.csv", NEW)
    for out in (pipe, link, "/dev/null"):
        assert jaxad("score", model, new, "--out", out) == 0
    reader.join(30)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert came == [real.read_text()]
    assert came[0].startswith("row,anomaly_score,p_value,flagged\n0,")  # and no \r, which awk does not know
    assert came[0].count("\n") == 41


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "CSV"])
def test_the_ending_says_what_is_written(tmp_path, model, table, ending):
    out, plain = tmp_path / f"scores.{ending}", tmp_path / "scores.csv"
    new = table("new.csv", np.c_[NEW, np.arange(40) > 35], ("heat", "load", "flow", "odd"))
    for path in (out, plain):
        assert jaxad("score", model, new, "--out", path, "--label-column", "odd") == 0
    read = {"parquet": pd.read_parquet, "jsonl": lambda path: pd.read_json(path, lines=True), "CSV": pd.read_csv}
    pd.testing.assert_frame_equal(read[ending](out), pd.read_csv(plain), rtol=1e-12)
    assert not list(tmp_path.glob("*partial*"))


def test_another_ending_is_refused_before_any_work(tmp_path, model, table, capsys):
    assert jaxad("score", model, table("new.csv", NEW), "--out", tmp_path / "scores.xlsx") == 2
    assert "written as .csv, .parquet or .jsonl, got '.xlsx'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- 02: one rule for p-values and flags


@pytest.mark.parametrize("rows", [6, 25])
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in ("dit", "ddpm") else n for n in ALL])
def test_flagged_is_a_p_value_up_to_the_rate(fitted, name, rows):
    detector, new = fitted(name, rows), np.random.default_rng(2).normal(size=(200, 4)) * 3 + MIDDLE
    scores, p = detector.score_samples(new), detector.p_values(new)
    for rate in (0.0, 0.05, 0.1, 0.29, 0.5):
        detector.offset_ = threshold(detector.calibration_scores_, rate)
        np.testing.assert_array_equal(detector.predict(new) == -1, p <= rate)
        np.testing.assert_array_equal(judged(detector, scores, None, None)[1], p <= rate)
        np.testing.assert_array_equal(detector.predict(new, alpha=rate) == -1, p <= rate)
    detector.offset_ = threshold(detector.calibration_scores_, 0.05)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "dit" else n for n in ALL])
def test_the_service_flags_by_the_same_rule(tmp_path, fitted, name):
    detector, rates = fitted(name, 25), (None, 0.0, 0.05, 0.29, 0.5)
    export_detector(detector, tmp_path / "bundle")
    scorer = load_scorer(tmp_path / "bundle")
    new = (np.random.default_rng(2).normal(size=(60, 4)) * 3 + MIDDLE).astype(np.float32)
    # Some of them calibrate, so that scores tie with the threshold.
    scorer.calibration_scores_ = np.sort(scorer.score_samples(new)[:40])
    scorer.offset_ = threshold(scorer.calibration_scores_, 0.05)
    with TestClient(serve.application(scorer, Limits())) as client:
        for rate in rates:
            asked = {"rows": new.tolist()} | ({} if rate is None else {"alpha": rate})
            answer = client.post("/score", json=asked).json()
            flagged, share = np.array(answer["flagged"]), 0.05 if rate is None else rate
            np.testing.assert_array_equal(flagged, np.array(answer["p_value"]) <= share)
            np.testing.assert_array_equal(flagged, scorer.p_values(new) <= share)
            np.testing.assert_array_equal(flagged, judged(scorer, scorer.score_samples(new), rate, None)[1])
    assert flagged.any()


def test_the_bundle_keeps_a_threshold_that_flags_nothing(tmp_path, fitted):
    detector = fitted("knn", 6)
    export_detector(detector, tmp_path / "bundle")
    loaded, far = load_scorer(tmp_path / "bundle"), np.full((1, 4), 1e6)
    assert loaded.offset_ == detector.offset_ == -np.inf
    assert loaded.predict(far) == detector.predict(far) == 1


def test_so_few_rows_that_none_can_be_flagged_are_said_to_be_so(tmp_path, table, capsys):
    assert jaxad("fit", table("few.csv", TRAIN[:7]), "--out", tmp_path / "few", "--detector", "ecod") == 0
    assert (
        "nothing can be flagged at a rate of 0.05: that takes 19 held-out normal rows, there are 7"
        in capsys.readouterr().out
    )
    assert jaxad("score", tmp_path / "few", table("new.csv", NEW * 9), "--out", tmp_path / "s.csv", "--alpha", 0.1) == 0
    assert "at a rate of 0.1: that takes 9 held-out normal rows" in capsys.readouterr().out
    assert (pd.read_csv(tmp_path / "s.csv").flagged == 0).all()


# --------------------------------------------------------------------------------------------------- 03: rows that were seen


@pytest.mark.parametrize(
    "name",
    ["knn", "1nn", "dte-np", "mahalanobis", pytest.param("recommended", marks=pytest.mark.slow), "ecod", "norm"],
)
def test_fresh_rows_of_a_wide_table_are_flagged_at_the_rate(name):
    rates = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        detector = made(name).fit(rng.normal(size=(24, 600)))
        rates.append(np.mean(detector.predict(rng.normal(size=(100, 600))) == -1))
    assert np.mean(rates) < 0.11, rates  # of 24 rows one in 25 is expected, give or take what six times 24 rows tell


# ------------------------------------------------------------------------------------------------------------ 04: what is kept


def test_ctrl_c_says_what_is_true_of_a_fit(tmp_path, table, monkeypatch, capsys):
    def interrupted(self, X, y=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(KNNDetector, "fit", interrupted)
    assert jaxad("fit", table("train.csv", TRAIN), "--out", tmp_path / "m", "--detector", "knn") == 130
    said = capsys.readouterr().err
    assert "nothing was kept: with --run-dir FOLDER" in said
    assert "finished cells" not in said
    assert not (tmp_path / "m").exists()


# -------------------------------------------------------------------------------------------------------- 05: names of columns


def test_a_model_of_the_command_line_knows_its_columns_in_python(model):
    detector, frame = load_detector(model), pd.DataFrame(NEW, columns=["heat", "load", "flow"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.predict(frame)
    with pytest.raises(ValueError, match="feature names"):
        detector.predict(frame[["load", "heat", "flow"]])


# ------------------------------------------------------------------------------------------------------ 06, 15: far, and farther


@pytest.mark.parametrize("name", ALL)
def test_farther_out_is_never_less_anomalous_and_always_finite(fitted, name):
    if name == "norm":
        pytest.skip("its scale is that of the data")
    detector, steps = fitted(name, 25), (8.0, 20.0, 1e3, 1e8, 1e200, 1e308)
    scores = detector.score_samples(np.array([[step, 9.0, 0.0, 0.0] for step in steps]))
    assert np.isfinite(scores).all()
    if name in ("recommended", "knn", "knn-mean", "1nn", "dte-np", "mahalanobis"):
        assert (np.diff(scores[:4]) < 0).all(), scores
        assert (scores[4:] <= scores[3]).all()


def test_a_file_with_a_huge_value_is_scored_and_a_fit_names_it(tmp_path, model, table, capsys):
    spoilt = NEW.copy()
    spoilt[7, 1] = 1e200
    assert jaxad("score", model, table("new.csv", spoilt), "--out", tmp_path / "s.csv") == 0
    assert pd.read_csv(tmp_path / "s.csv").anomaly_score.idxmax() == 7
    assert jaxad("fit", table("bad.csv", spoilt), "--out", tmp_path / "m", "--detector", "mahalanobis") == 2
    assert "row 7 (counting from 0) holds 1e+200 in column" in capsys.readouterr().err


def test_the_scale_goes_on_behind_its_end():
    z = Standardiser(np.zeros(1), np.ones(1), 10.0)(np.array([[9.0], [10.0], [11.0], [1e8], [-1e300]]))[:, 0]
    np.testing.assert_allclose(z, [9, 10, 10 + np.log(2), 10 + np.log(1e8 - 9), -10 - np.log(1e300)], rtol=1e-6)


# --------------------------------------------------------------------------------------------------------- 07, 08: pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("field"), np.random.default_rng(0)
    (root / "good").mkdir()
    (root / "new" / "late").mkdir(parents=True)

    def picture(mode="RGB"):
        return Image.fromarray(rng.normal(120, 20, (12, 12, 3)).clip(0, 255).astype("uint8")).convert(mode)

    for number in range(12):
        picture().save(root / "good" / f"{number}.png")
    picture().save(root / "good" / "logo.gif")
    picture().save(root / "new" / "a.png")
    picture("L").save(root / "new" / "gray.png")
    picture().save(root / "new" / "b.webp")
    picture().save(root / "new" / "late" / "c.png")
    assert jaxad("fit", root / "good", "--out", root / "model", "--no-maps") == 0
    return root


@pytest.mark.slow
def test_what_is_passed_over_is_counted_and_gray_is_read_as_colour(pictures, tmp_path, capsys):
    assert jaxad("score", pictures / "model", pictures / "new", "--out", tmp_path / "s.csv") == 0
    assert "1 file is no PNG, JPEG, BMP or TIFF: b.webp; 1 folder was not entered: late" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "s.csv").file.tolist() == ["a.png", "gray.png"]
    assert jaxad("fit", pictures / "good", "--out", tmp_path / "m", "--no-maps", "--size", 8) == 0
    assert "warning: 1 file is no PNG, JPEG, BMP or TIFF: logo.gif" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- 09, 10: causes by name


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ("€ 4.20", "a unit"),
        ("17.5 °C", "a unit"),
        ("0xFF", "hexadecimal"),
        ("2026-11-27", "a date"),
        ("green", "encode the column as numbers"),
    ],
)
def test_numbers_as_people_write_them_are_recognised(tmp_path, value, cause):
    (tmp_path / "t.csv").write_text(f"a,b\n1,2\n{value},3\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"in line 3; .*{cause}"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"x,y\n1,2\n\n3,4,5\n", "got 3 in line 4"),
        (b"x;y\n1;2\n\n3;4;5\n", "got 3 in line 4; .* holds the separator ';'"),
        (b"x,y,\n1,2,\n", "the line ends with a separator"),
        (b'x,y\n1.5,2\n3.5,"1,5"\n', "'1,5' in line 3; that looks like a decimal comma"),
    ],
)
def test_the_cause_is_named_that_it_is(tmp_path, content, cause):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=cause):
        read_table(tmp_path / "t.csv")


def test_a_name_may_begin_with_a_hash(tmp_path):
    (tmp_path / "t.csv").write_text("#id,y\n1,2\n")
    assert read_table(tmp_path / "t.csv").columns == ("#id", "y")


# ------------------------------------------------------------------------------------------------ 11 to 14: files and columns


def test_a_file_that_differs_as_a_whole_is_news_of_its_own(tmp_path, model, table, capsys):
    assert jaxad("score", model, table("later.csv", NEW - [0, 9, 0]), "--out", tmp_path / "s.csv") == 0
    assert (
        "40 of 40 rows are flagged: the file as a whole differs from the rows of training; moved most: load (mean -9"
        in (capsys.readouterr().out)
    )
    assert jaxad("score", model, table("new.csv", NEW), "--out", tmp_path / "s.csv") == 0
    assert "moved most" not in capsys.readouterr().out


@pytest.mark.parametrize("label", [0, 1])
def test_labels_of_one_class_are_said_to_measure_nothing(tmp_path, model, table, capsys, label):
    rows = table("new.csv", np.c_[NEW, np.full(40, label)], ("heat", "load", "flow", "odd"))
    assert jaxad("score", model, rows, "--out", tmp_path / "s.csv", "--label-column", "odd") == 0
    assert f"nothing is measured: all 40 labels of 'odd' are {label}, AUROC needs both" in capsys.readouterr().out


def test_columns_that_count_up_or_hold_a_fill_value_are_doubted():
    rng, names = np.random.default_rng(0), ("time", "back", "fill", "tail", "flat")
    rows = np.c_[
        np.cumsum(rng.random(300)), -np.arange(300), rng.normal(size=300), rng.lognormal(0, 2, 300), np.ones(300)
    ]
    rows[11, 2] = -9999.0
    said = list(doubts(rows, names))
    assert [words.split("'")[1] for words in said] == ["time", "back", "fill"]
    assert "holds -9999 in row 11" in said[2]
    assert not list(doubts(rng.normal(size=(10_000, 3))))


def test_a_fill_value_is_doubted_in_python_too():
    rows = pd.DataFrame(TRAIN, columns=["heat", "load", "flow"])
    rows.loc[9, "load"] = 3.4e38
    with pytest.warns(UserWarning, match=r"column 'load' holds 3.4e\+38 in row 9"):
        KNNDetector().fit(rows)


def test_columns_are_left_out_and_rows_keep_their_names(tmp_path, table, capsys):
    names = ("Id", "heat", "load", "flow", "note")
    ids, notes = np.arange(1000, 1120), np.array(["a"] * 120)
    rows = pd.DataFrame({"Id": ids, "heat": TRAIN[:, 0], "load": TRAIN[:, 1], "flow": TRAIN[:, 2], "note": notes})
    train = table("train.csv", rows, names)
    assert jaxad("fit", train, "--out", tmp_path / "m", "--detector", "knn", "--drop", "note") == 0
    assert "identifier     0.0%  1000  (counts the rows)" in capsys.readouterr().out
    how = ("--detector", "knn", "--drop", "note", "--id-column", "Id")
    assert jaxad("fit", train, "--out", tmp_path / "model", *how) == 0
    assert "identifier" not in capsys.readouterr().out
    for given in (train, table("bare.csv", rows.drop(columns=["note"]), names[:4])):
        assert jaxad("score", tmp_path / "model", given, "--out", tmp_path / "s.csv") == 0
        assert pd.read_csv(tmp_path / "s.csv")["Id"].tolist() == ids.tolist()
    assert jaxad("score-files", tmp_path / "model", train, "--out", tmp_path / "many") == 0
    assert pd.read_csv(tmp_path / "many" / "train.csv.csv")["Id"].tolist() == ids.tolist()
    assert jaxad("score", tmp_path / "model", table("no.csv", TRAIN), "--out", tmp_path / "s.csv") == 0
    assert pd.read_csv(tmp_path / "s.csv")["row"].tolist() == list(range(120))
    assert jaxad("fit", train, "--out", tmp_path / "o", "--drop", "notes") == 2
    assert "has no column 'notes'" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------- 16: forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_told_instead_of_hanging(monkeypatch):
    detector = KNNDetector().fit(TRAIN)
    assert estimator._Forked.started
    monkeypatch.setattr(estimator._Forked, "forked", False)
    estimator._Forked.in_child()
    with pytest.raises(RuntimeError, match="was forked from one that had already used JAX"):
        detector.score_samples(NEW)


# ---------------------------------------------------------------------------------------------------------- what else was missing


def test_the_version(capsys):
    assert jaxad("--version") == 0
    assert capsys.readouterr().out.startswith("jaxad 0.")


def test_a_request_may_name_its_columns():
    columns = ["heat", "load"]
    rows, _ = read_json(b'{"columns": ["load", "heat"], "rows": [[1, 2], [3, 4]]}', (2,), 10, columns)
    assert rows.tolist() == [[2, 1], [4, 3]]
    for body, told in (
        (b'{"columns": ["load", "cold"], "rows": [[1, 2]]}', r"missing \['heat'\], not seen in training \['cold'\]"),
        (b'{"columns": "load", "rows": [[1, 2]]}', "a list of the names of training"),
    ):
        with pytest.raises(Refusal, match=told):
            read_json(body, (2,), 10, columns)
    with pytest.raises(Refusal, match="of which there are 0"):
        read_json(b'{"columns": ["load", "heat"], "rows": [[1, 2]]}', (2,), 10)


def test_a_calibrated_detector_has_one_rule_too():
    detector = ConformalDetector(MahalanobisDetector(), alpha=0.1).fit(TRAIN)
    np.testing.assert_array_equal(detector.predict(NEW) == -1, detector.p_values(NEW) <= 0.1)
    np.testing.assert_array_equal(detector.score_samples(NEW) < detector.offset_, detector.p_values(NEW) <= 0.1)
    everything = ConformalDetector(MahalanobisDetector(), alpha=1.0).fit(TRAIN)
    assert np.isfinite(everything.offset_)
    assert (everything.score_samples(NEW) < everything.offset_).all()


def test_names_of_detectors_are_known_before_anything_is_imported():
    for kind in KINDS:
        with_others = set(kind.detectors())
        assert with_others >= set(kind.ours)
        assert not (with_others - set(kind.ours)) & set(DETECTORS), "a detector of the catalogue is missing in `ours`"


@pytest.mark.parametrize(
    "words",
    [
        ("fit", "missing.csv", "--out", "m"),
        ("fit", "rows.csv", "--out", "m", "--detector", "knm"),
        ("score", "missing", "rows.csv", "--out", "s.csv"),
        ("score-files", "missing", "rows.csv", "--out", "s"),
        ("generate", "missing", "--out", "g.npz"),
        ("cycle", "missing.csv", "--out", "m"),
        ("export", "missing", "--out", "b"),
        ("serve", "missing"),
        ("report", "missing"),
        ("import-weights", "missing", "--out", "w", "--network", "{}", "--size", "8"),
    ],
)
def test_a_wrong_name_or_path_waits_for_no_import(words, tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    code = (
        "import sys; from jaxad.cli import main\n"
        f"sys.argv = {['jaxad', *words]!r}\n"
        "try: main()\n"
        "except SystemExit as stopped: print(stopped.code, 'jax' in sys.modules, 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split() == ["2", "False", "False"], done.stdout + done.stderr


def test_rows_from_standard_input_and_scores_to_standard_output(tmp_path):
    rows = np.random.default_rng(0).normal(size=(60, 2))
    np.savetxt(tmp_path / "n.csv", rows, delimiter=",", header="a,b", comments="", fmt="%.5f")
    main = [sys.executable, "-c", "from jaxad.cli import main; main()"]
    fit = [*main, "fit", "n.csv", "--out", "m", "--detector", "knn"]
    subprocess.run(fit, cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "n.csv").read_text()
    streamed = subprocess.run(
        [*main, "score", "m", "-", "--out", "/dev/stdout"],
        input=text,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    subprocess.run([*main, "score", "m", "n.csv", "--out", "s.csv"], cwd=tmp_path, check=True, capture_output=True)
    assert streamed.stdout == (tmp_path / "s.csv").read_text()
    assert "60 rows scored" in streamed.stderr
