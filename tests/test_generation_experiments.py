"""The experiments on generated anomalies run, and print what they measured."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments import cycle, generation_quality, synthetic_kinds, tiles
from jaxad.data import Dataset
from jaxad.detectors import KNNDetector


def test_synthetic_kinds_rank_detectors(data_dir, tmp_path):
    config = synthetic_kinds.Config(
        data_dir=data_dir,
        datasets=("yeast",),
        detectors=("knn", "ecod"),
        kinds=("global", "dependency"),
        most_rows=200,
        out=tmp_path,
    )
    records = synthetic_kinds.run(config)
    assert [record.dataset.partition("/")[2] for record in records] == ["global"] * 2 + ["dependency"] * 2
    found = {(record.dataset.partition("/")[2], record.detector): record.auroc for record in records}
    assert found["global", "knn"] > 0.9
    assert found["dependency", "ecod"] < 0.65
    table = (tmp_path / "table.md").read_text()
    assert table.splitlines()[0] == "| kind | knn | ecod | best three |"
    assert f"| {100 * found['dependency', 'knn']:.1f} |" in table


def test_a_quality_record_becomes_a_line():
    record = {"data": "toy", "generator": "point", "auroc_without": 0.9, "severity": 0.25}
    record |= {"utility_gain": 0.1, "utility_low": -0.01, "utility_high": 0.2}
    lines = generation_quality.markdown([record]).splitlines()
    assert lines[0] == "**toy**, kNN alone 0.900 AUROC"
    assert lines[-1] == "| point | 0.25 | +0.100 [-0.010, +0.200] |"


def test_of_every_kind_the_half_that_is_seen_stays():
    """Rows 0, 2, 4, 6 are of one kind, 1, 3, 5, 7 of another that is seen less."""
    masks = np.zeros((8, 4, 4), bool)
    masks[:, 1:3, 1:3] = True
    before, after = np.zeros((8, 4, 4, 5)), np.zeros((8, 4, 4, 5))
    after[[0, 1, 4, 7]] = 90.0  # outside the mask it does not count
    after[masks] = np.repeat([1.0, 0.1, 3.0, 0.3, 2.0, 0.4, 4.0, 0.2], 4)[:, None]
    np.testing.assert_array_equal(tiles.seen_half(after, before, masks, 2), [2, 3, 5, 6])


def test_trees_see_as_much_of_a_small_defect_as_of_a_large_one():
    """A feature that is 1 in small defects, another in large ones; the small ones are a hundredth of all defective pixels."""
    rng = np.random.default_rng(0)
    features, masks = rng.normal(size=(4, 32, 32, 2)) * 0.1, np.zeros((4, 32, 32), bool)
    masks[:2, :2, :4], masks[2:, :, :25] = True, True
    features[:2, :, :, 0] += masks[:2]
    features[2:, :, :, 1] += masks[2:]
    maps = tiles.trees(tiles.Config(pixels=800), 0, [features], [masks], rng.normal(size=(3, 32, 32, 2)) * 0.1)
    found = maps(features)
    assert min(found[:2][masks[:2]].mean(), found[2:][masks[2:]].mean()) > 0 > found[~masks].mean()
    assert found[0, 0, 1] > found[~masks].max()


def test_photographs_of_one_tile_are_told_by_their_numbers_and_looks():
    numbers = (5030, 5000, 90000, 5020, 7500, 5010, 90010, 7900)
    rng = np.random.default_rng(0)
    x, masks = rng.normal(size=(8, 16, 16, 1)), np.zeros((8, 16, 16), bool)
    masks[:, 2:6, 2:6] = True
    x[4] = x[1] + 0.1 * rng.normal(size=x[1].shape)  # taken up again
    kinds = ("crack", "crack", "crack", "good", "crack", "good", "blowhole", "crack")
    files = tuple(f"exp{i % 6 + 1}_num_{number}" for i, number in enumerate(numbers))
    tile = tiles.tiles_of(SimpleNamespace(x=x, masks=masks, kinds=kinds, files=files))
    assert tile[0] == tile[1] == tile[4]
    assert tile[2] == tile[6]
    assert len(set(tile[[0, 2, 3, 5, 7]])) == 5  # good ones stand alone, and what is near in number but looks otherwise


def test_known_defects_are_not_tested_in_another_photograph(data_dir):
    """No tested defect lies where a known one does, in a picture that is nearly the same; nor next to one in its number."""
    _, test = tiles.data.magnetic_tile(data_dir)
    number = np.array([int(name.split("_num_")[-1]) for name in test.files])
    for seed in (0, 1, 2):
        known, rest = tiles.split(test, seed)
        assert [test.kinds[i] for i in known] == sorted(["blowhole", "break", "crack", "fray", "uneven"] * 5)
        rest = np.array([i for i in rest if test.kinds[i] != "good" and test.masks[i].any()])
        assert {test.kinds[i] for i in rest} == {"blowhole", "break", "crack", "fray", "uneven"}
        assert np.abs(number[known][:, None] - number[rest][None]).min() > 300
        assert np.abs(number[known][:, None] - number[known][None])[np.triu_indices(25, 1)].min() > 300
        both = np.concatenate([known, rest])
        overlap, alike = tiles.likeness(test.x[both], test.masks[both])
        small = test.masks[known].mean(axis=(1, 2))[:, None] < 0.1  # large masks overlap by their size
        assert not ((overlap[:25, 25:] > 0.5) & (alike[:25, 25:] > 0.9) & small).any()


def test_crops_of_defects_do_not_depend_on_brightness_contrast_or_place():
    rng = np.random.default_rng(0)
    defect, x, masks = rng.normal(size=(8, 8)), np.zeros((2, 32, 32, 1)), np.zeros((2, 32, 32), bool)
    for row, (down, right, gain, light) in enumerate(((0, 0, 1, 0), (20, 11, 3, 5))):
        x[row, down : down + 8, right : right + 8, 0] = gain * defect + light
        masks[row, down : down + 8, right : right + 8] = True
    first, second = tiles.defect_crops(x, masks)
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_every_generator_is_measured(data_dir, tmp_path):
    out = tmp_path / "records.jsonl"
    config = generation_quality.Config(
        data_dir=data_dir, table="Pima", table_steps=200, picture_steps=50, rows=64, pictures=tmp_path, out=out
    )
    records = generation_quality.run(config)
    assert len(records) == len(out.read_text().splitlines()) == 22
    assert all(record["background"] == 0 for record in records if "background" in record)
    assert (tmp_path / "generators.png").is_file()


class StandsBack(KNNDetector):
    """A cycle that trains nothing; remembers what it was given to learn from and to score."""

    seen: list = []  # noqa: RUF012
    accepted_, reason_, rounds_ = False, "", []

    def __init__(self, detector=None):
        super().__init__()

    def fit(self, X, y=None, *, anomalies=None):
        self.first_ = super().fit(X)
        self.given = X, anomalies
        return self

    def score_samples(self, X):
        self.seen.append((*self.given, X))
        return super().score_samples(X)


@pytest.mark.parametrize(("contamination", "mixed_in"), [(0.0, 0), (0.1, 11), (0.4, 12)])
def test_anomalies_among_the_training_rows_are_not_tested(monkeypatch, contamination, mixed_in):
    """100 training rows and 29 anomalies, five of them known: a tenth of the rows are 11, two fifths would be more than half of the 24."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [200, 29])
    x = rng.normal(size=(229, 3)) + 100 * y[:, None]
    monkeypatch.setattr(StandsBack, "seen", [])
    monkeypatch.setattr(cycle.estimator, "DiffusionDetector", cycle.estimator.DiffusionDetector)  # cell replaces it
    monkeypatch.setattr(cycle, "CycleDetector", StandsBack)
    monkeypatch.setattr(cycle, "deep_sad", lambda normals, few, seed: lambda rows: rows[:, 0])
    record = cycle.cell(Dataset("toy", x, y, source="toy"), 0, contamination)
    assert (record["mixed_in"], record["known"]) == (mixed_in, 5)
    train, few, tested = next(each for each in StandsBack.seen if each[1] is not None)
    assert (train.mean(axis=1) > 30).sum() == mixed_in
    assert (tested.mean(axis=1) > 30).sum() == 29 - 5 - mixed_in
    everything = np.concatenate([train, few, tested])
    assert len(np.unique(everything, axis=0)) == len(everything) == 229


def test_the_cycles_records_hold_one_contamination(tmp_path):
    (tmp_path / "old.jsonl").write_text('{"dataset": "4_breastw", "seed": 0}\n')
    with pytest.raises(ValueError, match=r"a contamination of 0\.0, not 0\.05"):
        cycle.run(cycle.Config(datasets=("breastw",), contamination=0.05, out=tmp_path / "old.jsonl"))
    with pytest.raises(ValueError, match="contamination is a share"):
        cycle.run(cycle.Config(contamination=0.5))


def test_a_missing_folder_is_made_before_the_first_set_is_measured(tmp_path):
    assert cycle.run(cycle.Config(datasets=("breastw",), seeds=(), out=tmp_path / "new" / "cycle.jsonl")) == []
    assert (tmp_path / "new").is_dir()
