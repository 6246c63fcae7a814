"""The command line beyond one kind of data: a kind that is added, detectors of other packages, anomalies from every denoiser of rows."""

import json
import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import jax.numpy as jnp
import numpy as np
import pytest
from command_line import jaxad

from jaxad import cli, load_scorer
from jaxad.cli import kinds
from jaxad.data import read_table
from jaxad.detectors import Estimator, Learned, Scorer, Standardiser, catalogue, estimator
from jaxad.detectors.persistence import load_detector, load_extra, save_detector
from jaxad.shipping.bulk import judged

ROWS = np.random.default_rng(0).normal(size=(120, 3))
NEW = np.concatenate([np.random.default_rng(1).normal(size=(20, 3)), ROWS[:5] + 8])


def scores_in(path):
    return np.genfromtxt(path, delimiter=",", names=True)["anomaly_score"]


# ----------------------------------------------------------------------------------------------------------------- a kind more


@dataclass(frozen=True)
class Letters:
    letters: str = "aeiou"
    """Texts: what is counted."""


@dataclass(frozen=True)
class NoOption:
    pass


class Texts:
    """Lines of text, each a row of how often some letters stand in it."""

    key, words, items, default = "texts", "a file of lines", "lines", "knn"
    ours = ("knn",)
    to_score = "FILE --out scores.csv"
    Fitting, Scoring, Generating = Letters, NoOption, NoOption

    def holds(self, data, options=None):
        return data.suffix == ".txt"

    def detectors(self):
        return catalogue.choose(["knn"])

    def counts(self, data, letters):
        return np.array([[line.count(letter) for letter in letters] for line in data.read_text().splitlines()])

    def read(self, data, options, has, say):
        rows = self.counts(data, options.letters)
        say("counting")
        return rows, {"texts": {"letters": options.letters}}, {}, f"{len(rows)} lines"

    def settings(self, options, given):
        return {}

    def limits(self, options, has, resumes, say):
        return {}

    def tell(self, fitted, data, options, say):
        pass

    def score(self, asked, options):
        rows = self.counts(asked.data, asked.loaded.extra["texts"]["letters"])
        normality = asked.loaded.detector.score_samples(rows)
        p, _ = judged(asked.loaded.detector, normality, asked.alpha, asked.fdr)
        asked.out.write_text(
            "anomaly_score,p_value\n" + "".join(f"{-s},{q}\n" for s, q in zip(normality, p, strict=True))
        )

    def generate(self, model, out, made, options):
        raise ValueError(f"{model} writes no lines")


def test_a_kind_in_the_list_is_all_that_fit_and_score_need(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kinds, "KINDS", [*kinds.KINDS, Texts()])
    normal, new, model, out = (tmp_path / name for name in ("normal.txt", "new.txt", "model", "scores.csv"))
    normal.write_text("\n".join(["a banana", "an apple", "a pear and a plum", "an orange"] * 10))
    new.write_text("an apple\nooooooooooo\n")
    assert jaxad("fit", normal, "--out", model, "--letters", "aeo") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "counting knn fitted on 40 lines" in said
    assert f"score lines with: jaxad score {model} FILE" in said
    assert load_extra(model) == {"texts": {"letters": "aeo"}, "detector": "knn", "seed": 0, "rows": 40}
    for scored in (model, tmp_path / "bundle"):
        assert jaxad("score", scored, new, "--out", out) == 0
        usual, odd = scores_in(out)
        assert usual < odd
        assert jaxad("export", model, "--out", tmp_path / "bundle") == 0
    capsys.readouterr()
    # What is of one kind alone is refused for another, and so is its data.
    np.save(tmp_path / "rows.npy", ROWS)
    for words, told in (
        (
            ("fit", tmp_path / "rows.npy", "--out", tmp_path / "x", "--letters", "x"),
            "--letters means nothing for a file of rows",
        ),
        (("fit", normal, "--out", tmp_path / "x", "--size", 8), "--size means nothing for a file of lines"),
        (
            ("fit", normal, "--out", tmp_path / "x", "--detector", "ddpm"),
            "unknown detector 'ddpm': .* for a file of lines",
        ),
        (("score", model, tmp_path / "rows.npy", "--out", out), "was fitted on a file of lines, .* is a file of rows"),
        (("generate", model, "--out", tmp_path / "made"), "writes no lines"),
    ):
        assert jaxad(*words) == 2
        assert re.search(told, capsys.readouterr().err)


# ---------------------------------------------------------------------------------------------------------- other packages' own


class FromMiddle(Scorer):
    middle: jnp.ndarray

    def __call__(self, rows):
        return jnp.max(jnp.abs(rows - self.middle[None]), axis=1)


class MiddleDetector(Estimator):
    """Without a setting."""

    def _learn(self, X):
        scale = Standardiser.fit(X)
        rows = scale(X)
        scorer = FromMiddle(np.median(rows, axis=0))
        return Learned(scale, scorer, np.asarray(scorer(rows)))


class SeededDetector(MiddleDetector):
    def __init__(self, random_state=0, false_alarm_rate=0.05):
        self.random_state = random_state
        self.false_alarm_rate = false_alarm_rate


def seeded(seed):
    return SeededDetector(seed + 1)


@pytest.fixture
def installed(monkeypatch):
    """As if another package listed its own; one of them under a name that is taken."""
    points = [
        EntryPoint(name, f"{__name__}:{of}", "") for name, of in (("middle", "MiddleDetector"), ("knn", "seeded"))
    ]
    points += [EntryPoint("seeded", f"{__name__}:SeededDetector", ""), EntryPoint("made", f"{__name__}:seeded", "")]
    for reader in (estimator, cli.kinds):
        monkeypatch.setattr(reader, "entry_points", lambda group: points if group == "jaxad.detectors" else [])
    estimator.listed_elsewhere.cache_clear()
    yield
    estimator.listed_elsewhere.cache_clear()


def test_a_factory_is_a_function_of_the_seed_or_a_class(installed):
    made = {name: make(7) for name, make in catalogue.choose(["middle", "seeded", "made", "knn"]).items()}
    assert type(made["middle"]) is MiddleDetector
    assert (made["seeded"].random_state, made["made"].random_state) == (7, 8)
    assert type(made["knn"]).__name__ == "KNNDetector"  # a name of ours stays ours


def test_a_detector_of_another_package_is_used_by_name(installed, tmp_path, capsys):
    np.save(tmp_path / "rows.npy", ROWS)
    np.save(tmp_path / "new.npy", NEW)
    model, bundle, out = tmp_path / "model", tmp_path / "bundle", tmp_path / "scores.csv"
    assert jaxad("fit", tmp_path / "rows.npy", "--out", model, "--detector", "middle") == 0
    assert jaxad("export", model, "--out", bundle) == 0
    expected = -load_detector(model).score_samples(NEW)
    np.testing.assert_allclose(-load_scorer(bundle).score_samples(NEW), expected, rtol=1e-5)
    for scored in (model, bundle):
        assert jaxad("score", scored, tmp_path / "new.npy", "--out", out) == 0
        np.testing.assert_allclose(scores_in(out), expected, rtol=1e-5)
    words = ("fit", tmp_path / "rows.npy", "--out", tmp_path / "x", "--detector", "middle", "--false-alarm-rate", 0.1)
    assert jaxad(*words) == 2
    assert "--false-alarm-rate: middle has no such setting" in capsys.readouterr().err


def test_what_scores_a_row_by_its_neighbours_in_the_file_is_not_saved(tmp_path, capsys):
    np.save(tmp_path / "rows.npy", ROWS)
    assert jaxad("fit", tmp_path / "rows.npy", "--out", tmp_path / "model", "--detector", "copod-nan") == 2
    assert "scores a row by the rows scored with it" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_names_are_for_a_kind_of_data():
    tables, pictures, series = kinds.KINDS
    assert {"recommended", "knn", "dit"} <= set(tables.detectors())
    assert not {"iforest", "lof", "image", "cycle"} & set(tables.detectors())
    assert list(pictures.detectors()) == ["image"]
    assert set(series.ours) == set(series.detectors())
    assert {"image", "cycle"} <= set(catalogue.everything())


# ------------------------------------------------------------------------------------------------------------------- anomalies


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in ("ddpm", "recommended", "dit")]
)
def test_anomalies_are_made_with_every_denoiser_of_rows(name, tmp_path):
    detector = catalogue.choose([name])[name](0).set_params(num_steps=60).fit(ROWS * [1.0, 100.0, 0.01] + 5)
    save_detector(detector, tmp_path / "model", extra={"columns": list("abc")})
    out = tmp_path / "made.npz"
    assert jaxad("generate", tmp_path / "model", "--out", out, "--count", 140, "--seed", 2) == 0
    made = read_table(out)
    assert made.x.shape == (140, 3)
    assert made.y.all()
    with np.load(out) as stored:
        np.testing.assert_allclose(stored["p"], detector.p_values(made.x))
        card = json.loads(str(stored["card"]))
    assert card["columns"] == list("abc")
    assert set(card["severity"]) >= {"local", "dependency"}
    assert min(card["severity"].values()) < 0.2


def test_detectors_without_a_denoiser_say_which_have_one(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "rows.npy", ROWS[:60])
    for name, told in (
        ("knn", "holds a KNNDetector, which has no denoiser of rows .*: fit recommended, ddpm or dit"),
        ("recommended", "no network is trained on fewer than 100 rows"),
    ):
        assert jaxad("fit", tmp_path / "rows.npy", "--out", tmp_path / name, "--detector", name) == 0
        assert jaxad("generate", tmp_path / name, "--out", tmp_path / "made.npz") == 2
        assert re.search(told, capsys.readouterr().err)
    assert not (tmp_path / "made.npz").exists()


def test_only_a_sweep_says_that_cells_are_kept(monkeypatch, capsys, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxad.evaluation.sweep.run", interrupted)
    monkeypatch.setattr("jaxad.shipping.bulk.load", interrupted)
    (tmp_path / "model").mkdir()
    np.save(tmp_path / "rows.npy", ROWS)
    assert jaxad("score", tmp_path / "model", tmp_path / "rows.npy", "--out", tmp_path / "scores.csv") == 130
    assert capsys.readouterr().err == "jaxad: interrupted\n"
    assert jaxad("demo") == 130
    assert "finished cells are kept" in capsys.readouterr().err
