"""Generators of whole rows against closed forms: how wide, how rare, how hard, and what no single column shows."""

import doctest
import importlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from jaxad import closed_form, noise, sampling, scoring
from jaxad import generation as g
from jaxad.denoisers import MLP
from jaxad.denoising import make_denoiser
from jaxad.detectors import ECOD, KNNDetector
from jaxad.metrics import auroc

SPREADS = np.array([0.25, 1.0, 4.0])  # variances
DENOISE = closed_form.gaussian_denoiser(np.zeros(3), np.diag(SPREADS))
X = jax.random.normal(jax.random.key(0), (4000, 3)) * np.sqrt(SPREADS).astype(np.float32)[None]


def levels_of(steps: int) -> noise.NoiseLevel:
    return noise.linear(1000)[np.round(np.linspace(0, 999, steps)).astype(int)]


def exact_variance(spread):
    """The reverse variance of Gaussian rows of this variance: formula (7), and what is open about the clean row."""

    def variance(noisy, cleaner, noisier):
        step = noise.posterior(cleaner, noisier)
        left_open = spread * noisier.sigma**2 / (noisier.alpha**2 * spread + noisier.sigma**2)
        return step.variance + step.from_clean**2 * left_open

    return variance


@pytest.mark.parametrize("module", ["generated", "strength", "low_density", "typed"])
def test_examples(module):
    result = doctest.testmod(importlib.import_module(f"jaxad.generation.{module}"))
    assert result.attempted
    assert not result.failed


# ---------------------------------------------------------------------------------------------------------------------- SDAS


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("strength", [0.0, 0.2])
def test_sdas_has_the_published_closed_form(reference_dir, spread, strength):
    """The variance recursion of 20 linear steps, carried out in float64 with the library's own coefficients, against golden.json."""
    golden = json.loads((reference_dir / "golden.json").read_text())["gaussian_oracles"]["sdas_var_optimal_sigma"]
    levels, row = levels_of(20), jnp.zeros((1, 1))
    stronger = g.strengthened(exact_variance(spread), strength)
    variance = 1.0
    for index in range(19, 0, -1):
        cleaner, noisier = levels[index - 1], levels[index]
        step = noise.posterior(cleaner, noisier)
        gain = noisier.alpha * spread / (noisier.alpha**2 * spread + noisier.sigma**2)
        added = stronger(row, cleaner, noisier)
        variance = (step.from_noisy + step.from_clean * gain) ** 2 * variance + float(np.squeeze(added))
    # The reference adds noise after the last estimate as well; the samplers return the estimate.
    last = levels[0]
    total = last.alpha**2 * spread + last.sigma**2
    variance = (last.alpha * spread / total) ** 2 * variance + (1 + strength) * spread * last.sigma**2 / total
    assert variance == pytest.approx(golden[f"{spread}|{strength}"], rel=1e-6)


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("strength", [0.0, 0.2, 1.0])
def test_sdas_widens_gaussian_rows_by_one_plus_strength_for_any_number_of_steps(steps, strength):
    levels = levels_of(steps)
    variance = g.measured_variance(jax.random.key(1), DENOISE, X[:2000], levels)
    made = g.sdas(jax.random.key(2), DENOISE, X, levels, variance=variance, strength=strength)
    np.testing.assert_allclose(made.x.var(axis=0), (1 + strength) * SPREADS, rtol=0.08)
    if strength == 0:
        for column, spread in zip(np.asarray(made.x).T, SPREADS, strict=True):
            assert kstest(column[:2000], "norm", (0, np.sqrt(spread))).pvalue > 1e-3


def test_sdas_of_the_posterior_variance_is_too_narrow(reference_dir):
    """What the docstring warns of: METHODS 11.2 has .7006 for 20 steps."""
    made = g.sdas(jax.random.key(2), DENOISE, X, levels_of(20), variance=sampling.fixed_small, strength=0.0)
    np.testing.assert_allclose(made.x.var(axis=0), [0.1505, 0.7006, 2.9919], rtol=0.08)


def test_measured_variance_is_the_exact_one():
    levels = levels_of(20)
    variance = g.measured_variance(jax.random.key(1), DENOISE, X, levels, draws=8)
    for index in (1, 10, 19):
        cleaner, noisier = levels[index - 1].to(jnp.float32), levels[index].to(jnp.float32)
        exact = [exact_variance(spread)(X[:1], cleaner, noisier) for spread in SPREADS]
        np.testing.assert_allclose(variance(X[:1], cleaner, noisier)[0], exact, rtol=0.05)


def test_each_row_has_its_own_strength_and_a_short_path_stays_near_its_row():
    levels = levels_of(20)
    variance = g.measured_variance(jax.random.key(1), DENOISE, X[:2000], levels)
    strength = jnp.repeat(jnp.array([0.0, 3.0]), 2000)
    made = g.sdas(jax.random.key(2), DENOISE, X, levels, variance=variance, strength=strength)
    np.testing.assert_allclose(made.x[2000:].var(axis=0) / made.x[:2000].var(axis=0), 4, rtol=0.15)
    near = g.sdas(jax.random.key(2), DENOISE, X, noise.linear(1000)[:200:10], variance=sampling.fixed_small)
    assert np.corrcoef(near.x[:, 2], X[:, 2])[0, 1] > 0.9


# ------------------------------------------------------------------------------------------------------------------- tempering


def test_tempering_is_ancestral_sampling_at_zero_and_widens_with_strength():
    levels = levels_of(100)
    variance = g.measured_variance(jax.random.key(1), DENOISE, X[:2000], levels, draws=2)
    spreads = []
    for strength in (0.0, 0.1, 0.2):
        made = g.low_density(jax.random.key(2), DENOISE, X, levels, variance=variance, strength=strength)
        spreads.append(np.asarray(made.x.var(axis=0)))
    assert (np.diff(spreads, axis=0) > 0).all()
    # White data have a closed form in the limit of many steps.
    np.testing.assert_allclose([spread[1] for spread in spreads], [1, 1 / 0.8, 1 / 0.6], rtol=0.08)
    start_key, path_key = jax.random.split(jax.random.key(2))
    start = noise.add_noise(X, jax.random.normal(start_key, X.shape), levels[-1].to(jnp.float32))
    plain = sampling.ancestral(path_key, DENOISE, start, levels, variance=variance)
    np.testing.assert_array_equal(
        g.low_density(jax.random.key(2), DENOISE, X, levels, variance=variance, strength=0.0).x, plain
    )


def test_a_gate_ends_tempering_where_rows_are_anomalous_enough():
    levels, calibration = levels_of(40), jnp.sum(X**2 / SPREADS[None].astype(np.float32), axis=1)

    def score(rows):
        return jnp.sum(rows**2 / jnp.asarray(SPREADS, jnp.float32)[None], axis=1)

    limit = float(jnp.quantile(calibration, 0.99))
    options = {"variance": g.measured_variance(jax.random.key(1), DENOISE, X[:2000], levels), "strength": 0.4}
    free = g.low_density(jax.random.key(2), DENOISE, X[:1000], levels, **options)
    gated = g.low_density(jax.random.key(2), DENOISE, X[:1000], levels, gate=g.until(score, limit, 0.5), **options)
    far = 2 * limit
    assert (score(gated.x) > far).mean() < 0.3 * (score(free.x) > far).mean()
    assert jnp.median(score(gated.x)) > 1.2 * jnp.median(calibration)


# --------------------------------------------------------------------------------------------------- self- and detector guidance


def test_minority_guidance_finds_the_small_mode():
    """Rows of which 5 % lie in a second mode: the denoiser itself says that they are the unusual ones."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 2)) * 0.3 + np.where(np.arange(300) < 15, 3.0, 0.0)[:, None]
    denoise, levels = closed_form.empirical_denoiser(jnp.asarray(rows, jnp.float32)), levels_of(20)
    x = jnp.zeros((300, 2))
    shares = []
    for strength in (0.0, 1.0, 3.0):
        made = g.minority(
            jax.random.key(0),
            denoise,
            x,
            levels,
            variance=sampling.fixed_small,
            strength=strength,
            reference=levels[10],
        )
        shares.append(float((made.x.sum(axis=1) > 3).mean()))
    assert shares[0] < 0.12
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 2 * shares[0]


def test_detector_guidance_ends_in_the_band_and_not_beyond():
    covariance = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    root = jnp.asarray(np.linalg.cholesky(covariance), jnp.float32)
    x = jax.random.normal(jax.random.key(0), (200, 3)) @ root.T
    denoise, levels = closed_form.gaussian_denoiser(np.zeros(3), covariance), noise.linear(1000)[::100]
    error_levels = noise.log_uniform(3, sigma_min=0.1, sigma_max=1.0)

    def score(rows):
        return scoring.denoising_error(jax.random.key(9), denoise, rows, error_levels, draws=1).mean(axis=0)

    calibration = score(jax.random.normal(jax.random.key(5), (1000, 3)) @ root.T)
    options = {"score": score, "calibration_scores": calibration, "variance": sampling.fixed_large}
    made = jax.jit(lambda key: g.detector_guided(key, denoise, x, levels, **options))(jax.random.key(1))
    p = (1 + (calibration[None] >= score(made.x)[:, None]).sum(axis=1)) / 1001
    assert ((p >= 0.001) & (p <= 0.05)).mean() > 0.97


def test_targets_are_the_scores_of_the_p_values_asked_for():
    calibration = np.random.default_rng(0).normal(size=199)
    targets = g.band_targets(jax.random.key(0), calibration, 500, (0.01, 0.05))
    p = (1 + (calibration[None] >= np.asarray(targets)[:, None]).sum(axis=1)) / 200
    assert set(np.round(p * 200).astype(int)) == set(range(2, 11))


# ------------------------------------------------------------------------------------------------------------------ dependency


def test_dependency_anomalies_are_normal_column_by_column_and_found_by_a_joint_score(record_property):
    """Twelve pairs of columns of correlation .98; one to three columns of each anomaly forget their partner."""
    pairs, rng = 12, np.random.default_rng(0)
    covariance = np.kron(np.eye(pairs), [[1, 0.98], [0.98, 1]])
    root = np.linalg.cholesky(covariance)
    train, test, rows = (np.float32(rng.normal(size=(500, 2 * pairs)) @ root.T) for _ in range(3))
    denoise = closed_form.gaussian_denoiser(np.zeros(2 * pairs), covariance)
    levels = noise.log_uniform(20, sigma_min=0.05, sigma_max=20.0)
    made = g.dependency_anomalies(jax.random.key(0), denoise, jnp.asarray(rows), levels)
    np.testing.assert_array_equal(np.asarray(made.x)[~made.mask], rows[~made.mask])
    assert set(np.asarray(made.mask.sum(axis=1))) == {1, 2, 3}
    # Every marginal, at a level of .01 divided by the number of columns.
    assert min(kstest(column, "norm").pvalue for column in np.asarray(made.x).T) > 0.01 / (2 * pairs)

    labels, both = np.repeat([0, 1], 500), np.concatenate([test, made.x])
    fine = noise.log_uniform(5, sigma_min=0.05, sigma_max=0.5)
    areas = {
        "diffusion": auroc(
            labels, scoring.denoising_error(jax.random.key(1), denoise, jnp.asarray(both), fine).mean(0)
        ),
        "kNN": auroc(labels, -KNNDetector().fit(train).score_samples(both)),
        "ECOD": auroc(labels, -ECOD().fit(train).score_samples(both)),
    }
    record_property("scores against their formula", f"dependency anomalies, AUROC: {areas}")
    assert areas["diffusion"] > 0.85
    assert areas["kNN"] < 0.62
    assert 0.4 < areas["ECOD"] < 0.6


def test_more_broken_columns_are_easier_to_find():
    covariance = np.full((6, 6), 0.9) + 0.1 * np.eye(6)
    x = jnp.asarray(np.random.default_rng(0).multivariate_normal(np.zeros(6), covariance, 400), jnp.float32)
    denoise, levels = (
        closed_form.gaussian_denoiser(np.zeros(6), covariance),
        noise.log_uniform(20, sigma_min=0.05, sigma_max=20.0),
    )
    precision = np.linalg.inv(covariance)
    means = []
    for most in (1, 3):
        rows = np.asarray(g.dependency_anomalies(jax.random.key(1), denoise, x, levels, most=most).x)
        means.append(np.mean(np.sum(rows @ precision * rows, axis=1)))
    assert 6 < means[0] < means[1]


# ----------------------------------------------------------------------------------------------------------------- other types


def test_points_clusters_and_globals_are_what_they_are_called():
    x = X[:500]
    point = g.point_anomalies(jax.random.key(1), x, strength=2.0)
    outside = (point.x > x.max(axis=0)[None]) | (point.x < x.min(axis=0)[None])
    np.testing.assert_array_equal(outside, point.mask)
    np.testing.assert_array_equal(point.x[~point.mask], x[~point.mask])

    levels = noise.log_uniform(8, sigma_min=0.02, sigma_max=0.2)
    cluster = g.cluster_anomalies(jax.random.key(1), DENOISE, x, levels, strength=4.0)
    spread = x.std(axis=0)
    assert (cluster.x.std(axis=0) < 0.5 * spread).all()
    again = g.cluster_anomalies(jax.random.key(2), DENOISE, x, levels, strength=4.0)
    assert jnp.abs((cluster.x.mean(axis=0) - again.x.mean(axis=0)) / spread).max() > 1

    everywhere = g.global_anomalies(jax.random.key(1), x, strength=0.1)
    length = x.max(axis=0) - x.min(axis=0)
    share = (everywhere.x - x.min(axis=0)[None]) / length[None]
    assert (share.min(axis=0) > -0.1).all()
    assert (share.max(axis=0) < 1.1).all()
    assert share.min() < -0.05
    assert share.max() > 1.05


def test_several_kinds_share_the_rows_and_keep_their_order():
    generators = [g.point_anomalies, g.global_anomalies, lambda key, x: g.point_anomalies(key, x, most=1)]
    made = g.several(jax.random.key(0), X[:10], generators)
    assert made.kind.tolist() == [int(k) for k in [g.Kind.POINT, g.Kind.GLOBAL, g.Kind.POINT] * 3 + [g.Kind.POINT]]
    kept = ~np.asarray(made.mask)
    np.testing.assert_array_equal(np.asarray(made.x)[kept], np.asarray(X[:10])[kept])
    with pytest.raises(ValueError, match=r"at least one row for each, got 2 rows for 3 kinds"):
        g.several(jax.random.key(0), X[:2], generators)


# ---------------------------------------------------------------------------------------------------------- promises and mistakes

SHORT = noise.linear(1000)[::200]
FILL = noise.log_uniform(4, sigma_min=0.05, sigma_max=20.0)
GENERATORS = {
    "sdas": lambda key, d, x: g.sdas(key, d, x, SHORT, variance=sampling.fixed_small),
    "low_density": lambda key, d, x: g.low_density(key, d, x, SHORT, variance=sampling.fixed_small),
    "minority": lambda key, d, x: g.minority(key, d, x, SHORT, variance=sampling.fixed_small),
    "detector_guided": lambda key, d, x: g.detector_guided(
        key,
        d,
        x,
        SHORT,
        variance=sampling.fixed_small,
        score=lambda r: jnp.sum(r**2, axis=1),
        calibration_scores=jnp.arange(99.0),
    ),
    "dependency": lambda key, d, x: g.dependency_anomalies(key, d, x, FILL),
    "cluster": lambda key, d, x: g.cluster_anomalies(key, d, x, FILL),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_is_a_function_of_its_key_and_composes(name):
    make, x = GENERATORS[name], X[:6]
    plain = make(jax.random.key(3), DENOISE, x)
    assert plain.x.shape == plain.mask.shape == x.shape
    assert plain.mask.dtype == bool
    assert plain.kind.shape == (6,)
    keys = jax.random.wrap_key_data(jnp.stack([jax.random.key_data(jax.random.key(seed)) for seed in (3, 4)]))
    many = jax.jit(jax.vmap(lambda key: make(key, DENOISE, x)))(keys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], rtol=2e-4, atol=2e-4), plain, many)
    assert not np.allclose(many.x[0], many.x[1])


@pytest.mark.parametrize("name", GENERATORS)
def test_a_denoiser_of_other_rows_is_refused_in_one_sentence(name):
    network = MLP(width=8, depth=1)
    params = network.init(jax.random.key(0), jnp.zeros((1, 5)), jnp.zeros(1))["params"]
    for denoise in (make_denoiser(network, params), closed_form.gaussian_denoiser(np.zeros(5), np.eye(5))):
        with pytest.raises(ValueError, match=re.escape("a denoiser that does not take rows of shape (3,)")):
            GENERATORS[name](jax.random.key(0), denoise, X[:6])
    with pytest.raises(ValueError, match=re.escape("makes (6, 5) of rows (6, 3)")):
        GENERATORS[name](jax.random.key(0), lambda noisy, level: jnp.zeros((len(noisy), 5)), X[:6])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda k: g.sdas(k, DENOISE, X, SHORT, variance=sampling.fixed_small, strength=-0.1),
            "from 0 to 10, got -0.1",
        ),
        (
            lambda k: g.low_density(k, DENOISE, X, SHORT, variance=sampling.fixed_small, strength=0.6),
            "from 0 to 0.45, got 0.6",
        ),
        (
            lambda k: g.sdas(k, DENOISE, X[:2], SHORT, variance=sampling.fixed_small, strength=np.array([0.0, 99.0])),
            "from 0 to 10, got 0 to 99",
        ),
        (lambda k: g.minority(k, DENOISE, X, SHORT, variance=sampling.fixed_small, strength=11.0), "from 0 to 10"),
        (lambda k: g.point_anomalies(k, X, strength=-1.0), "from 0 to 100"),
        (lambda k: g.point_anomalies(k, X[:, :1]), "needs 2 columns"),
        (lambda k: g.cluster_anomalies(k, DENOISE, X, FILL, strength=-1.0), "from 0 to 100"),
        (lambda k: g.global_anomalies(k, X, strength=99.0), "from 0 to 10"),
        (lambda k: g.dependency_anomalies(k, DENOISE, X[:1], FILL), "got a single row"),
        (lambda k: g.dependency_anomalies(k, DENOISE, X, FILL, most=0), "most >= 1"),
        (lambda k: g.dependency_anomalies(k, DENOISE, X, FILL[0]), "at least 2 levels"),
        (lambda k: g.band_targets(k, np.arange(10.0), 3), "calibration rows enough"),
        (lambda k: g.band_targets(k, np.arange(99.0), 3, (0.05, 0.01)), "0 < low <= high < 1"),
        (
            lambda k: g.detector_guided(
                k,
                DENOISE,
                X,
                SHORT,
                variance=sampling.fixed_small,
                score=lambda r: r,
                calibration_scores=jnp.arange(99.0),
            ),
            r"needs a score of shape \(4000,\) for 4000 rows, got \(4000, 3\)",
        ),
        (
            lambda k: g.detector_guided(
                k,
                DENOISE,
                X,
                SHORT,
                variance=sampling.fixed_small,
                score=lambda r: r[:, 0],
                calibration_scores=np.full(99, np.nan),
            ),
            "finite calibration scores",
        ),
    ],
)
def test_mistakes_are_answered_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0))
