"""How well do anomaly maps say where: pixel AUROC, pixel average precision, the largest F1, and the exact AUPRO.

As in ``metrics``, larger = more anomalous: these are ANOMALY maps. All pixels of all pictures are ranked together,
those of good pictures included, so a detector that lights up on good pictures pays for it.
"""

import numpy as np
import scipy.ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score


def pixel_auroc(masks, maps) -> float:
    """Area under the ROC curve over pixels, in [0, 1]: the chance that an anomalous pixel scores above a normal one.

    ``masks [rows, height, width]``: True or 1 where a pixel is anomalous. ``maps [rows, height, width]``: ANOMALY maps,
    larger = more anomalous. Large defects dominate: a detector that misses every small one can still come close to 1;
    ``aupro`` counts every defect alike.

    Raises:
        ValueError: the shapes differ or are not three axes, a value of a map is not finite, a mask holds other values
            than 0 and 1, or there is no anomalous or no normal pixel (as all functions here do).

    >>> masks, maps = np.zeros((2, 2, 2)), np.arange(8.0).reshape(2, 2, 2)
    >>> masks[1, 0] = 1
    >>> round(pixel_auroc(masks, maps), 4)
    0.6667
    """
    return float(roc_auc_score(*(array.ravel() for array in _checked(masks, maps))))


def pixel_average_precision(masks, maps) -> float:
    """Average precision over pixels, in [0, 1]; a coin gets the share of anomalous pixels.

    Arguments and errors as ``pixel_auroc``.

    >>> masks, maps = np.zeros((2, 2, 2)), np.arange(8.0).reshape(2, 2, 2)
    >>> masks[1, 0] = 1
    >>> round(pixel_average_precision(masks, maps), 4)
    0.4167
    """
    return float(average_precision_score(*(array.ravel() for array in _checked(masks, maps))))


def f1_max(masks, maps) -> float:
    """The largest F1 over pixels that any one threshold reaches, in [0, 1]: an upper bound, chosen with the masks known.

    Arguments and errors as ``pixel_auroc``.

    >>> masks, maps = np.zeros((2, 2, 2)), np.arange(8.0).reshape(2, 2, 2)
    >>> masks[1, 0] = 1
    >>> round(f1_max(masks, maps), 4)
    0.6667
    """
    precision, recall, _ = precision_recall_curve(*(array.ravel() for array in _checked(masks, maps)))
    # Precision and recall are both 0 where a threshold flags normal pixels only; F1 is 0 there, not 0 / 0.
    return float(np.max(2.0 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)))


def aupro(masks, maps, *, limit: float = 0.3, connectivity: int = 8) -> float:
    """Area under the per-region overlap curve up to a false-positive rate of ``limit``, divided by it: in [0, 1].

    A region is a connected component of one mask. The per-region overlap (PRO) of a threshold is the share of a region
    that is flagged, averaged over all regions, so that small defects count as much as large ones; it is plotted against
    the share of all normal pixels that are flagged (Bergmann et al., IJCV 2021). Exact: every score is a threshold,
    ties are flagged together, and the curve is cut at ``limit`` by linear interpolation. Implementations with 200
    thresholds, or that rescale the rate by its largest value below the limit, are off by up to half a point.

    ``connectivity`` 8 joins pixels that touch at a corner, 4 those with a common side. Other arguments as
    ``pixel_auroc``. A constant map gets ``limit / 2``.

    Raises:
        ValueError: as ``pixel_auroc``, or ``limit`` is outside (0, 1], or ``connectivity`` is neither 4 nor 8.

    >>> masks, maps = np.zeros((1, 4, 4)), np.zeros((1, 4, 4))
    >>> masks[0, 0, 0] = masks[0, 2, 2:] = 1  # two regions; the map finds the small one and half of the other
    >>> maps[0, 0, 0], maps[0, 2, 2] = 3, 2
    >>> round(aupro(masks, maps, limit=0.3), 4)
    0.7875
    """
    if not 0.0 < limit <= 1.0:
        raise ValueError(f"limit is a false-positive rate in (0, 1], got {limit=}")
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity is 4 (common side) or 8 (side or corner), got {connectivity=}")
    masks, maps = _checked(masks, maps)
    neighbours = np.zeros((3, 3, 3), bool)  # never joins one picture with the next
    neighbours[1] = scipy.ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1)
    regions = np.zeros(masks.shape, np.int32)
    scipy.ndimage.label(masks, structure=neighbours, output=regions)
    sizes = np.bincount(regions.ravel())
    num_regions = sizes.size - 1
    # What flagging one more pixel adds to the overlap.
    gain = np.where(masks, 1.0 / (sizes[regions] * num_regions), 0.0).ravel()
    normal = ~masks.ravel()
    order = np.argsort(-maps, axis=None, kind="stable")
    ranked = maps.ravel()[order]
    last_of_ties = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), ranked.size - 1)
    # Counted in integers: exact however many pixels there are.
    rate = np.cumsum(normal[order])[last_of_ties] / normal.sum()
    overlap = np.cumsum(gain[order])[last_of_ties]
    rate, overlap = np.append(0.0, rate), np.append(0.0, overlap)
    inside = rate <= limit
    end = np.count_nonzero(inside)
    if end == rate.size or rate[end - 1] == limit:
        rate, overlap = rate[inside], overlap[inside]
    else:
        slope = (overlap[end] - overlap[end - 1]) / (rate[end] - rate[end - 1])
        rate = np.append(rate[inside], limit)
        overlap = np.append(overlap[inside], overlap[end - 1] + slope * (limit - rate[end - 1]))
    return float(min(np.trapezoid(overlap, rate) / limit, 1.0))


def _checked(masks, maps) -> tuple[np.ndarray, np.ndarray]:
    """Boolean masks and finite maps, both ``[rows, height, width]``."""
    masks, maps = np.asarray(masks), np.asarray(maps)
    if maps.dtype.kind not in "biuf" or masks.dtype.kind not in "biuf":
        raise ValueError(f"masks and maps must be numbers, got {masks.dtype} and {maps.dtype}")
    if maps.ndim != 3 or masks.shape != maps.shape:
        raise ValueError(
            f"masks and maps must both be [rows, height, width], got shapes {masks.shape} and {maps.shape}; "
            "resize the maps to the masks, and drop an axis of one channel with maps[..., 0]"
        )
    broken = np.flatnonzero(~np.isfinite(maps).all(axis=(1, 2)))
    if broken.size:
        raise ValueError(
            f"the maps of {broken.size} of {len(maps)} rows hold values that are not finite, first rows "
            f"{broken[:5].tolist()}; find out why the detector gave them, no metric is meaningful until then"
        )
    if not np.isin(masks, (0, 1)).all():
        raise ValueError(
            f"masks must be 0 (normal) or 1 (anomalous), got {np.unique(masks)[:5].tolist()}; compare them with > 0"
        )
    masks = masks.astype(bool)
    if not 0 < masks.sum() < masks.size:
        raise ValueError(f"normal and anomalous pixels must be present, got {masks.sum()} anomalous of {masks.size}")
    # Negating unsigned or boolean maps would wrap around.
    return masks, maps.astype(np.float64) if maps.dtype.kind in "biu" else maps
