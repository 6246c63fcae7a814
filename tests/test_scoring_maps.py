"""Error maps against their formula, and what every map promises: its mean is the score, rows stand alone, memory is bounded."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jaxad import noise, scoring
from jaxad.closed_form import gaussian_denoiser
from jaxad.coarse import pyramid_noise
from jaxad.denoising import classifier_free, guided_towards
from jaxad.sampling import ddim

SHAPE = (4, 5, 2)
SIZE = 40
LEVELS = noise.cosine(100)[[20, 40, 70]]
PATHS = noise.reverse_paths(noise.cosine(100), [20, 60], 5)
PAIRS = noise.log_uniform(6, sigma_min=0.1, sigma_max=3.0)[np.array([[0, 3], [2, 5]])]
MIXING = np.random.default_rng(0).normal(size=(SIZE, SIZE)) / SIZE**0.5
COVARIANCE = MIXING @ MIXING.T + 0.1 * np.eye(SIZE)


def of_images(denoise):
    """A denoiser of vectors as one of images."""

    def denoise_images(noisy, level):
        return denoise(noisy.reshape(len(noisy), -1), level).reshape(noisy.shape)

    return denoise_images


DENOISE = of_images(gaussian_denoiser(np.zeros(SIZE), COVARIANCE))
X = jnp.asarray(np.random.default_rng(1).normal(size=(6, *SHAPE)), jnp.float32)
FLAT = np.asarray(X, np.float64).reshape(6, SIZE)


def gain(level):
    return level.alpha * COVARIANCE @ np.linalg.inv(level.alpha**2 * COVARIANCE + level.sigma**2 * np.eye(SIZE))


def as_map(square):
    return square.reshape(-1, *SHAPE).mean(axis=-1)


def fixed(key, shape, dtype):
    """Always the same noise, so that a map of two draws is known exactly: with it, and with its negative."""
    return jnp.asarray(np.random.default_rng(7).normal(size=shape), dtype)


def drawn(copies=1):
    return np.asarray(fixed(None, (copies, SIZE), jnp.float32), np.float64)


# --------------------------------------------------------------------------------------------------------- against the formula


def test_the_reconstruction_map_of_a_gaussian():
    measured = scoring.reconstruction_error_map(jax.random.key(0), DENOISE, X, LEVELS, draws=2, draw=fixed)
    for level, error in zip(LEVELS, measured, strict=True):
        still = FLAT @ (level.alpha * gain(level) - np.eye(SIZE)).T
        stirred = drawn() @ (level.sigma * gain(level)).T
        np.testing.assert_allclose(error, as_map(still**2 + stirred**2), rtol=1e-3, atol=1e-5)


def test_the_denoising_map_of_a_gaussian():
    measured = scoring.denoising_error_map(jax.random.key(0), DENOISE, X, LEVELS, draws=2, draw=fixed)
    for level, error in zip(LEVELS, measured, strict=True):
        left = (np.eye(SIZE) - level.alpha * gain(level)) / level.sigma
        still, stirred = FLAT @ (level.alpha * left).T, drawn() @ (level.sigma * left - np.eye(SIZE)).T
        np.testing.assert_allclose(error, as_map(still**2 + stirred**2), rtol=1e-3, atol=1e-5)


def test_the_norm_guided_map_of_a_gaussian():
    """DiffusionAD's formula in noises, as published: levels have to preserve the variance."""
    pairs, weight = noise.linear(1000)[np.array([[199, 399], [99, 249]])], 0.8
    measured = scoring.norm_guided_error_map(
        jax.random.key(0),
        DENOISE,
        X,
        pairs,
        weight=weight,
        draws=2,
        draw=lambda k, s, d: fixed(k, (2, SIZE), d).reshape(s),
    )
    first, second = drawn(2)
    for pair, error in zip(pairs, measured, strict=True):
        a, b = pair[0], pair[1]
        squares = []
        for sign in (1, -1):
            norm = (b.alpha * FLAT + sign * b.sigma * second) @ gain(b).T
            z = a.alpha * FLAT + sign * a.sigma * first
            eps = (z - a.alpha * z @ gain(a).T) / a.sigma
            eps = eps - a.sigma * weight * (a.alpha * norm + a.sigma * eps - z)
            squares.append(((z - a.sigma * eps) / a.alpha - FLAT) ** 2)
        np.testing.assert_allclose(error, as_map(np.mean(squares, axis=0)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_guided_path_takes_the_published_steps(eta):
    """DDAD written out in noises, algorithm 1; the sampler's own noise is that of jaxad.sampling.ddim."""
    path, weight, key = noise.reverse_paths(noise.linear(1000), [249], 6)[0], 3.0, jax.random.key(3)
    noisy = noise.add_noise(X, fixed(None, X.shape, X.dtype), path[-1].to(X.dtype))
    guided = ddim(key, guided_towards(DENOISE, X, weight), noisy, path, eta=eta)
    z = np.asarray(noisy, np.float64).reshape(6, SIZE)
    for step in range(len(path)):
        t = path[len(path) - 1 - step]
        eps = (z - t.alpha * z @ gain(t).T) / t.sigma
        eps = eps - t.sigma * weight * (t.alpha * FLAT + t.sigma * eps - z)
        clean = (z - t.sigma * eps) / t.alpha
        if step < len(path) - 1:
            s = path[len(path) - 2 - step]
            spread = eta * np.sqrt((1 - t.alpha**2 / s.alpha**2) * (1 - s.alpha**2) / (1 - t.alpha**2))
            fresh = jax.random.normal(jax.random.fold_in(jax.random.clone(key), step), X.shape).reshape(6, SIZE)
            z = s.alpha * clean + np.sqrt(1 - s.alpha**2 - spread**2) * eps + spread * np.asarray(fresh)
    np.testing.assert_allclose(guided.reshape(6, SIZE), clean, rtol=1e-3, atol=1e-3)


def test_guidance_pulls_the_reconstruction_towards_the_image_and_weight_0_leaves_it():
    def run(weight):
        return scoring.guided_reconstruction_error(jax.random.key(0), DENOISE, X, PATHS, weight=weight, eta=0.0)

    np.testing.assert_allclose(
        run(0.0), scoring.ddim_reconstruction_error(jax.random.key(0), DENOISE, X, PATHS), rtol=1e-4
    )
    assert (run(1.0) < run(0.0)).all()


def test_classifier_free_guidance_of_two_gaussians():
    """The guided noise is that of the density ``p_conditional^(1+w) / p_unconditional^w``, another Gaussian at every level."""
    means, covariances, weight = (
        np.array([[1.0, -2.0], [0.0, 0.5]]),
        np.array([np.diag([0.5, 1]), np.diag([2, 3.0])]),
        1.5,
    )
    guided = classifier_free(*[gaussian_denoiser(*p) for p in zip(means, covariances, strict=True)], weight)
    z = np.random.default_rng(0).normal(size=(7, 2))
    for level in LEVELS:
        precisions = np.linalg.inv(level.alpha**2 * covariances + level.sigma**2 * np.eye(2))
        precision = (1 + weight) * precisions[0] - weight * precisions[1]
        pulls = [p @ (level.alpha * m) for p, m in zip(precisions, means, strict=True)]
        mean = np.linalg.solve(precision, (1 + weight) * pulls[0] - weight * pulls[1])
        noisy, level = jnp.asarray(z, jnp.float32), level.to(jnp.float32)
        eps = noise.noise_from_clean(guided(noisy, level), noisy, level)
        np.testing.assert_allclose(eps, float(level.sigma) * (z - mean) @ precision.T, rtol=1e-3, atol=1e-4)


def test_a_guided_denoiser_is_a_function_of_the_ratio_alone():
    """The property that denoising.py promises of every ``Denoise``."""
    guided = guided_towards(DENOISE, X, 2.0)
    level = LEVELS[1].to(jnp.float32)
    same = noise.NoiseLevel(jnp.ones_like(level.alpha), level.sigma / level.alpha)
    np.testing.assert_allclose(guided(X, level), guided(X / level.alpha, same), rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------------------- what every map promises

# The map, its levels, and the score that it is the map of.
MAPS = {
    "reconstruction_error_map": (LEVELS, "reconstruction_error"),
    "denoising_error_map": (LEVELS, "denoising_error"),
    "guided_reconstruction_map": (PATHS, "guided_reconstruction_error"),
    "norm_guided_error_map": (PAIRS, None),
    "inpainting_error_map": (PATHS, "inpainting_error"),
}
every_map = pytest.mark.parametrize("name", MAPS)


def smooth_denoise(noisy, level):
    """Smooth and not linear, each row for itself."""
    mixed = jnp.einsum("nhwc,hk,wl->nklc", noisy, *(jnp.asarray(MIXING[:n, :n], noisy.dtype) for n in SHAPE[:2]))
    return jnp.tanh(3 * mixed + 0.2) / noise.expand(1 + level.sigma / level.alpha, noisy)


def run(name, key, x, draws=4, **options):
    if name.startswith("inpainting"):
        options["block"] = 2
    levels = next(levels for known, (levels, score) in MAPS.items() if name in (known, score))
    return getattr(scoring, name)(key, smooth_denoise, x, levels, draws=draws, **options)


@cache
def jitted(name, memory_budget=scoring.MEMORY_BUDGET):
    return jax.jit(lambda key, x: run(name, key, x, memory_budget=memory_budget))


def test_the_table_is_complete():
    assert {name for name in scoring.__all__ if name.endswith("_map")} == set(MAPS)


@every_map
def test_a_map_is_the_same_without_jit_and_has_its_shape(name):
    eager = run(name, jax.random.key(0), X)
    assert eager.shape == (len(MAPS[name][0]), *X.shape[:3])
    assert eager.dtype == X.dtype
    assert (eager >= 0).all()
    np.testing.assert_allclose(jitted(name)(jax.random.key(0), X), eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, (_, score) in MAPS.items() if score])
def test_the_mean_of_a_map_is_the_score(name):
    measured = jitted(name)(jax.random.key(0), X).mean(axis=(2, 3))
    np.testing.assert_allclose(measured, jitted(MAPS[name][1])(jax.random.key(0), X), rtol=1e-5, atol=1e-6)


@every_map
def test_a_rows_map_depends_on_no_other_row(name):
    together = np.asarray(jitted(name)(jax.random.key(0), X))
    subset = np.array([4, 0, 3])
    np.testing.assert_allclose(jitted(name)(jax.random.key(0), X[subset]), together[:, subset], rtol=1e-4, atol=1e-5)


@every_map
@pytest.mark.parametrize("copies", [1, 3, 7])
def test_little_memory_changes_the_loop_and_not_the_map(name, copies):
    """A copy of x with its map is 1.5 times x: one, then two, then four (all draws of a level) at once."""
    tight = jitted(name, copies * X.nbytes)(jax.random.key(0), X)
    np.testing.assert_allclose(tight, jitted(name)(jax.random.key(0), X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["denoising_error_map", "inpainting_error_map"])
def test_memory_does_not_grow_with_the_draws(name):
    def temporary(draws):
        score = jax.jit(lambda key, x: run(name, key, x, draws=draws, memory_budget=3 * X.nbytes))
        return score.lower(jax.random.key(0), X).compile().memory_analysis().temp_size_in_bytes

    assert temporary(256) < 1.2 * temporary(8)


@every_map
def test_a_map_maps_over_seeds(name):
    keys = jax.random.split(jax.random.key(1), 2)
    mapped = jax.vmap(jitted(name, 3 * X.nbytes), in_axes=(0, None))(keys, X)
    for seed, key in enumerate(keys):
        np.testing.assert_allclose(mapped[seed], jitted(name)(key, X), rtol=1e-4, atol=1e-5)


@every_map
def test_a_map_has_a_finite_gradient(name):
    for budget in (scoring.MEMORY_BUDGET, X.nbytes):
        gradient = jax.grad(lambda x, budget=budget: jitted(name, budget)(jax.random.key(0), x).sum())(X)
        assert np.isfinite(gradient).all()
        assert gradient.any()


@every_map
def test_tables_have_no_map(name):
    with pytest.raises(
        ValueError, match=r"needs images of shape \[batch, height, width, channels\], got shape \(6, 40\)"
    ):
        run(name, jax.random.key(0), X.reshape(6, SIZE))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("guided_reconstruction_map", r"paths of shape \[levels, steps\]"),
        ("norm_guided_error_map", r"the cleaner of each pair first"),
        ("inpainting_error_map", r"paths of shape \[levels, steps\] with at least 2 steps"),
    ],
)
def test_single_levels_are_no_paths_and_no_pairs(name, message):
    with pytest.raises(ValueError, match=message):
        getattr(scoring, name)(jax.random.key(0), smooth_denoise, X, LEVELS)


@pytest.mark.parametrize("name", ["reconstruction_error_map", "denoising_error_map"])
def test_a_map_of_coarse_noise_is_its_formula(name):
    """What the noise adds is ``diag(B K B^T)`` for the noise's covariance K, known from many draws of it."""
    small = lambda key, shape, dtype: pyramid_noise(key, shape, dtype, coarsest=4, octaves=2)  # noqa: E731
    sample = np.asarray(small(jax.random.key(5), (20000, *SHAPE), jnp.float32), np.float64).reshape(-1, SIZE)
    covariance = sample.T @ sample / len(sample)
    level = LEVELS[1]
    if name.startswith("denoising"):
        left = (np.eye(SIZE) - level.alpha * gain(level)) / level.sigma
        still, matrix = level.alpha * left, level.sigma * left - np.eye(SIZE)
    else:
        still, matrix = level.alpha * gain(level) - np.eye(SIZE), level.sigma * gain(level)
    score = jax.jit(lambda key: getattr(scoring, name)(key, DENOISE, X, LEVELS[1:2], draws=4096, draw=small))
    expected = as_map((FLAT @ still.T) ** 2 + np.diag(matrix @ covariance @ matrix.T))
    np.testing.assert_allclose(score(jax.random.key(0))[0], expected, rtol=0.15, atol=5e-3)


# ------------------------------------------------------------------------------------------------------------------ smoothing


@pytest.mark.parametrize("sigma", [0.5, 1.5, 4.0])
def test_smoothing_is_scipys_and_keeps_constants_and_means(sigma):
    maps = np.random.default_rng(0).random((2, 3, 17, 9)).astype(np.float32)
    measured = jax.jit(lambda maps: scoring.smooth(maps, sigma))(maps)
    expected = gaussian_filter(maps.astype(np.float64), (0, 0, sigma, sigma), mode="reflect")
    np.testing.assert_allclose(measured, expected, atol=1e-5)
    np.testing.assert_allclose(measured.mean(axis=(2, 3)), maps.mean(axis=(2, 3)), rtol=1e-5)
    np.testing.assert_allclose(scoring.smooth(jnp.full((17, 9), 3.0), sigma), 3.0, rtol=1e-5)


def test_no_smoothing_and_bad_smoothing():
    maps = jnp.asarray(np.random.default_rng(0).random((3, 6, 7)), jnp.float32)
    np.testing.assert_array_equal(scoring.smooth(maps, 0.0), maps)
    with pytest.raises(ValueError, match="from 0 on, got sigma=-1"):
        scoring.smooth(maps, -1.0)
    with pytest.raises(ValueError, match=r"maps of shape \[..., height, width\], got \(5,\)"):
        scoring.smooth(jnp.zeros(5), 1.0)
