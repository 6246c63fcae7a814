"""Metrics of anomaly maps against golden values, scikit-learn, brute force, and what must not change them."""

import doctest
from itertools import pairwise

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from jaxad.metrics import localisation
from jaxad.metrics.localisation import aupro, f1_max, pixel_auroc, pixel_average_precision

METRICS = [pixel_auroc, pixel_average_precision, f1_max, aupro]


def problem(seed=0, rows=3, side=12, levels=None):
    """Blobs and noise; with ``levels`` the maps take that many values, so that ties abound."""
    rng = np.random.default_rng(seed)
    masks = scipy.ndimage.gaussian_filter(rng.normal(size=(rows, side, side)), (0, 1, 1)) > 0.35
    masks[0] = False  # a good picture
    maps = rng.normal(size=masks.shape) + masks
    return masks, maps if levels is None else np.floor(np.clip((maps + 2) / 5, 0, 0.999) * levels)


def slow_aupro(masks, maps, limit=0.3, connectivity=8):
    """The definition, one threshold after the other; the area by the trapezium rule on a fine grid up to the limit."""
    structure = np.ones((3, 3)) if connectivity == 8 else None
    regions = []
    for row, mask in enumerate(masks):
        labels, count = scipy.ndimage.label(mask, structure)
        regions += [maps[row][labels == region] for region in range(1, count + 1)]
    normal = maps[~masks]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        points.append((np.mean(normal >= threshold), np.mean([np.mean(region >= threshold) for region in regions])))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            area += (end - x0) * (y0 + (y0 + (y1 - y0) * (end - x0) / (x1 - x0))) / 2
    return area / limit


def test_golden_values(reference_dir):
    with np.load(reference_dir / "golden_aupro.npz") as golden:
        masks, maps = golden["gt"], golden["s"]
    assert aupro(masks, maps, limit=0.3) == pytest.approx(0.49299584, abs=5e-9)
    assert aupro(masks, maps, limit=0.05) == pytest.approx(0.15050, abs=5e-6)
    # The implementation that MVTec published, with 2,000 thresholds.
    assert aupro(masks, maps) == pytest.approx(0.49321, abs=3e-4)


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("levels", [None, 2, 7])
@pytest.mark.parametrize("seed", range(3))
def test_aupro_is_its_definition(seed, levels, connectivity, limit):
    masks, maps = problem(seed, levels=levels)
    expected = slow_aupro(masks, maps, limit, connectivity)
    assert aupro(masks, maps, limit=limit, connectivity=connectivity) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("levels", [None, 2, 7])
@pytest.mark.parametrize("seed", range(3))
def test_the_others_are_those_of_scikit_learn(seed, levels):
    masks, maps = problem(seed, levels=levels)
    flat = masks.ravel(), maps.ravel()
    assert pixel_auroc(masks, maps) == roc_auc_score(*flat)
    assert pixel_average_precision(masks, maps) == average_precision_score(*flat)
    best = max(f1_score(flat[0], flat[1] >= threshold) for threshold in np.unique(maps))
    assert f1_max(masks, maps) == pytest.approx(best, abs=1e-12)


def test_with_one_pixel_per_region_and_no_limit_aupro_is_auroc():
    masks = np.zeros((2, 9, 9), bool)
    masks[1, 1::3, 1::3] = True
    maps = np.random.default_rng(0).normal(size=masks.shape) + masks
    assert aupro(masks, maps, limit=1.0) == pytest.approx(pixel_auroc(masks, maps), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_perfect_constant_and_reversed_maps(metric):
    masks, _ = problem()
    assert metric(masks, masks.astype(float)) == pytest.approx(1.0)
    assert metric(masks, 1.0 - masks) < 0.5
    share = masks.mean()
    constant = {pixel_auroc: 0.5, pixel_average_precision: share, f1_max: 2 * share / (1 + share), aupro: 0.15}
    assert metric(masks, np.zeros(masks.shape)) == pytest.approx(constant[metric])


def test_small_defects_count_as_much_as_large_ones_in_aupro_only():
    masks = np.zeros((1, 20, 20), bool)
    masks[0, :10, :10] = True
    masks[0, 15, 15] = True
    maps = np.where(masks, 1.0, 0.0)
    maps[0, 15, 15] = -1.0  # the small one is missed
    assert pixel_auroc(masks, maps) > 0.98
    assert aupro(masks, maps) == pytest.approx(0.5, abs=0.1)


def test_connectivity_decides_what_is_one_defect():
    masks, maps = np.zeros((1, 6, 6), bool), np.zeros((1, 6, 6))
    masks[0, :2, :2] = masks[0, 2, 2] = True
    maps[0, :2, :2] = 1
    assert aupro(masks, maps, connectivity=8) > aupro(masks, maps, connectivity=4)


def test_defects_of_neighbouring_pictures_are_not_joined():
    masks, maps = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4))
    masks[:, 1, 1] = True
    masks[1, 1, 2] = True
    maps[0, 1, 1] = 1.0
    # One region found, one missed: one half where nothing normal is flagged. Joined, it would be a third.
    assert aupro(masks, maps, limit=1e-9) == pytest.approx(0.5)


MAPS = hnp.arrays(np.float32, (2, 6, 6), elements=st.integers(-20, 20).map(lambda value: value / 4))
MASKS = hnp.arrays(np.bool_, (2, 6, 6)).filter(lambda mask: 0 < mask.sum() < mask.size)
TRANSFORMS = {
    "affine": lambda maps: 3.0 * maps.astype(np.float64) - 7.0,
    "exponential": lambda maps: np.exp(maps.astype(np.float64)),
    "cubic": lambda maps: maps.astype(np.float64) ** 3,
    "ranks": lambda maps: np.unique(maps, return_inverse=True)[1].reshape(maps.shape),
    "unsigned": lambda maps: (maps * 4 + 100).astype(np.uint8),
    "half": lambda maps: maps.astype(np.float16),
}


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(masks=MASKS, maps=MAPS, transform=st.sampled_from(sorted(TRANSFORMS)))
def test_only_the_order_of_the_pixels_matters(metric, masks, maps, transform):
    value = metric(masks, maps)
    assert 0.0 <= value <= 1.0
    assert metric(masks, TRANSFORMS[transform](maps)) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(masks=MASKS, maps=MAPS)
def test_neither_the_order_of_pictures_nor_mirrors_matter(metric, masks, maps):
    value = metric(masks, maps)
    assert metric(masks[::-1], maps[::-1]) == pytest.approx(value, abs=1e-12)
    assert metric(masks[:, ::-1], maps[:, ::-1]) == pytest.approx(value, abs=1e-12)
    assert metric(masks.swapaxes(1, 2), maps.swapaxes(1, 2)) == pytest.approx(value, abs=1e-12)
    assert metric(masks.astype(int), maps) == value
    assert metric(np.concatenate([masks] * 2), np.concatenate([maps] * 2)) == pytest.approx(value, abs=1e-12)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(masks=MASKS, maps=MAPS)
def test_aupro_is_its_definition_on_anything(masks, maps):
    assert aupro(masks, maps) == pytest.approx(slow_aupro(masks, maps), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda masks, maps: (masks, maps[0]), r"both be \[rows, height, width\], got shapes .*resize the maps"),
        (lambda masks, maps: (masks, maps[..., None]), r"drop an axis of one channel"),
        (lambda masks, maps: (masks[:, :5], maps), "got shapes"),
        (lambda masks, maps: (masks, np.where(maps > 1, np.nan, maps)), "maps of 3 of 3 rows hold values that are not"),
        (lambda masks, maps: (masks, np.where(maps > 1, np.inf, maps)), "not finite"),
        (lambda masks, maps: (masks * 255, maps), r"got \[0, 255\]; compare them with > 0"),
        (lambda masks, maps: (masks & False, maps), "got 0 anomalous of 432"),
        (lambda masks, maps: (masks | True, maps), "got 432 anomalous of 432"),
        (lambda masks, maps: (masks, maps.astype(str)), "must be numbers"),
    ],
)
def test_bad_input_is_refused(metric, spoil, message):
    with pytest.raises(ValueError, match=message):
        metric(*spoil(*problem()))


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1, np.nan])
def test_impossible_limits(limit):
    with pytest.raises(ValueError, match=r"limit is a false-positive rate in \(0, 1\]"):
        aupro(*problem(), limit=limit)


def test_impossible_connectivity():
    with pytest.raises(ValueError, match="connectivity is 4"):
        aupro(*problem(), connectivity=6)


def test_the_arguments_are_left_as_they_were():
    masks, maps = problem()
    before = masks.copy(), maps.copy()
    for metric in METRICS:
        metric(masks, maps)
    np.testing.assert_array_equal(masks, before[0])
    np.testing.assert_array_equal(maps, before[1])


def test_the_examples_in_the_docstrings():
    failed, attempted = doctest.testmod(localisation)
    assert attempted
    assert not failed
