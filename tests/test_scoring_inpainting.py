"""In-painting of images: masks, known pixels to the bit, and the error map of a Gaussian by a linear recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import noise, scoring
from jaxad.closed_form import gaussian_denoiser

SHAPE, SIZE = (4, 4, 1), 16
PLACES = np.stack(np.meshgrid(np.arange(4), np.arange(4), indexing="ij"), axis=-1).reshape(SIZE, 2)
COVARIANCE = np.exp(-0.5 * ((PLACES[:, None] - PLACES[None]) ** 2).sum(axis=-1) / 1.5**2) + 1e-3 * np.eye(SIZE)
VECTORS = gaussian_denoiser(np.zeros(SIZE), COVARIANCE)
PATHS = noise.cosine(1000)[np.array([np.arange(0, 1000, 100), np.linspace(0, 800, 10).astype(int)])]


def denoise(noisy, level):
    return VECTORS(noisy.reshape(len(noisy), -1), level).reshape(noisy.shape)


def images(count=5):
    rows = np.random.default_rng(0).multivariate_normal(np.zeros(SIZE), COVARIANCE, size=count)
    return jnp.asarray(rows.reshape(count, *SHAPE), jnp.float32)


def nothing(noisy, level):
    return jnp.zeros_like(noisy)


def expected_map(x, path, mask):
    """Mean and covariance of the filling: every step is an affine map of the step before, of x, and of fresh noise."""
    hidden, known = np.diag(mask * 1.0), np.diag(1.0 - mask)
    last = path[-1]
    from_x = last.alpha * known
    spread = np.hypot(last.alpha, last.sigma) * hidden + last.sigma * known
    covariance = spread @ spread

    def gain(level):
        return level.alpha * COVARIANCE @ np.linalg.inv(level.alpha**2 * COVARIANCE + level.sigma**2 * np.eye(SIZE))

    for step in range(len(path) - 1, 0, -1):
        cleaner, move = path[step - 1], hidden @ gain(path[step])
        from_x = cleaner.alpha * (move @ from_x + known)
        covariance = cleaner.alpha**2 * move @ covariance @ move.T + cleaner.sigma**2 * np.eye(SIZE)
    move = hidden @ gain(path[0])
    rows = np.asarray(x, np.float64).reshape(len(x), SIZE)
    gap = rows @ (move @ from_x + known - np.eye(SIZE)).T
    return gap**2 + np.diag(move @ covariance @ move.T)


def test_the_map_of_a_gaussian():
    x = images()
    run = jax.jit(lambda key: scoring.inpainting_error_map(key, denoise, x, PATHS, block=1, draws=4096))
    measured = run(jax.random.key(0))
    for path, error in zip(PATHS, measured, strict=True):
        boards = [scoring.checkerboard(4, 4, 1, parity).reshape(-1) for parity in (0, 1)]
        expected = sum(expected_map(x, path, board) for board in boards)
        np.testing.assert_allclose(error.reshape(len(x), SIZE), expected, rtol=0.12, atol=2e-3)


def test_a_pixel_that_its_neighbours_contradict_stands_out():
    x = images().at[2, 1, 2].add(3.0)
    error = scoring.inpainting_error_map(jax.random.key(0), denoise, x, PATHS[:1], block=1, draws=8)[0]
    assert int(error[2].argmax()) == 1 * 4 + 2
    score = scoring.inpainting_error(jax.random.key(0), denoise, x, PATHS[:1], block=1, draws=8)[0]
    assert int(score.argmax()) == 2


def test_both_parities_hide_every_pixel_once():
    """A denoiser that always says 0 makes the map that of x itself."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7, 10, 2)), jnp.float32)
    for block in (1, 3, 8):
        error = scoring.inpainting_error_map(jax.random.key(0), nothing, x, PATHS, block=block)
        np.testing.assert_allclose(error, np.broadcast_to((x**2).mean(axis=-1), error.shape), rtol=1e-6)


def test_random_masks_hide_every_pixel_equally_often():
    for count, kept in ((2, 0.5), (4, 0.75), (4, 0.5), (6, 0.5)):
        masks = scoring.random_masks(jax.random.key(0), count, 12, 16, patch=4, kept=kept)
        assert masks.shape == (count, 12, 16)
        np.testing.assert_array_equal(masks.sum(axis=0), round(count * (1 - kept)))
        np.testing.assert_array_equal(masks.mean(axis=(1, 2)), 1 - kept)


def test_random_masks_are_whole_patches_cut_at_the_edge_and_drawn_from_the_key():
    masks = jax.jit(lambda key: scoring.random_masks(key, 3, 10, 7, patch=4))(jax.random.key(0))
    padded = np.pad(masks, ((0, 0), (0, 2), (0, 1)), mode="edge").reshape(3, 3, 4, 2, 4)
    assert (padded == padded[:, :, :1, :, :1]).all()
    assert (masks != scoring.random_masks(jax.random.key(1), 3, 10, 7, patch=4)).any()


def test_masks_of_ones_own_average_over_those_that_hide_a_pixel():
    x = images()
    masks = scoring.random_masks(jax.random.key(0), 3, 4, 4, patch=1, kept=0.6)
    hidden = np.asarray(masks.any(axis=0))
    error = scoring.inpainting_error_map(jax.random.key(1), nothing, x, PATHS[:1], masks=masks)[0]
    np.testing.assert_allclose(error, np.where(hidden, x[..., 0] ** 2, 0), rtol=1e-6)
    score = scoring.inpainting_error(jax.random.key(2), nothing, x, PATHS[:1], masks=masks)[0]
    np.testing.assert_allclose(score, error.mean(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("parity", [0, 1])
def test_known_pixels_come_back_to_the_bit(parity):
    x = images()
    mask = jnp.broadcast_to(jnp.asarray(scoring.checkerboard(4, 4, 2, parity))[..., None], SHAPE)
    filled = jax.jit(lambda x: scoring.inpaint(jax.random.key(0), denoise, x, mask, PATHS[0]))(x)
    np.testing.assert_array_equal(filled[:, ~mask], x[:, ~mask])
    other = scoring.inpaint(jax.random.key(0), denoise, jnp.where(mask, 100.0, x), mask, PATHS[0])
    np.testing.assert_allclose(filled, other, rtol=1e-5, atol=1e-6)  # what was hidden was not looked at


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scoring.checkerboard(4, 6, 6), "blocks of 1 to 5 pixels, got block=6; larger ones would hide"),
        (lambda: scoring.checkerboard(4, 6, 0), "blocks of 1 to 5 pixels, got block=0"),
        (lambda: scoring.checkerboard(4, 6, 2, 2), "parity 0 or 1, got parity=2"),
        (lambda: scoring.random_masks(jax.random.key(0), 0, 8, 8), "count >= 1"),
        (lambda: scoring.random_masks(jax.random.key(0), 1, 8, 8, patch=0), "patch >= 1"),
        (lambda: scoring.random_masks(jax.random.key(0), 1, 8, 8, kept=1.0), "some of the 4 patches hidden"),
        (lambda: scoring.random_masks(jax.random.key(0), 1, 8, 8, patch=8), "some of the 1 patches hidden"),
        (
            lambda: scoring.inpainting_error(jax.random.key(0), nothing, images(), PATHS, masks=np.ones((4, 4), bool)),
            r"the shape \[masks, 4, 4\], got \(4, 4\)",
        ),
    ],
)
def test_what_cannot_be_masked_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
