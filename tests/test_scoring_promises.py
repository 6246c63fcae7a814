"""What every score promises, one table over all of them: rows stand alone, memory is bounded, every transform composes."""

import doctest
import importlib
import inspect
import pkgutil
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import noise, scoring
from jaxad.detectors.diffusion import default_levels

LEVELS = noise.log_uniform(4, sigma_min=0.2, sigma_max=3.0)
PATHS = noise.reverse_paths(noise.cosine(100), [20, 60], 4)
# levels, and how many numbers per row come back
SCORES = {
    "reconstruction_error": (LEVELS, 4),
    "denoising_error": (LEVELS, 4),
    "flow_residual": (LEVELS, 4),
    "projection_regret": (LEVELS[np.array([[0, 1], [1, 3], [0, 2]])], 3),
    "ddim_reconstruction_error": (PATHS, 2),
    "ancestral_reconstruction_error": (PATHS, 2),
    "unnoised_reverse_error": (PATHS, 2),
    "score_norm": (LEVELS, 4),
    "log_score_norm": (LEVELS, 4),
    "path_statistics": (LEVELS, 6),
    "path_curvature": (LEVELS, 1),
    "variational_bound": (LEVELS, 4),
    "negative_log_likelihood": (LEVELS, 1),
    "time_posterior": (LEVELS, 2),
    "conditional_error": (LEVELS, 3),
    "guided_reconstruction_error": (PATHS, 2),
    "inpainting_error": (PATHS, 2),
    "denoising_error_map": (LEVELS, 4),
    "reconstruction_error_map": (LEVELS, 4),
    "guided_reconstruction_map": (PATHS, 2),
    "inpainting_error_map": (PATHS, 2),
    "norm_guided_error_map": (LEVELS[np.array([[0, 2], [1, 3]])], 2),
}
OPTIONS = {
    "negative_log_likelihood": {"exact": False},
    "time_posterior": {"exact": False},
    "inpainting_error": {"block": 1},
    "inpainting_error_map": {"block": 1},
}
every_score = pytest.mark.parametrize("name", SCORES)
MIXING = jnp.asarray(np.random.default_rng(5).normal(size=(3, 3)), jnp.float32)
ROWS = jnp.asarray(np.random.default_rng(6).normal(size=(12, 3)), jnp.float32)


def denoise(noisy, level):
    """Smooth, not linear, each row for itself, and a function of ``z / alpha`` and ``sigma / alpha`` alone."""
    rows = noisy.reshape(len(noisy), -1)
    scaled = rows / noise.expand(level.alpha, rows)
    clean = jnp.tanh(scaled @ MIXING.astype(noisy.dtype) + 0.3) / noise.expand(1 + level.sigma / level.alpha, rows)
    return clean.reshape(noisy.shape)


def as_seen(name, x):
    """Rows of three values; scores of images get pictures of three pixels."""
    return x.reshape(-1, 3, 1, 1) if name.endswith("_map") or "inpainting" in name else x


def run(name, key, x, **options):
    """The score of ``x [rows, 3]``; of a map, its sum."""
    score, levels = getattr(scoring, name), SCORES[name][0]
    values = score(key, denoise, as_seen(name, x), levels, draws=3, **OPTIONS.get(name, {}), **options)
    return values.sum(axis=(2, 3)) if name.endswith("_map") else values


@cache
def jitted(name, memory_budget=scoring.MEMORY_BUDGET):
    return jax.jit(lambda key, x: run(name, key, x, memory_budget=memory_budget))


def test_the_table_is_complete():
    scores = {
        name
        for name in scoring.__all__
        if inspect.isfunction(getattr(scoring, name))
        and "draws" in inspect.signature(getattr(scoring, name)).parameters
    }
    assert scores == set(SCORES)


@every_score
def test_a_score_is_the_same_without_jit_and_has_its_shape(name):
    eager = run(name, jax.random.key(0), ROWS)
    assert eager.shape == (SCORES[name][1], len(ROWS))
    assert eager.dtype == ROWS.dtype
    np.testing.assert_allclose(jitted(name)(jax.random.key(0), ROWS), eager, rtol=2e-4, atol=1e-5)


@every_score
def test_a_rows_score_depends_on_no_other_row(name):
    together = np.asarray(jitted(name)(jax.random.key(0), ROWS))
    order = np.random.default_rng(2).permutation(len(ROWS))
    np.testing.assert_allclose(jitted(name)(jax.random.key(0), ROWS[order]), together[:, order], rtol=1e-4, atol=1e-5)
    subset = np.array([7, 2, 5])
    np.testing.assert_allclose(jitted(name)(jax.random.key(0), ROWS[subset]), together[:, subset], rtol=1e-4, atol=1e-5)


@every_score
def test_little_memory_changes_the_loop_and_not_the_score(name):
    roomy = jitted(name)(jax.random.key(0), ROWS)
    tight = jitted(name, 2 * ROWS.nbytes)(jax.random.key(0), ROWS)
    np.testing.assert_allclose(tight, roomy, rtol=1e-4, atol=1e-5)


@every_score
def test_a_score_maps_over_seeds(name):
    keys = jax.random.split(jax.random.key(1), 2)
    mapped = jax.vmap(jitted(name), in_axes=(0, None))(keys, ROWS)
    for seed, key in enumerate(keys):
        np.testing.assert_allclose(mapped[seed], jitted(name)(key, ROWS), rtol=1e-4, atol=1e-5)


@every_score
def test_a_scores_gradient_is_that_of_finite_differences(name):
    total = jax.jit(lambda x: run(name, jax.random.key(0), x).sum())
    with jax.enable_x64(True):
        x, direction = jnp.asarray(ROWS, jnp.float64), jnp.asarray(np.random.default_rng(3).normal(size=ROWS.shape))
        gradient = jax.grad(total)(x)
        difference = (total(x + 1e-5 * direction) - total(x - 1e-5 * direction)) / 2e-5
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(np.sum(np.asarray(gradient) * np.asarray(direction)), difference, rtol=1e-4, atol=1e-6)


@every_score
def test_a_score_needs_a_draw(name):
    with pytest.raises(ValueError, match="at least one noise draw, got draws=0"):
        getattr(scoring, name)(
            jax.random.key(0), denoise, as_seen(name, ROWS), SCORES[name][0], draws=0, **OPTIONS.get(name, {})
        )


@pytest.mark.parametrize("name", [name for name in SCORES if not name.endswith("_map")])
def test_a_detectors_own_levels_suit_the_score_and_a_partial_of_it(name):
    score = partial(getattr(scoring, name), memory_budget=2**20, **OPTIONS.get(name, {}))
    levels = default_levels(score).to(jnp.float32)
    seen = as_seen(name, ROWS)
    shape = jax.eval_shape(lambda x: score(jax.random.key(0), denoise, x, levels, draws=1), seen).shape
    assert shape[1:] == (len(ROWS),)
    assert (np.diff(default_levels(score).log_snr, axis=-1) < 0).all()


@pytest.mark.parametrize("module", [module.name for module in pkgutil.iter_modules(scoring.__path__)])
def test_the_examples_in_the_docstrings(module):
    failed, _ = doctest.testmod(importlib.import_module(f"jaxad.scoring.{module}"))
    assert not failed
