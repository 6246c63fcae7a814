"""Image suites with one fixed protocol each: which pictures are trained on, which are scored, what counts as anomalous.

The rows are those of the baselines that the project measures itself against, so that numbers can be compared.
"""

import hashlib
import os
from functools import lru_cache
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from jaxad.data.arrays import damage_named
from jaxad.data.dataset import DataError, did_you_mean
from jaxad.data.images import ImageDataset

MNIST_C = (
    *("shot_noise", "impulse_noise", "glass_blur", "shear", "scale", "rotate", "brightness", "translate", "stripe"),
    *("fog", "spatter", "dotted_line", "zigzag", "canny_edges"),
)
"""The corruptions of MNIST-C (Mu & Gilmer 2019) that ``mnist_c`` knows."""

# tensorflow-datasets writes rows in the order of the hashes of their keys. The keys of these sets are the row numbers, so
# that the order in which they were published can be had again.
_KEYED_BY_ROW = ("mnist", "fashion_mnist", "kmnist")


def one_vs_rest(
    name: str,
    normal_class: int | str,
    data_dir: str | os.PathLike | None = None,
    most_train: int = 5000,
    *,
    download: bool = False,
) -> tuple[ImageDataset, ImageDataset]:
    """``(train, test)`` of a classification set with one class normal and all others anomalous.

    Training rows are the first ``most_train`` training pictures of the normal class; all test pictures are test rows,
    with ``y = 1`` for every other class and the names of the classes as ``kinds``. The order is the published one for
    ``mnist``, ``fashion_mnist`` and ``kmnist``, and for others that of their files, which tensorflow-datasets shuffles
    once and for all. ``normal_class`` is the number of the class, from 0, or its name.

    ``name`` is any tensorflow-datasets set of pictures of one size with a label and the splits ``train`` and ``test``
    (``mnist``, ``fashion_mnist``, ``cifar10``, ``svhn_cropped``), read from ``data_dir/tfds`` without TensorFlow
    (``pip install 'jaxad[data]'``). For ``cifar10``, ``data_dir/images/cifar10_jpeg.npz`` is read instead where it
    exists: half of the training pictures, as JPEG, not comparable with published numbers, and ``source`` says so.
    ``data_dir`` None means the environment variable ``JAXAD_DATA_DIR``, or else ``~/.cache/jaxad``. With ``download`` a
    set that is not there is fetched and prepared by tensorflow-datasets.

    Raises ``DataError`` for a set that is not prepared, cannot be fetched or holds something else, and for an unknown
    class.
    """
    if most_train < 1:
        raise DataError(f"{name}: expected to train on at least one picture, got {most_train=}")
    pictures, labels, classes, source = _decoded(name, str(_data_dir(data_dir)), download)
    normal = _class_number(normal_class, classes, name)
    rows = np.flatnonzero(labels["train"] == normal)[:most_train]
    title = f"{name}_{classes[normal]}"
    train = ImageDataset(
        title, pictures["train"][rows], np.zeros(len(rows), np.int64), None, (classes[normal],) * len(rows), source
    )
    test = ImageDataset(
        title,
        pictures["test"],
        (labels["test"] != normal).astype(np.int64),
        None,
        tuple(classes[label] for label in labels["test"]),
        source,
    )
    return train, test


def mnist_c(corruption: str, data_dir: str | os.PathLike | None = None) -> tuple[ImageDataset, ImageDataset]:
    """``(train, test)`` of one of the 14 corruptions ``MNIST_C``: clean digits are normal, corrupted ones anomalous.

    Trained on the first 5,000 MNIST training digits of all classes; tested on 1,000 clean test digits, indices 1000 to
    1999, and then the 1,000 corrupted copies of the first test digits: no digit is there clean and corrupted. ``kinds``
    are ``"good"`` and the corruption. Reads ``data_dir/tfds/mnist`` and ``data_dir/images/mnist_c_regen_1000.npz``, a
    regenerated set, not the official one.

    Raises ``DataError`` for an unknown corruption and for files that are missing or hold something else.

    >>> mnist_c("fogg")
    Traceback (most recent call last):
    jaxad.data.dataset.DataError: unknown corruption 'fogg' of MNIST-C; did you mean 'fog'?
    """
    if corruption not in MNIST_C:
        raise DataError(f"unknown corruption {corruption!r} of MNIST-C; {did_you_mean(str(corruption), MNIST_C)}")
    folder = _data_dir(data_dir)
    path = folder / "images" / "mnist_c_regen_1000.npz"
    arrays = _arrays(path, corruption, "y")
    corrupted = arrays[corruption][..., None]
    pictures, labels, _, _ = _decoded("mnist", str(folder), False)
    if not np.array_equal(arrays["y"], labels["test"][:1000]):
        raise DataError(
            f"{path}: expected the digits y to be those of the first 1,000 test pictures of MNIST in {folder / 'tfds'}, "
            "got others, so a digit might be tested clean and corrupted; prepare MNIST with tensorflow-datasets again"
        )
    clean = pictures["test"][1000:2000]
    if corrupted.shape != clean.shape or corrupted.dtype != clean.dtype:
        raise DataError(
            f"{path}: expected {corruption!r} of shape {list(clean.shape[:3])} and {clean.dtype}, got "
            f"{list(corrupted.shape[:-1])} and {corrupted.dtype}; put the first 1,000 corrupted test digits there"
        )
    title, source = f"mnist_c_{corruption}", "MNIST, and MNIST-C regenerated"
    train = ImageDataset(title, pictures["train"][:5000], np.zeros(5000, np.int64), None, ("good",) * 5000, source)
    test = ImageDataset(
        title,
        np.concatenate([clean, corrupted]),
        np.repeat([0, 1], [len(clean), len(corrupted)]),
        None,
        ("good",) * len(clean) + (corruption,) * len(corrupted),
        source,
    )
    return train, test


def magnetic_tile(data_dir: str | os.PathLike | None = None) -> tuple[ImageDataset, ImageDataset]:
    """``(train, test)`` of magnetic tiles, gray, 96 x 96: 476 defect-free ones, and 476 others with 392 defective.

    Five kinds of defects (Huang et al. 2020): blowholes, breaks, cracks, frays and unevenness, with masks of the
    pixels. The defect-free tiles are split by ``numpy.random.RandomState(0).permutation``; the test set holds the other
    half in that order and then the defective ones in file order. Reads ``data_dir/images/magnetic_tile_96.npz``.

    Raises ``DataError`` if the file is missing or holds something else.
    """
    path = _data_dir(data_dir) / "images" / "magnetic_tile_96.npz"
    arrays = _arrays(path, "x", "mask", "y", "names", "classes")
    with damage_named(path, "pictures x, their packed masks, classes y, names and names of the classes"):
        x, kinds = arrays["x"][..., None], arrays["y"].astype(np.int64)
        masks = np.unpackbits(arrays["mask"], axis=1)[:, : x.shape[1] * x.shape[2]].reshape(x.shape[:3]).astype(bool)
        words = ["good", *(str(word).lower() for word in arrays["classes"][1:])]
        free = np.random.RandomState(0).permutation(np.flatnonzero(kinds == 0))
        everything = ImageDataset(
            "magnetic_tile",
            x,
            (kinds != 0).astype(np.int64),
            masks,
            tuple(words[kind] for kind in kinds),
            "magnetic tile defects, 96 x 96",
            tuple(str(name) for name in arrays["names"]),
        )
    half = len(free) // 2
    return everything.take(free[:half]), everything.take(np.concatenate([free[half:], np.flatnonzero(kinds)]))


def _data_dir(data_dir: str | os.PathLike | None) -> Path:
    return Path(os.path.expanduser(data_dir or os.environ.get("JAXAD_DATA_DIR") or "~/.cache/jaxad"))


def _class_number(normal_class: int | str, classes: tuple[str, ...], name: str) -> int:
    if isinstance(normal_class, str) and normal_class in classes:
        return classes.index(normal_class)
    if not isinstance(normal_class, str) and 0 <= int(normal_class) < len(classes):
        return int(normal_class)
    raise DataError(
        f"{name}: expected a normal class from 0 to {len(classes) - 1} or one of the names {', '.join(classes[:20])}, "
        f"got {normal_class!r}"
    )


def _arrays(path: Path, *keys: str) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"no file {path}; put it there, or pass the data_dir that holds images/{path.name}")
    with damage_named(path, f"an .npz archive with {', '.join(keys)}"), np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in keys}


_Decoded = tuple[dict[str, np.ndarray], dict[str, np.ndarray], tuple[str, ...], str]


# Ten classes of a set are ten protocols on the same pictures. Two sets, so that memory stays bounded.
@lru_cache(maxsize=2)
def _decoded(name: str, data_dir: str, download: bool) -> _Decoded:
    """Pictures and class numbers by split, names of the classes, and the source."""
    folder = Path(data_dir)
    if name == "cifar10" and (path := folder / "images" / "cifar10_jpeg.npz").is_file():
        pictures, labels, classes, source = _cifar10_jpeg(path)
    else:
        pictures, labels, classes, source = _tfds(name, folder / "tfds", download)
    for array in (*pictures.values(), *labels.values()):
        array.flags.writeable = False  # it is shared by everybody who asks again
    return pictures, labels, classes, source


def _cifar10_jpeg(path: Path) -> _Decoded:
    parts = {split: [f"{split}_{part}" for part in ("blob", "offsets", "y")] for split in ("train", "test")}
    arrays = _arrays(path, *parts["train"], *parts["test"], "classes")
    pictures, labels = {}, {}
    for split, (blob, offsets, y) in parts.items():
        data, cuts = arrays[blob].tobytes(), arrays[offsets]
        files = [data[start:end] for start, end in pairwise(cuts)]
        pictures[split], labels[split] = _decode(files, f"{path}, {split}"), arrays[y].astype(np.int64)
    return pictures, labels, tuple(arrays["classes"].tolist()), "CIFAR-10, half of it, as JPEG of quality 75"


def _tfds(name: str, folder: Path, download: bool) -> _Decoded:
    if not download and not (folder / name).is_dir():
        held = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
        found = f"found {', '.join(held)}" if held else "nor any other"
        raise DataError(
            f"image set {name!r}: expected it prepared by tensorflow-datasets in the array_record format in "
            f"{folder / name}, and there is no such folder ({found}); "
            "pass download=True, or another data_dir"
        )
    try:
        import tensorflow_datasets
        from google.protobuf import json_format, message
    except ImportError as error:
        raise DataError(
            f"image set {name!r}: reading it needs tensorflow-datasets; pip install 'jaxad[data]'"
        ) from error
    try:
        sources: Any = tensorflow_datasets.data_source(
            name,
            data_dir=folder,
            download=download,
            # The files themselves: Pillow decodes them without a word, where the library's own way logs a complaint.
            decoders={"image": tensorflow_datasets.decode.SkipDecoding()},
        )
        splits = {split: sources[split] for split in ("train", "test")}
        features = splits["train"].dataset_info.features
        classes = tuple(features["label"].names)
        version = str(splits["train"].dataset_info.version)
        rows = {split: source.__getitems__(range(len(source))) for split, source in splits.items()}
    except (
        ImportError,
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        AssertionError,
        json_format.Error,
        message.Error,
    ) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"image set {name!r}: tensorflow-datasets cannot give the splits 'train' and 'test' with 'image' and "
            f"'label' from {folder} ({reason}); prepare it elsewhere with tfds.builder({name!r}, "
            f"file_format='array_record').download_and_prepare(), and put the folder {name!r} there"
        ) from error
    pictures = {
        split: _decode([row["image"] for row in found], f"{folder / name}, {split}") for split, found in rows.items()
    }
    labels = {split: np.array([row["label"] for row in found], np.int64) for split, found in rows.items()}
    if name in _KEYED_BY_ROW:
        for split, of_row in labels.items():
            order = _published_order(split, len(of_row))
            pictures[split], labels[split] = pictures[split][order], of_row[order]
    return pictures, labels, classes, f"tensorflow-datasets {name} {version}"


def _published_order(split: str, rows: int) -> np.ndarray:
    """Where row 0, 1, ... of a split lies in the files, which are sorted by the MD5 of its name and the row's number."""
    hashes = [hashlib.md5(f"{split}{row}".encode(), usedforsecurity=False).hexdigest() for row in range(rows)]
    return np.argsort(np.argsort(hashes))


def _decode(files: list[bytes], where: str) -> np.ndarray:
    """Small pictures ``[rows, height, width, channels]`` uint8 from the bytes of their files, all of one size."""
    from PIL import Image

    with damage_named(Path(where), "PNG or JPEG pictures of one size"):
        first = np.asarray(Image.open(BytesIO(files[0]), formats=("PNG", "JPEG")))
        pictures = np.empty((len(files), *first.shape), np.uint8)
        for row, content in enumerate(files):
            with Image.open(BytesIO(content), formats=("PNG", "JPEG")) as image:
                if image.size != first.shape[1::-1]:
                    raise DataError(
                        f"{where}: expected pictures of one size, got {first.shape[1::-1]} and {image.size}; "
                        "save them in a folder and read that with read_folder(path, size=...)"
                    )
                pictures[row] = np.asarray(image)
    return pictures if pictures.ndim == 4 else pictures[..., None]
