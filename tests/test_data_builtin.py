"""The data sets that come with scikit-learn: which class is normal, and what the numbers mean."""

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from jaxad.data import BUILTIN, DataError, breast_cancer, builtin, digits, wine


@pytest.mark.parametrize("name", BUILTIN)
def test_every_name_loads(name):
    data = builtin(name)
    assert data.name == name
    assert data.source.startswith("scikit-learn")
    assert data.x.dtype == np.float64
    assert data.y.dtype == np.int64
    assert np.isfinite(data.x).all()
    assert 0 < data.y.sum() < len(data.y)
    assert len(data.columns) == data.x.shape[1]
    assert len(set(data.columns)) == data.x.shape[1]


def test_names_are_the_documented_ones():
    assert set(BUILTIN) == {f"digits_{digit}" for digit in range(10)} | {"breast_cancer", "wine_0", "wine_1", "wine_2"}


@pytest.mark.parametrize("normal", range(10))
def test_digits(normal):
    data, (pixels, digit) = digits(normal), load_digits(return_X_y=True)
    np.testing.assert_array_equal(data.y == 0, digit == normal)
    np.testing.assert_array_equal(data.x * 16, pixels)
    assert (data.x.min(), data.x.max()) == (0, 1)


def test_benign_is_normal():
    data = breast_cancer()
    assert (np.count_nonzero(data.y == 0), np.count_nonzero(data.y == 1)) == (357, 212)
    malignant = list(load_breast_cancer().target_names).index("malignant")
    np.testing.assert_array_equal(data.y == 1, load_breast_cancer().target == malignant)


@pytest.mark.parametrize("normal", range(3))
def test_wine(normal):
    np.testing.assert_array_equal(wine(normal).y == 0, load_wine().target == normal)


def test_unknown_names_and_classes():
    with pytest.raises(DataError, match=r"unknown data set 'digit_3'; did you mean 'digits_3'"):
        builtin("digit_3")
    with pytest.raises(DataError, match=r"known: digits_0, .*\.\.\."):
        builtin("")
    with pytest.raises(DataError, match="from 0 to 9, got normal=10"):
        digits(10)
    with pytest.raises(DataError, match="from 0 to 2, got normal='red'"):
        wine("red")
