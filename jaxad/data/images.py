"""Pictures: the record that image readers return, and one PNG, JPEG, BMP or TIFF file, read or refused."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from jaxad.data.arrays import damage_named
from jaxad.data.dataset import DataError
from jaxad.data.tiles import pair

if TYPE_CHECKING:
    from PIL import Image

MOST_PIXELS = 80_000_000
"""The largest picture that is decoded unless more is asked for. Pillow itself warns from 89 million pixels on."""

Fit = Literal["resize", "crop"]


@dataclass(frozen=True, eq=False, repr=False)
class ImageDataset:
    """Pictures of one size and, where they are known, their labels, the pixels that are anomalous and what is wrong.

    ``x`` is ``[rows, height, width, channels]``, uint8 in 0..255 or float32 in [0, 1]. ``y`` is ``[rows]`` int64, 0 for
    normal and 1 for anomalous, or None when nothing is known. ``masks`` is ``[rows, height, width]`` bool, True where a
    pixel is anomalous, or None. ``kinds`` holds one word per row (``"good"``, ``"crack"``, or the class of the
    picture), ``files`` the file that each row came from; both may be None. ``source`` is for the report.

    Raises ``DataError`` for anything else: other shapes and dtypes, no rows, floats outside [0, 1], labels other than 0
    and 1, masks of another size, marked pixels in a picture that is labelled normal, words that are not one per row.

    >>> x = np.zeros((3, 28, 28, 1), np.uint8)
    >>> ImageDataset("toy", x, np.array([0, 0, 1]), kinds=("good", "good", "crack"), source="by hand")
    ImageDataset 'toy': 3 rows of 28 x 28 pixels, 1 channel (uint8), 1 anomalous (by hand)
    """

    name: str
    x: np.ndarray
    y: np.ndarray | None = None
    masks: np.ndarray | None = None
    kinds: tuple[str, ...] | None = None
    source: str = ""
    files: tuple[str, ...] | None = None

    def __post_init__(self):
        x = _as_pictures(self.x, self.name)
        object.__setattr__(self, "x", x)
        if self.y is not None:
            y = np.asarray(self.y)
            if y.shape != x.shape[:1] or not np.isin(y, (0, 1)).all():
                raise DataError(
                    f"{self.name}: expected {len(x)} labels, 0 (normal) or 1 (anomalous), got shape {y.shape} with "
                    f"values {np.unique(y)[:5].tolist()}; map classes first, for example y = (classes != normal)"
                )
            object.__setattr__(self, "y", y.astype(np.int64))
        if self.masks is not None:
            object.__setattr__(self, "masks", self._as_masks(x))
        for field in ("kinds", "files"):
            words = getattr(self, field)
            if words is None:
                continue
            words = tuple(str(word) for word in words)
            if len(words) != len(x):
                raise DataError(
                    f"{self.name}: expected one entry of {field} per row, got {len(words)} for {len(x)} rows"
                )
            object.__setattr__(self, field, words)

    def _as_masks(self, x: np.ndarray) -> np.ndarray:
        masks = np.asarray(self.masks)
        if masks.shape != x.shape[:3] or masks.dtype != np.bool_:
            raise DataError(
                f"{self.name}: expected boolean masks of shape {list(x.shape[:3])} (rows, height, width), got "
                f"{masks.dtype} of shape {list(masks.shape)}; resize them with their pictures, compare with > 0"
            )
        if self.y is not None:
            marked = np.flatnonzero(masks.any(axis=(1, 2)) & (np.asarray(self.y) == 0))
            if marked.size:
                raise DataError(
                    f"{self.name}: rows {marked[:5].tolist()} are labelled normal but have marked pixels; "
                    "correct the label or the mask"
                )
        return masks

    def __repr__(self):
        rows, height, width, channels = self.x.shape
        labels = "unlabelled" if self.y is None else f"{int(self.y.sum())} anomalous"
        return (
            f"ImageDataset {self.name!r}: {rows} rows of {height} x {width} pixels, "
            f"{channels} channel{'s' if channels > 1 else ''} ({self.x.dtype}), {labels} ({self.source})"
        )

    def take(self, rows) -> "ImageDataset":
        """The rows at the given indices ``[rows]``, or where a boolean ``[rows]`` is True, with all that belongs to them.

        >>> ImageDataset("toy", np.zeros((3, 8, 8, 1), np.uint8), kinds=("a", "b", "c")).take([2, 0]).kinds
        ('c', 'a')
        """
        rows = np.arange(len(self.x))[np.asarray(rows)]
        return ImageDataset(
            self.name,
            self.x[rows],
            None if self.y is None else self.y[rows],
            None if self.masks is None else self.masks[rows],
            None if self.kinds is None else tuple(self.kinds[row] for row in rows),
            self.source,
            None if self.files is None else tuple(self.files[row] for row in rows),
        )


def _as_pictures(x, name: str) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim != 4 or 0 in x.shape:
        raise DataError(
            f"{name}: expected pictures of shape [rows, height, width, channels] with at least one of each, got shape "
            f"{list(x.shape)}; gray pictures need a last axis of one channel, x[..., None]"
        )
    if x.shape[1] in (1, 3, 4) and x.shape[3] > 16:
        raise DataError(
            f"{name}: expected pictures of shape [rows, height, width, channels], got shape {list(x.shape)}, which looks "
            "like channels first; move them to the end with np.moveaxis(x, 1, -1)"
        )
    if x.dtype not in (np.uint8, np.float32):
        raise DataError(
            f"{name}: expected pictures of uint8, or of float32 in [0, 1], got {x.dtype}; "
            "scale them first, for example (x / x.max()).astype(np.float32) with one maximum for all data"
        )
    if x.dtype == np.float32 and not (x.min() >= 0.0 and x.max() <= 1.0):
        raise DataError(
            f"{name}: expected finite floats in [0, 1], got values from {x.min()} to {x.max()}; "
            "divide by the largest value that a pixel can have (255 for 8 bits)"
        )
    return np.ascontiguousarray(x)


# ------------------------------------------------------------------------------------------------------------ one picture


def read_image(path: str | os.PathLike, *, channels: int | None = None, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """One PNG, JPEG, BMP or TIFF picture, ``[height, width, channels]``: uint8, or float32 in [0, 1] for 16-bit gray.

    Upright as its EXIF data say. Gray pictures have 1 channel, coloured ones 3, of 8 bits: Pillow gives no more, also
    of 16-bit colour. Palettes and other colour spaces become RGB. Where a picture is transparent it is composited on
    black, because the colours hidden there are arbitrary. ``channels`` 1 or 3 asks for gray (ITU-R 601 luma) or RGB,
    gray repeated.

    Raises ``DataError`` for a file that is none of these or truncated, has several pages, other bit depths, or more
    than ``most_pixels`` pixels, which is judged by the header before anything is decoded. (Above 89 million Pillow warns
    and above 179 million it refuses, unless ``PIL.Image.MAX_IMAGE_PIXELS`` is raised as well.)

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGBA", (4, 2), (200, 100, 0, 255)).save(Path(folder, "a.png"))
    ...     read_image(Path(folder, "a.png"))[0, 0].tolist(), read_image(Path(folder, "a.png"), channels=1).shape
    ([200, 100, 0], (2, 4, 1))
    """
    from PIL import Image, ImageOps

    if channels not in (None, 1, 3):
        raise DataError(f"expected channels to be 1 (gray), 3 (RGB) or None (as the file is), got {channels!r}")
    path = Path(os.path.expanduser(path))
    if path.exists() and not path.is_file():  # a named pipe would be waited for forever
        raise DataError(f"{path}: expected a picture, got something that is no file; for a folder use read_folder")
    try:
        with (
            damage_named(path, "a PNG, JPEG, BMP or TIFF picture"),
            # Named formats only: some of Pillow's others run programs.
            Image.open(path, formats=("PNG", "JPEG", "BMP", "TIFF")) as image,
        ):
            _check_pixels(path, image.width * image.height, most_pixels)
            if image.format == "TIFF" and getattr(image, "n_frames", 1) != 1:
                raise DataError(
                    f"{path}: expected one picture, got a TIFF with several pages; save each page as its own file"
                )
            return _as_array(ImageOps.exif_transpose(image), path, channels)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: {_too_large(most_pixels)} ({error})") from error
    except Warning as error:  # a user who turned warnings into errors: Pillow warns of damaged metadata
        raise DataError(f"{path}: expected an undamaged picture, but {error}") from error


def _check_pixels(path: Path, pixels: int, most_pixels: int) -> None:
    if pixels > most_pixels:
        raise DataError(f"{path}: {_too_large(most_pixels)}, got {pixels:,} by its header")


def _too_large(most_pixels: int) -> str:
    return f"expected at most {most_pixels:,} pixels (shrink it or cut it up, or raise most_pixels if it is trusted)"


def _as_array(image: "Image.Image", path: Path, channels: int | None) -> np.ndarray:
    from PIL import Image

    if image.mode.startswith("I;16"):
        array = np.asarray(image).astype(np.float32)[..., None] / np.float32(65535)
        return np.repeat(array, 3, axis=-1) if channels == 3 else array
    if image.mode in ("I", "F"):
        raise DataError(
            f"{path}: expected 8 or 16 bits per pixel, got 32 (Pillow's mode {image.mode!r}); "
            "scale it to the range of 16 bits with a scale that is the same for all pictures, and save it again"
        )
    gray = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    wanted = channels or (1 if gray else 3)
    image = image.convert("L" if wanted == 1 else "RGB")
    array = np.asarray(image)
    return array[..., None] if wanted == 1 else array


def fit_picture(picture: np.ndarray, size: int | tuple[int, int], fit: Fit, *, covering: bool = False) -> np.ndarray:
    """``picture`` ``[height, width, channels]`` brought to ``size``, as ``read_folder`` describes; uint8 or float32.

    Reduced without aliasing: every pixel of the file counts. ``covering`` averages over exactly the area of a pixel.

    >>> fit_picture(np.full((40, 20, 3), 7, np.uint8), (10, 10), "crop").shape
    (10, 10, 3)
    """
    from PIL import Image

    height, width = pair(size, least=1)
    top, left, bottom, right = 0.0, 0.0, float(picture.shape[0]), float(picture.shape[1])
    if fit == "crop":
        scale = min(bottom / height, right / width)
        top, left = (bottom - scale * height) / 2, (right - scale * width) / 2
        bottom, right = top + scale * height, left + scale * width
    how = Image.Resampling.BOX if covering else Image.Resampling.BILINEAR
    box = (max(left, 0.0), max(top, 0.0), min(right, float(picture.shape[1])), min(bottom, float(picture.shape[0])))
    planes = [Image.fromarray(plane) for plane in np.moveaxis(picture, -1, 0)]
    fitted = np.stack([np.asarray(plane.resize((width, height), how, box=box)) for plane in planes], axis=-1)
    return fitted if picture.dtype == np.uint8 else np.clip(fitted, 0.0, 1.0)
