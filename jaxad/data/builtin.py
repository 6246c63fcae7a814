"""Data sets that come with scikit-learn: real, small, no network. One class is normal, the rest is anomalous."""

from typing import Any

import numpy as np

from jaxad.data.dataset import DataError, Dataset, did_you_mean

BUILTIN = (*(f"digits_{digit}" for digit in range(10)), "breast_cancer", *(f"wine_{cultivar}" for cultivar in range(3)))


def builtin(name: str) -> Dataset:
    """The data set of that name, one of ``BUILTIN``; ``DataError`` with the nearest names for any other.

    >>> builtin("breast_cancer")
    Dataset 'breast_cancer': 569 rows x 30 features, 212 anomalous (scikit-learn breast_cancer)
    """
    if name not in BUILTIN:
        raise DataError(f"unknown data set {name!r}; {did_you_mean(str(name), BUILTIN)}")
    if name == "breast_cancer":
        return breast_cancer()
    family, normal = name.split("_")
    return digits(int(normal)) if family == "digits" else wine(int(normal))


def digits(normal: int = 0) -> Dataset:
    """Handwritten digits, ``x`` ``[1797, 64]``: 8 x 8 pixels in [0, 1]. Digit ``normal`` is normal, others anomalous.

    Raises ``DataError`` unless ``normal`` is from 0 to 9.

    >>> data = digits(normal=3)
    >>> data.name, data.x.shape, float(data.x.max()), int((data.y == 0).sum())
    ('digits_3', (1797, 64), 1.0, 183)
    """
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    columns = tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8))
    return Dataset(
        f"digits_{normal}",
        bunch.data / 16,
        _others(bunch.target, normal),
        source="scikit-learn digits",
        columns=columns,
    )


def breast_cancer() -> Dataset:
    """Breast cancer, Wisconsin (diagnostic), ``x`` ``[569, 30]`` cell measurements: benign normal, malignant anomalous.

    >>> breast_cancer().columns[:2]
    ('mean radius', 'mean texture')
    """
    from sklearn.datasets import load_breast_cancer

    bunch: Any = load_breast_cancer()
    benign = list(bunch.target_names).index("benign")
    return Dataset(
        "breast_cancer",
        bunch.data,
        _others(bunch.target, benign),
        source="scikit-learn breast_cancer",
        columns=tuple(bunch.feature_names),
    )


def wine(normal: int = 0) -> Dataset:
    """Chemistry of wines, ``x`` ``[178, 13]``: the cultivar ``normal`` is normal, the others anomalous.

    Raises ``DataError`` unless ``normal`` is from 0 to 2.

    >>> wine(normal=2)
    Dataset 'wine_2': 178 rows x 13 features, 130 anomalous (scikit-learn wine)
    """
    from sklearn.datasets import load_wine

    bunch: Any = load_wine()
    return Dataset(
        f"wine_{normal}",
        bunch.data,
        _others(bunch.target, normal),
        source="scikit-learn wine",
        columns=tuple(bunch.feature_names),
    )


def _others(classes: np.ndarray, normal: int) -> np.ndarray:
    known = np.unique(classes)
    if normal not in known:
        raise DataError(f"expected a normal class from {known.min()} to {known.max()}, got {normal=}")
    return (classes != normal).astype(np.int64)
