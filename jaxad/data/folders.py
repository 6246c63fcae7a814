"""Folders of pictures: a plain one, and the layout of MVTec AD with its masks, read or refused with a reason."""

import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from jaxad.data.dataset import DataError
from jaxad.data.images import MOST_PIXELS, Fit, ImageDataset, fit_picture, read_image
from jaxad.data.tiles import pair, tiles

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
"""What a picture's file name ends with, in any case; other files of a folder, and hidden ones, are left alone."""

OnError = Literal["raise", "skip"]
Read = TypeVar("Read")


def read_folder(
    path: str | os.PathLike,
    *,
    size: int | tuple[int, int] | None = None,
    fit: Literal["resize", "crop", "tile"] = "resize",
    overlap: int = 0,
    channels: int | None = None,
    on_error: OnError = "raise",
    most_pixels: int = MOST_PIXELS,
) -> ImageDataset:
    """All pictures that lie directly in a folder, sorted by name; ``y`` is None, ``files`` are their names.

    ``size`` is ``(height, width)``, or one number for both; None keeps the pictures as they are, all of one size. With
    ``fit`` ``"resize"`` a picture is stretched to it; with ``"crop"`` it is scaled until it covers it and the middle is
    kept; with ``"tile"`` it is not scaled but cut into tiles of that size that overlap by at least ``overlap`` pixels
    (``tiles``), each a row of its own, so that small defects in large pictures survive. ``channels`` and
    ``most_pixels`` as in ``read_image``. If one picture has 16 bits, all become float32.

    With ``on_error="skip"`` pictures that cannot be used are left out with one warning that lists them.

    Raises ``DataError`` for an empty folder, a picture that cannot be used, pictures of several sizes or numbers of
    channels without a rule that makes them equal, and, always, for a symbolic link that leads out of the folder.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for number in range(3):
    ...         Image.new("L", (40 + number, 30)).save(Path(folder, f"{number}.png"))
    ...     read_folder(folder, size=28, fit="crop").x.shape
    (3, 28, 28, 1)
    """
    folder = _folder(path)
    if fit not in ("resize", "crop", "tile") or on_error not in ("raise", "skip"):
        raise DataError(
            f"expected fit 'resize', 'crop' or 'tile' and on_error 'raise' or 'skip', got {fit=} and {on_error=}"
        )
    if fit == "tile" and size is None:
        raise DataError("expected the size of a tile with fit='tile'; pass size=, for example 256")
    if size is not None:
        pair(size, least=1)

    def read(file: Path) -> np.ndarray:
        picture = read_image(file, channels=channels, most_pixels=most_pixels)
        if size is None:
            return picture[None]
        return tiles(picture[None], size, overlap)[0] if fit == "tile" else fit_picture(picture, size, fit)[None]

    with Reader(on_error) as reader:
        read_files = [(file, pieces) for file in list_pictures(folder) if (pieces := reader(read, file)) is not None]
    files = [file for file, pieces in read_files for _ in pieces]
    x = _stacked([piece for _, pieces in read_files for piece in pieces], files, folder)
    return ImageDataset(folder.name, x, source=str(folder), files=tuple(file.name for file in files))


def read_mvtec(
    path: str | os.PathLike,
    *,
    size: int | tuple[int, int] | None = None,
    fit: Fit = "resize",
    channels: int | None = None,
    on_error: OnError = "raise",
    most_pixels: int = MOST_PIXELS,
) -> tuple[ImageDataset, ImageDataset]:
    """``(train, test)`` of a folder in the layout of MVTec AD.

    ``train/good`` holds normal pictures, ``test/good`` normal and ``test/<defect>`` anomalous ones, and
    ``ground_truth/<defect>/<name>_mask.png`` (or ``<name>.png``) what is anomalous in each, above 0. ``kinds`` are the
    names of the folders. Without a folder ``ground_truth`` the masks are None. Masks are scaled with their pictures: a
    pixel is marked where any part of it was, so that no thin defect is lost. Arguments as in ``read_folder``; to tile
    large pictures read them whole and cut them with ``tiles``.

    Raises ``DataError`` as ``read_folder``, and for missing folders, other training folders than ``good``, and masks
    that are missing or of another size than their picture.
    """
    root = _folder(path)
    if fit not in ("resize", "crop") or on_error not in ("raise", "skip"):
        raise DataError(
            f"expected fit 'resize' or 'crop' and on_error 'raise' or 'skip', got {fit=} and {on_error=}; "
            "to tile, read whole pictures and cut them with tiles(dataset.x, size, overlap)"
        )
    if size is not None:
        pair(size, least=1)
    splits = {split: [folder.name for folder in _subfolders(root, split)] for split in ("train", "test")}
    if splits["train"] != ["good"] or not splits["test"]:
        raise DataError(
            f"{root}: expected train/good, test/good and test/<defect>, got train with {splits['train']} and test with "
            f"{splits['test']}; for a plain folder of normal pictures use read_folder"
        )
    truth = root / "ground_truth"
    read = partial(_read_masked, root=root, size=size, fit=fit, channels=channels, most_pixels=most_pixels)
    with Reader(on_error) as reader:
        found = {
            split: [
                (file, pair_read)
                for kind in kinds
                for file in list_pictures(root / split / kind, root)
                if (pair_read := reader(read, file)) is not None
            ]
            for split, kinds in splits.items()
        }
    train, test = (_labelled(root, split, pairs, truth.is_dir()) for split, pairs in found.items())
    if train.x.shape[1:] != test.x.shape[1:] or train.x.dtype != test.x.dtype:
        raise DataError(
            f"{root}: expected training and test pictures alike, got {list(train.x.shape[1:])} {train.x.dtype} and "
            f"{list(test.x.shape[1:])} {test.x.dtype}; pass size= and channels=, and save all with one bit depth"
        )
    return train, test


def read_defects(
    path: str | os.PathLike,
    *,
    size: int | tuple[int, int] | None = None,
    fit: Fit = "resize",
    channels: int | None = None,
    most: int = 10,
    most_pixels: int = MOST_PIXELS,
) -> ImageDataset:
    """The first ``most`` pictures of each ``test/<defect>`` and their masks, of a folder in the layout of MVTec AD or with these alone.

    ``kinds`` are the names of the defects; ``good`` is left out. Arguments and masks as in ``read_mvtec``.

    Raises ``DataError`` as ``read_mvtec``, for a folder without defects, and for a mask that marks nothing or everything.
    """
    root = _folder(path)
    found = (
        [folder for folder in _subfolders(root, "test") if folder.name != "good"] if (root / "test").is_dir() else []
    )
    if not found or not (root / "ground_truth").is_dir():
        raise DataError(
            f"{root}: expected pictures in test/<defect> and their masks in ground_truth/<defect>, got "
            f"{sorted(entry.name for entry in root.iterdir())[:5] or 'an empty folder'}"
            + (" without a defect in test" if (root / "test").is_dir() and not found else "")
            + "; bring the pictures of each kind of defect into that layout"
        )
    pairs = []
    for file in (file for folder in found for file in list_pictures(folder, root)[:most]):
        picture, mask = _read_masked(file, root=root, size=size, fit=fit, channels=channels, most_pixels=most_pixels)
        if mask.all() or not mask.any():
            raise DataError(
                f"{file}: expected a mask that marks a part of the picture, got one that is {'full' if mask.any() else 'empty'}"
                f"{'' if size is None else ' at the size that is asked for'}; correct it, or leave the picture out"
            )
        pairs.append((file, (picture, mask)))
    return _labelled(root, "test", pairs, True)


def _read_masked(file: Path, *, root: Path, size, fit: Fit, channels, most_pixels) -> tuple[np.ndarray, np.ndarray]:
    """A picture of ``root/<split>/<kind>`` and its mask, empty for a good one and where there are none, both brought to ``size``."""
    picture, truth = read_image(file, channels=channels, most_pixels=most_pixels), root / "ground_truth"
    mask = np.zeros(picture.shape[:2], bool)
    if truth.is_dir() and file.parent.name != "good":
        mask = _read_mask(truth / file.parent.name, file, picture.shape[:2], root, most_pixels)
    if size is None:
        return picture, mask
    marked = fit_picture(mask[..., None].astype(np.float32), size, fit, covering=True)
    return fit_picture(picture, size, fit), marked[..., 0] > 0


def list_pictures(folder: Path, root: Path | None = None) -> list[Path]:
    """The pictures directly in ``folder``, sorted by name; ``DataError`` if there are none or one leads out of ``root``."""
    found = sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") and not entry.is_dir()
    )
    if not found:
        inside = sorted(entry.name for entry in folder.iterdir())[:5]
        raise DataError(
            f"{folder}: expected pictures ({', '.join(SUFFIXES)}), got {f'only {inside}' if inside else 'an empty folder'}; "
            "pass the folder that holds them directly; one with train/good and test/<defect> is read by jaxad fit, and by "
            "read_mvtec in Python"
        )
    for file in found:
        refuse_way_out(file, root or folder)
    return found


QUIET = (".csv", ".db", ".htm", ".html", ".ini", ".json", ".md", ".npz", ".parquet", ".txt", ".xml", ".yaml", ".yml")
"""Endings of what lies beside pictures without being one."""


def passed_over(folder: Path) -> str:
    """What lies in a folder of pictures and is not read as one, in words: files of other endings, folders; "" if there is nothing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a.png", "b.webp", "notes.txt"):
    ...         Path(folder, name).touch()
    ...     Path(folder, "night").mkdir()
    ...     passed_over(Path(folder))
    '1 file is no PNG, JPEG, BMP or TIFF: b.webp; 1 folder was not entered: night'
    """
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    other = [entry.name for entry in entries if entry.is_file() and entry.suffix.lower() not in (*SUFFIXES, *QUIET)]
    inside = [entry.name for entry in entries if entry.is_dir()]
    said = []
    for names, one, many in (
        (other, "file is no PNG, JPEG, BMP or TIFF", "files are no PNG, JPEG, BMP or TIFF"),
        (inside, "folder was not entered", "folders were not entered"),
    ):
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            said.append(f"{len(names)} {one if len(names) == 1 else many}: {shown}")
    return "; ".join(said)


def refuse_way_out(path: Path, root: Path) -> None:
    """Raise a ``DataError`` if ``path`` is, or lies behind, a symbolic link that leads out of ``root``, or in a circle."""
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:
        raise _LeadsOut(f"{path}: expected a file, got a symbolic link that leads nowhere; remove it") from error
    if not target.is_relative_to(root.resolve()):
        raise _LeadsOut(
            f"{path}: expected a file inside {root}, got a symbolic link to {target}, outside; copy the file there"
        )


class _LeadsOut(DataError):
    """Not the fault of one picture, so never skipped."""


class Reader:
    """Calls ``read(file)``. With ``"skip"`` it gives None for a picture that cannot be used, and one warning at the end."""

    def __init__(self, on_error: OnError):
        self.on_error = on_error
        self.left_out: list[str] = []

    def __enter__(self) -> "Reader":
        return self

    def __call__(self, read: Callable[[Path], Read], file: Path) -> Read | None:
        try:
            return read(file)
        except _LeadsOut:
            raise
        except DataError as error:
            named = error if file.name in str(error) else DataError(f"{file}: {error}")
            if self.on_error == "raise":
                raise named from error.__cause__
            self.left_out.append(str(named))
            return None

    def __exit__(self, kind, error, traceback) -> None:
        if self.left_out and kind is None:
            reasons = "\n".join(self.left_out)
            warnings.warn(f"pictures left out: {len(self.left_out)}\n{reasons}", stacklevel=3)


def _folder(path: str | os.PathLike) -> Path:
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of pictures, got {'a file' if folder.exists() else 'nothing'}")
    return folder


def _subfolders(root: Path, split: str) -> list[Path]:
    if not (root / split).is_dir():
        raise DataError(f"{root}: expected the folders train/good and test/<defect>, found no folder {split}")
    found = sorted(entry for entry in (root / split).iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for folder in found:
        refuse_way_out(folder, root)
    return found


def _read_mask(folder: Path, file: Path, shape: tuple, root: Path, most_pixels: int) -> np.ndarray:
    candidates = [folder / f"{file.stem}_mask.png", folder / f"{file.stem}.png"]
    found = [candidate for candidate in candidates if candidate.is_file()]
    if not found:
        raise DataError(f"{file}: expected its mask at {candidates[0]}, and there is none; add it")
    refuse_way_out(found[0], root)
    mask = read_image(found[0], channels=1, most_pixels=most_pixels)[..., 0] > 0
    if mask.shape != shape:
        raise DataError(
            f"{found[0]}: expected a mask of the size of its picture, {list(shape)} (height, width), got "
            f"{list(mask.shape)}; save it in the size of {file.name}"
        )
    return mask


def _labelled(root: Path, split: str, pairs: Sequence[tuple], masked: bool) -> ImageDataset:
    """The pictures ``(file, (picture, mask))`` of one split; their folders say what they are."""
    files = [file for file, _ in pairs]
    x = _stacked([picture for _, (picture, _) in pairs], files, root / split)
    words = tuple(file.parent.name for file in files)
    y = np.array([word != "good" for word in words], np.int64)
    masks = np.stack([mask for _, (_, mask) in pairs]) if masked and split == "test" else None
    return ImageDataset(root.name, x, y, masks, words, str(root), tuple(str(file.relative_to(root)) for file in files))


def _stacked(pictures: Sequence[np.ndarray], files: Sequence[Path], folder: Path) -> np.ndarray:
    if not pictures:
        raise DataError(f"{folder}: expected at least one picture that can be used, all were left out")
    for picture, file in zip(pictures, files, strict=True):
        if picture.shape != pictures[0].shape:
            raise DataError(
                f"{folder}: expected pictures of one size, got {list(pictures[0].shape)} (height, width, channels) in "
                f"{files[0].name} and {list(picture.shape)} in {file.name}; "
                "pass size= with fit='resize' or 'crop', and channels=1 or 3"
            )
    if any(picture.dtype == np.float32 for picture in pictures):
        pictures = [p if p.dtype == np.float32 else p.astype(np.float32) / np.float32(255) for p in pictures]
    return np.stack(pictures)
