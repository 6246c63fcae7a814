"""Labelled time series for measuring: the collections in ``series/`` of a data folder, and folders in TSB-AD's layout.

Every series comes with the stretch to learn from; what follows is tested.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxad.data.dataset import DataError
from jaxad.data.suites import _data_dir

COLLECTIONS = ("SMD", "SMAP", "MSL", "SKAB", "NAB", "UCR", "Symbols", "ECG")


class LabelledSeries(NamedTuple):
    """A series cut in two."""

    collection: str
    name: str
    train: np.ndarray
    """[time, channels] float32."""
    test: np.ndarray
    labels: np.ndarray
    """[time] of the test part: 1 = anomalous."""


def series_collections(data_dir: Path | None = None) -> list[LabelledSeries]:
    """180 series of eight public collections, with an anomaly each, as their authors cut them; in a fixed order.

    SMD, SMAP, MSL: their own test part, with all command bits as channels. SKAB: 400 points to learn from. NAB: 15 %, at most 750. UCR: as
    the file's name says. Symbols: 10,000. ECG: 20,000 points (which hold anomalies), then 40,000 to test.

    Raises:
        DataError: no folder ``series`` with the six files.
    """
    folder = _data_dir(data_dir) / "series"
    readers = {
        "smd_4.npz": _machines,
        "smap.npz": _telemetry,
        "msl.npz": _telemetry,
        "skab.npz": _skab,
        "nab.npz": _nab,
        "ucr_tsbuad.npz": _univariate,
    }
    if missing := [name for name in readers if not (folder / name).is_file()]:
        raise DataError(
            f"{folder}: expected the series collections, {missing[0]} is missing; name a folder that holds series/ with --data-dir"
        )
    found = []
    for name, read in readers.items():
        with np.load(folder / name, allow_pickle=False) as arrays:
            found += [each for each in read(name.removesuffix(".npz").upper(), arrays) if each.labels.any()]
    return found


def tsb_ad(folder: Path) -> Iterator[LabelledSeries]:
    """The csv files of a folder in TSB-AD's layout: a line of names, the last one ``Label``; ``..._NAB_..._tr_1007_1st_2014.csv`` learns
    from the first 1,007 points. As there, the whole file is scored, the points learned from with it.

    Raises:
        DataError: no such file.
    """
    files = sorted(folder.glob("*_tr_*_1st_*.csv"))
    if not files:
        raise DataError(
            f"{folder} holds no file in TSB-AD's layout, such as 001_NAB_id_1_Facility_tr_1007_1st_2014.csv"
        )
    for file in files:
        values = np.loadtxt(file, delimiter=",", skiprows=1, dtype=np.float64, ndmin=2)
        begin = int(re.findall(r"_tr_(\d+)_", file.name)[0])
        collection = file.name.split("_")[1]
        rows = values[:, :-1].astype(np.float32)
        yield LabelledSeries(collection, file.stem, rows[:begin], rows, values[:, -1].astype(np.int8))


def _bits(packed: np.ndarray, count: int) -> np.ndarray:
    return np.unpackbits(packed)[:count].astype(np.int8)


def _names(arrays) -> list[str]:
    return sorted({key.split("|")[0] for key in arrays.files if "|" in key})


def _machines(_, arrays):
    for name in _names(arrays):
        test = arrays[f"{name}|test"]
        yield LabelledSeries("SMD", name, arrays[f"{name}|train"], test, _bits(arrays[f"{name}|test_label"], len(test)))


def _telemetry(collection, arrays):
    count = int(arrays["n_cmd"])

    def part(name):
        commands = np.unpackbits(arrays[f"{name}|cmd_bits"], axis=1)[:, :count]
        return np.concatenate([arrays[f"{name}|telemetry"][:, None], commands], axis=1, dtype=np.float32)

    for name in _names(arrays):
        test = part(f"{name}|test")
        yield LabelledSeries(collection, name, part(f"{name}|train"), test, _bits(arrays[f"{name}|label"], len(test)))


def _skab(_, arrays):
    for name in _names(arrays):
        if f"{name}|anomaly" in arrays.files:
            x, y = arrays[f"{name}|x"], arrays[f"{name}|anomaly"].astype(np.int8)
            yield LabelledSeries("SKAB", name, x[:400], x[400:], y[400:])


def _nab(_, arrays):
    for name in _names(arrays):
        x = arrays[f"{name}|value"][:, None]
        begin = min(int(0.15 * len(x)), 750)
        yield LabelledSeries("NAB", name, x[:begin], x[begin:], _bits(arrays[f"{name}|label"], len(x))[begin:])


def _univariate(_, arrays):
    for name in sorted(key for key in arrays.files if not key.endswith("|label")):
        x = arrays[name][:, None]
        if "_UCR_" in name:
            begin, low, high = map(int, re.findall(r"_(\d+)_(\d+)_(\d+)\.txt", name)[0])
            labels = np.zeros(len(x), np.int8)
            labels[low - 1 : high] = 1
            yield LabelledSeries("UCR", name, x[:begin], x[begin:], labels[begin:])
            continue
        labels = _bits(arrays[f"{name}|label"], len(x))
        collection, begin, end = ("Symbols", 10_000, len(x)) if "Symbols" in name else ("ECG", 20_000, 60_000)
        yield LabelledSeries(collection, name, x[:begin], x[begin:end], labels[begin:end])
