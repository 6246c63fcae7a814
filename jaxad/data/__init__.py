"""Data on the host: every reader returns a ``Dataset`` of numpy arrays, or says in one sentence why not."""

from jaxad.data.adbench import ADBENCH_GROUPS, ADBENCH_NAMES, adbench, adbench_name, adbench_names, content_digest
from jaxad.data.builtin import BUILTIN, breast_cancer, builtin, digits, wine
from jaxad.data.dataset import DataError, Dataset, did_you_mean, refuse_non_finite
from jaxad.data.tables import read_table

__all__ = [
    "ADBENCH_GROUPS",
    "ADBENCH_NAMES",
    "BUILTIN",
    "DataError",
    "Dataset",
    "adbench",
    "adbench_name",
    "adbench_names",
    "breast_cancer",
    "builtin",
    "content_digest",
    "did_you_mean",
    "digits",
    "read_table",
    "refuse_non_finite",
    "wine",
]
