"""What a column is: one rule after the other, and what is asked about."""

import numpy as np
import pandas as pd
import pytest

from jaxad.data import DataError, roles_of
from jaxad.data.roles import labels_of, normal_word

rng = np.random.default_rng(0)
NUMBERS = rng.normal(size=60).round(3)

ROLES = {
    "number": NUMBERS,
    "number with gaps": (np.where(NUMBERS > 1, np.nan, NUMBERS), "number"),
    "whole numbers with copies": (rng.integers(0, 30, 60), "number"),
    "zero and one": (rng.integers(0, 2, 60), "number"),
    "all different whole numbers, in no order": (rng.permutation(60) * 7, "number"),
    "counts rows": (np.arange(100, 160), "identifier"),
    "beyond 2**53": (2**53 + rng.integers(0, 10**6, 60), "identifier"),
    "names of things": ([f"A{n:04d}" for n in range(60)], "identifier"),
    "sentences": ([f"pump {n} was seen to leak again" for n in range(60)], "text"),
    "nothing": ([None] * 60, "empty"),
    "one number": ([3.5] * 60, "constant"),
    "one word": (["on"] * 60, "constant"),
    "words": (["a", "b", "c"] * 20, "category"),
    "ten thousand levels": ([f"l{n // 2}" for n in range(20_000)], "category"),
    "yes and no": (["Yes", "no"] * 30, "yes/no"),
    "numbers in quotes": (NUMBERS.astype(str), "number"),
    "beyond all": ([10**400 + n for n in range(60)], "identifier"),
    "told by the file": (pd.Categorical(rng.integers(0, 3, 60)), "category"),
    "booleans": ([True, False, None] * 20, "yes/no"),
    "a time": (pd.date_range("2024-01-01", periods=60, freq="h").astype(str), "time"),
    "a day": (["03/04/2024", "25/12/2024", "01/02/2024"] * 20, "time"),
    "time stamps": (pd.date_range("2024-01-01", periods=60, freq="h", tz="Europe/Paris"), "time"),
    "seconds since 1970": (1_700_000_000 + np.arange(60) * 10, "time"),
    "milliseconds": (1_700_000_000_000 + np.arange(60) * 1000, "time"),
    "not seconds": (np.arange(60) * 10 + 7, "number"),
}


@pytest.mark.parametrize("what", ROLES)
def test_the_role_of_a_column(what):
    values, role = ROLES[what] if isinstance(ROLES[what], tuple) else (ROLES[what], what)
    (column,) = roles_of(pd.DataFrame({"column": values}))
    assert column.role == role


ASKED = {
    "label": ({"heat": NUMBERS, "label": [0, 1] * 30}, "looks like labels .0 30, 1 30.*--label-column"),
    "label at scikit-learn's": ({"is_anomaly": [1, 1, -1] * 20}, r"looks like labels \(1 40, -1 20\)"),
    "one label": ({"class": ["normal"] * 60}, r"looks like labels \(normal 60\)"),
    "many labels": ({"heat": NUMBERS, "attack": ["normal", "smurf", "nmap"] * 20}, "looks like labels .*nmap 20"),
    "last and named so": ({"heat": NUMBERS, "Class": ["tan", "red", "blue"] * 20}, "looks like labels"),
    "half numbers half words": ({"heat": ["1.5", "low", "2.5"] * 20}, 'found both .67%.*--missing "low"'),
    "times in three ways": (
        {"at": ["2024-01-02", "02/01/2024", "2024.01.02 10:00"] * 20},
        "times written in one way, got '2024-01-02' and '02/01/2024'",
    ),
    "a list among words": ({"heat": ["a", "b"] * 29 + ["a", [1, 2]]}, "one value in a cell"),
    "a list in a label": ({"label": ["a", [1, 2]] * 30}, "one value in a cell"),
    "lists": ({"heat": [[1, 2]] * 60}, "one value in a cell"),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_nobody_can_know_is_asked_about(what):
    columns, expected = ASKED[what]
    frame = pd.DataFrame(columns)
    with pytest.raises(DataError, match=expected):
        roles_of(frame)
    told = {frame.columns[-1]: "leave-out"}
    assert roles_of(frame, told)[-1].role == "leave-out"
    assert roles_of(frame, ask=False)[-1].role in ("label", "unclear")


def test_a_target_of_many_values_is_no_label():
    assert roles_of(pd.DataFrame({"target": NUMBERS}))[0].role == "number"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"heet": "number"}, "did you mean 'heat'"),
        ({"heat": "colour"}, "one of number, category, time, leave-out, got 'colour'"),
    ],
)
def test_what_is_told_is_checked(told, expected):
    with pytest.raises(DataError, match=expected):
        roles_of(pd.DataFrame({"heat": NUMBERS}), told)


@pytest.mark.parametrize(
    ("labels", "told", "normal", "anomalous"),
    [
        (["Normal", "Normal", "Anomaly"], None, "Normal", [0, 0, 1]),
        (["yes", "no", "no"], None, "no", [1, 0, 0]),
        ([1, -1, 1], None, "1", [0, 1, 0]),
        ([0.0, 1.0, 0.0], None, "0", [0, 1, 0]),
        ([True, False, False], None, "False", [1, 0, 0]),
        (["normal", "smurf", "nmap"], None, "normal", [0, 1, 1]),
        ([1, 1, 1], None, None, [1, 1, 1]),
        (["<=50K", ">50K", "<=50K"], "<=50k", "<=50K", [0, 1, 0]),
        (["smurf", "nmap", "nmap"], "normal", "normal", [1, 1, 1]),
    ],
)
def test_labels_in_words(labels, told, normal, anomalous):
    series = pd.Series(labels)
    found, _ = normal_word(series, "label", told)
    assert found == normal
    assert labels_of(series, found).tolist() == anomalous


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["<=50K", ">50K"], "which of them is normal.*--normal"),
        (["good", "normal"], "which of them is normal"),
        ([0, 1, 2], "holds 0 1, 1 1, 2 1: which of them is normal"),
        (["normal", None], "a label in every row, found none in row 1"),
    ],
)
def test_labels_that_are_not_plain(labels, expected):
    with pytest.raises(DataError, match=expected):
        normal_word(pd.Series(labels), "label")
