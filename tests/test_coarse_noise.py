"""Coarse noise: unit variance at every pixel, the covariance of its interpolation weights, and its place in a score."""

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jaxad import coarse, noise, scoring

SETTINGS = {
    "published": {},
    "small": {"coarsest": 8, "octaves": 4},
    "one octave": {"coarsest": 5, "octaves": 1},
    "finest dominates": {"coarsest": 6, "octaves": 3, "decay": 2.0},
    "white": {"coarsest": 1, "octaves": 1},
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def covariance(height, width, coarsest=64, octaves=6, decay=0.8):
    """Of the pixels of one channel, from the matrices."""
    weights = decay ** (2 * np.arange(octaves))
    parts = []
    for octave in range(octaves):
        down, across = (coarse.interpolation(size, coarsest / 2**octave) for size in (height, width))
        parts.append(np.kron(down @ down.T, across @ across.T))
    return np.einsum("k,kij->ij", weights / weights.sum(), np.stack(parts))


@every_setting
def test_every_pixel_has_unit_variance_by_the_weights(settings):
    np.testing.assert_allclose(np.diag(covariance(9, 13, **settings)), 1, rtol=1e-12)


@every_setting
def test_a_sample_has_the_covariance_of_the_weights(settings):
    sample = jax.jit(lambda key: coarse.pyramid_noise(key, (20000, 5, 6, 2), **settings))(jax.random.key(0))
    assert sample.dtype == jnp.float32
    for channel in np.moveaxis(np.asarray(sample, np.float64), -1, 0):
        flat = channel.reshape(len(channel), -1)
        np.testing.assert_allclose(flat.T @ flat / len(flat), covariance(5, 6, **settings), atol=0.04)
        np.testing.assert_allclose(flat.mean(axis=0), 0, atol=0.03)


def test_images_and_channels_are_independent():
    sample = np.asarray(coarse.pyramid_noise(jax.random.key(0), (2, 3, 4000, 4, 4, 2), coarsest=4, octaves=2))[
        ..., 1, 2, :
    ]
    flat = sample.transpose(2, 0, 1, 3).reshape(4000, -1)
    np.testing.assert_allclose(np.corrcoef(flat.T), np.eye(12), atol=0.07)


def test_coarse_noise_survives_a_blur_that_white_noise_does_not():
    def left(sample):
        return gaussian_filter(np.asarray(sample), (0, 4, 4, 0)).std()

    shape = (50, 64, 64, 1)
    assert left(coarse.pyramid_noise(jax.random.key(0), shape)) > 10 * left(jax.random.normal(jax.random.key(1), shape))


def test_it_is_called_like_normal_noise_in_a_score():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 1)), jnp.float32)
    levels = noise.cosine(10)[3:6]

    def identity(noisy, level):
        return noisy / noise.expand(level.alpha, noisy)

    score = jax.jit(partial(scoring.reconstruction_error_map, denoise=identity, x=x, levels=levels, draws=4))
    default = score(jax.random.key(0))
    named = partial(
        scoring.reconstruction_error_map, denoise=identity, x=x, levels=levels, draws=4, draw=jax.random.normal
    )
    np.testing.assert_array_equal(jax.jit(named)(jax.random.key(0)), default)
    draw = partial(coarse.pyramid_noise, coarsest=8, octaves=3)
    rough = np.asarray(partial(named, draw=draw)(jax.random.key(0)))

    def roughness(maps):
        return np.abs(np.diff(maps, axis=-1)).mean() / maps.mean()

    assert roughness(rough) < 0.7 * roughness(np.asarray(default))


@pytest.mark.parametrize("shape", [(5,), (4, 4)])
def test_a_table_has_no_coarse_noise(shape):
    with pytest.raises(ValueError, match=r"needs a shape \[..., height, width, channels\], got"):
        coarse.pyramid_noise(jax.random.key(0), shape)


@pytest.mark.parametrize("bad", [{"octaves": 0}, {"coarsest": 0}, {"decay": 0.0}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="at least one octave, a positive cell and a positive decay"):
        coarse.pyramid_noise(jax.random.key(0), (4, 4, 1), **bad)


def test_the_examples_in_the_docstrings():
    failed, _ = doctest.testmod(coarse)
    assert not failed
