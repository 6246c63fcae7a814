"""Data frames of mixed columns as rows of numbers."""

import json

import numpy as np
import pandas as pd
import pytest

from jaxad.data import DataError, FrameEncoder

FRAME = pd.DataFrame(
    {
        "heat": [20.5, 21.0, None, 22.5] * 10,
        "pump": ["a", "a", "b", "c"] * 10,
        "on": [True, False, True, None] * 10,
        "at": pd.date_range("2024-01-01", periods=40, freq="13h"),
        "number": range(40),
    }
)


def test_every_column_becomes_what_its_role_says():
    encoder = FrameEncoder().fit(FRAME)
    x = encoder.transform(FRAME)
    names = encoder.get_feature_names_out().tolist()
    assert names[:7] == ["heat", "pump=a", "pump=b", "pump=c", "pump=(other)", "on=False", "on=True"]
    assert names[8:] == [
        f"at ({clock}, {axis})" for clock in ("time of day", "day of week") for axis in ("sine", "cosine")
    ]
    assert encoder.names_ == ("heat", "pump", "on", "at")
    assert encoder.groups_.tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert np.isnan(x[2, 0])
    assert np.isnan(x[3, 5:8]).all()
    assert np.isfinite(np.delete(x, [0, 5, 6, 7], axis=1)).all()
    hour = FRAME["at"].dt.hour.to_numpy()
    np.testing.assert_allclose(x[:, 8], np.sin(2 * np.pi * hour / 24), atol=1e-9)
    # Rows of different levels lie 1 apart.
    assert np.linalg.norm(x[0, 1:5] - x[2, 1:5]) == pytest.approx(1.0)


def test_columns_are_found_by_name_and_unseen_levels_have_a_place():
    encoder = FrameEncoder(categories="codes").fit(FRAME)
    assert encoder.categorical_features_.tolist() == [1, 2]
    new = pd.DataFrame(
        {"extra": [1, 2], "on": ["maybe", None], "pump": ["z", "b"], "at": ["2024-05-01", None], "heat": [1, 2]}
    )
    x = encoder.transform(new)
    assert x[:, 0].tolist() == [1.0, 2.0]
    assert x[:, 1].tolist() == [3.0, 1.0]
    assert x[0, 2] == 2.0
    assert np.isnan(x[1, 2])
    assert np.isnan(x[1, 3:]).all()
    with pytest.raises(DataError, match=r"column 'pump'.*there is none; did you mean 'pumpe'"):
        encoder.transform(new.rename(columns={"pump": "pumpe"}))
    with pytest.raises(DataError, match=r"column 'heat': expected a number, found 'hot' in row 1 .*--missing \"hot\""):
        encoder.transform(new.assign(heat=["1", "hot"]))


def test_frames_of_others_are_taken_and_arrays_are_not():
    pa = pytest.importorskip("pyarrow")
    encoder = FrameEncoder().fit(pa.Table.from_pandas(FRAME, preserve_index=False))
    np.testing.assert_array_equal(encoder.transform(FRAME), FrameEncoder().fit(FRAME).transform(FRAME))
    with pytest.raises(DataError, match="expected a data frame, got ndarray"):
        FrameEncoder().fit(np.eye(3))


def test_rare_levels_share_a_place():
    words = ["common"] * 50 + [f"rare{n}" for n in range(10)] + ["twice", "twice"]
    encoder = FrameEncoder().fit(pd.DataFrame({"word": words}))
    assert encoder.parts_[0].levels == ("common", "twice")
    assert encoder.transform(pd.DataFrame({"word": ["rare3", "new"]})).argmax(axis=1).tolist() == [2, 2]
    many = pd.DataFrame({"word": np.repeat([f"w{n}" for n in range(300)], 3)})
    assert len(FrameEncoder().fit(many).parts_[0].levels) == 50


def test_the_same_rows_in_another_order_give_the_same_encoder():
    shuffled = FRAME.drop(columns="number").sample(frac=1.0, random_state=1)
    one, other = (FrameEncoder().fit(frame).to_json() for frame in (FRAME.drop(columns="number"), shuffled))
    assert one["parts"] == other["parts"]
    assert one["middle"] == pytest.approx(other["middle"])


def test_gaps_are_filled_where_a_detector_knows_none():
    encoder = FrameEncoder(gaps="fill").fit(FRAME)
    x = encoder.transform(FRAME)
    assert np.isfinite(x).all()
    assert x[2, 0] == 21.0
    assert x[3, 5:8] == pytest.approx(np.array([1, 2, 0]) / 3 * 0.5**0.5)


def test_numbers_as_categories_are_one_level_however_written():
    told = {"code": "category"}
    encoder = FrameEncoder(told, categories="codes").fit(pd.DataFrame({"code": [1, 1, 2, 2]}))
    assert encoder.transform(pd.DataFrame({"code": [2.0, np.nan, 1.0]}))[[0, 2], 0].tolist() == [1.0, 0.0]
    assert encoder.transform(pd.DataFrame({"code": [" 2", "1"]}))[:, 0].tolist() == [1.0, 0.0]


def test_short_times_and_what_only_runs_on_are_left_out():
    at = pd.date_range("2024-01-01", periods=40, freq="10min")
    encoder = FrameEncoder().fit(pd.DataFrame({"heat": range(0, 80, 2), "at": at}))
    assert encoder.names_ == ("heat",)
    assert encoder.roles_[1].role == "time"


def test_nothing_to_learn_from():
    with pytest.raises(DataError, match=r"a column to learn from, found none: number \(identifier"):
        FrameEncoder().fit(FRAME[["number"]])
    with pytest.raises(ValueError, match="gaps are 'keep' or 'fill'"):
        FrameEncoder(gaps="drop").fit(FRAME)


@pytest.mark.parametrize("how", [{}, {"gaps": "fill"}, {"categories": "codes"}])
def test_json_brings_it_back(how):
    encoder = FrameEncoder(**how).fit(FRAME)
    again = FrameEncoder.from_json(json.loads(json.dumps(encoder.to_json())))
    np.testing.assert_array_equal(again.transform(FRAME), encoder.transform(FRAME))
    assert again.get_feature_names_out().tolist() == encoder.get_feature_names_out().tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"parts": []},
        {"parts": "heat"},
        {"middle": [0.0]},
        {"gaps": "eval"},
        {"roles": [[1]]},
        {"parts": [{"name": "heat", "kind": "pickle", "levels": [], "written": "", "periods": []}]},
        {
            "parts": [{"name": "at", "kind": "time", "levels": [], "written": "%Y%!", "periods": ["time of day"]}],
            "middle": [0.0, 0.0],
        },
    ],
)
def test_other_json_is_refused(change):
    kept = FrameEncoder().fit(FRAME).to_json()
    with pytest.raises(DataError, match="expected what a table's encoder has saved"):
        FrameEncoder.from_json(kept | change)
