"""Every experiment runs, resumes, and gives the numbers of the paper that it claims to repeat."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import (
    adbench,
    combine,
    contamination,
    false_discoveries,
    families,
    holdout,
    recipe,
    table1,
    unsupervised,
)
from jaxad import DiffusionDetector, data
from jaxad.data import Dataset
from jaxad.denoisers import MLP
from jaxad.detectors import evidence
from jaxad.detectors.catalogue import DETECTORS

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for path in (ROOT / "experiments").glob("*.py") if path.stem != "__init__")
PARITY_SETS = ("MVTec-AD_bottle", "MVTec-AD_grid", "MVTec-AD_leather")
WRITTEN = ("results.jsonl", "results.csv", "report.html", "table.md")


@pytest.fixture(scope="module")
def small_sets(data_dir):
    """The two ADBench sets with the smallest files."""
    files = {name: next(data_dir.glob(f"adbench/*/{name}.npz"), None) for name in data.adbench_names(data_dir)}
    files |= {path.stem: path for path in data_dir.glob("adbench/Classical/*.npz")}
    paths = sorted({path for path in files.values() if path}, key=lambda path: path.stat().st_size)
    return tuple(path.stem for path in paths[:2])


@pytest.fixture(scope="module")
def table(data_dir, tmp_path_factory):
    """The columns of the paper's table that need no training, on three small sets."""
    present = [name for name in PARITY_SETS if name in data.adbench_names(data_dir)]
    if len(present) < len(PARITY_SETS):
        pytest.skip(f"needs {', '.join(PARITY_SETS)}")
    out = tmp_path_factory.mktemp("table1")
    detectors = ("iforest", "ocsvm", "copod", "copod-nan", "norm", "dit-untrained", "knn")
    records = table1.run(table1.Config(data_dir=data_dir, datasets=PARITY_SETS, detectors=detectors, out=out))
    return {(record.detector, record.dataset): 100 * record.auroc for record in records}, records, out


# ------------------------------------------------------------------------------------------------------ the paper's numbers


@pytest.mark.slow
@pytest.mark.parametrize(("detector", "column"), [("iforest", "IForest"), ("ocsvm", "OCSVM")])
def test_scikit_learns_baselines_equal_the_papers_columns(table, detector, column):
    ours, theirs = [table[0][detector, name] for name in PARITY_SETS], [table1.PAPER[column][n] for n in PARITY_SETS]
    # Theirs are rounded to two decimals of a percent.
    np.testing.assert_allclose(ours, 100 * np.array(theirs), rtol=0, atol=0.0101)


def test_copod_repeats_and_repairs_the_published_column(table):
    areas = table[0]
    assert [areas["copod-nan", name] for name in PARITY_SETS] == [50.0] * 3
    np.testing.assert_allclose(
        [areas["copod", name] for name in PARITY_SETS], [96.44, 58.75, 99.08], rtol=0, atol=0.0101
    )


def test_the_papers_dit_column_is_the_norm_of_the_row(table):
    published = [100 * table1.PAPER["DiT"][name] for name in PARITY_SETS]
    # The norm stands on the scale of all rows; the network, as everything trained, on that of the nine tenths it is trained on.
    for detector, tolerance in (("norm", 0.15), ("dit-untrained", 0.25)):
        np.testing.assert_allclose([table[0][detector, n] for n in PARITY_SETS], published, rtol=0, atol=tolerance)


def test_the_comparison_says_so_in_words(table):
    lines = {line.split(":")[0].strip(): line for line in table1.compare(table[1]).splitlines()}
    assert set(lines) == {"iforest", "ocsvm", "copod", "copod-nan", "norm", "dit-untrained"}
    assert "within 0.01 (rounding): 3" in lines["iforest"]
    assert "within 0.15: 3 of 3 cells" in lines["norm"]


def test_the_published_columns_stand_beside_ours(table):
    text = (table[2] / "table.md").read_text()
    assert "| paper IForest | paper OCSVM | paper COPOD | paper DDPM | paper DiT | paper DTE |" in text
    assert all((table[2] / name).is_file() for name in WRITTEN)


# ----------------------------------------------------------------------------------------------------------------- smoke runs


@pytest.mark.parametrize("protocol", ["clean", "dte"])
def test_adbench_runs_and_resumes(data_dir, small_sets, tmp_path, protocol):
    config = adbench.Config(
        data_dir=data_dir, datasets=small_sets, detectors=("copod", "norm"), protocol=protocol, out=tmp_path
    )
    first = adbench.run(config)
    assert [record.cell for record in first] == [
        (data.adbench_name(name), detector, protocol, 0) for name in small_sets for detector in config.detectors
    ]
    assert all((tmp_path / name).is_file() for name in WRITTEN)
    # More cells: the finished ones come back as they were, timings included.
    again = adbench.run(replace(config, detectors=("copod", "norm", "knn"), seeds=(0, 1)))
    assert set(map(repr, first)) < set(map(repr, again))
    assert len(again) == 12
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 12


def test_a_trained_detector_runs(data_dir, small_sets, tmp_path, monkeypatch):
    def quick(seed):
        return DiffusionDetector(MLP(width=16, depth=1), num_steps=20, random_state=seed)

    monkeypatch.setitem(DETECTORS, "ddpm", quick)
    config = adbench.Config(data_dir=data_dir, datasets=small_sets[:1], detectors=("ddpm", "knn"), out=tmp_path)
    assert [record.detector for record in adbench.run(config)] == ["ddpm", "knn"]


def test_show_prints_the_tables(table, capsys):
    adbench.show(adbench.Config(out=table[2]))
    assert "MVTec-AD_grid" in capsys.readouterr().out


def test_families_share_one_network(data_dir, small_sets, tmp_path, monkeypatch):
    fits = []

    class Quick(DiffusionDetector):
        def fit(self, X, y=None):
            fits.append(len(X))
            return super().fit(X)

    monkeypatch.setattr(families, "DiffusionDetector", lambda random_state: Quick(MLP(width=16, depth=1), num_steps=20))
    chosen = ("denoising error, z-mean", "log score norm, knn")
    monkeypatch.setattr(families, "FAMILIES", {name: families.FAMILIES[name] for name in chosen})
    records = families.run(families.Config(data_dir=data_dir, datasets=small_sets[:1], out=tmp_path))
    assert [record.detector for record in records] == list(chosen)
    assert len(fits) == 1
    assert (tmp_path / "table.md").is_file()


def test_families_calibrate_on_the_rows_that_fit_held_out():
    rows = np.random.default_rng(0).normal(size=(90, 3))
    model = DiffusionDetector(MLP(width=8, depth=1), num_steps=20)
    families.Rescored.fitted = None
    expected = model.fit(rows).scorer_.combined.statistics
    rng = np.random.RandomState(0)
    rng.randint(2**31 - 1)
    again = model.calibrate(families.hold_out(rows, rng)[1]).scorer_.combined.statistics
    np.testing.assert_allclose(again.mean, expected.mean, rtol=1e-4)


def test_holdout_reads_every_kind_of_file(data_dir, tmp_path):
    sets = holdout.loaders(data_dir)
    small = [name for name in ("digits-view3_0", "credit-g", "oil-spill") if name in sets]
    if len(small) < 3:
        pytest.skip("needs multimodal/ and tables/ in the data directory")
    records = holdout.run(
        holdout.Config(data_dir=data_dir, datasets=tuple(small), detectors=("norm", "knn-mean"), out=tmp_path)
    )
    assert len(records) == 6
    credit = sets["credit-g"]()
    assert (credit.x.shape, int(np.sum(credit.y))) == ((1000, 61), 300)
    with pytest.raises(ValueError, match="nowhere"):
        holdout.run(holdout.Config(data_dir=data_dir, datasets=("nowhere",), out=tmp_path))


def test_false_discoveries_are_counted_as_promised(data_dir, small_sets, tmp_path):
    out = tmp_path / "records.jsonl"
    config = false_discoveries.Config(
        data_dir=data_dir, datasets=small_sets, detectors=("knn", "iforest"), seeds=(0,), repetitions=20, out=out
    )
    records = false_discoveries.run(config)
    assert len(records) == 1 + 2 * len(small_sets)
    simulated = records[0]
    assert 0.05 < simulated["fdp_0.1"] < 0.12  # the promise is .1 times the share of normal rows, .9
    assert simulated["power_0.05"] < simulated["power_0.2"]
    before = out.read_bytes()
    assert false_discoveries.run(config) == records
    assert out.read_bytes() == before
    p, y = np.array([0.001, 0.002, 0.9, 0.8]), np.array([1, 0, 0, 1])
    row = false_discoveries.judged(config, p, y)
    assert (row["fdp_0.05"], row["power_0.05"], row["type1_0.05"]) == (0.5, 0.5, 0.5)


@pytest.mark.slow
def test_killed_trainings_end_identically(tmp_path):
    words = [
        sys.executable,
        "-m",
        "experiments.kill",
        "--kills",
        "2",
        "--sweep-kills",
        "1",
        "--out",
        tmp_path / "kill.jsonl",
    ]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = (tmp_path / "kill.jsonl").read_text().splitlines()
    assert [json.loads(line)["identical"] for line in lines] == [True] * 3


def measured_sets(count, helpful, columns=8, group="tables"):
    """Evidence of three views for sets in which one of them sees the anomalies."""
    rng = np.random.default_rng(count + columns)
    found = []
    for number in range(count):
        labels = np.repeat([0, 1], [150, 40])
        evidence = rng.exponential(size=(3, 190)).astype(np.float32)
        evidence[helpful, labels == 1] += 1.0
        found.append(combine.Seen(group, f"set_{number:03d}", labels, evidence, columns, np.full((7, 2), 60.0)))
    return found


def test_weights_are_learned_over_sets_and_follow_the_columns():
    found = [*measured_sets(12, 0, 4), *measured_sets(12, 2, 400, "embeddings")]
    above, below = combine.rows_of(found)
    columns, share = np.array([float(seen.columns) for seen in found]), combine._share(found)
    parameters = combine.learned(above, below, columns, share, 1e-4)
    small, wide = (np.asarray(combine.weights_of(parameters, count)) for count in (4.0, 400.0))
    assert small[0] > 2 * small[2]
    assert wide[2] > 2 * wide[0]
    pulled = combine.learned(above, below, columns, share, 1e3)
    np.testing.assert_allclose(combine.weights_of(pulled, 4.0), 1.0, atol=0.1)


def test_what_is_learned_of_luck_is_worth_nothing_elsewhere():
    """Cross-validation over sets: where no view tells more than another in general, learning gains nothing."""
    found = [seen for number in range(3) for seen in measured_sets(8, number)]
    for number, seen in enumerate(found):
        found[number] = replace(seen, name=f"set_{number:03d}")
    equal = np.array([seen.judged(np.ones(3)) for seen in found])[:, 0]
    assert combine.cross_validated(found, 1e-4)[:, 0].mean() < equal.mean() + 0.5


def test_the_shipped_weights_are_what_the_experiment_computes():
    card = evidence.WEIGHTS
    parameters = {name: np.array(card[name]) for name in ("intercept", "slope")}
    for columns in (2, 60, 1280):
        np.testing.assert_allclose(
            combine.weights_of(parameters, float(columns)), evidence.view_weights(columns), rtol=1e-4
        )


@pytest.mark.slow
def test_measure_learn_and_report_run_on_files(data_dir, tmp_path):
    if not (data_dir / "oddbench").is_dir():
        pytest.skip("needs oddbench/ in the data directory")
    settings = {"data_dir": data_dir, "num_networks": 0, "out": tmp_path / "measured", "embeddings": tmp_path}
    combine.measure(combine.Measure(groups=("tables",), every=60, **settings))
    assert len(list((tmp_path / "measured" / "tables").glob("*.npz"))) == 3
    combine.learn(combine.Learn(measured=tmp_path / "measured", strengths=(1e-2,), sets=(), out=tmp_path / "w.json"))
    assert json.loads((tmp_path / "w.json").read_text())["learned on"]["tables"] == 3
    records = combine.report(combine.Report(measured=tmp_path / "measured", out=tmp_path / "report.jsonl"))
    assert [record["group"] for record in records] == ["tables"] * 3
    with pytest.raises(ValueError, match="nothing measured"):
        combine.learn(combine.Learn(measured=tmp_path / "nowhere"))


def test_recipes_differ_by_name_alone():
    assert len(set(recipe.RECIPES)) == len(recipe.RECIPES)


# ------------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detectors": ("knn", "iforst")}, "unknown detector 'iforst'.*iforest"),
        ({"datasets": ("MVTec-AD_botle",)}, "'MVTec-AD_botle'.*MVTec-AD_bottle"),
        ({"datasets": ("waveformm",)}, "'waveformm'.*Waveform"),
        ({"protocol": "claen"}, "unknown protocol 'claen'.*clean"),
    ],
)
@pytest.mark.parametrize("experiment", [adbench, table1], ids=lambda module: module.__name__)
def test_a_misspelt_name_is_met_with_the_nearest_one(data_dir, tmp_path, experiment, changes, message):
    config = replace(experiment.Config(data_dir=data_dir, out=tmp_path / "out", detectors=("knn",)), **changes)
    with pytest.raises(ValueError, match=message):
        experiment.run(config)
    assert not (tmp_path / "out").exists()


def test_a_data_directory_without_sets_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--data-dir"):
        adbench.run(adbench.Config(data_dir=tmp_path, out=tmp_path / "out"))


def test_sets_that_are_known_but_absent_are_named(tmp_path):
    with pytest.raises(ValueError, match="MVTec-AD_grid"):
        adbench.run(adbench.Config(data_dir=tmp_path, datasets=("MVTec-AD_grid",), out=tmp_path / "out"))


# ------------------------------------------------------------------------------------------------------------------- the house


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_asks_one_question_and_stands_in_the_table(path):
    text = path.read_text(encoding="utf-8")
    question = re.match(r'"""(.*)\n', text)
    assert question is not None
    assert question[1].endswith("?")
    assert f"python -m experiments.{path.stem}" in text
    assert f"experiments.{path.stem}" in (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")


# ----------------------------------------------------------------------------------------------- rows that nobody vouches for


def apart(rows=80, odd=12):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(rows, 3)), rng.normal(size=(odd, 3)) * 6])
    return Dataset("toy", x, np.repeat([0, 1], [rows, odd]), source="toy")


def test_contamination_measures_the_same_rows_at_every_share():
    config = contamination.Config(methods=("knn", "recommended", "recommended, told"))
    found = contamination.cell(config, apart(), 0)
    assert [found[f"mixed_in_{share:g}"] for share in contamination.SHARES] == [0, 0, 2, 4]
    assert found["recommended, told 0.1, left out"] == 9
    assert found["knn 0"] >= found["knn 0.1"] > 0.5
    assert found["recommended, told 0.1"] > 0.8


def test_rows_are_ranked_without_labels():
    dataset = apart()
    found = unsupervised.cell(dataset.x, dataset.y, 0)
    assert set(found["auroc"]) == set(unsupervised.METHODS)
    assert found["auroc"]["recommended"] > 85
    assert (found["rows"], found["anomalies"]) == (92, 12)
