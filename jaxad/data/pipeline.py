"""Pictures larger than memory: shuffled batches decoded as they are needed, which a resumed run continues exactly."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxad.data.dataset import DataError
from jaxad.data.folders import list_pictures
from jaxad.data.images import MOST_PIXELS, Fit, ImageDataset, fit_picture, read_image
from jaxad.data.tiles import pair


def image_batches(
    pictures: str | os.PathLike | Sequence[str | os.PathLike] | ImageDataset,
    *,
    batch_size: int,
    seed: int,
    size: int | tuple[int, int] | None = None,
    fit: Fit = "resize",
    channels: int | None = None,
    epochs: int | None = None,
    workers: int = 0,
    most_pixels: int = MOST_PIXELS,
) -> "ImageBatches":
    """An iterator over batches ``[batch_size, height, width, channels]``, uint8, or float32 in [0, 1] for 16-bit gray.

    ``pictures`` is a folder of pictures, a list of picture files, or an ``ImageDataset``. ``size``, ``fit``, ``channels``
    and ``most_pixels`` as in ``read_folder``; ``channels`` and ``most_pixels`` mean nothing for an ``ImageDataset``. Each
    epoch is all rows in an order of its own, drawn from ``seed`` (0 to 2^32 - 1). ``epochs`` None never ends. An epoch
    may end inside a batch, so all batches are of one size (one compilation) but the last of all, which may be smaller.

    With ``workers`` 0 a batch is read and decoded when it is asked for, so at most one is in memory. With more, that
    many processes each read one batch ahead, in the same order; a script then needs ``if __name__ == "__main__":``.

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
    size = None if size is None else pair(size, least=1)
    source = _Source(pictures, size, fit, channels, most_pixels)
    # Shuffled before it is repeated: epochs do not mix. Batched after: an epoch leaves no small batch behind.
    dataset = grain.MapDataset.source(source).seed(int(seed)).shuffle().repeat(epochs).batch(int(batch_size))
    marks = {"pictures": source.digest(), "rows": len(source), "batch_size": int(batch_size), "seed": int(seed)}
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


class _Source:
    """Pictures by row number, as Grain asks for them, possibly in another process."""

    def __init__(self, pictures, size: tuple[int, int] | None, fit: Fit, channels: int | None, most_pixels: int):
        in_memory = isinstance(pictures, ImageDataset)
        self.x, self.name = (pictures.x, pictures.name) if in_memory else (None, "")
        self.files = [] if in_memory else _files(pictures)
        self.size, self.channels, self.most_pixels = size, channels, most_pixels
        self.fit: Fit = fit
        first = self._picture(0)
        self.shape, self.dtype = first.shape, first.dtype

    def __len__(self) -> int:
        return len(self.files) if self.x is None else len(self.x)

    def __getitem__(self, index: int) -> np.ndarray:
        picture = self._picture(index)
        if picture.shape != self.shape or picture.dtype != self.dtype:
            raise DataError(
                f"{self.files[index]}: expected {list(self.shape)} (height, width, channels) of {self.dtype}, like "
                f"{self.files[0].name}, got {list(picture.shape)} of {picture.dtype}; "
                "pass size= and channels=, and save all with one bit depth"
            )
        return picture

    def _picture(self, row: int) -> np.ndarray:
        picture = self._whole(row)
        return picture if self.size is None else fit_picture(picture, self.size, self.fit)

    def _whole(self, row: int) -> np.ndarray:
        if self.x is not None:
            return self.x[row]
        return read_image(self.files[row], channels=self.channels, most_pixels=self.most_pixels)

    def digest(self) -> str:
        """What two runs must share to see the same rows. Names without folders: data may move between runs."""
        names = [self.name, *(file.name for file in self.files)]
        return hashlib.sha256(repr((names, len(self), self.shape, str(self.dtype), self.fit)).encode()).hexdigest()[:16]


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
