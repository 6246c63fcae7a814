"""Masked anomalies: the background to the bit, the strength as promised, masks that are neither empty nor off the object."""

import doctest
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import closed_form, noise
from jaxad import generation as g
from jaxad.generation import synthesis

SIDE = 12
FLAT = closed_form.gaussian_denoiser(
    np.zeros(SIDE * SIDE), np.full((SIDE * SIDE, SIDE * SIDE), 0.9) + 0.1 * np.eye(SIDE * SIDE)
)
LEVELS = noise.cosine(100)[:98:12]


def denoise(noisy, level):
    """Pictures of one grey, a little grainy: every pixel is told by the others."""
    return FLAT(noisy.reshape(noisy.shape[0], -1), level).reshape(noisy.shape)


X = jnp.full((8, SIDE, SIDE, 1), 1.0) + 0.3 * jax.random.normal(jax.random.key(0), (8, SIDE, SIDE, 1))
MASK = g.perlin_masks(jax.random.key(1), 8, SIDE, SIDE, smallest=0.1)


@pytest.mark.parametrize("module", ["masks", "masked"])
def test_examples(module):
    result = doctest.testmod(importlib.import_module(f"jaxad.generation.{module}"))
    assert result.attempted
    assert not result.failed


# -------------------------------------------------------------------------------------------------------------- inside a mask

MASKED = {
    "redrawn": lambda key, x, mask: g.redrawn(key, g.tempered(denoise, 0.3), x, mask, LEVELS),
    "harmonised": lambda key, x, mask: g.harmonised(key, denoise, x, mask, LEVELS, content=x + 3),
    "blended": lambda key, x, mask: g.blended(key, x, mask, content=x + 3),
}


@pytest.mark.parametrize("name", MASKED)
def test_the_background_is_the_same_to_the_bit(name):
    make = MASKED[name]
    made = make(jax.random.key(2), X, MASK)
    mask = np.broadcast_to(np.asarray(MASK)[..., None], X.shape)
    np.testing.assert_array_equal(made.mask, mask)
    np.testing.assert_array_equal(np.asarray(made.x)[~mask], np.asarray(X)[~mask])
    assert (np.asarray(made.x)[mask] != np.asarray(X)[mask]).all()
    keys = jax.random.wrap_key_data(jnp.stack([jax.random.key_data(jax.random.key(seed)) for seed in (2, 3)]))
    many = jax.jit(jax.vmap(lambda key: make(key, X, MASK)))(keys)  # masks inside jit are not looked at, and so allowed
    np.testing.assert_allclose(many.x[0], made.x, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(many.x[1])[~mask], np.asarray(X)[~mask])


@pytest.mark.parametrize("mask", [MASK, MASK[0], MASK[..., None], MASK[0, ..., None]], ids=lambda mask: str(mask.shape))
def test_masks_come_per_row_or_once_with_or_without_channels(mask):
    made = g.blended(jax.random.key(0), X, mask, content=X + 3)
    expected = np.broadcast_to(mask if mask.shape[-1] == 1 else mask[..., None], X.shape)
    np.testing.assert_array_equal(made.mask, expected)


def test_strength_says_how_much_is_forgotten_and_how_much_content_survives():
    strength = jnp.repeat(jnp.array([0.0, 0.4, 1.0]), 8)
    rows, masks = jnp.tile(X, (3, 1, 1, 1)), jnp.tile(MASK, (3, 1, 1))

    def mean_inside(made, of):
        inside = jnp.where(made.mask, jnp.abs(made.x - of), 0).sum(axis=(1, 2, 3)) / made.mask.sum(axis=(1, 2, 3))
        return np.asarray(inside.reshape(3, 8).mean(axis=1))

    forgotten = mean_inside(g.redrawn(jax.random.key(1), denoise, rows, masks, LEVELS, strength=strength), rows)
    assert forgotten[0] < 0.1 < forgotten[1] < forgotten[2]
    assert forgotten[2] < 1  # what comes in its place is the grey of the picture, in its grain
    content = rows + 4
    lost = mean_inside(
        g.harmonised(jax.random.key(1), denoise, rows, masks, LEVELS, content=content, strength=strength), content
    )
    assert lost[0] > lost[1] > lost[2]
    assert lost[2] < 0.1
    assert lost[0] > 3.5  # nothing of the content is left


def test_the_classic_controls():
    made = g.cut_paste(jax.random.key(0), X, defects=(synthesis.pasted,))
    np.testing.assert_array_equal(np.asarray(made.x)[~made.mask], np.asarray(X)[~made.mask])
    assert made.mask.any(axis=(1, 2, 3)).all()
    blurred = g.blended(
        jax.random.key(0), X, MASK, content=synthesis.blurred(jax.random.key(0), X), strength=(1.0, 1.0)
    )
    inside = np.asarray(blurred.mask)
    assert np.asarray(blurred.x)[inside].std() < 0.8 * np.asarray(X)[inside].std()


# ---------------------------------------------------------------------------------------------------------------------- masks


def test_perlin_noise_is_smooth_bounded_and_of_many_grains():
    values = np.asarray(g.perlin_noise(jax.random.key(0), 200, 32, 40))
    assert np.abs(values).max() <= 1.0
    assert abs(values.mean()) < 0.05
    assert 0.15 < values.std() < 0.45
    steps = np.abs(np.diff(values, axis=2)).mean(axis=(1, 2))
    assert np.quantile(steps, 0.9) > 3 * np.quantile(steps, 0.1)
    # No jump between cells, not even in the finest lattice, whose cells have 4 pixels.
    assert np.abs(np.diff(values, axis=1)).max() < 0.7


def test_masks_keep_to_the_foreground_and_are_never_empty():
    foreground = np.zeros((24, 24), bool)
    foreground[4:16, 10:20] = True
    example = np.zeros((2, 24, 24), bool)
    example[0, 2:4, 3:15] = example[1, 10:20, 8:18] = True
    perlin = g.perlin_masks(jax.random.key(0), 100, 24, 24, foreground=foreground, smallest=0.05, largest=0.3)
    few = g.masks_from_examples(jax.random.key(0), example, 100, foreground=foreground)
    for masks in map(np.asarray, (perlin, few)):
        assert masks.any(axis=(1, 2)).all()
        assert not masks[:, ~foreground].any()
        assert len(np.unique(masks, axis=0)) > 85
    share = np.asarray(perlin).sum(axis=(1, 2)) / foreground.sum()
    assert 0.05 <= share.min() <= share.max() <= 0.3
    one_each = np.broadcast_to(foreground, (3, 24, 24)).copy()
    one_each[1] = False
    one_each[1, 0, 0] = True
    assert np.asarray(g.perlin_masks(jax.random.key(0), 3, 24, 24, foreground=one_each))[1].sum() == 1


def test_masks_from_a_few_look_like_them():
    """A bar stays a bar: long and thin, whatever its place and angle."""
    example = np.zeros((1, 40, 40), bool)
    example[0, 19:22, 8:32] = True
    masks = np.asarray(g.masks_from_examples(jax.random.key(0), example, 60, scale=(1.0, 1.0), elastic=0.5))
    whole = [mask for mask in masks if not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())]
    assert len(whole) > 10
    areas, ratios = [], []
    for mask in whole:
        spread = np.linalg.eigvalsh(np.cov(np.argwhere(mask).T))
        areas.append(mask.sum())
        ratios.append(np.sqrt(spread[1] / spread[0]))
    assert 50 < np.median(areas) < 95  # 72
    assert np.median(ratios) > 4  # 8


def test_the_foreground_of_a_picture_on_a_plain_ground():
    x = jnp.zeros((2, 10, 10, 3)).at[1, 3:7, 2:8, 1].set(0.8)
    found = np.asarray(g.foreground(x))
    assert not found[0].any()
    assert found[1].sum() == 24


# ------------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda k: g.redrawn(k, denoise, X, MASK[:, :5], LEVELS),
            r"a mask of one of the shapes.*\(8, 12, 12\).*got \(8, 5, 12\)",
        ),
        (lambda k: g.redrawn(k, denoise, X, jnp.zeros_like(MASK), LEVELS), "8 of 8 masks that are empty"),
        (lambda k: g.harmonised(k, denoise, X, MASK.at[2].set(True), LEVELS, content=X), "1 of 8 masks that are full"),
        (lambda k: g.blended(k, X, MASK[:3], content=X), r"got \(3, 12, 12\)"),
        (lambda k: g.redrawn(k, denoise, X, MASK, LEVELS, strength=1.5), "from 0 to 1, got 1.5"),
        (lambda k: g.harmonised(k, denoise, X, MASK, LEVELS, content=X, strength=-1.0), "from 0 to 1, got -1"),
        (lambda k: g.harmonised(k, denoise, X, MASK, LEVELS, content=X[:2]), "content must have the shape of the rows"),
        (lambda k: g.harmonised(k, FLAT, X, MASK, LEVELS, content=X), "does not take rows of shape"),
        (lambda k: g.blended(k, X, MASK, content=X, strength=(0.0, 1.0)), "0 < low <= high <= 1"),
        (lambda k: g.cut_paste(k, X[..., 0]), "needs images of shape"),
        (lambda k: g.perlin_masks(k, 2, 8, 8, foreground=np.zeros((8, 8), bool)), "got an empty one"),
        (
            lambda k: g.perlin_masks(k, 2, 8, 8, foreground=np.ones((9, 8), bool)),
            r"\(8, 8\) or \(2, 8, 8\), got \(9, 8\)",
        ),
        (lambda k: g.perlin_masks(k, 2, 8, 8, smallest=0.5, largest=0.2), "0 < smallest <= largest < 1"),
        (lambda k: g.masks_from_examples(k, np.zeros((1, 8, 8), bool), 2), "empty or full"),
        (lambda k: g.masks_from_examples(k, np.ones((8, 8), bool), 2), r"\[few, height, width\]"),
        (lambda k: g.masks_from_examples(k, np.eye(8, dtype=bool)[None], 2, scale=(0.0, 1.0)), "0 < least <= largest"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0))
