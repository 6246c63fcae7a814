"""Batches of pictures from disk: the same for the same seed, each row once per epoch, and resumed exactly."""

import doctest
import json
import sys

import numpy as np
import pytest
from PIL import Image

from jaxad.data import DataError, ImageDataset, PictureFiles, image_batches, pipeline

pytest.importorskip("grain")

ROWS = 11


@pytest.fixture
def folder(tmp_path):
    """Pictures whose pixels are all their number."""
    for number in range(ROWS):
        Image.fromarray(np.full((6, 8), number, np.uint8)).save(tmp_path / f"{number:02}.png")
    return tmp_path


def numbers(batches):
    return [batch[:, 0, 0, 0].tolist() for batch in batches]


def order(batches):
    return np.concatenate([batch[:, 0, 0, 0] for batch in batches]).tolist()


def dataset():
    x = np.arange(ROWS, dtype=np.uint8).reshape(ROWS, 1, 1, 1) * np.ones((1, 6, 8, 1), np.uint8)
    return ImageDataset("toy", x)


@pytest.mark.parametrize("kind", ["folder", "text", "files", "dataset"])
def test_folder_files_and_dataset_give_the_same_batches(folder, kind):
    files = sorted(folder.iterdir())
    pictures = {"folder": folder, "text": str(folder), "files": files, "dataset": dataset()}[kind]
    batches = list(image_batches(pictures, batch_size=4, seed=0, epochs=2))
    assert [batch.shape for batch in batches] == [(4, 6, 8, 1)] * 5 + [(2, 6, 8, 1)]
    assert all(batch.dtype == np.uint8 for batch in batches)
    assert all((batch == batch[:, :1, :1]).all() for batch in batches)
    assert numbers(batches) == numbers(image_batches(dataset(), batch_size=4, seed=0, epochs=2))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 25])
def test_every_row_exactly_once_per_epoch(batch_size):
    rows = order(image_batches(dataset(), batch_size=batch_size, seed=3, epochs=3))
    epochs = [rows[start : start + ROWS] for start in range(0, 3 * ROWS, ROWS)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(ROWS))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3  # each in an order of its own
    assert tuple(range(ROWS)) not in {tuple(epoch) for epoch in epochs}


def test_the_seed_decides_the_order():
    orders = [order(image_batches(dataset(), batch_size=4, seed=seed, epochs=2)) for seed in (0, 0, 1, 2)]
    assert orders[0] == orders[1]
    assert len({tuple(each) for each in orders}) == 3
    # Nor is the second epoch of one seed the first of the next.
    assert orders[0][ROWS:] != orders[2][:ROWS]


@pytest.mark.parametrize("given", [0, 1, 2, 3, 6])
def test_resumed_in_the_middle_of_an_epoch(folder, given):
    whole = list(image_batches(folder, batch_size=4, seed=5, epochs=2))
    first = image_batches(folder, batch_size=4, seed=5, epochs=2)
    for _ in range(given):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    resumed = image_batches(folder, batch_size=4, seed=5, epochs=2)
    resumed.set_state(state)
    assert resumed.get_state() == state
    rest = list(resumed)
    assert len(rest) == 6 - given
    for batch, expected in zip(rest, whole[given:], strict=True):
        np.testing.assert_array_equal(batch, expected)
    assert numbers(first) == numbers(whole[given:])  # fetching the state changed nothing


def test_without_an_end_and_back_again():
    batches = image_batches(dataset(), batch_size=4, seed=0)
    start = batches.get_state()
    first = [next(batches).tolist() for _ in range(50)]
    batches.set_state(start)
    assert [next(batches).tolist() for _ in range(50)] == first
    assert batches.get_state()["batches"] == 50
    batches.set_state({**start, "batches": 10**9})
    assert next(batches).shape == (4, 6, 8, 1)


def test_only_what_is_asked_for_is_decoded(folder, monkeypatch):
    (folder / "99.png").write_bytes(b"broken and not in the list")
    read, decode = [], pipeline.read_image
    monkeypatch.setattr(pipeline, "read_image", lambda path, **options: read.append(path) or decode(path, **options))
    files = sorted(folder.iterdir())[:5]
    batches = image_batches(files, batch_size=2, seed=0)
    assert read == files[:1]  # the first says what the others must be like
    for number in range(1, 8):
        next(batches)
        assert len(read) == 1 + 2 * number
    assert set(read) == set(files)


@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_pictures_are_fitted(folder, fit):
    Image.fromarray(np.full((20, 9, 3), 200, np.uint8)).save(folder / "large.png")
    batch = next(image_batches(folder, batch_size=12, seed=0, size=(3, 5), fit=fit, channels=3))
    assert batch.shape == (12, 3, 5, 3)
    assert sorted(batch[:, 0, 0, 0].tolist()) == [*range(ROWS), 200]
    assert next(image_batches(dataset(), batch_size=2, seed=0, size=3, fit=fit)).shape == (2, 3, 3, 1)


def test_16_bits_are_floats(tmp_path):
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "a.png")
    batch = next(image_batches(tmp_path, batch_size=2, seed=0))
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch, np.ones((2, 4, 4, 1)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((6, 9), np.uint8), r"99\.png: expected \[6, 8, 1\] .*of uint8, like 00\.png, got \[6, 9, 1\]"),
        (np.zeros((6, 8, 3), np.uint8), r"got \[6, 8, 3\] of uint8; pass size= and channels="),
        (np.zeros((6, 8), np.uint16), r"got \[6, 8, 1\] of float32; .*one bit depth"),
        (None, r"99\.png: expected a PNG"),
    ],
)
def test_a_picture_unlike_the_first_is_named(folder, array, message):
    if array is None:
        (folder / "99.png").write_bytes(b"broken")
    else:
        Image.fromarray(array).save(folder / "99.png")
    with pytest.raises(DataError, match=message):
        list(image_batches(folder, batch_size=4, seed=0, epochs=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size to be a whole number from 1"),
        ({"batch_size": 2.0}, "batch_size to be a whole number"),
        ({"seed": -1}, "seed to be a whole number from 0"),
        ({"seed": 2**32}, "seed to be a whole number from 0"),
        ({"workers": -1}, "workers to be a whole number from 0"),
        ({"epochs": 0}, "epochs to be a whole number from 1, or None"),
        ({"fit": "tile"}, "expected fit 'resize' or 'crop'"),
        ({"size": 0}, "whole number of pixels from 1"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(DataError, match=message):
        image_batches(dataset(), **{"batch_size": 4, "seed": 0, **options})


def test_nothing_to_read(tmp_path):
    with pytest.raises(DataError, match="empty folder"):
        image_batches(tmp_path, batch_size=4, seed=0)
    with pytest.raises(DataError, match="empty list of files"):
        image_batches([], batch_size=4, seed=0)
    with pytest.raises(DataError, match="expected a folder of pictures or a list of files"):
        image_batches(tmp_path / "none.png", batch_size=4, seed=0)
    with pytest.raises(DataError, match=r"none\.png"):
        image_batches([tmp_path / "none.png"], batch_size=4, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed 0 then and 1 now; resume with the settings of the first run"),
        ({"batch_size": 5}, "batch_size 4 then and 5 now"),
        ({"size": 4}, "pictures .* then and .* now"),
        ({"pictures": "fewer"}, "rows 11 then and 10 now"),
    ],
)
def test_a_state_of_other_batches_is_refused(folder, change, message):
    settings = {"batch_size": 4, "seed": 0}
    state = image_batches(folder, **settings).get_state()
    files = sorted(folder.iterdir())[: 10 if change.pop("pictures", "") else None]
    with pytest.raises(DataError, match=message):
        image_batches(files, **{**settings, **change}).set_state(state)


@pytest.mark.parametrize("batches", [-1, 7, "2", None])
def test_a_state_that_cannot_be(batches):
    iterator = image_batches(dataset(), batch_size=4, seed=0, epochs=2)
    with pytest.raises(DataError, match="state after 0 to 6 batches, got"):
        iterator.set_state({**iterator.get_state(), "batches": batches})


def test_data_may_move_between_runs(folder, tmp_path_factory):
    state = image_batches(folder, batch_size=4, seed=0).get_state()
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "folder")
    image_batches(moved, batch_size=4, seed=0).set_state(state)


def test_without_grain(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(DataError, match=r"needs Grain; pip install 'jaxad\[data\]'"):
        image_batches(dataset(), batch_size=4, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_give_the_same_batches_and_resume_each_other(folder, workers):
    expected = numbers(image_batches(folder, batch_size=4, seed=0, epochs=2))
    batches = image_batches(folder, batch_size=4, seed=0, epochs=2, workers=workers)
    given = [next(batches), next(batches)]
    state = json.loads(json.dumps(batches.get_state()))
    assert numbers(given) == expected[:2]
    batches.close()
    assert numbers(batches) == expected[2:]
    batches.close()
    resumed = image_batches(folder, batch_size=4, seed=0, epochs=2)
    resumed.set_state(state)
    assert numbers(resumed) == expected[2:]


@pytest.mark.slow
def test_a_broken_picture_is_named_by_a_worker(folder):
    (folder / "99.png").write_bytes(b"broken")
    batches = image_batches(folder, batch_size=4, seed=0, epochs=1, workers=1)
    with pytest.raises(DataError, match=r"99\.png: expected a PNG"):
        list(batches)
    batches.close()


def test_the_examples_in_the_docstrings():
    failed, attempted = doctest.testmod(pipeline)
    assert attempted
    assert not failed


def test_files_are_read_when_they_are_asked_for_and_broken_ones_left_out(folder):
    files = PictureFiles(folder)
    assert files.shape == (ROWS, 6, 8, 1)
    assert files[3][0, 0, 0] == 3
    assert files[2:5][:, 0, 0, 0].tolist() == [2, 3, 4]
    assert files[np.array([7, 0])][:, 0, 0, 0].tolist() == [7, 0]
    assert files[:0].shape == (0, 6, 8, 1)
    (folder / "05.png").write_bytes(b"broken")
    (folder / "00.png").write_bytes(b"broken too, and the first")
    with pytest.raises(DataError, match=r"05\.png"):
        files[4:6]
    with pytest.raises(DataError, match=r"00\.png"):
        PictureFiles(folder).usable()
    with pytest.warns(UserWarning, match="pictures left out: 2"):
        good = PictureFiles(folder).usable("skip")
    assert len(good) == ROWS - 2
    assert sorted(order(image_batches(good, batch_size=3, seed=0, epochs=1))) == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    with pytest.raises(DataError, match="a size and channels of their own"):
        image_batches(good, batch_size=3, seed=0, size=4)
    with pytest.raises(DataError, match="fit 'resize' or 'crop'"):
        PictureFiles(folder, fit="tile")
