"""Pictures larger than memory: shuffled batches decoded as they are needed, which a resumed run continues exactly."""

import copy
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxad.data.dataset import DataError
from jaxad.data.folders import OnError, Reader, list_pictures
from jaxad.data.images import MOST_PIXELS, Fit, ImageDataset, fit_picture, read_image
from jaxad.data.tiles import pair


def image_batches(
    pictures: "str | os.PathLike | Sequence[str | os.PathLike] | ImageDataset | PictureFiles",
    *,
    batch_size: int,
    seed: int,
    size: int | tuple[int, int] | None = None,
    fit: Fit = "resize",
    channels: int | None = None,
    epochs: int | None = None,
    workers: int = 0,
    most_pixels: int = MOST_PIXELS,
    part: tuple[int, int] = (0, 1),
) -> "ImageBatches":
    """An iterator over batches ``[batch_size, height, width, channels]``, uint8, or float32 in [0, 1] for 16-bit gray.

    ``pictures`` is a folder of pictures, a list of picture files, ``PictureFiles`` (which know their ``size``, ``fit``, ``channels``
    and ``most_pixels`` themselves) or an ``ImageDataset``. ``size``, ``fit``, ``channels`` and ``most_pixels`` as in ``read_folder``;
    ``channels`` and ``most_pixels`` mean nothing for an ``ImageDataset``. Each
    epoch is all rows in an order of its own, drawn from ``seed`` (0 to 2^32 - 1). ``epochs`` None never ends. An epoch
    may end inside a batch, so all batches are of one size (one compilation) but the last of all, which may be smaller.

    With ``workers`` 0 a batch is read and decoded when it is asked for, so at most one is in memory. With more, that
    many processes each read one batch ahead, in the same order; a script then needs ``if __name__ == "__main__":``.

    ``part`` ``(i, n)`` is for the i-th of n processes that train together: of every batch the i-th of n equal parts, and no other
    picture is read. The state is that of all parts, so a run goes on with another n.

    Raises ``DataError`` for settings out of range, if Grain is missing (``pip install 'jaxad[data]'``), for a first
    picture that cannot be read, and, in the batch where it is met, for a later one or one that is not like the first.

    >>> x = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1) * np.ones((1, 2, 2, 1), np.uint8)
    >>> batches = image_batches(ImageDataset("toy", x), batch_size=4, seed=0, epochs=2)
    >>> [batch.shape for batch in batches]
    [(4, 2, 2, 1), (4, 2, 2, 1), (4, 2, 2, 1)]
    """
    try:
        import grain
    except ImportError as error:
        raise DataError("reading pictures in batches needs Grain; pip install 'jaxad[data]'") from error
    for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0), ("workers", workers, 0)):
        if not isinstance(value, int | np.integer) or not least <= value < 2**32:
            raise DataError(f"expected {name} to be a whole number from {least} to 2^32 - 1, got {value!r}")
    if epochs is not None and (not isinstance(epochs, int | np.integer) or epochs < 1):
        raise DataError(f"expected epochs to be a whole number from 1, or None for no end, got {epochs!r}")
    if fit not in ("resize", "crop"):
        raise DataError(f"expected fit 'resize' or 'crop', got {fit=}; cut tiles from the batches with tiles()")
    of, parts = part
    if not 0 <= of < parts or batch_size % parts or (parts > 1 and epochs is not None):
        raise DataError(
            f"{parts} processes share endless batches that they divide evenly, numbered from 0; got {part=}, {batch_size=}, {epochs=}"
        )
    size = None if size is None else pair(size, least=1)
    source: Any
    if isinstance(pictures, ImageDataset):
        source = _InMemory(pictures.x, size, fit)
        digest = _digest([pictures.name], source.shape, source.dtype, fit)
    else:
        if not isinstance(pictures, PictureFiles):
            pictures = PictureFiles(pictures, size=size, fit=fit, channels=channels, most_pixels=most_pixels)
        elif size is not None or channels is not None:
            raise DataError(
                "these PictureFiles have a size and channels of their own; pass size= and channels= where they are made"
            )
        source = pictures
        # Names without folders: data may move between runs.
        digest = _digest([file.name for file in source.files], source.shape, source.dtype, source.fit)
    # Shuffled before it is repeated: epochs do not mix. Batched after: an epoch leaves no small batch behind.
    dataset = grain.MapDataset.source(source).seed(int(seed)).shuffle().repeat(epochs)
    # What never ends leaves no remainder; Grain would round its length up to one that Python cannot hold.
    dataset = dataset.batch(int(batch_size) // parts, drop_remainder=epochs is None)
    if parts > 1:
        dataset = dataset[of::parts]
    marks = {"pictures": digest, "rows": len(source), "batch_size": int(batch_size), "seed": int(seed)}
    return ImageBatches(dataset, int(workers), marks)


class ImageBatches:
    """The iterator that ``image_batches`` returns; its state is one small dictionary that JSON can hold.

    >>> x = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    >>> batches = image_batches(ImageDataset("toy", x), batch_size=4, seed=0)
    >>> _ = next(batches)
    >>> state, expected = batches.get_state(), next(batches)
    >>> resumed = image_batches(ImageDataset("toy", x), batch_size=4, seed=0)
    >>> resumed.set_state(state)
    >>> bool((next(resumed) == expected).all())
    True
    """

    def __init__(self, dataset: Any, workers: int, marks: dict[str, int | str]):
        self._dataset = dataset
        self._workers = workers
        self._marks = marks
        self._batches = 0
        self._rest: Any = None

    def __iter__(self) -> "ImageBatches":
        return self

    def __next__(self) -> np.ndarray:
        if self._rest is None:
            self._rest = self._iterator()
        batch = next(self._rest)
        self._batches += 1
        return batch

    def get_state(self) -> dict[str, int | str]:
        """How many batches were given, and of what: enough to continue, on any number of workers."""
        return {"batches": self._batches, **self._marks}

    def set_state(self, state: dict[str, int | str]) -> None:
        """Continue after the batch at which ``state`` was fetched.

        Raises ``DataError`` for a state of other pictures (number, names, or how they are fitted), of another batch size
        or seed, and for one that lies beyond the last epoch.
        """
        other = {key: (state.get(key), mark) for key, mark in self._marks.items() if state.get(key) != mark}
        if other:
            told = ", ".join(f"{key} {then} then and {now} now" for key, (then, now) in other.items())
            raise DataError(
                f"expected a state of the same batches, got {told}; resume with the settings of the first run"
            )
        batches = state.get("batches")
        if not isinstance(batches, int) or not 0 <= batches <= len(self._dataset):
            raise DataError(f"expected a state after 0 to {len(self._dataset)} batches, got {batches!r}; raise epochs")
        self.close()
        self._batches = batches

    def close(self) -> None:
        """End the worker processes; the next batch starts them again where it stopped."""
        if self._rest is not None:
            self._rest.close()
            self._rest = None

    def _iterator(self):
        import grain

        # Grain reads 500 elements ahead unless told otherwise, and an element is a batch here.
        rest = self._dataset[self._batches :].to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        if self._workers:
            from absl import flags

            # Grain 0.2.18 reads this flag although no program but Google's own parses flags (its issue 1355).
            if (name := "grain_enable_multiprocess_worker_profiling") in flags.FLAGS:
                flags.FLAGS[name].present = 1
            rest = rest.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=1))
        return iter(rest)


class PictureFiles:
    """Pictures on disk that are read when they are asked for: ``len``, ``shape``, and rows by number, slice or array of numbers.

    ``pictures`` is a folder of pictures or a list of picture files; ``size``, ``fit``, ``channels`` and ``most_pixels`` as in
    ``read_folder``. All rows have the size, channels and bit depth of the first. It stands where an array of
    pictures that does not fit in memory cannot: ``image_batches``, ``ImageDetector.fit`` and its scores take one. ``workers`` is for the
    training: so many processes read ahead of it.

    Raises ``DataError`` for an empty folder and for a picture that cannot be read or is not like the first, when it is met;
    ``usable`` looks at all of them beforehand.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for number in range(5):
    ...         Image.new("L", (40 + number, 30)).save(Path(folder, f"{number}.png"))
    ...     files = PictureFiles(folder, size=28)
    ...     files.shape, files[1:3].shape, len(files.take([4, 0]))
    ((5, 28, 28, 1), (2, 28, 28, 1), 2)
    """

    ndim = 4

    def __init__(
        self,
        pictures: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        size: int | tuple[int, int] | None = None,
        fit: Fit = "resize",
        channels: int | None = None,
        most_pixels: int = MOST_PIXELS,
        workers: int = 0,
    ):
        if fit not in ("resize", "crop"):
            raise DataError(
                f"expected fit 'resize' or 'crop', got {fit=}; tiles are cut from pictures in memory, by read_folder"
            )
        self.files: list[Path] = _files(pictures)
        self.size, self.channels, self.most_pixels = (
            None if size is None else pair(size, least=1),
            channels,
            most_pixels,
        )
        self.fit: Fit = fit
        self.workers = workers
        self.first, picture = self._first()
        self.sample_shape, self.dtype = picture.shape, picture.dtype

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, height, width, channels)``, as of an array."""
        return (len(self.files), *self.sample_shape)

    def __getitem__(self, rows) -> np.ndarray:
        if isinstance(rows, int | np.integer):
            return self._like_first(self.files[rows])
        chosen = np.arange(len(self.files))[rows]
        return (
            np.stack([self[int(row)] for row in chosen])
            if len(chosen)
            else np.empty((0, *self.sample_shape), self.dtype)
        )

    def take(self, rows) -> "PictureFiles":
        """The files at the given indices, in their order; nothing is read."""
        other = copy.copy(self)
        other.files = [self.files[int(row)] for row in np.arange(len(self.files))[np.asarray(rows)]]
        return other

    def usable(self, on_error: OnError = "raise") -> "PictureFiles":
        """Every file read once: itself, or with ``on_error="skip"`` without those that cannot be used, named in one warning."""
        with Reader(on_error) as reader:
            good = [row for row, file in enumerate(self.files) if reader(self._like_first, file) is not None]
        return self.take(good)

    def _first(self) -> tuple[Path, np.ndarray]:
        """The first file that can be read, which the others are to be like."""
        refused = None
        for file in self.files:
            try:
                return file, self._picture(file)
            except DataError as error:
                refused = refused or error
        raise refused or DataError("expected at least one picture")

    def _like_first(self, file: Path) -> np.ndarray:
        picture = self._picture(file)
        if picture.shape != self.sample_shape or picture.dtype != self.dtype:
            raise DataError(
                f"{file}: expected {list(self.sample_shape)} (height, width, channels) of {self.dtype}, like "
                f"{self.first.name}, got {list(picture.shape)} of {picture.dtype}; "
                "pass size= and channels=, and save all with one bit depth"
            )
        return picture

    def _picture(self, file: Path) -> np.ndarray:
        picture = read_image(file, channels=self.channels, most_pixels=self.most_pixels)
        return picture if self.size is None else fit_picture(picture, self.size, self.fit)


class _InMemory:
    """Pictures in memory by row number, as Grain asks for them, possibly in another process."""

    def __init__(self, x: np.ndarray, size: tuple[int, int] | None, fit: Fit):
        self.x, self.size = x, size
        self.fit: Fit = fit
        self.shape, self.dtype = (len(x), *self[0].shape), x.dtype

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.x[row] if self.size is None else fit_picture(self.x[row], self.size, self.fit)


def _digest(*of: Any) -> str:
    """What two runs must share to see the same rows."""
    return hashlib.sha256(repr(of).encode()).hexdigest()[:16]


def _files(pictures: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    if isinstance(pictures, str | os.PathLike):
        folder = Path(os.path.expanduser(pictures))
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder of pictures or a list of files; put one file in a list")
        return list_pictures(folder)
    files = [Path(os.path.expanduser(file)) for file in pictures]
    if not files:
        raise DataError("expected at least one picture, got an empty list of files")
    return files
