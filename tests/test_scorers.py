"""Every fitted detector is one pure function of arrays: under jit, vmap, grad, shard_map and pmap it is the plain call."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.denoisers import MLP, DiT
from jaxad.detectors import (
    COPOD,
    ECOD,
    ConformalDetector,
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
from jaxad.detectors.scorer import Scorer, root, stack
from jaxad.detectors.search import known, padded_size, squared_distances
from jaxad.runtime.sharding import data_mesh

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 4)) * [1.0, 2.0, 1.0, 0.5]
NEW = RNG.normal(size=(16, 4)) * [2.0, 4.0, 2.0, 1.0]
PICTURES, NEW_PICTURES = (
    # New ones: of a training picture compiled in another way, values that tie with themselves differ by half a rank.
    (RNG.random((count, 8, 8, 1)) * 255).astype(np.uint8)
    for count in (24, 8)
)
KNOWN = X[:5] + np.array([4.0, 0.0, 4.0, 0.0])

SMOOTH = {
    "knn": KNNDetector(),
    "knn-mean": KNNDetector(aggregate="mean", standardize=True),
    "dte-np": DTENonParametric(),
    "mahalanobis": MahalanobisDetector(),
    "norm": SquaredNorm(),
    "diffusion": DiffusionDetector(MLP(width=16, depth=1), num_steps=20),
    "dte-c": DTECategorical(num_steps=5),
    "dte-ig": DTEInverseGamma(num_steps=5),
    "conformal": ConformalDetector(MahalanobisDetector(), method="cross", folds=2),
    "cycle": CycleDetector(MahalanobisDetector(), rounds=1, num_steps=5),
}
IN_STEPS = {
    "dte-np-quirks": DTENonParametric(official_quirks=True),
    "copod": COPOD(),
    "ecod": ECOD(),
    "consensus": ConsensusDetector(num_networks=1, num_steps=5),  # one of its views looks at ranks
    "pictures": ImageDetector(DiT(hidden=16, depth=1, heads=2, patch_size=4), num_steps=2),  # so do its tables
}
ALL = SMOOTH | IN_STEPS
HEAVY = ("cycle", "pictures")
"""To fit and to compile: `make slow`."""
EACH = pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in HEAVY else n for n in ALL])


@pytest.fixture(scope="module")
def fitted():
    kept = {}

    def fit(name):
        if name not in kept:
            more = {"anomalies": KNOWN} if name == "cycle" else {}
            detector = ALL[name].fit(PICTURES if name == "pictures" else X, **more)
            new = NEW_PICTURES if name == "pictures" else NEW
            kept[name] = detector.scorer_, jnp.asarray(detector.standardiser_(new)), -detector.score_samples(new)
        return kept[name]

    return fit


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5 * np.ptp(expected))


@EACH
def test_the_call_compiled_stacked_and_cut_over_devices_is_the_plain_call(fitted, name):
    scorer, rows, expected = fitted(name)
    assert isinstance(scorer, Scorer)
    assert expected.shape == (len(rows),)
    close(jax.jit(scorer)(rows), expected)
    twice = jax.jit(jax.vmap(lambda one: one(rows)))(stack([scorer, scorer]))
    close(twice[0], expected)
    close(twice[1], expected)
    one_by_one = jax.jit(jax.vmap(lambda row: scorer(row[None])[0]))(rows)
    close(one_by_one, expected)


@EACH
def test_devices(fitted, name):
    scorer, rows, expected = fitted(name)
    mesh = data_mesh()
    assert mesh.size == 8
    spec = jax.sharding.PartitionSpec(mesh.axis_names[0])
    close(jax.jit(jax.shard_map(scorer, mesh=mesh, in_specs=spec, out_specs=spec))(rows), expected)
    if name in ("knn", "diffusion", "consensus"):  # today pmap is jit and shard_map: a few of each kind
        parts = jax.pmap(scorer)(rows.reshape(8, -1, *rows.shape[1:]))
        close(parts.reshape(-1), expected)


@EACH
def test_gradients(fitted, name):
    scorer, rows, _ = fitted(name)
    gradient = jax.jit(jax.grad(lambda rows: jnp.sum(scorer(rows))))(rows)
    assert np.isfinite(gradient).all()
    if name not in SMOOTH:
        return
    # Along a random direction, in float32: both sides, a step short of most kinks (ReLU, another neighbour taking over).
    way, step = jnp.asarray(RNG.normal(size=rows.shape), jnp.float32), 2e-3
    call = jax.jit(scorer)
    found = (call(rows + step * way) - call(rows - step * way)) / (2 * step)
    expected = jnp.sum(gradient * way, axis=1)
    error = np.abs(found - expected) / (np.abs(expected) + np.abs(expected).mean())
    assert np.median(error) < 0.02, error


def test_a_training_row_scored_again_has_a_gradient():
    detector = KNNDetector(n_neighbors=1).fit(X)
    gradient = jax.grad(lambda rows: jnp.sum(detector.scorer_(rows)))(jnp.asarray(detector.standardiser_(X[:5])))
    assert np.isfinite(gradient).all()
    assert jax.grad(root)(0.0) == 0.0


def test_scorers_of_other_settings_do_not_stack():
    one, other = (KNNDetector(n_neighbors=k).fit(X).scorer_ for k in (1, 2))
    with pytest.raises(ValueError, match="the same settings"):
        stack([one, other])


def test_a_scorer_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SquaredNorm().fit(X).scorer_.whitening = 3


# ------------------------------------------------------------------------------------------------------------------ the search


@pytest.mark.parametrize(
    ("count", "features", "nearest"), [(1, 3, 1), (7, 2, 5), (500, 4, 5), (4096, 3, 2), (9000, 2, 5)]
)
def test_nearest_rows_are_those_of_all_pairs(count, features, nearest):
    rows, queries = RNG.normal(size=(count, features)), RNG.normal(size=(50, features))
    found = np.asarray(squared_distances(known(rows), jnp.asarray(queries, jnp.float32), nearest))
    rows, queries = np.float32(rows).astype(float), np.float32(queries).astype(float)
    all_pairs = np.sort(((rows[None] - queries[:, None]) ** 2).sum(axis=2), axis=1)[:, :nearest]
    np.testing.assert_allclose(found[:, : all_pairs.shape[1]], all_pairs, rtol=1e-5, atol=1e-12)
    assert np.isinf(found[:, all_pairs.shape[1] :]).all()


def test_copies_far_from_the_middle_are_at_distance_0_and_a_left_out_row_is_not_found():
    rows = np.concatenate([RNG.normal(size=(5000, 3)), np.full((4, 3), 1e6)])
    among, queries = known(rows), jnp.asarray(rows, jnp.float32)
    assert (np.asarray(squared_distances(among, queries, 1)) == 0).all()
    own = np.asarray(squared_distances(among, queries[:4999], 1, jnp.arange(4999)))
    assert (own > 0).all()
    assert (np.asarray(squared_distances(among, queries[-4:], 3, jnp.arange(5000, 5004))) == 0).all()


def test_padding_is_a_quarter_at_most_and_of_many_rows_little():
    sizes = np.array([padded_size(n) for n in range(16, 5000)])
    assert (sizes >= np.arange(16, 5000)).all()
    assert (sizes <= 1.25 * np.arange(16, 5000) + 16).all()
    assert len(set(sizes)) < 60
    assert padded_size(100_001) - 100_001 < 4096
