"""The protocols of the image suites, on small sets made here in the formats of the real ones."""

import doctest
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from jaxad.data import DataError, magnetic_tile, mnist_c, one_vs_rest, suites

CLASSES = ("boot", "bag", "coat")
SPLITS = {"train": 30, "test": 12}


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.delenv("JAXAD_DATA_DIR", raising=False)
    decoded = suites._decoded
    decoded.cache_clear()
    yield
    decoded.cache_clear()


def encoded(array, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


def picture(number, shape=(8, 8)):
    return np.full(shape, number, np.uint8)


def example(image, label):
    """A serialised ``tf.train.Example``, by hand: TensorFlow is not needed to read these sets, nor to make them."""

    def field(number, content):
        length, size = [], len(content)
        while size > 127:
            length.append(size % 128 + 128)
            size //= 128
        return bytes([8 * number + 2, *length, size]) + content

    def entry(name, feature):
        return field(1, field(1, name) + field(2, feature))

    return field(1, entry(b"image", field(1, field(1, image))) + entry(b"label", field(3, field(1, bytes([label])))))


def prepare(data_dir, make=lambda row: encoded(picture(row)), written=None):
    """``data_dir/tfds/name`` as tensorflow-datasets leaves it; row ``i`` of either split is of class ``i % 3``."""
    pytest.importorskip("tensorflow_datasets")
    writer_module = pytest.importorskip("array_record.python.array_record_module")
    name = "toys"
    folder = data_dir / "tfds" / name / "1.0.0"
    folder.mkdir(parents=True)
    splits = []
    for split, rows in SPLITS.items():
        writer = writer_module.ArrayRecordWriter(
            str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1"
        )
        for row in (written or {}).get(split, range(rows)):
            writer.write(example(make(row), row % 3))
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"filepathTemplate": template, "name": split, "numBytes": "1", "shardLengths": [str(rows)]})
    info = {"description": "toys", "fileFormat": "array_record", "name": name, "splits": splits, "version": "1.0.0"}
    info["moduleName"] = "tensorflow_datasets.core.dataset_builders.adhoc_builder"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    prefix = "tensorflow_datasets.core.features"
    image = {"dtype": "uint8", "shape": {"dimensions": ["8", "8", "1"]}}
    features = {
        "image": {"image": image, "pythonClassName": f"{prefix}.image_feature.Image"},
        "label": {"classLabel": {"numClasses": "3"}, "pythonClassName": f"{prefix}.class_label_feature.ClassLabel"},
    }
    dictionary = {"featuresDict": {"features": features}, "pythonClassName": f"{prefix}.features_dict.FeaturesDict"}
    (folder / "features.json").write_text(json.dumps(dictionary))
    (folder / "label.labels.txt").write_text("\n".join(CLASSES))
    return folder


# ----------------------------------------------------------------------------------------------------- one class normal


@pytest.mark.parametrize("normal", [1, np.int64(1), "bag"])
def test_one_vs_rest(tmp_path, normal):
    prepare(tmp_path)
    train, test = one_vs_rest("toys", normal, tmp_path)
    assert train.name == test.name == "toys_bag"
    assert train.x.shape == (10, 8, 8, 1)
    assert train.x[:, 0, 0, 0].tolist() == list(range(1, 30, 3))
    assert set(train.kinds or ()) == {"bag"}
    assert train.y is not None
    assert train.y.sum() == 0
    assert test.x[:, 0, 0, 0].tolist() == list(range(12))
    assert test.kinds == CLASSES * 4
    assert test.y is not None
    assert test.y.tolist() == [1, 0, 1] * 4
    assert test.source == "tensorflow-datasets toys 1.0.0"


def test_the_first_rows_are_trained_on(tmp_path):
    prepare(tmp_path)
    train, _ = one_vs_rest("toys", 2, tmp_path, most_train=3)
    assert train.x[:, 0, 0, 0].tolist() == [2, 5, 8]


def test_the_published_order_of_mnist_is_had_again(tmp_path, monkeypatch):
    monkeypatch.setattr(suites, "_KEYED_BY_ROW", ("toys",))
    hashing = pytest.importorskip("tensorflow_datasets.core.hashing")
    written = {split: sorted(range(rows), key=hashing.Hasher(split).hash_key) for split, rows in SPLITS.items()}
    assert written["test"] != sorted(written["test"])
    prepare(tmp_path, written=written)
    train, test = one_vs_rest("toys", 0, tmp_path, most_train=4)
    assert train.x[:, 0, 0, 0].tolist() == [0, 3, 6, 9]
    assert test.x[:, 0, 0, 0].tolist() == list(range(12))
    assert test.kinds == CLASSES * 4


def test_the_data_directory_is_that_of_the_environment(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.setenv("JAXAD_DATA_DIR", str(tmp_path))
    assert len(one_vs_rest("toys", 0)[1].x) == 12


def test_what_is_shared_cannot_be_spoilt(tmp_path):
    prepare(tmp_path)
    for number in (0, 1):
        train, test = one_vs_rest("toys", number, tmp_path)
        train.x[:] = 77  # a copy of one's own
        with pytest.raises(ValueError, match="read-only"):
            test.x[:] = 77


@pytest.mark.parametrize("normal", [3, -1, "hat", "1"])
def test_unknown_classes(tmp_path, normal):
    prepare(tmp_path)
    with pytest.raises(DataError, match=r"class from 0 to 2 or one of the names boot, bag, coat, got"):
        one_vs_rest("toys", normal, tmp_path)


def test_a_set_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"image set 'toys': .*no such folder \(nor any other\).*download=True"):
        one_vs_rest("toys", 0, tmp_path)
    prepare(tmp_path)
    with pytest.raises(DataError, match=r"no such folder \(found toys\)"):
        one_vs_rest("toy", 0, tmp_path)
    with pytest.raises(DataError, match="at least one picture, got most_train=0"):
        one_vs_rest("toys", 0, tmp_path, most_train=0)


def test_a_set_that_is_something_else(tmp_path):
    folder = prepare(tmp_path)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot give the splits 'train' and 'test'.*download_and_prepare"):
        one_vs_rest("toys", 0, tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda row: encoded(picture(row, (8, 8 + row // 29))), r"pictures of one size, got .* read_folder"),
        (lambda row: b"broken" if row == 5 else encoded(picture(row)), "expected PNG or JPEG pictures of one size"),
    ],
)
def test_pictures_that_do_not_fit(tmp_path, make, message):
    prepare(tmp_path, make=make)
    with pytest.raises(DataError, match=message):
        one_vs_rest("toys", 0, tmp_path)


def test_without_tensorflow_datasets(tmp_path, monkeypatch):
    (tmp_path / "tfds" / "toys").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r"needs tensorflow-datasets; pip install 'jaxad\[data\]'"):
        one_vs_rest("toys", 0, tmp_path)


def test_half_of_cifar10_as_jpeg_says_so(tmp_path):
    (tmp_path / "images").mkdir()
    arrays = {"classes": np.array(CLASSES)}
    for split, rows in (("train", 6), ("test", 3)):
        files = [encoded(picture(20 * row, (8, 8, 3)), "JPEG") for row in range(rows)]
        arrays[f"{split}_blob"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, files)])
        arrays[f"{split}_y"] = np.arange(rows) % 3
    np.savez(tmp_path / "images" / "cifar10_jpeg.npz", **arrays)
    train, test = one_vs_rest("cifar10", "bag", tmp_path)
    assert train.x.shape == (2, 8, 8, 3)
    assert np.abs(train.x[:, 0, 0, 0].astype(int) - [20, 80]).max() <= 2
    assert test.kinds == CLASSES
    assert "half of it, as JPEG" in test.source
    np.savez(tmp_path / "images" / "cifar10_jpeg.npz", x=np.zeros(3))
    suites._decoded.cache_clear()
    with pytest.raises(DataError, match=r"cifar10_jpeg\.npz: expected an \.npz archive with train_blob"):
        one_vs_rest("cifar10", 0, tmp_path)


# --------------------------------------------------------------------------------------------------------------- MNIST-C


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """Digits whose first two pixels are their number, and corrupted copies that are white."""
    (tmp_path / "images").mkdir()

    def numbered(rows):
        x = np.zeros((rows, 4, 4, 1), np.uint8)
        x[:, 0, 0, 0], x[:, 0, 1, 0] = np.arange(rows) % 256, np.arange(rows) // 256
        return x

    pictures = {"train": numbered(6000), "test": numbered(3000)}
    labels = {"test": np.arange(3000) % 10}
    monkeypatch.setattr(suites, "_decoded", lambda name, folder, download: (pictures, labels, (), "MNIST"))
    corrupted(tmp_path)
    return tmp_path


def corrupted(data_dir, shape=(1000, 4, 4), first=0):
    np.savez(
        data_dir / "images" / "mnist_c_regen_1000.npz",
        fog=np.full(shape, 255, np.uint8),
        y=(np.arange(1000) + first) % 10,
    )


def test_mnist_c(digits):
    train, test = mnist_c("fog", digits)
    assert train.name == test.name == "mnist_c_fog"
    number = test.x[:, 0, 0, 0].astype(int) + 256 * test.x[:, 0, 1, 0].astype(int)
    assert len(train.x) == 5000
    assert number[:1000].tolist() == list(range(1000, 2000))
    assert (test.x[1000:] == 255).all()
    assert test.y is not None
    assert test.y.tolist() == [0] * 1000 + [1] * 1000
    assert test.kinds == ("good",) * 1000 + ("fog",) * 1000


@pytest.mark.parametrize(
    ("corruption", "message"),
    [
        ("fogg", "unknown corruption 'fogg' of MNIST-C; did you mean 'fog'"),
        ("scale", r"mnist_c_regen_1000\.npz: expected an \.npz archive with scale"),
    ],
)
def test_corruptions_that_are_not_there(digits, corruption, message):
    with pytest.raises(DataError, match=message):
        mnist_c(corruption, digits)


def test_corrupted_digits_of_another_shape(digits):
    corrupted(digits, shape=(1000, 5, 4))
    with pytest.raises(DataError, match=r"npz: expected 'fog' of shape \[1000, 4, 4\] .*got \[1000, 5, 4\]"):
        mnist_c("fog", digits)


def test_corrupted_copies_of_other_digits(digits):
    corrupted(digits, first=1)
    with pytest.raises(DataError, match="a digit might be tested clean and corrupted"):
        mnist_c("fog", digits)


def test_without_files(tmp_path):
    with pytest.raises(DataError, match=r"no file .*mnist_c_regen_1000\.npz; put it there"):
        mnist_c("fog", tmp_path)
    with pytest.raises(DataError, match=r"no file .*magnetic_tile_96\.npz; put it there"):
        magnetic_tile(tmp_path)


# -------------------------------------------------------------------------------------------------------- magnetic tiles


def write_tiles(data_dir, **changes):
    (data_dir / "images").mkdir(exist_ok=True)
    y = np.array([0, 0, 2, 0, 1, 0])
    masks = np.zeros((6, 5, 5), bool)
    masks[2, 1, 1] = masks[4, 3, 4] = True
    arrays = {
        "x": np.arange(6, dtype=np.uint8).reshape(6, 1, 1) * np.ones((1, 5, 5), np.uint8),
        "mask": np.packbits(masks.reshape(6, 25), axis=1),
        "y": y,
        "names": np.array([f"{row}.jpg" for row in range(6)]),
        "classes": np.array(["Free", "Break", "Crack"]),
    }
    np.savez(data_dir / "images" / "magnetic_tile_96.npz", **{**arrays, **changes})
    return masks


def test_magnetic_tiles(tmp_path):
    masks = write_tiles(tmp_path)
    train, test = magnetic_tile(tmp_path)
    order = np.random.RandomState(0).permutation([0, 1, 3, 5])
    assert train.x[:, 0, 0, 0].tolist() == order[:2].tolist()
    rows = [*order[2:], 2, 4]
    assert test.x[:, 0, 0, 0].tolist() == rows
    assert test.kinds == ("good", "good", "crack", "break")
    assert test.files == tuple(f"{row}.jpg" for row in rows)
    assert test.y is not None
    assert test.y.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(test.masks, masks[rows])


@pytest.mark.parametrize(
    "changes",
    [{"x": np.zeros((6, 9, 9), np.uint8)}, {"y": np.array([0, 0, 7, 0, 1, 0])}, {"mask": np.zeros((6, 4))}],
)
def test_tiles_that_do_not_fit(tmp_path, changes):
    write_tiles(tmp_path, **changes)
    with pytest.raises(DataError, match="magnetic_tile"):
        magnetic_tile(tmp_path)


def test_the_real_tiles(data_dir):
    if not (data_dir / "images" / "magnetic_tile_96.npz").is_file():
        pytest.skip("no images/magnetic_tile_96.npz in the data directory")
    train, test = magnetic_tile(data_dir)
    assert train.x.shape == (476, 96, 96, 1)
    assert test.x.shape == (868, 96, 96, 1)
    assert test.y is not None
    assert test.y.sum() == 392
    assert test.masks is not None
    assert test.masks[:476].sum() == 0
    # Nearly every defective tile has its defect marked.
    assert test.masks[476:].any((1, 2)).mean() > 0.95


def knn(train, test):
    """AUROC in percent of the distance to the 5th neighbour in pixels / 255, as the baselines were measured."""
    rows = [(data.x.reshape(len(data.x), -1) / 255).astype(np.float32) for data in (train, test)]
    distances, _ = NearestNeighbors(n_neighbors=5).fit(rows[0]).kneighbors(rows[1])
    return 100 * roc_auc_score(test.y, distances[:, -1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "read", "needed"),
    [
        ("mnist_full_8", lambda folder: one_vs_rest("mnist", 8, folder), "tfds/mnist"),
        ("fashion_mnist_6", lambda folder: one_vs_rest("fashion_mnist", "Shirt", folder), "tfds/fashion_mnist"),
        ("cifar10_3", lambda folder: one_vs_rest("cifar10", "cat", folder), "images/cifar10_jpeg.npz"),
        *(
            (f"mnist_c_{c}", lambda folder, c=c: mnist_c(c, folder), "tfds/mnist")
            for c in ("glass_blur", "shear", "fog")
        ),
        ("tile_96", magnetic_tile, "images/magnetic_tile_96.npz"),
    ],
)
def test_the_protocols_are_those_of_the_baselines(data_dir, reference_dir, row, read, needed):
    if not (data_dir / needed).exists():
        pytest.skip(f"no {needed} in the data directory")
    if "tfds" in needed:
        pytest.importorskip("tensorflow_datasets")
    expected = json.loads((reference_dir / "image_baselines.json").read_text())["rows"][row]["knn5"]
    assert knn(*read(data_dir)) == pytest.approx(expected, abs=0.006)


def test_the_examples_in_the_docstrings():
    failed, attempted = doctest.testmod(suites)
    assert attempted
    assert not failed
