"""The image detector: a number per picture and a map per pixel, from normal pictures alone."""

import dataclasses
import doctest

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.exceptions import NotFittedError

from jaxad import metrics
from jaxad.data import ImageDataset, PictureFiles
from jaxad.denoisers import DiT, UNet
from jaxad.detectors import ImageDetector, appearance, fitting, image
from jaxad.detectors.persistence import load_detector, save_detector
from jaxad.metrics import localisation
from jaxad.reports import picture_page
from jaxad.runtime import sharding
from jaxad.runtime.checkpoint import CheckpointError

NETWORK = DiT(hidden=32, depth=2, heads=2, patch_size=4)


def stripes(count, seed, *, defect=False):
    """Pictures of soft vertical stripes of random phase; the defective ones have a bright square somewhere."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    x = (
        0.5
        + 0.3 * np.sin(np.arange(16) / 2 + phase) * np.ones((count, 16, 1))
        + 0.02 * rng.normal(size=(count, 16, 16))
    )
    masks = np.zeros((count, 16, 16), bool)
    if defect:
        for row, (top, left) in enumerate(rng.integers(1, 11, (count, 2))):
            masks[row, top : top + 4, left : left + 4] = True
    x[masks] = 1.0
    return (255 * np.clip(x, 0, 1)).astype(np.uint8)[..., None], masks


NORMAL, _ = stripes(60, 0)
GOOD, _ = stripes(30, 1)
BAD, MASKS = stripes(30, 2, defect=True)


@pytest.fixture(scope="module")
def detector():
    return ImageDetector(NETWORK, num_steps=150, batch_size=32).fit(NORMAL)


def test_defective_pictures_score_higher_and_their_maps_say_where(detector):
    test, labels = np.concatenate([GOOD, BAD]), np.repeat([0, 1], 30)
    scores, maps = detector.score_and_where(test)
    assert metrics.auroc(labels, -scores) > 0.99
    assert maps.shape == (60, 16, 16)
    assert maps.dtype == np.float32
    masks = np.concatenate([np.zeros_like(MASKS), MASKS])
    assert localisation.pixel_auroc(masks, maps) > 0.9
    # Good pictures stay blank, but for the false alarm rate; defects do not.
    spotted = (maps > detector.where_threshold_).any(axis=(1, 2))
    assert spotted[:30].mean() < 0.35
    assert spotted[30:].mean() > 0.8


def test_score_and_maps_of_one_pass_are_those_of_two_and_a_picture_s_own(detector):
    scores, maps = detector.score_and_where(BAD)
    np.testing.assert_allclose(detector.score_samples(BAD), scores, rtol=1e-5)
    np.testing.assert_allclose(detector.where(BAD), maps, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(detector.score_samples(BAD[7:8]), scores[7:8], rtol=1e-3)
    np.testing.assert_allclose(detector.where(BAD[7:8]), maps[7:8], rtol=1e-2, atol=1e-2)
    views = detector.scores_by_view(BAD)
    np.testing.assert_allclose(-np.log(np.mean(np.exp(list(views.values())), axis=0)), scores, rtol=1e-4)
    assert {name.partition(":")[0] for name in views} == {*appearance.NAMES, "denoiser"}


def test_blocks_change_nothing(detector, monkeypatch):
    whole = detector.score_samples(BAD)
    monkeypatch.setattr(image, "BLOCK_ROWS", 7)
    np.testing.assert_allclose(detector.score_samples(BAD), whole, rtol=1e-3)


def test_the_level_weights_follow_from_synthetic_defects(detector):
    assert detector.level_weights_.shape == detector.separabilities_.shape == (4,)
    assert detector.level_weights_.sum() == pytest.approx(1, abs=1e-5)
    assert (detector.level_weights_ >= 0).all()
    assert detector.separabilities_.max() > 0.6


def test_reconstructions_look_like_the_pictures(detector):
    clean = detector.reconstruct(GOOD, sigma=0.1)
    assert clean.shape == GOOD.shape
    assert np.abs(clean - GOOD).mean() < 25
    with pytest.raises(ValueError, match="sigma is a noise level above 0"):
        detector.reconstruct(GOOD, sigma=0)


def test_the_looks_alone_score_without_a_denoiser():
    detector = ImageDetector(maps=False).fit(NORMAL)
    test, labels = np.concatenate([GOOD, BAD]), np.repeat([0, 1], 30)
    assert metrics.auroc(labels, -detector.score_samples(test)) > 0.99
    assert np.mean(detector.predict(GOOD) == -1) < 0.35
    with pytest.raises(ValueError, match="fit one with maps=True"):
        detector.where(GOOD)
    with pytest.raises(ValueError, match="fit one with maps=True"):
        detector.denoiser()


@pytest.mark.slow
def test_the_range_and_type_of_pixels_do_not_matter():
    as_bytes = ImageDetector(maps=False).fit(NORMAL).score_samples(BAD)
    as_floats = ImageDetector(maps=False).fit(NORMAL / np.float32(255)).score_samples(BAD / np.float32(255))
    np.testing.assert_allclose(as_floats, as_bytes, rtol=2e-2, atol=2e-2)


def test_the_same_seed_gives_the_same_scores():
    first, second = (ImageDetector(NETWORK, num_steps=3).fit(NORMAL).score_samples(BAD) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_features_of_the_user_are_a_look_of_their_own(tmp_path):
    detector = ImageDetector(maps=False, feature_fn=lambda x: x.mean(axis=(1, 2))).fit(NORMAL)
    assert any(name.startswith("features:") for name in detector.scores_by_view(GOOD))
    with pytest.raises(ValueError, match="features of your own cannot be saved"):
        save_detector(detector, tmp_path / "x")


def test_saved_and_loaded_it_gives_the_very_scores(detector, tmp_path):
    save_detector(detector, tmp_path / "saved")
    loaded = load_detector(tmp_path / "saved")
    for ours, theirs in zip(loaded.score_and_where(BAD), detector.score_and_where(BAD), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert loaded.where_threshold_ == detector.where_threshold_


def test_a_saved_detector_whose_parts_do_not_fit_is_refused(detector, tmp_path):
    other = ImageDetector(NETWORK).set_params(**detector.get_params())
    pixels = detector.scorer_.pixels
    errors = dataclasses.replace(pixels.errors, network=DiT(hidden=64, depth=2, heads=2, patch_size=4))
    scorer = dataclasses.replace(detector.scorer_, pixels=dataclasses.replace(pixels, errors=errors))
    vars(other).update({**vars(detector), "scorer_": scorer})
    save_detector(other, tmp_path / "odd")
    with pytest.raises(CheckpointError, match="makes no working detector"):
        load_detector(tmp_path / "odd")


@pytest.mark.slow  # test_image_sharding compares the steps
@pytest.mark.parametrize("size", [8])
def test_on_a_mesh_it_gives_the_same_result(size):
    """To 2 %: sums over devices round differently, and a hundred terms of the score add that up."""
    mesh = sharding.data_mesh(jax.devices()[:size])
    if mesh.size != size:
        pytest.skip(f"needs {size} devices, has {mesh.size}")
    alone = ImageDetector(NETWORK, num_steps=5).fit(NORMAL)
    shared = ImageDetector(NETWORK, num_steps=5, mesh=mesh).fit(NORMAL)
    np.testing.assert_allclose(shared.score_samples(BAD), alone.score_samples(BAD), rtol=2e-2, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 3, 1), (9, 17, 3)])
def test_any_size_and_number_of_channels(shape):
    network = DiT(hidden=16, depth=1, heads=2, patch_size=1)
    X = np.random.default_rng(0).random((12, *shape)).astype(np.float32)
    detector = ImageDetector(network, num_steps=1, batch_size=4).fit(X)
    assert np.isfinite(detector.score_samples(X)).all()
    assert detector.where(X).shape == X.shape[:3]


@pytest.mark.parametrize("size", [(28, 28, 1), (32, 32, 3), (64, 64, 3), (96, 96, 1), (224, 224, 3), (61, 47, 3)])
def test_the_default_network_takes_the_size(size):
    network = image.default_network(*size)
    assert isinstance(network, (DiT, UNet))
    shape = jax.eval_shape(
        lambda x: network.init(jax.random.key(0), x, np.zeros(2, np.float32)), np.zeros((2, *size), np.float32)
    )
    assert shape


def test_looks_have_the_promised_properties():
    x = GOOD.astype(np.float32) / 255
    looks = jax.jit(appearance.looks)
    seen, brighter = looks(x), looks(0.5 * x)
    assert set(seen) == set(appearance.NAMES)
    # Edges are relative to their neighbourhood: half the contrast changes them far less than it changes the pixels.
    change = {name: np.abs(seen[name] - brighter[name]).mean() / np.abs(seen[name]).mean() for name in seen}
    assert change["edges"] < 0.5 * change["appearance"]
    # Noise is what grain is for.
    noisy = looks(np.clip(x + 0.1 * np.random.default_rng(0).normal(size=x.shape), 0, 1))
    moved = {name: np.linalg.norm(noisy[name] - seen[name]) / np.linalg.norm(seen[name]) for name in seen}
    assert moved["grain"] > 2 * moved["appearance"]


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (NORMAL[..., 0], r"x\[\.\.\., None\]"),
        (NORMAL[:5], "at least 8 pictures"),
        (np.full((20, 8, 8, 1), 7.0), "nothing to learn from"),
        (np.where(np.arange(16) == 3, np.nan, 1.0) * np.ones((20, 16, 16, 1)), "NaN"),
    ],
)
def test_bad_training_pictures_are_refused(X, message):
    with pytest.raises(ValueError, match=message):
        ImageDetector(num_steps=1).fit(X)


@pytest.mark.parametrize("settings", [{"num_steps": 0}, {"draws": 0}, {"smoothing": -1.0}, {"false_alarm_rate": 0.9}])
def test_bad_settings_are_refused_before_any_long_work(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ImageDetector(**settings).fit(NORMAL)


def test_bad_pictures_to_score_are_refused(detector):
    for X in (GOOD[:, :8], np.repeat(GOOD, 3, axis=-1), GOOD[..., 0], GOOD[:0]):
        with pytest.raises(ValueError, match=r"fitted on rows of shape|minimum of 1|0 sample|Found array"):
            detector.score_samples(X)
    with pytest.raises(ValueError, match="NaN"):
        detector.score_samples(np.full((1, 16, 16, 1), np.nan))
    with pytest.raises(NotFittedError):
        ImageDetector().score_samples(GOOD)


def test_a_page_shows_the_worst_anomalies_and_ordinary_normal_pictures(detector, tmp_path):
    pictures = ImageDataset(
        "stripes",
        np.concatenate([GOOD, BAD]),
        np.repeat([0, 1], 30),
        np.concatenate([0 * MASKS, MASKS]) > 0,
        ("good",) * 30 + ("square",) * 30,
    )
    scores = np.arange(60.0)
    # In turn; the anomalies from the top, the normal pictures from the bottom, the middle and the top of theirs.
    assert picture_page._chosen(pictures, scores, 6) == [0, 59, 15, 58, 29, 57]
    page = picture_page.write_image_report(detector, pictures, tmp_path / "page.html", most=4).read_text()
    assert page.count("<img") == 4 * 5
    assert "AUPRO at 0.3" in page
    assert "looked at every 200 steps. Training stops after 5 looks without a new best" in page


def test_the_examples_in_the_docstrings():
    for module in (appearance, image):
        assert not doctest.testmod(module).failed


@pytest.mark.parametrize("maps", [False, True])
def test_pictures_on_disk_stand_where_an_array_would(tmp_path, maps):
    pytest.importorskip("grain")
    for number, picture in enumerate(NORMAL):
        Image.fromarray(picture[..., 0]).save(tmp_path / f"{number:03}.png")
    files = PictureFiles(tmp_path)
    detector = ImageDetector(NETWORK, maps=maps, num_steps=60, batch_size=16).fit(files)
    assert metrics.auroc(np.repeat([0, 1], 30), -detector.score_samples(np.concatenate([GOOD, BAD]))) > 0.99
    np.testing.assert_array_equal(detector.score_samples(files.take([3, 1])), detector.score_samples(NORMAL[[3, 1]]))
    with pytest.raises(ValueError, match="at least 8 pictures"):
        ImageDetector(NETWORK).fit(files.take([0, 1, 2]))


def test_a_batch_that_does_not_fit_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(fitting, "available_bytes", lambda device: 100 * 2**20)
    monkeypatch.setattr(appearance, "looks", lambda *_: pytest.fail("work before the refusal"))
    with pytest.raises(
        ValueError, match=r"batch_size=4096 needs about .* MiB, 100.0 MiB are free: choose at most batch_size=512"
    ):
        ImageDetector(NETWORK, batch_size=4096).fit(NORMAL)
