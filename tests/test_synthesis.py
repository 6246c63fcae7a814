"""Synthetic defects stay in their rectangle, and levels are ranked by what they show of them."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.generation import synthesis
from jaxad.metrics import auroc

X = jnp.asarray(np.random.default_rng(0).normal(size=(64, 12, 16, 2)), jnp.float32)
every_kind = pytest.mark.parametrize("defects", [*[[defect] for defect in synthesis.DEFECTS], synthesis.DEFECTS])


@every_kind
def test_a_defect_stays_in_its_rectangle(defects):
    spoilt, mask = jax.jit(lambda key, x: synthesis.corrupt(key, x, defects=defects))(jax.random.key(0), X)
    np.testing.assert_array_equal(spoilt[~mask], X[~mask])
    assert np.isfinite(spoilt).all()
    assert ((spoilt != X).any(axis=-1) == mask).mean() > 0.99


def test_rectangles_are_whole_inside_and_of_the_sizes_asked_for():
    _, mask = synthesis.corrupt(jax.random.key(0), X, smallest=0.25, largest=0.5)
    mask = np.asarray(mask)
    down, across = mask.any(axis=2), mask.any(axis=1)
    np.testing.assert_array_equal(mask, down[:, :, None] & across[:, None])
    for occupied, side in ((down, 12), (across, 16)):
        assert (np.abs(np.diff(np.pad(occupied, ((0, 0), (1, 1))).astype(int), axis=1)).sum(axis=1) == 2).all()
        sizes = occupied.sum(axis=1)
        assert sizes.min() == 0.25 * side
        assert sizes.max() == 0.5 * side
    assert mask.any(axis=0).mean() > 0.95  # every place is hit by some


def test_every_image_has_its_own_kind():
    marks = [lambda key, x, mark=mark: jnp.full_like(x, mark) for mark in (100.0, 200.0, 300.0)]
    spoilt, _ = synthesis.corrupt(jax.random.key(1), X, defects=marks)
    kinds, counts = np.unique(np.asarray(spoilt.max(axis=(1, 2, 3))), return_counts=True)
    np.testing.assert_array_equal(kinds, [100, 200, 300])
    assert counts.min() > 10


def test_a_pasted_patch_is_another_images():
    x = jnp.broadcast_to(jnp.arange(5.0)[:, None, None, None], (5, 8, 8, 1))
    donors = synthesis.pasted(jax.random.key(0), x)
    assert (donors != x).all()
    alone = synthesis.pasted(jax.random.key(0), X[:1])
    assert (alone != X[:1]).mean() > 0.9
    np.testing.assert_allclose(np.sort(alone.ravel()), np.sort(X[:1].ravel()))


def test_separability_is_the_auroc_of_each_level():
    rng = np.random.default_rng(0)
    normal, spoilt = rng.normal(size=(3, 50)).round(1), rng.normal([[0.0], [1], [-2]], size=(3, 40)).round(1)
    measured = jax.jit(synthesis.separability)(normal, spoilt)
    labels = np.arange(90) >= 50
    expected = [auroc(labels, np.concatenate(pair)) for pair in zip(normal, spoilt, strict=True)]
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


def test_weights_are_what_is_better_than_a_coin():
    np.testing.assert_allclose(
        synthesis.level_weights(jnp.array([1.0, 0.75, 0.5, 0.2])), [2 / 3, 1 / 3, 0, 0], rtol=1e-6
    )
    np.testing.assert_allclose(synthesis.level_weights(jnp.array([0.5, 0.3])), [0.5, 0.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: synthesis.corrupt(jax.random.key(0), X[..., 0]),
            r"needs? images of shape \[batch, height, width, channels\]",
        ),
        (lambda: synthesis.corrupt(jax.random.key(0), X, defects=[]), "at least one defect"),
        (lambda: synthesis.corrupt(jax.random.key(0), X, smallest=0.6), "smallest <= largest"),
        (lambda: synthesis.separability(jnp.zeros((2, 3)), jnp.zeros((3, 3))), r"got shapes \(2, 3\) and \(3, 3\)"),
        (lambda: synthesis.separability(jnp.zeros((2, 0)), jnp.zeros((2, 3))), r"got shapes \(2, 0\) and \(2, 3\)"),
    ],
)
def test_what_cannot_be_done_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_examples_in_the_docstrings():
    failed, _ = doctest.testmod(synthesis)
    assert not failed
