"""Defects made in pictures: the folder, its card and page, what is refused; and the page on the cycle of tables."""

import copy
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import jaxad
from PIL import Image

from jaxad import generation
from jaxad.data import DataError, ImageDataset, read_defects, read_folder, read_mvtec
from jaxad.denoisers import DiT, UNet
from jaxad.detectors import ImageDetector, KNNDetector
from jaxad.detectors import defects as maker
from jaxad.detectors.image import Looks
from jaxad.detectors.persistence import save_detector
from jaxad.noise import log_uniform
from jaxad.reports import defect_folder

pytestmark = pytest.mark.slow
"""Half a minute of training and drawing."""

READING = {"size": [16, 16], "fit": "resize", "channels": 1}


def draw(rng, side=16, bright_square=False):
    picture = (120 + 20 * np.sin(np.arange(side) / 2)[None, :] + rng.normal(0, 5, (side, side))).clip(0, 255)
    if bright_square:
        picture[4:10, 5:11] = 250
    return picture.astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def short_path():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maker, "PATH", log_uniform(6, sigma_min=0.05, sigma_max=10.0))
        patch.setattr(maker, "OF_EACH", 3)
        yield


@pytest.fixture(scope="module")
def detector():
    rng = np.random.default_rng(0)
    pictures = np.stack([draw(rng) for _ in range(12)])[..., None]
    network = DiT(hidden=16, depth=1, heads=2, patch_size=4)
    return ImageDetector(network, num_steps=10, batch_size=8).fit(pictures)


@pytest.fixture(scope="module")
def home(tmp_path_factory, detector):
    """``normal``: 6 pictures of 20 pixels; ``real``: two kinds of defects with masks; ``model``: the detector."""
    root, rng = tmp_path_factory.mktemp("home"), np.random.default_rng(1)
    (root / "normal").mkdir()
    for number in range(6):
        Image.fromarray(draw(rng, 20)).save(root / "normal" / f"n{number}.png")
    for kind in ("square", "bar"):
        add_kind(root / "real", kind, 2, rng)
    save_detector(detector, root / "model", extra={"pictures": READING})
    return root


def add_kind(folder, kind, count, rng, mask=None):
    where = np.zeros((20, 20), np.uint8)
    where[4:10, 5:11] = 255
    for part in ("test", "ground_truth"):
        (folder / part / kind).mkdir(parents=True)
    for number in range(count):
        Image.fromarray(draw(rng, 20, bright_square=True)).save(folder / "test" / kind / f"{number}.png")
        Image.fromarray(where if mask is None else mask).save(folder / "ground_truth" / kind / f"{number}_mask.png")
    return folder


@pytest.fixture(scope="module")
def made(home):
    """The folder that the command line writes, with few-shot kinds."""
    out = home / "made"
    words = ("--pictures", home / "normal", "--defects", home / "real", "--num-steps", 4, "--strength", 0.4, 0.9)
    assert jaxad("generate", home / "model", *words, "--out", out, "--seed", 5) == 0
    return out


# ------------------------------------------------------------------------------------------------------------------ the folder


def test_the_folder_is_read_back_and_differs_from_the_normal_pictures_under_the_masks_alone(home, made):
    train, test = read_mvtec(made)
    normal = read_folder(home / "normal", size=16, channels=1)
    card = json.loads((made / "card.json").read_text())
    few = {"few_shot_bar", "few_shot_square"}
    assert set(test.kinds) == {"good", "redrawn", "stained", "pasted", *few}
    assert test.kinds.count("redrawn") == 6  # three at each strength
    assert len(train.x) == test.kinds.count("good") == 3
    originals = dict(zip(normal.files, normal.x, strict=True))
    # The normal pictures are dealt out, each to one side.
    kept = [*train.x, *test.x[np.array(test.y) == 0]]
    assert sorted(picture.tobytes() for picture in kept) == sorted(picture.tobytes() for picture in normal.x)
    trained = {picture.tobytes() for picture in train.x}
    for picture, mask, file, bad in zip(test.x, test.masks, test.files, test.y, strict=True):
        if not bad:
            assert not mask.any()
            continue
        original = originals[card["files"][file]["made_from"]]
        assert original.tobytes() not in trained
        np.testing.assert_array_equal(picture[~mask], original[~mask], err_msg=file)
        assert 0 < mask.mean() < 1
        assert (picture[mask] != original[mask]).mean() > 0.3, file
    assert read_folder(made / "test" / "stained").x.shape == (6, 16, 16, 1)


def test_the_card_says_how_it_was_made_and_how_severe_it_is(made, detector):
    card = json.loads((made / "card.json").read_text())
    assert card["seed"] == 5
    assert card["strengths"] == [0.4, 0.9]
    assert card["model"]["name"] == "model"
    assert card["examples"] == {"bar": 2, "square": 2}
    assert "licence" in card["licence"]
    test = read_mvtec(made)[1]
    p = dict(zip(test.files, detector.p_values(test.x), strict=True))
    assert {file: of["p"] for file, of in card["files"].items()} == pytest.approx(
        {file: value for file, value in p.items() if "/good/" not in file}
    )
    by_hand = maker.Defects(
        *(np.zeros((4, 2, 2, 1)), np.zeros((4, 2, 2), bool), ("a", "b", "a", "b"), np.array([0.5, 0.5, 1.0, 1.0])),
        *(np.arange(4), np.array([0.4, 0.9, 0.2, 0.5])),
    )
    assert defect_folder._by_kind(by_hand) == {
        "a": {"count": 2, "severity": pytest.approx(0.3), "severity_at": {"0.5": 0.4, "1": 0.2}},
        "b": {"count": 2, "severity": pytest.approx(0.7), "severity_at": {"0.5": 0.9, "1": 0.5}},
    }
    stained = [of for file, of in card["files"].items() if file.startswith("test/stained/")]
    assert card["kinds"]["stained"]["count"] == len(stained) == 6
    assert card["kinds"]["stained"]["severity"] == pytest.approx(np.median([of["p"] for of in stained]))
    plain = [of["p"] for of in stained if of["strength"] == 0.9]
    assert card["kinds"]["stained"]["severity_at"]["0.9"] == pytest.approx(np.median(plain))
    assert card["normal"]["severity"] == pytest.approx(np.median([p[f] for f in p if "/good/" in f]))


def test_the_page_shows_every_kind_at_every_strength_without_other_files(made):
    page = (made / "index.html").read_text()
    assert page.count("<img") == 5 * 5 * 2 * 3  # kinds x columns x strengths x pictures
    assert page.count("<h3>strength 0.4") == page.count("<h3>strength 0.9") == 5
    assert set(re.findall(r'src="(.{10})', page)) == {"data:image"}
    assert not re.search(r'(href|src)="(?!data:)', page)
    card = json.loads((made / "card.json").read_text())
    assert f"{card['kinds']['pasted']['severity_at']['0.4']:.3f}" in page
    assert f"p = {card['files']['test/pasted/000.png']['p']:.3f}" in page


def test_the_same_seed_makes_the_same_pictures_and_a_plainer_strength_changes_more(detector):
    pictures = np.stack([draw(np.random.default_rng(seed)) for seed in range(4)])[..., None]
    settings = {"strengths": (0.1, 1.0), "count": 18}
    one, again = (maker.make_defects(detector, pictures, seed=3, **settings) for _ in range(2))
    np.testing.assert_array_equal(one.x, again.x)
    assert not np.array_equal(one.masks, maker.make_defects(detector, pictures, seed=4, **settings).masks)
    difference = np.abs(one.x.astype(float) - pictures[one.normals])[..., 0]
    stained = np.array(one.kinds) == "stained"
    weak, strong = (
        difference[stained & (one.strengths == s)][one.masks[stained & (one.strengths == s)]] for s in (0.1, 1)
    )
    assert strong.mean() > weak.mean()


@pytest.mark.slow
def test_defects_stand_on_the_object_where_the_background_is_plain():
    pictures = np.zeros((5, 16, 16, 1), np.uint8)
    pictures[:4, 3:12, 4:13] = np.random.default_rng(0).integers(100, 200, (4, 9, 9, 1))
    pictures[4] = np.random.default_rng(0).integers(0, 255, (16, 16, 1))  # no background
    room = np.asarray(maker._room(jnp.asarray(pictures, jnp.float32)))
    np.testing.assert_array_equal(room[:4], pictures[:4, ..., 0] > 0)
    assert room[4].all()
    masks = maker._masks(jax.random.key(0), pictures, ["redrawn"] * 5, None)
    assert not masks[:4][pictures[:4, ..., 0] == 0].any()
    assert masks.any(axis=(1, 2)).all()


@pytest.mark.slow
def test_learning_in_pieces_is_learning_in_one_go(detector, home):
    examples = read_defects(home / "real", size=16, channels=1)
    pictures = read_folder(home / "normal", size=16, channels=1).x
    standard, errors = detector.pixels_, detector.scorer_.pixels.errors
    whole, _ = generation.adapt(
        *(
            jax.random.key(1),
            errors.network,
            errors.params,
            jnp.asarray(standard(examples.x)),
            examples.masks,
        ),
        *([0, 0, 1, 1], jnp.asarray(standard(pictures)), maker.TRAINING_LEVELS),
        num_steps=6,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maker, "STEPS_AT_ONCE", 4)  # does not divide 6: three at once
        pieces = maker._learned(jax.random.key(1), detector, examples, pictures, 6, 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, pieces)


def test_pictures_of_16_bits_keep_them(detector, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "normal").mkdir()
    for number in range(2):
        Image.fromarray(draw(rng).astype(np.uint16) * 250 + 7).save(tmp_path / "normal" / f"{number}.png")
    pictures = read_folder(tmp_path / "normal")
    with pytest.raises(ValueError, match=r"floats in .* was fitted on bytes"):
        maker.make_defects(detector, pictures.x)
    deep, standard = copy.copy(detector), detector.pixels_  # as if fitted on the same pictures in 16 bits
    deep.low_, deep.high_ = detector.low_ / 255, detector.high_ / 255
    deep.standardiser_ = detector.standardiser_._replace(
        mean=detector.standardiser_.mean / 255, scale=detector.standardiser_.scale / 255
    )
    deep.pixels_ = standard._replace(mean=standard.mean / 255, scale=standard.scale / 255)
    card = defect_folder.write_defects(deep, tmp_path / "normal", tmp_path / "made", strengths=(0.9,))
    _, test = read_mvtec(tmp_path / "made")
    assert test.x.dtype == np.float32
    originals = dict(zip(pictures.files, pictures.x, strict=True))
    for file, of in card["files"].items():
        row = test.files.index(file)
        mask = test.masks[row]
        np.testing.assert_array_equal(test.x[row][~mask], originals[of["made_from"]][~mask])
        assert not np.array_equal(test.x[row][mask], originals[of["made_from"]][mask])


# ------------------------------------------------------------------------------------------------------------- what is refused


def long_work(*_, **__):
    pytest.fail("long work before the refusal")


def refused(home, capsys, words, message, *, out="new", model="model"):
    """The command ends in one sentence and leaves nothing."""
    before = sorted(path.name for path in home.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_learned", "_redrawn", "_harmonised", "_few_shot"):
            patch.setattr(maker, name, long_work)
        assert jaxad("generate", home / model, "--out", home / out, *words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(message, said), said
    assert sorted(path.name for path in home.iterdir()) == before


def test_an_existing_folder_is_refused_before_the_model_is_even_read(home, made, capsys):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    refused(
        home, capsys, ("--pictures", home / "normal"), "made exists; .* never written over", out="made", model="absent"
    )
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    refused(home, capsys, ("--pictures", home / "normal"), "folder that exists", out="absent/made")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--strength", "1.5"), r"strengths of defects lie in \(0, 1\].*got 1.5"),
        (("--strength", "0"), "strengths of defects lie in"),
        (("--count", "8"), "need a count of 9 pictures or more, got 8"),
    ],
)
def test_settings_out_of_range(home, capsys, words, message):
    refused(home, capsys, ("--pictures", home / "normal", *words), message)


def test_models_that_make_no_defects(home, detector, capsys, tmp_path):
    save_detector(KNNDetector().fit(np.random.default_rng(0).normal(size=(20, 3))), tmp_path / "table")
    normal = ("--pictures", home / "normal")
    refused(home, capsys, normal, "by an image detector, got a KNNDetector", model=tmp_path / "table")
    refused(home, capsys, (), "makes defects in pictures: name a folder of normal ones with --pictures", out="new.npz")
    refused(home, capsys, ("--defects", home / "real"), "--pictures as well", out="new.npz")
    for network, examples, message in ((None, None, "maps=False"), (UNet(), tmp_path, "denoiser is a UNet")):
        other = copy.copy(detector)
        if network is None:
            other.scorer_ = Looks(detector.scorer_.tables, None)
        else:
            pixels = detector.scorer_.pixels
            errors = dataclasses.replace(pixels.errors, network=network)
            other.scorer_ = dataclasses.replace(detector.scorer_, pixels=dataclasses.replace(pixels, errors=errors))
        with pytest.raises(ValueError, match=message):
            defect_folder.write_defects(other, tmp_path / "absent", tmp_path / "out", examples=examples)


def test_folders_that_defects_cannot_be_made_of(home, capsys, tmp_path):
    rng, normal = np.random.default_rng(2), ("--pictures", home / "normal")
    (tmp_path / "empty").mkdir()
    refused(home, capsys, ("--pictures", tmp_path / "empty"), "expected pictures .* got an empty folder")
    refused(
        home, capsys, (*normal, "--defects", tmp_path / "empty"), "in test/<defect> and their masks .* an empty folder"
    )
    good = add_kind(tmp_path / "good", "good", 1, rng)
    refused(home, capsys, (*normal, "--defects", good), "without a defect in test")
    for name, mask, message in (
        ("blank", np.zeros((20, 20), np.uint8), "marks a part of the picture, got one that is empty"),
        ("full", np.full((20, 20), 255, np.uint8), "marks a part of the picture, got one that is full"),
        ("small", np.full((10, 20), 255, np.uint8), "expected a mask of the size of its picture"),
    ):
        refused(home, capsys, (*normal, "--defects", add_kind(tmp_path / name, "hole", 1, rng, mask)), message)
    (good / "ground_truth" / "good" / "0_mask.png").unlink()
    with pytest.raises(DataError, match="ground_truth"):
        read_defects(home / "normal")
    (tmp_path / "one").mkdir()
    Image.fromarray(draw(rng)).save(tmp_path / "one" / "a.png")
    refused(home, capsys, ("--pictures", tmp_path / "one"), "at least two normal pictures")


def test_arrays_that_defects_cannot_be_made_of(detector):
    pictures = np.stack([draw(np.random.default_rng(0))] * 2)[..., None]
    with pytest.raises(ValueError, match=r"normal pictures .* \[16, 16, 1\]"):
        maker.make_defects(detector, pictures[:, :8])
    for mask in (0, 1):
        examples = ImageDataset("a", pictures, masks=np.full((2, 16, 16), mask, bool), kinds=("a", "a"))
        with pytest.raises(
            ValueError, match=rf"marks a part .* {2 * (1 - mask)} that are empty and {2 * mask} that are full"
        ):
            maker.make_defects(detector, pictures, examples=examples)
    with pytest.raises(ValueError, match="need their masks"):
        maker.make_defects(detector, pictures, examples=ImageDataset("a", pictures))


def test_only_ten_pictures_of_a_kind_are_used(tmp_path):
    add_kind(tmp_path, "hole", 12, np.random.default_rng(0))
    assert read_defects(tmp_path).kinds == ("hole",) * 10


def test_a_run_that_fails_while_writing_leaves_nothing(home, detector, tmp_path, monkeypatch):
    monkeypatch.setattr(defect_folder, "_body", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        defect_folder.write_defects(detector, home / "normal", tmp_path / "out", reading=READING)
    assert not list(tmp_path.iterdir())
