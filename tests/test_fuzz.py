"""Damaged and hostile inputs in small: what `experiments.fuzz` does at length, and that it sees what it looks for."""

import json
import os
import random
import re
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import fuzz
from jaxad import KNNDetector, export_detector
from jaxad.data import DataError
from jaxad.denoisers.weights import WeightsError, read_state
from jaxad.evaluation import sweep
from jaxad.shipping.bundle import BundleError, load_scorer

QUICK = {
    **{"npy": 250, "npz": 250, "csv": 150, "picture": 250, "JSON body": 300, "file of scores": 150, "records": 150},
    **{"scores of a record": 100, "npz in pieces": 100, "card": 100, "msgpack": 150, "safetensors": 100},
    **{"checkpoint": 8, "run directory": 5},
}


@pytest.mark.filterwarnings("ignore")  # Pillow and our own of what they have read in spite of damage
@pytest.mark.parametrize("name", QUICK)
def test_damaged_inputs_are_refused_or_read(name, tmp_path):
    pytest.importorskip("PIL")
    tally = fuzz.fuzz(name, fuzz.READERS[name], fuzz.Config(), inputs=QUICK[name], seed=1, work=tmp_path)
    assert tally["crashes"] == tally["hangs"] == tally["left_behind"] == 0, tally["what"]
    assert tally["refused"] + tally["accepted"] == tally["inputs"] == QUICK[name]


def careless(read):
    @contextmanager
    def opened():
        sound = [{"file": b"sound"}]
        yield sound, lambda folder: None if (folder / "file").read_bytes() == b"sound" else read(folder)

    return fuzz.Reader(1, ("DataError",), opened)


def raises(error):
    def read(folder):
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "seen"),
    [
        (raises(DataError("a sentence")), "refused"),
        (raises(DataError("")), "crashes"),
        (raises(KeyError("x")), "crashes"),
        (raises(MemoryError()), "crashes"),
        (raises(ValueError("a plain one, where a DataError is stated")), "crashes"),
        (lambda folder: np.array([np.nan]), "crashes"),
        (lambda folder: object(), "crashes"),
        (lambda folder: np.ones(2), "accepted"),
        (lambda folder: (folder / "half written").touch(), "left_behind"),
        (lambda folder: Path("half written").touch(), "left_behind"),
        (lambda folder: os.makedirs(folder / "made"), "left_behind"),
        (lambda folder: time.sleep(5), "hangs"),
    ],
)
def test_what_is_looked_for_is_seen(tmp_path, read, seen):
    config = fuzz.Config(seconds=0.05)
    tally = fuzz.fuzz("careless", careless(read), config, inputs=6, seed=0, work=tmp_path)
    assert tally[seen] >= 4, tally
    assert tally[seen] + tally["accepted"] * (seen != "accepted") == 6  # a mutant may be the sound input again


def test_a_reader_that_takes_memory_is_seen(tmp_path):
    held = []
    tally = fuzz.fuzz(
        *("greedy", careless(lambda folder: held.append(np.ones(2**24)))),
        fuzz.Config(memory_mib=64),  # each array comes fresh from the system, whatever was freed before
        inputs=3,
        seed=0,
        work=tmp_path,
    )
    assert any("grown by" in line for line in tally["what"])


def test_mutants_are_many_and_the_same_for_a_seed():
    pool = [{"a": b'{"x": [1, 2], "y": {"z": 3}}', "b": bytes(range(64))}]
    drawn = [[fuzz.mutated(rng, pool, (b"word",)) for _ in range(300)] for rng in (random.Random(3), random.Random(3))]
    assert drawn[0] == drawn[1]
    assert len({json.dumps({name: data.hex() for name, data in files.items()}) for files in drawn[0]}) > 250
    assert pool == [{"a": b'{"x": [1, 2], "y": {"z": 3}}', "b": bytes(range(64))}]


def test_checksums_put_right_let_damage_pass_them(tmp_path):
    import zipfile

    path = tmp_path / "x.npz"
    np.savez(path, X=np.ones(4), y=np.zeros(2))
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(np.ones(4).tobytes()) + 3] ^= 1
    path.write_bytes(damaged)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() == "X.npy"
    path.write_bytes(fuzz.seal_zip(bytes(damaged)))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_names_of_readers_are_checked(tmp_path):
    with pytest.raises(ValueError, match="readers are npy"):
        fuzz.run(replace(fuzz.Config(), readers=("nyp",), out=tmp_path / "out.jsonl"))
    assert os.listdir(tmp_path) == []


# -------------------------------------------------------------------------------------------------------------- what it has found


def test_weights_that_are_not_finite_are_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.array([1.0, np.inf], np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="a holds infinite values or NaN"):
        read_state(tmp_path / "w.safetensors")


def test_records_nested_without_end_are_no_records(tmp_path):
    (tmp_path / "results.jsonl").write_text("[" * 100_000 + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: expected the JSON record"):
        sweep.read_results(tmp_path)


def test_a_dtype_that_is_no_word_is_refused(tmp_path):
    export_detector(KNNDetector(n_neighbors=1).fit(fuzz.ROWS), tmp_path / "bundle")
    card = json.loads((tmp_path / "bundle" / "card.json").read_text(encoding="utf-8"))
    card["host"]["mean"]["dtype"] = ["float64"]
    (tmp_path / "bundle" / "card.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(BundleError, match="host cannot be"):
        load_scorer(tmp_path / "bundle")


def test_a_bundle_that_announces_more_than_it_holds_is_refused_unseen(tmp_path):
    export_detector(KNNDetector(n_neighbors=1).fit(fuzz.ROWS), tmp_path / "bundle")
    files = {file.name: file.read_bytes() for file in (tmp_path / "bundle").iterdir()}
    shape = re.search(rb"\(\d+, 3\), } *", files["host.npz"])
    assert shape is not None
    lie = b"(1000000000000, 3), }".ljust(len(shape[0]))  # 24 TB
    files["host.npz"] = files["host.npz"].replace(shape[0], lie)
    for name, data in fuzz.seal_bundle(files).items():
        (tmp_path / "bundle" / name).write_bytes(data)
    with pytest.raises(BundleError, match="is announced in"):
        load_scorer(tmp_path / "bundle")
