"""Fitted detectors on disk: the same scores afterwards, all or nothing when writing, one sentence for whatever cannot be read."""

import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.utils.validation import NotFittedError

from jaxad import denoisers, noise, sampling, scoring, training
from jaxad.denoisers import MLP, DiT
from jaxad.detectors import ConformalDetector, CycleDetector, persistence
from jaxad.detectors.consensus import ConsensusDetector
from jaxad.detectors.copula import COPOD, ECOD
from jaxad.detectors.diffusion import DiffusionDetector
from jaxad.detectors.diffusion_time import DTECategorical, DTEInverseGamma
from jaxad.detectors.estimator import Estimator
from jaxad.detectors.gaussian import MahalanobisDetector, SquaredNorm
from jaxad.detectors.image import ImageDetector, PictureTable
from jaxad.detectors.neighbours import DTENonParametric, KNNDetector
from jaxad.detectors.persistence import load_detector, load_extra, save_detector
from jaxad.detectors.series import SeriesDetector
from jaxad.runtime import checkpoint
from jaxad.runtime.checkpoint import CheckpointError, check_writable, load_checkpoint, save_checkpoint
from jaxad.runtime.sharding import data_mesh

RNG = np.random.default_rng(0)
X = np.asfortranarray(RNG.normal(size=(150, 5)) * [1.0, 10.0, 100.0, 1e-3, 1.0])
QUERIES = np.concatenate([X[:40] * 1.1, RNG.normal(size=(40, 5)) * 30.0])
SMALL = MLP(width=16, depth=1)


def small(**settings):
    return DiffusionDetector(SMALL, **{"num_steps": 5, "draws": 2, **settings})


DETECTORS = {
    "diffusion-mesh": small(mesh=data_mesh(), levels=noise.cosine(50)[10:20], random_state=np.int64(3)),
    "diffusion-everything": small(
        num_steps=0,
        schedule=noise.linear(100),
        levels=noise.reverse_paths(noise.linear(100), [30, 60], 4),
        scorer=partial(scoring.ancestral_reconstruction_error, variance=sampling.fixed_large),
        aggregate=scoring.z_max,
        prediction=noise.SCORE,
        loss=partial(training.hybrid_loss, vlb_weight=0.5),
    ).set_params(network=MLP(width=8, depth=1, learned_variance=True)),
    "dte-c": DTECategorical(num_steps=5, num_bins=4),
    "dte-ig": DTEInverseGamma(num_steps=5),
    "dte-np": DTENonParametric(),
    "dte-np-quirks": DTENonParametric(standardize=False, official_quirks=True),
    "knn": KNNDetector(aggregate="median", standardize=True),
    "copod": COPOD(),
    "copod-transductive": COPOD(transductive=True, nan_quirk=True),
    "ecod": ECOD(false_alarm_rate=0.1),
    "mahalanobis": MahalanobisDetector(),
    "norm": SquaredNorm(),
    "consensus": ConsensusDetector(num_networks=2, num_steps=20),
    "consensus-closed": ConsensusDetector(num_networks=0),
    "conformal": ConformalDetector(KNNDetector()),
    "conformal-cross": ConformalDetector(MahalanobisDetector(), method="cross", folds=3),
}


@pytest.fixture(scope="module")
def diffusion():
    return small().fit(X)


@pytest.fixture
def saved(tmp_path, diffusion):
    save_detector(diffusion, tmp_path / "saved")
    return tmp_path / "saved"


def edit(folder, change):
    """Change the description in place; the files' digests stay right, as a hostile author would keep them."""
    description = json.loads((folder / "detector.json").read_text())
    change(description)
    (folder / "detector.json").write_text(json.dumps(description))


def listing(folder: Path) -> dict:
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# -------------------------------------------------------------------------------------------------------- the same afterwards


@pytest.mark.parametrize("name", DETECTORS)
def test_loaded_detector_is_the_saved_one(tmp_path, name):
    detector = DETECTORS[name].fit(X)
    save_detector(detector, tmp_path / "saved")
    loaded = load_detector(tmp_path / "saved")
    assert type(loaded) is type(detector)
    same = np.testing.assert_array_equal
    if name == "diffusion-mesh":
        # XLA rounds otherwise on eight devices than on one, where the loaded detector is.
        assert loaded.mesh is None
        detector.set_params(mesh=None)
    same(loaded.score_samples(QUERIES), detector.score_samples(QUERIES))
    same(loaded.predict(QUERIES), detector.predict(QUERIES))
    before, after = detector.get_params(), loaded.get_params()
    assert before.keys() == after.keys()
    plain = [key for key, value in before.items() if isinstance(value, (bool, int, float, str, type(None), MLP, DiT))]
    assert {key: after[key] for key in plain} == {key: before[key] for key in plain}
    assert vars(loaded).keys() == vars(detector).keys()
    for key, value in vars(detector).items():
        if isinstance(value, np.ndarray):
            assert vars(loaded)[key].dtype == value.dtype
            np.testing.assert_array_equal(vars(loaded)[key], value)


def test_every_class_is_tested_and_every_score_and_network_has_a_name():
    known = persistence.known_things()
    classes = {
        thing
        for thing in known.values()
        if isinstance(thing, type) and issubclass(thing, Estimator) and not thing.__name__.startswith("_")
    }
    # test_image_detector.py, test_cycle.py, test_series.py
    elsewhere = {ImageDetector, PictureTable, CycleDetector, SeriesDetector, Estimator}
    assert {type(detector) for detector in DETECTORS.values()} | elsewhere == classes
    scores = {
        name
        for name, function in inspect.getmembers(scoring, inspect.isfunction)
        if {"key", "denoise", "draws"} <= inspect.signature(function).parameters.keys() and not name.endswith("_map")
    }
    networks = {name for name in denoisers.__all__ if inspect.isclass(getattr(denoisers, name))}
    for room, names in (("scoring", scores), ("scoring", COMBINATIONS), ("denoisers", networks)):
        assert names
        assert {f"{room}.{name}" for name in names} <= known.keys()
    assert {"noise.VELOCITY", "training.simple_loss", "sampling.fixed_small"} <= known.keys()
    for name, thing in known.items():
        assert not getattr(thing, "__module__", "").startswith(("os", "subprocess", "builtins")), name


COMBINATIONS = [name for name, thing in vars(scoring).items() if isinstance(thing, scoring.Combination)]


@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_combination_comes_back_with_what_it_learned(tmp_path, diffusion, name):
    # scikit-learn's clone copies the pair of functions; it is known by its content.
    detector = load_detector_like(diffusion).set_params(**clone(small(aggregate=getattr(scoring, name))).get_params())
    save_detector(detector.calibrate(X), tmp_path / "saved")
    loaded = load_detector(tmp_path / "saved")
    assert loaded.scorer_.combined.aggregate is loaded.aggregate is getattr(scoring, name)
    assert jax.tree.structure(loaded.scorer_) == jax.tree.structure(detector.scorer_)
    for before, after in zip(*map(jax.tree.leaves, (detector.scorer_, loaded.scorer_)), strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(loaded.score_samples(QUERIES), detector.score_samples(QUERIES))


def test_a_score_of_statistics_comes_back(tmp_path, diffusion):
    detector = (
        load_detector_like(diffusion).set_params(scorer=scoring.path_statistics, aggregate=scoring.gmm).calibrate(X)
    )
    assert detector.scores_by_level(QUERIES).shape == (6, len(QUERIES))
    save_detector(detector, tmp_path / "saved")
    loaded = load_detector(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.score_samples(QUERIES), detector.score_samples(QUERIES))


def test_names_come_back_as_the_very_objects(saved, diffusion):
    loaded = load_detector(saved)
    # Equal static arguments: the loaded detector runs on the programs compiled for the saved one.
    assert loaded.scorer is loaded.scorer_.score is diffusion.scorer
    assert loaded.scorer_.prediction is noise.VELOCITY
    assert loaded.scorer_.network == diffusion.scorer_.network
    assert jax.tree.structure(loaded.scorer_) == jax.tree.structure(diffusion.scorer_)


def test_loaded_detector_scores_and_saves_as_the_first(tmp_path, saved, diffusion):
    loaded = load_detector(saved)
    np.testing.assert_array_equal(loaded.score_samples(QUERIES), diffusion.score_samples(QUERIES))
    save_detector(loaded, tmp_path / "again")
    first, again = load_checkpoint(saved), load_checkpoint(tmp_path / "again")
    assert first[1] == again[1]
    assert first[0].keys() == again[0].keys()
    assert all(np.array_equal(first[0][name], again[0][name]) for name in first[0])
    loaded.set_params(levels=noise.cosine(50)[10:20]).calibrate(X)


def test_images(tmp_path):
    images = RNG.normal(size=(12, 8, 8, 1)).astype(np.float32)
    detector = small(num_steps=0).set_params(network=DiT(hidden=16, depth=1, heads=2, patch_size=4)).fit(images)
    save_detector(detector, tmp_path / "saved")
    loaded = load_detector(tmp_path / "saved")
    assert loaded.sample_shape_ == (8, 8, 1)
    np.testing.assert_array_equal(loaded.score_samples(images), detector.score_samples(images))


def test_column_names_and_extra(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=["heat", "load", "flöw", "x y", "../e"])
    extra = {"columns": list(frame.columns), "note": None, "numbers": [1, 2.5]}
    save_detector(ECOD().fit(frame), tmp_path / "saved", extra=extra)
    assert load_extra(tmp_path / "saved") == extra
    loaded = load_detector(tmp_path / "saved")
    assert loaded.feature_names_in_.tolist() == list(frame.columns)
    loaded.score_samples(frame)
    with pytest.raises(ValueError, match="feature names"):
        loaded.score_samples(frame[frame.columns[::-1]])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("diffusion-mesh", marks=pytest.mark.slow),
        "mahalanobis",
        pytest.param("knn", marks=pytest.mark.slow),
    ],
)
def test_a_fresh_process_on_one_device_agrees(tmp_path, name):
    detector = DETECTORS[name].fit(X)
    save_detector(detector, tmp_path / "saved")
    if name == "diffusion-mesh":
        detector.set_params(mesh=None)
    np.save(tmp_path / "queries.npy", QUERIES)
    program = """
        import sys, jax, numpy as np
        from jaxad.detectors.persistence import load_detector
        assert len(jax.devices()) == 1
        folder = sys.argv[1]
        scores = load_detector(f"{folder}/saved").score_samples(np.load(f"{folder}/queries.npy"))
        np.save(f"{folder}/scores.npy", scores)
    """
    assert run(program, tmp_path) == ("", "")
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), detector.score_samples(QUERIES), rtol=1e-6, atol=1e-6)


def run(program, *arguments):
    """What a fresh process on one device wrote to the terminal: (stdout, stderr)."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    "array",
    [
        np.float64(1) / np.array([3.0, 7.0]),
        np.array(np.pi),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6, dtype=">f4")[::2],
        np.zeros((0, 3), np.float32),
        np.array([[True], [False]]),
        np.array([np.nan, np.inf, -0.0]),
        np.array([2**63 - 1], np.int64),
        np.float16([1.5]),
    ],
)
def test_arrays_come_back_to_the_bit(tmp_path, array):
    save_checkpoint(tmp_path / "saved", {"deep.name": array}, ["content"])
    arrays, content = load_checkpoint(tmp_path / "saved")
    assert content == ["content"]
    back = arrays["deep.name"]
    assert type(back) is np.ndarray
    assert back.shape == array.shape
    assert back.dtype == array.dtype.newbyteorder("=")
    assert back.flags.c_contiguous == np.ascontiguousarray(array).flags.c_contiguous or back.flags.f_contiguous
    assert back.tobytes() == array.astype(back.dtype).tobytes()
    assert back.flags.writeable
    if array.ndim == 2:
        assert back.flags.f_contiguous == array.flags.f_contiguous


def test_sharded_arrays_need_no_eight_devices(tmp_path):
    mesh = data_mesh()
    assert mesh.size == 8
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names[0]))
    sharded = jax.device_put(np.arange(16.0, dtype=np.float32), sharding)
    save_checkpoint(tmp_path / "saved", {"a": sharded}, None)
    program = "import sys; from jaxad.runtime.checkpoint import load_checkpoint; print(load_checkpoint(sys.argv[1])[0]['a'].sum())"
    assert run(program, tmp_path / "saved") == ("120.0\n", "")


# ---------------------------------------------------------------------------------------------------------- what cannot be saved


def my_score(key, denoise, x, levels, *, draws):
    return scoring.denoising_error(key, denoise, x, levels, draws=draws)


class MyMLP(MLP):
    pass


class MyKNN(KNNDetector):
    pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scorer": my_score}, "scorer = .*my_score.*it may be a number.*no code"),
        ({"scorer": partial(my_score)}, "scorer = .*no code"),
        ({"scorer": partial(scoring.denoising_error, memory_budget=object())}, "scorer.memory_budget"),
        ({"scorer": lambda *a, **k: 0}, "scorer = "),
        ({"scorer_": {"network": MyMLP()}}, "scorer_.network = MyMLP.*a network"),
        ({"aggregate": max}, "aggregate = .*combination"),
        ({"aggregate": scoring.Combination(max, min)}, "aggregate.fit = "),
        ({"scorer_": {"prediction": noise.Prediction(print, max)}}, "scorer_.prediction.target = "),
        ({"loss": partial(training.simple_loss, weight=training.min_snr())}, "loss.weight.*detector.loss = None"),
        ({"random_state": np.random.RandomState(0)}, "random_state.*whole number"),
        ({"learning_rate": float("nan")}, "learning_rate = nan"),
        ({"scorer_": {"key": jax.random.key(0)}}, "scorer_.key"),
    ],
)
def test_what_has_no_name_is_refused_before_anything_is_written(tmp_path, diffusion, settings, message):
    detector = load_detector_like(diffusion)
    if "scorer_" in settings:
        settings = {"scorer_": dataclasses.replace(diffusion.scorer_, **settings["scorer_"])}
    vars(detector).update(settings)
    with pytest.raises(ValueError, match=message):
        save_detector(detector, tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def load_detector_like(detector):
    other = type(detector)()
    vars(other).update(vars(detector))
    return other


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (IsolationForest().fit(X), "IsolationForest.*only jaxad's own.*skops"),
        (MyKNN().fit(X), "MyKNN"),
        (KNNDetector, "type"),
        (None, "NoneType"),
    ],
)
def test_what_is_not_ours_is_refused(tmp_path, detector, message):
    with pytest.raises(ValueError, match=message):
        save_detector(detector, tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_unfitted_detector_and_extra_that_is_not_json(tmp_path):
    with pytest.raises(NotFittedError):
        save_detector(ECOD(), tmp_path / "saved")
    for extra in ({"a": {1, 2}}, float("nan"), {"x": np.ones(2)}):
        with pytest.raises(ValueError, match="extra must be a JSON value"):
            save_detector(SquaredNorm().fit(X), tmp_path / "saved", extra=extra)
    with pytest.raises(ValueError, match="cannot be saved"):
        save_checkpoint(tmp_path / "saved", {"../up": np.ones(2)}, None)
    with pytest.raises(ValueError, match="cannot be saved"):
        save_checkpoint(tmp_path / "saved", {"a": np.array([object()])}, None)
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------------------- all or nothing


def test_saving_again_replaces(tmp_path):
    target = tmp_path / "saved"
    save_detector(SquaredNorm().fit(X), target)
    check_writable(target)
    save_detector(KNNDetector().fit(X), target)
    save_detector(SquaredNorm().fit(X), target)
    assert isinstance(load_detector(target), SquaredNorm)
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]
    link = tmp_path / "link"
    link.symlink_to(target)
    save_detector(ECOD().fit(X), link)
    assert link.is_symlink()
    assert isinstance(load_detector(target), ECOD)


def occupied_by_notes(path):
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")


def occupied_by_detector_and_notes(path):
    save_detector(SquaredNorm().fit(X), path)
    (path / "notes.txt").write_text("years of work")


def occupied_by_other_json(path):
    path.mkdir()
    (path / "detector.json").write_text('{"format": "particle detector"}')


@pytest.mark.parametrize(
    "occupy",
    [Path.mkdir, Path.touch, occupied_by_notes, occupied_by_detector_and_notes, occupied_by_other_json],
)
def test_nothing_of_others_is_replaced(tmp_path, occupy):
    target = tmp_path / "saved"
    occupy(target)
    before = listing(tmp_path)
    for attempt in (check_writable, partial(save_detector, SquaredNorm().fit(X))):
        with pytest.raises(CheckpointError, match=r"cannot (save to|replace)"):
            attempt(target)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("place", ["missing/saved", "file/saved", "x" * 300, "nul\0byte"])
def test_unwritable_place(tmp_path, place):
    (tmp_path / "file").touch()
    for attempt in (check_writable, partial(save_detector, SquaredNorm().fit(X))):
        with pytest.raises(CheckpointError, match="cannot save to"):
            attempt(str(tmp_path / place))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_parent(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="Permission denied"):
        check_writable(tmp_path / "saved")


def test_check_writable_leaves_nothing(tmp_path):
    check_writable(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_full_disk(tmp_path):
    """A limit on the file size stands in for a full disk: the old detector stays, no trace is left, no traceback printed."""
    save_detector(SquaredNorm().fit(X), tmp_path / "saved")
    before = listing(tmp_path)
    program = """
        import resource, sys, numpy as np
        from jaxad.runtime.checkpoint import CheckpointError, save_checkpoint
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            save_checkpoint(sys.argv[1], {"a": np.random.default_rng(0).normal(size=100_000)}, None)
        except CheckpointError as error:
            print(error)
    """
    out, err = run(program, tmp_path / "saved")
    assert out.startswith("cannot save to")
    assert "File too large" in out
    assert out.count("\n") == 1
    assert err == ""
    assert listing(tmp_path) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_failure_at_the_last_moment_keeps_the_old(tmp_path, monkeypatch, error):
    save_detector(SquaredNorm().fit(X), tmp_path / "saved")
    before = listing(tmp_path)
    rename = os.rename

    def fails_for_the_new(source, target):
        if Path(target) == tmp_path / "saved" and Path(source).name.startswith(".jaxad-saving"):
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_for_the_new)
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        save_detector(KNNDetector().fit(X), tmp_path / "saved")
    assert listing(tmp_path) == before


# --------------------------------------------------------------------------------------------------------------- bad directories


def broken_link(path):
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize("make", [None, Path.touch, Path.mkdir, occupied_by_notes, occupied_by_other_json, broken_link])
def test_no_detector_there(tmp_path, make):
    if make:
        make(tmp_path / "saved")
    for read in (load_detector, load_extra):
        with pytest.raises(CheckpointError, match=r"is not a saved jaxad detector|no such directory|a file, not a"):
            read(tmp_path / "saved")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"null", b"[]", b"3", b'{"format": 3}', b"1" * 5000],
    ids=lambda text: repr(text[:9]),
)
def test_damaged_description(saved, text):
    (saved / "detector.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"not readable as JSON|not a saved jaxad detector"):
        load_detector(saved)


def test_truncated_description(saved):
    text = (saved / "detector.json").read_bytes()
    for end in range(0, len(text) - 2, 97):
        (saved / "detector.json").write_bytes(text[:end])
        with pytest.raises(CheckpointError, match="not readable as JSON"):
            load_detector(saved)


def test_every_damaged_file_is_noticed(tmp_path, capfd, saved):
    """Orbax itself returns wrong numbers for a flipped bit in an array, and prints tracebacks for one in its index."""
    for number, file in enumerate(sorted((saved / "arrays").rglob("*"))):
        if not file.is_file():
            continue
        for kind in ("delete", "truncate", "flip"):
            copy = tmp_path / f"{kind}{number}"
            shutil.copytree(saved, copy)
            victim = copy / file.relative_to(saved)
            data = bytearray(victim.read_bytes())
            victim.unlink()
            if kind == "truncate":
                victim.write_bytes(data[:-1])
            if kind == "flip":
                data[len(data) // 2] ^= 16
                victim.write_bytes(data)
            with pytest.raises(CheckpointError, match="missing, damaged or foreign"):
                load_detector(copy)
    shutil.rmtree(saved / "arrays")
    with pytest.raises(CheckpointError, match="missing, damaged or foreign"):
        load_detector(saved)
    assert capfd.readouterr() == ("", "")


def test_links_and_pipes_among_the_arrays(saved):
    (saved / "arrays" / "link").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="missing, damaged or foreign"):
        load_detector(saved)
    (saved / "arrays" / "link").unlink()
    os.mkfifo(saved / "arrays" / "pipe")
    with pytest.raises(CheckpointError, match="missing, damaged or foreign"):
        load_detector(saved)


def test_versions(saved):
    edit(saved, lambda d: d.update(jaxad_version="0.0.1"))
    with pytest.warns(UserWarning, match=r"saved by jaxad '0\.0\.1'"):
        load_detector(saved)
    edit(saved, lambda d: d["content"].pop("detector_format"))
    with (
        pytest.warns(UserWarning, match="saved by"),
        pytest.raises(CheckpointError, match=r"is in format 1.*fit the detector again"),
    ):
        load_detector(saved)
    edit(saved, lambda d: d.update(format_version=2))
    with pytest.raises(CheckpointError, match=r"format 2.*upgrade jaxad"):
        load_detector(saved)
    for version in (None, "1", 0, True, [1]):
        edit(saved, lambda d, version=version: d.update(format_version=version))
        with pytest.raises(CheckpointError, match="format version"):
            load_detector(saved)


def at(*path):
    """An edit: ``at(key, ..., key, value)`` sets one value of the description."""

    def change(description):
        *keys, last, value = path
        for key in keys:
            description = description[key]
        description[last] = value

    return change


PARAMETERS, FITTED = "content/parameters", "content/fitted"
KERNEL = "arrays/scorer_.params.Dense_0.kernel"
SCORER = f"{FITTED}/scorer_/fields"
SIGNATURE = {"shape": [1], "dtype": "int8", "order": "C"}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            "content/class",
            "detectors.DiffusionDetectr",
            "no detector is called.*did you mean 'detectors.DiffusionDetector'",
        ),
        ("content/class", "os.system", "no detector is called"),
        ("content/class", ["x"], "no working detector"),
        ("content/class", "detectors.COPOD", "no parameter of COPOD"),
        ("content/class", "detectors.DenoisingScore", "is no detector"),
        ("content", None, "is in format 1"),
        ("content", {}, "is in format 1"),
        ("content/detector_format", 3, "is in format 3"),
        (
            f"{PARAMETERS}/scorer",
            {"$name": "scoring.denoising_eror"},
            "no scorer is called.*did you mean 'scoring.denoising_error'",
        ),
        (f"{PARAMETERS}/scorer", {"$name": "noise.NoiseLevel"}, "scorer cannot be"),
        (f"{SCORER}/score", "denoising_error", "no working detector"),
        (f"{PARAMETERS}/scorer", {"$partial": {"$name": "z"}, "keywords": {}}, "no scorer is called"),
        (f"{PARAMETERS}/scorer", {"$partial": {}, "keywords": {}}, "no working detector"),
        (f"{PARAMETERS}/scorer", {"$import": "os.system"}, "scorer cannot be"),
        (f"{PARAMETERS}/network", {"$name": "denoisers.MLP"}, "network cannot be"),
        (f"{PARAMETERS}/network", {"$class": "denoisers.MPL", "fields": {}}, "did you mean 'denoisers.MLP'"),
        (f"{PARAMETERS}/network", {"$class": "denoisers.MLP", "fields": {"parnt": 3}}, "no working detector"),
        (f"{PARAMETERS}/dras", 3, "no parameter of DiffusionDetector is called 'dras'.*'draws'"),
        (f"{SCORER}/draws", "many", "no working detector"),
        (f"{SCORER}/draws", -1, "no working detector"),
        (PARAMETERS, [], "no working detector|draws"),
        (f"{FITTED}/score_samples", 3, "no fitted attribute is called 'score_samples'"),
        (f"{FITTED}/__class__", 3, "no fitted attribute is called '__class__'"),
        (FITTED, {}, "no working detector"),
        (f"{FITTED}/offset_", "low", "no working detector"),
        (f"{FITTED}/offset_", float("nan"), "one number per row"),
        (f"{FITTED}/n_features_in_", 7, "no 7 features"),
        (f"{FITTED}/sample_shape_", {"$tuple": [10**12, 10**12]}, "no working detector"),
        (f"{SCORER}/params", {"$array": "../../etc/passwd"}, "no working detector"),
        (f"{SCORER}/params", {}, "no working detector"),
        (f"{SCORER}/params", {"$array": "scorer_.params.Dense_0.kernel"}, "no working detector"),
        (f"{SCORER}/network/fields/width", 17, "no working detector"),
        (f"{SCORER}/levels/fields/alpha", 1.0, "no working detector"),
        (f"{SCORER}/combined/fields/statistics", None, "no working detector"),
        (f"{FITTED}/standardiser_/fields/mean", "x", "no working detector"),
        (f"{KERNEL}/shape", [16, 5], "should be"),
        (f"{KERNEL}/shape", [0, 17], "cannot be read|no working"),
        (f"{KERNEL}/shape", [0, 10**30], "cannot be read"),
        (f"{KERNEL}/shape", [-5, 16], "no array can be called"),
        (f"{KERNEL}/shape", [5, True], "no array can be called"),
        (f"{KERNEL}/dtype", "float64", "should be"),
        (f"{KERNEL}/dtype", "object", "no array can be called"),
        (KERNEL, 3, "no array can be called"),
        ("arrays/..", SIGNATURE, "no array can be called"),
        ("arrays/another", SIGNATURE, "cannot be read"),
        ("arrays", {}, "cannot be read|no working detector"),
        ("arrays", [], "lists no arrays"),
        ("files", {}, "missing, damaged or foreign"),
        ("files", None, "missing, damaged or foreign"),
        ("files/..", "0", "missing, damaged or foreign"),
    ],
)
def test_hostile_description(saved, place, value, message):
    edit(saved, at(*place.split("/"), value))
    with pytest.raises(CheckpointError, match=message):
        load_detector(saved)


def places(node, path=()):
    """The path of every node of a JSON value but the root."""
    for key in node if isinstance(node, dict) else ():
        yield (*path, key)
        yield from places(node[key], (*path, key))


def test_any_value_anywhere_ends_in_one_sentence_or_in_a_working_detector(saved):
    original = (saved / "detector.json").read_text()
    deep = json.loads("[" * 500 + "]" * 500)
    values = (None, -1, "x", [], {}, {"$tuple": 3}, {"$array": "losses_"}, 1e300, deep)
    outcomes = []
    for number, path in enumerate(places(json.loads(original)["content"])):
        (saved / "detector.json").write_text(original)
        edit(saved, at("content", *path, values[number % len(values)]))
        try:
            load_detector(saved)
            outcomes.append("")
        except CheckpointError as error:
            outcomes.append(str(error))
    assert sum(map(bool, outcomes)) > len(outcomes) / 3
    assert not any("\n" in outcome for outcome in outcomes)


def test_too_large_a_description(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_DESCRIPTION_BYTES", 100)
    with pytest.raises(CheckpointError, match="too large"):
        load_detector(saved)
