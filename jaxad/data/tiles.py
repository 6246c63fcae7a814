"""Large pictures cut into overlapping tiles, and maps of the tiles put together again without seams."""

from dataclasses import dataclass

import numpy as np

from jaxad.data.dataset import DataError


@dataclass(frozen=True)
class TileGrid:
    """Where the tiles of ``rows`` pictures of one size lie: tops and lefts in pixels, the same for every picture."""

    rows: int
    picture: tuple[int, int]
    tile: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @property
    def corners(self) -> list[tuple[int, int]]:
        """``(top, left)`` of the tiles of one picture, in the order in which they are cut: along its rows."""
        return [(top, left) for top in self.tops for left in self.lefts]


def tiles(images, size: int | tuple[int, int], overlap: int | tuple[int, int] = 0) -> tuple[np.ndarray, TileGrid]:
    """Cut ``images`` ``[rows, height, width, ...]`` into ``(tiles [rows * tiles_each, *size, ...], grid)``.

    ``size`` is ``(height, width)`` of a tile in pixels or one number for both, ``overlap`` the least overlap of
    neighbours. Tiles are spread evenly, the first and the last flush with the border, so every pixel is in at least
    one tile and no tile is padded. The tiles of a picture follow one another: row ``i`` of the tiles comes from picture
    ``i // len(grid.corners)``. ``stitch`` puts maps of the tiles together again.

    Raises ``DataError`` if a picture is smaller than a tile or the overlap is not in ``[0, size)``.

    >>> cut, grid = tiles(np.zeros((2, 100, 64, 1), np.uint8), 64, overlap=16)
    >>> cut.shape, grid.tops, grid.lefts
    ((4, 64, 64, 1), (0, 36), (0,))
    """
    images = np.asarray(images)
    if images.ndim < 3 or 0 in images.shape:
        raise DataError(f"expected pictures of shape [rows, height, width, ...], got shape {list(images.shape)}")
    height, width = pair(size)
    starts = [
        _starts(whole, part, shared)
        for whole, part, shared in zip(images.shape[1:3], (height, width), pair(overlap), strict=True)
    ]
    grid = TileGrid(len(images), images.shape[1:3], (height, width), *starts)
    cut = np.stack([images[:, top : top + height, left : left + width] for top, left in grid.corners], axis=1)
    return cut.reshape(-1, *cut.shape[2:]), grid


def stitch(maps, grid: TileGrid) -> np.ndarray:
    """Maps of tiles, ``[rows * tiles_each, *size, ...]``, put together to ``[rows, height, width, ...]`` of pictures.

    Where tiles overlap their values are averaged with weights that fall to almost nothing at the border of a tile
    (sin squared), so no seam shows where neighbours disagree. What was cut comes back: ``stitch(*tiles(x, ...))`` is
    ``x`` to rounding, and constant maps stay constant. Values in float64 if the maps are, else in float32.

    Raises ``DataError`` for maps that are not those of the grid.

    >>> cut, grid = tiles(np.arange(60.0).reshape(1, 6, 10), size=4, overlap=2)
    >>> bool(np.allclose(stitch(cut, grid)[0].ravel(), np.arange(60.0)))
    True
    """
    maps = np.asarray(maps)
    each = len(grid.corners)
    if maps.ndim < 3 or maps.shape[:3] != (grid.rows * each, *grid.tile):
        raise DataError(
            f"expected {grid.rows * each} maps of tiles of {grid.tile} pixels, got shape {list(maps.shape)}; "
            "stitch all maps of the tiles that were cut, in their order"
        )
    height, width = grid.tile
    window = np.outer(_window(height), _window(width)).reshape(height, width, *[1] * (maps.ndim - 3))
    total = np.zeros((*grid.picture, *[1] * (maps.ndim - 3)))
    for top, left in grid.corners:
        total[top : top + height, left : left + width] += window
    whole = np.empty(
        (grid.rows, *grid.picture, *maps.shape[3:]), maps.dtype if maps.dtype == np.float64 else np.float32
    )
    for row in range(grid.rows):  # one picture at a time in float64: memory stays that of the result
        blended = np.zeros(whole.shape[1:])
        for (top, left), part in zip(grid.corners, maps[row * each : (row + 1) * each], strict=True):
            blended[top : top + height, left : left + width] += window * part
        whole[row] = blended / total
    return whole


def pair(size: int | tuple[int, int], *, least: int = 0) -> tuple[int, int]:
    """``(height, width)`` from one number of pixels for both or from two; ``DataError`` for anything else.

    >>> pair(28), pair((96, 64))
    ((28, 28), (96, 64))
    """
    both = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(both) != 2 or any(not isinstance(length, int | np.integer) or length < least for length in both):
        raise DataError(f"expected a whole number of pixels from {least}, or (height, width), got {size!r}")
    return int(both[0]), int(both[1])


def _starts(whole: int, part: int, shared: int) -> tuple[int, ...]:
    if part < 1 or not 0 <= shared < part:
        raise DataError(f"expected an overlap from 0 to less than the size of a tile, got {shared} for {part} pixels")
    if whole < part:
        raise DataError(
            f"expected pictures of at least the size of a tile, got {whole} pixels for tiles of {part}; "
            "use smaller tiles or enlarge the pictures"
        )
    number = 1 + -((part - whole) // (part - shared))
    return tuple(int(start) for start in np.linspace(0, whole - part, number).round())


def _window(length: int) -> np.ndarray:
    return np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2
