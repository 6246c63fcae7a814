"""Exported scorers: the detector's scores without the detector, and a bundle that is whole or refused."""

import ast
import dataclasses
import doctest
import hashlib
import inspect
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import jaxad as command
from sklearn.ensemble import IsolationForest
from sklearn.utils.validation import NotFittedError

import jaxad
from jaxad import scoring
from jaxad.denoisers import MLP, DiT
from jaxad.detectors import (
    COPOD,
    ECOD,
    ConsensusDetector,
    CycleDetector,
    DiffusionDetector,
    DTECategorical,
    DTEInverseGamma,
    DTENonParametric,
    ImageDetector,
    KNNDetector,
    MahalanobisDetector,
    SquaredNorm,
)
from jaxad.detectors.persistence import save_detector
from jaxad.generation import cycle
from jaxad.runtime.checkpoint import CheckpointError
from jaxad.shipping import bundle, export
from jaxad.shipping.bundle import BundleError, load_scorer
from jaxad.shipping.export import export_detector

RNG = np.random.default_rng(0)
# Time stamps, thousandths and a constant among the columns: what float32 alone would lose.
UNITS, OFFSETS = np.array([1.0, 10.0, 100.0, 1e-3, 0.0]), np.array([0.0, 5.0, 1.7e9, 0.0, 3.0])
X = RNG.normal(size=(150, 5)) * UNITS + OFFSETS
QUERIES = np.concatenate(
    [X[:30] + RNG.normal(size=(30, 5)) * UNITS / 10, RNG.normal(size=(35, 5)) * 2 * UNITS + OFFSETS]
)
QUERIES[-1, -1] = 4.0
PICTURES, NEW_PICTURES = (
    (RNG.random((27, 8, 8, 1)) * 255).astype(np.uint8)[:24],
    (RNG.random((3, 8, 8, 1)) * 255).astype(np.uint8),
)

TABLES = {
    "diffusion": DiffusionDetector(MLP(width=16, depth=1), num_steps=20),
    "dte-c": DTECategorical(num_steps=5),
    "dte-ig": DTEInverseGamma(num_steps=5),
    "dte-np": DTENonParametric(),
    "dte-np-quirks": DTENonParametric(official_quirks=True),
    "knn": KNNDetector(standardize=True),
    "knn-mean": KNNDetector(aggregate="mean"),
    "knn-median": KNNDetector(3, aggregate="median", standardize=True),
    "copod": COPOD(),
    "ecod": ECOD(),
    "mahalanobis": MahalanobisDetector(),
    "norm": SquaredNorm(),
    "consensus": ConsensusDetector(num_networks=2, num_steps=5),
    "consensus-closed": ConsensusDetector(num_networks=0),
    "cycle": CycleDetector(KNNDetector(standardize=True), rounds=1, num_steps=5),
}
NETWORK = DiT(hidden=16, depth=1, heads=2, patch_size=4)


def close(scores, expected, name=""):
    """To a twentieth of what is tolerated when a bundle is loaded: 5e-5, the rounding of sums in another order."""
    assert bundle.parity(expected, scores) < 0.05, f"{name}: {bundle.parity(expected, scores)} of what is tolerated"


@pytest.fixture(scope="module")
def detector():
    return KNNDetector(standardize=True).fit(X)


@pytest.fixture
def scorer(tmp_path, detector):
    """A bundle to be spoilt."""
    export_detector(detector, tmp_path / "scorer", data={"rows": 150}, licence="CC0-1.0")
    return tmp_path / "scorer"


def edit(folder, change):
    card = json.loads((folder / "card.json").read_text())
    change(card)
    (folder / "card.json").write_text(json.dumps(card))


def contents(folder: Path) -> dict:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "cycle" else n for n in TABLES])
def test_the_bundle_gives_the_detector_s_scores(tmp_path, name):
    # The norm is of float32 as it stands: of 1.7e9 squared nothing else is left.
    train, queries = (X - OFFSETS, QUERIES - OFFSETS) if name == "norm" else (X, QUERIES)
    detector = TABLES[name].fit(train)
    export_detector(detector, tmp_path / "scorer")
    loaded = load_scorer(tmp_path / "scorer")
    expected = detector.score_samples(queries)
    assert np.ptp(expected) > 0
    for size in (1, 3, 65):  # one row alone, a padded batch, several batches' worth of the same program
        close(loaded.score_samples(queries[:size]), expected[:size], name)
    close(loaded.score_samples(queries[::-1])[::-1], expected, name)  # neither order nor batch matters
    clear = np.abs(expected - detector.offset_) > bundle.TOLERANCE * (np.abs(expected) + expected.std())
    assert clear.any()
    np.testing.assert_array_equal(loaded.predict(queries)[clear], detector.predict(queries)[clear])
    np.testing.assert_allclose(loaded.p_values(queries), detector.p_values(queries), atol=0.02)
    assert loaded.offset_ == detector.offset_
    assert loaded.card["detector"]["class"] == type(detector).__name__


@pytest.mark.parametrize(
    ("first", "rows"),
    [
        ("knn", 60),
        *(
            pytest.param(*of, marks=pytest.mark.slow)
            for of in (("consensus", 60), ("consensus", 150), ("ecod", 60), ("ecod", 150), ("knn", 150))
        ),
    ],
)
def test_a_cycle_that_learned_from_known_anomalies(tmp_path, first, rows):
    """Of few rows a direction on the columns; of more one on denoising errors too, and a head (untrained here, it is seldom accepted)."""
    known = X[:5] + np.array([1.5, 0, 0, 1.5e-3, 0])
    detector = CycleDetector(TABLES[first], rounds=1, num_steps=5).fit(X[:rows], anomalies=known)
    assert detector.accepted_
    if rows == 150:
        head = cycle.init_head(jax.random.key(0), 11), np.float32([0.1, 0.5])
        detector.scorer_ = dataclasses.replace(detector.scorer_, parts=(*detector.scorer_.parts, head))
    queries = np.concatenate([QUERIES, known, X[:1] + 1e9])
    export_detector(detector, tmp_path / "scorer")
    loaded = load_scorer(tmp_path / "scorer")
    expected = detector.score_samples(queries)
    assert np.ptp(expected) > 1
    close(loaded.score_samples(queries), expected)
    np.testing.assert_allclose(loaded.p_values(queries), detector.p_values(queries), atol=0.03)


def test_a_cycle_whose_first_detector_takes_rows_as_they_are(tmp_path):
    """Offsets a thousand times the spread: the direction keeps its digits, of which the norm itself has seven."""
    rows, offset = RNG.normal(size=(60, 3)), np.array([1e3, 0.0, 0.0])
    known, queries = rows[:5] + np.array([1.5, 1.5, 0]), RNG.normal(size=(30, 3)) * 1.5
    detector = CycleDetector(SquaredNorm()).fit(rows + offset, anomalies=known + offset)
    assert detector.accepted_
    export_detector(detector, tmp_path / "scorer")
    close(load_scorer(tmp_path / "scorer").score_samples(queries + offset), detector.score_samples(queries + offset))


def test_a_cycle_is_exported_if_its_first_detector_is(tmp_path):
    with pytest.raises(ValueError, match="a detector that scores a row by itself"):
        CycleDetector(COPOD(transductive=True)).fit(X[:30])
    with pytest.raises(ValueError, match="scores a row by the rows scored with it"):
        export_detector(COPOD(transductive=True).fit(X[:30]), tmp_path / "scorer")


@pytest.mark.slow
@pytest.mark.parametrize("maps", [True, False])
def test_pictures(tmp_path, maps):
    detector = ImageDetector(NETWORK, maps=maps, num_steps=2).fit(PICTURES)
    export_detector(detector, tmp_path / "scorer")
    loaded = load_scorer(tmp_path / "scorer")
    close(loaded.score_samples(NEW_PICTURES), detector.score_samples(NEW_PICTURES))
    if maps:
        np.testing.assert_allclose(loaded.where(NEW_PICTURES), detector.where(NEW_PICTURES), rtol=1e-3, atol=1e-3)
        assert loaded.where_threshold_ == detector.where_threshold_
    else:
        with pytest.raises(ValueError, match="this bundle of a ImageDetector cannot tell where"):
            loaded.where(NEW_PICTURES)
    with pytest.raises(ValueError, match=r"expected an array of shape \[rows, 8, 8, 1\], got shape \[24, 8, 8\]"):
        loaded.score_samples(PICTURES[..., 0])


@pytest.mark.parametrize(
    ("rows", "calls"),
    [(1, [1]), (2, [1, 1]), (10, [16]), (129, [128, 1]), (192, [128, 128]), (600, [1024]), (1100, [1024, 128])],
)
def test_rows_go_into_batches_of_which_half_is_padding_at_most(scorer, rows, calls):
    loaded = load_scorer(scorer)
    assert loaded.card["batch_sizes"] == [1, 16, 128, 1024]
    program, sizes = loaded._programs["program.bin"], []
    loaded._programs["program.bin"] = lambda parameters, batch: (sizes.append(len(batch)), program(parameters, batch))[
        1
    ]
    many = np.resize(QUERIES, (rows, 5))
    scores = loaded.score_samples(many)
    assert sizes == calls
    np.testing.assert_allclose(scores, np.resize(load_scorer(scorer).score_samples(QUERIES), rows), rtol=1e-5)


@pytest.fixture(scope="module")
def diffusion():
    return DiffusionDetector(MLP(width=8, depth=1), num_steps=200, draws=1).fit(X[:, :3])


SCORES = [
    name
    for name, function in inspect.getmembers(scoring, inspect.isfunction)
    if {"key", "denoise", "draws"} <= inspect.signature(function).parameters.keys() and not name.endswith("_map")
]
SHOWN = ("ddim_reconstruction_error", "path_statistics")


@pytest.mark.parametrize("name", [*SHOWN, *(pytest.param(n, marks=pytest.mark.slow) for n in SCORES if n not in SHOWN)])
def test_scores_of_the_denoiser(tmp_path, diffusion, name):
    if name in ("inpainting_error", "guided_reconstruction_error"):
        pytest.skip("of pictures")
    detector = diffusion.set_params(scorer=getattr(scoring, name), aggregate=None).calibrate(X[:, :3])
    export_detector(detector, tmp_path / "scorer")
    loaded = load_scorer(tmp_path / "scorer")
    assert bundle.parity(detector.score_samples(QUERIES[:40, :3]), loaded.score_samples(QUERIES[:40, :3])) < 1


@pytest.mark.parametrize("name", ["z_max", "likelihood_ratio", "mahalanobis", "gmm", "knn"])
def test_combinations(tmp_path, diffusion, name):
    detector = diffusion.set_params(scorer=scoring.denoising_error, aggregate=getattr(scoring, name)).calibrate(
        X[:, :3]
    )
    export_detector(detector, tmp_path / "scorer")
    assert load_scorer(tmp_path / "scorer").parity_ <= 1


def own_score(key, denoise, x, levels, *, draws):
    return jax.vmap(lambda level: jnp.mean((denoise(x, level) - x) ** 2, axis=1))(levels)


def host_score(key, denoise, x, levels, *, draws):
    like = jax.ShapeDtypeStruct((len(levels.sigma), len(x)), jnp.float32)
    return jax.pure_callback(
        lambda x: np.broadcast_to(np.asarray(x).mean(axis=1), like.shape), like, x, vmap_method="sequential"
    )


def test_a_score_of_one_s_own_is_exported_if_it_is_made_of_jax(tmp_path, diffusion):
    detector = diffusion.set_params(scorer=own_score, aggregate=None).calibrate(X[:, :3])
    export_detector(detector, tmp_path / "scorer")
    assert load_scorer(tmp_path / "scorer").parity_ <= 1
    detector.set_params(scorer=host_score).calibrate(X[:, :3])
    with pytest.raises(ValueError, match=r"cannot export DiffusionDetector: "):
        export_detector(detector, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_batch_is_symbolic_and_lowered_for_three_platforms(scorer):
    exported = jax.export.deserialize(bytearray((scorer / "program.bin").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.in_avals[-1].shape) == "(batch, 5)"
    assert str(exported.out_avals[0].shape) == "(batch,)"


# ------------------------------------------------------------------------------------------------------------------ refused


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def link(file):
    file.rename(file.parent.parent / file.name)
    file.symlink_to(file.parent.parent / file.name)


@pytest.mark.parametrize("name", bundle.FILES)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (flip, "is damaged: its SHA-256"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "is cut short or damaged"),
        (Path.unlink, "is missing or unreadable"),
        (link, "is a link or no plain file"),
    ],
)
def test_a_spoilt_file_is_refused(scorer, name, spoil, message):
    spoil(scorer / name)
    with pytest.raises(BundleError, match=message):
        load_scorer(scorer)


def set_(key, value):
    return lambda card: card.update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_("format_version", 1), "is in format 1, this jaxad reads format 2: fit and export the detector again"),
        (set_("format", "another"), "is not an exported scorer"),
        (set_("sample_shape", [6]), "do not fit rows of shape"),
        (set_("sample_shape", "5"), "sample_shape cannot be '5'"),
        (set_("threshold", float("nan")), "threshold cannot be nan"),
        (set_("columns", ["a"]), "1 columns are named"),
        (set_("files", {}), "the card must list program.bin"),
        (lambda card: card["files"].update({"../../etc/passwd": card["files"]["program.bin"]}), "and nothing else"),
        (
            lambda card: card["parity_scores"].__setitem__(0, card["parity_scores"][0] * 1.1),
            "parity: the program gives other",
        ),
        (lambda card: card["parameters"]["known.rows"].update(shape=[1, 5]), "known.rows should be"),
        (lambda card: card["parameters"]["known.rows"].update(dtype="object"), "parameters cannot be"),
        (lambda card: card.pop("threshold"), "threshold cannot be None"),
    ],
)
def test_an_edited_card_is_refused(scorer, change, message):
    load_scorer(scorer)
    edit(scorer, change)
    with pytest.raises(BundleError, match=message):
        load_scorer(scorer)


def test_what_is_no_bundle_is_refused(scorer, tmp_path):
    (scorer / "extra.txt").write_text("")
    with pytest.raises(BundleError, match=r"not in the card, 'extra.txt'"):
        load_scorer(scorer)
    with pytest.raises(BundleError, match="there is no such directory"):
        load_scorer(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"holds no card.json"):
        load_scorer(tmp_path)
    (scorer / "card.json").write_text("{")
    with pytest.raises(BundleError, match="not readable as JSON"):
        load_scorer(scorer)
    (scorer / "card.json").write_text(" " * (bundle.MAX_CARD_BYTES + 1))
    with pytest.raises(BundleError, match="expected a plain file of at most"):
        load_scorer(scorer)


def replace_program(scorer, content):
    (scorer / "program.bin").write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(scorer, lambda card: card["files"].update({"program.bin": entry}))


def test_bytes_that_are_no_program_and_programs_that_are_not_its_own_are_refused(scorer, tmp_path):
    replace_program(scorer, b"\0" * 5000)
    with pytest.raises(BundleError, match="is no program for jax"):
        load_scorer(scorer)
    export_detector(SquaredNorm().fit(X), tmp_path / "norm")
    replace_program(scorer, (tmp_path / "norm" / "program.bin").read_bytes())
    with pytest.raises(BundleError, match="not made for the arrays"):
        load_scorer(scorer)


def test_a_program_that_calls_back_is_refused(scorer, monkeypatch):
    monkeypatch.setattr(bundle, "CUSTOM_CALLS", frozenset())
    with pytest.raises(BundleError, match=r"calls '[\w.]+', which no scorer of ours does"):
        load_scorer(scorer)
    assert bundle.custom_calls("stablehlo.custom_call @xla_python_cpu_callback(%0)") == {"xla_python_cpu_callback"}
    assert bundle.custom_calls('"stablehlo.custom_call"(%0)') == {"an unnamed function"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (QUERIES[:, :4], r"expected an array of shape \[rows, 5\], got shape \[65, 4\]"),
        (QUERIES[0], r"one row needs a first axis"),
        (QUERIES[:0], "at least one row"),
        (np.where(np.arange(65)[:, None] == 7, np.nan, QUERIES), "1 rows, the first is row 7"),
        (np.full((1, 5), np.inf), "expected finite numbers"),
        (QUERIES.astype(str), "expected rows of numbers"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(scorer, rows, message):
    with pytest.raises(ValueError, match=message):
        load_scorer(scorer).score_samples(rows)


def test_a_row_beyond_all_others_is_the_most_anomalous(scorer, detector):
    rows = np.concatenate([QUERIES, np.full((1, 5), 1e300)])
    for scores in (load_scorer(scorer).score_samples(rows), detector.score_samples(rows)):
        assert np.isfinite(scores).all()
        assert scores.argmin() == len(QUERIES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IsolationForest(n_estimators=2).fit(X), "cannot export IsolationForest: it has no scorer_"),
        (lambda: COPOD(transductive=True).fit(X), "cannot export COPOD: it scores a row by the rows"),
        pytest.param(
            lambda: ImageDetector(maps=False, feature_fn=lambda x: np.asarray(x).mean(axis=(1, 2))).fit(PICTURES),
            "cannot export ImageDetector: its score is not made of jax",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_detector_that_cannot_be_exported_is_refused_by_name(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        export_detector(make(), tmp_path / "scorer")
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, detector):
    with pytest.raises(NotFittedError):
        export_detector(KNNDetector(), tmp_path / "scorer")
    for settings, message in (
        ({"examples": np.zeros((65, 5))}, "at most 64 example rows"),
        ({"examples": np.zeros((2, 4))}, "expecting 5 features"),
        ({"columns": ["a"]}, "columns must name the"),
        ({"metrics": {"auroc": float("nan")}}, "must be JSON values"),
        ({"calibration_scores": [np.nan]}, "vector of finite scores"),
    ):
        with pytest.raises(ValueError, match=message):
            export_detector(detector, tmp_path / "scorer", **settings)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------------ writing


def test_parity_is_checked_on_export_and_nothing_is_left_behind(tmp_path, detector, monkeypatch):
    true = type(detector).score_samples
    monkeypatch.setattr(KNNDetector, "score_samples", lambda self, rows: true(self, rows) * 1.1)
    with pytest.raises(
        BundleError, match=r"KNNDetector was not exported to .*scorer.*parity: the program gives other scores"
    ):
        export_detector(detector, tmp_path / "scorer")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_the_old_bundle(scorer, detector, monkeypatch):
    before = contents(scorer)

    def interrupted(path):
        assert (Path(path) / "card.json").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "load_scorer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_detector(detector, scorer)
    assert contents(scorer) == before
    assert [file.name for file in scorer.parent.iterdir()] == ["scorer"]


def test_a_bundle_is_replaced_and_nothing_else_is(scorer, tmp_path):
    export_detector(SquaredNorm().fit(X), scorer)
    assert load_scorer(scorer).card["detector"]["class"] == "SquaredNorm"
    (scorer / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "card.json").write_text("{}")
    for place in (scorer, tmp_path / "folder", tmp_path):
        before = sorted(place.rglob("*"))
        with pytest.raises(CheckpointError, match="something else than an exported scorer"):
            export_detector(SquaredNorm().fit(X), place)
        assert sorted(place.rglob("*")) == before


def test_the_card_says_what_it_was_given(tmp_path, detector):
    given = {"data": {"rows": 150}, "metrics": {"auroc": 0.9}, "licence": "CC0-1.0", "columns": list("abcde")}
    export_detector(detector, tmp_path / "scorer", examples=X[:5], calibration_scores=[-3.0, -1.0, -2.0], **given)
    loaded = load_scorer(tmp_path / "scorer")
    assert {name: loaded.card[name] for name in given} == given
    assert loaded.card["detector"]["settings"]["n_neighbors"] == 5
    np.testing.assert_allclose(loaded.card["parity_scores"], detector.score_samples(X[:5]))
    assert set(loaded.p_values(QUERIES)) <= {0.25, 0.5, 0.75, 1.0}
    assert (loaded.predict(QUERIES, alpha=1.0) == -1).all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        loaded.predict(QUERIES, alpha=2.0)


def test_columns_of_a_data_frame_are_compared(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=list("abcde"))
    detector = SquaredNorm().fit(frame)
    export_detector(detector, tmp_path / "scorer")
    loaded = load_scorer(tmp_path / "scorer")
    close(loaded.score_samples(frame), detector.score_samples(frame))
    with pytest.raises(ValueError, match="expected the columns of training in their order"):
        loaded.score_samples(frame[frame.columns[::-1]])


# --------------------------------------------------------------------------------------------------- without the library's tools


def test_a_process_without_flax_and_sklearn_gives_the_same_scores(tmp_path):
    detector = ConsensusDetector(num_networks=1, num_steps=5).fit(X)
    export_detector(detector, tmp_path / "scorer")
    np.save(tmp_path / "rows.npy", QUERIES)
    program = textwrap.dedent(f"""
        import sys
        for name in ("flax", "optax", "sklearn", "orbax", "chex", "jaxtyping", "pandas", "tyro", "rich", "matplotlib", "safetensors"):
            sys.modules[name] = None
        import numpy as np
        from jaxad.shipping.bundle import load_scorer
        scorer = load_scorer({str(tmp_path / "scorer")!r})
        np.save({str(tmp_path / "scores.npy")!r}, scorer.score_samples(np.load({str(tmp_path / "rows.npy")!r})))
        print(sorted(name for name in sys.modules if name.startswith("jaxad")))
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['jaxad', 'jaxad.shipping', 'jaxad.shipping.bundle', 'jaxad.standardiser']"
    close(np.load(tmp_path / "scores.npy"), detector.score_samples(QUERIES))


def test_the_package_names_what_it_offers_once_and_lazily():
    tree = ast.parse(Path(jaxad.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen_by_checkers = [alias.name for node in block.body for alias in node.names]
    assert sorted(seen_by_checkers) == sorted(jaxad.__all__)
    assert set(jaxad.__all__) <= set(dir(jaxad))
    for name in jaxad.__all__:
        assert getattr(jaxad, name).__name__.rpartition(".")[2] == name
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        jaxad.Nothing  # noqa: B018


# ------------------------------------------------------------------------------------------------------------- command line


def test_export_and_score_on_the_command_line(tmp_path, detector, capsys):
    save_detector(
        detector, tmp_path / "model", extra={"columns": list("abcde"), "rows": 150, "detector": "knn", "seed": 0}
    )
    assert command("export", tmp_path / "model", "--out", tmp_path / "scorer", "--licence", "CC0-1.0") == 0
    assert "KNNDetector exported to" in capsys.readouterr().out
    card = load_scorer(tmp_path / "scorer").card
    assert (card["columns"], card["licence"], card["data"]) == (
        list("abcde"),
        "CC0-1.0",
        {"rows": 150, "detector": "knn", "seed": 0},
    )
    header = ",".join("edcba")  # found by name, whatever their order
    np.savetxt(tmp_path / "rows.csv", QUERIES[:, ::-1], delimiter=",", header=header, comments="", fmt="%.17g")
    for model in ("model", "scorer"):
        assert command("score", tmp_path / model, tmp_path / "rows.csv", "--out", tmp_path / f"{model}.csv") == 0
    ours, theirs = (
        np.genfromtxt(tmp_path / f"{model}.csv", delimiter=",", names=True) for model in ("scorer", "model")
    )
    close(ours["anomaly_score"], theirs["anomaly_score"])
    np.testing.assert_array_equal(ours["flagged"], theirs["flagged"])
    flip(tmp_path / "scorer" / "program.bin")
    assert command("score", tmp_path / "scorer", tmp_path / "rows.csv", "--out", tmp_path / "again.csv") == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("module", [bundle, export])
def test_examples_in_docstrings(module):
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed
