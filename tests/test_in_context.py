"""The in-context denoiser and its synthetic tables: what they promise, and a run that stops and goes on."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import pretrain
from experiments.in_context import prior
from experiments.in_context.network import InContextDenoiser, in_context_denoiser
from jaxad.closed_form import empirical_denoiser
from jaxad.noise import NoiseLevel

pytestmark = pytest.mark.slow
"""Of experiments alone."""

NETWORK = InContextDenoiser(width=8, depth=1, heads=2)
RNG = np.random.default_rng(0)
CONTEXT, NOISY = (jnp.asarray(RNG.normal(size=(rows, 3)), jnp.float32) for rows in (20, 5))
SIGMA = jnp.full(5, 0.5)


def of(params, noisy, context):
    return NETWORK.apply({"params": params}, noisy, -2 * jnp.log(SIGMA), context)


@pytest.fixture(scope="module")
def begun():
    return NETWORK.init(jax.random.key(0), NOISY, jnp.zeros(5), CONTEXT)["params"]


@pytest.fixture(scope="module")
def moved(begun):
    """No weight at zero."""
    leaves, tree = jax.tree.flatten(begun)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [leaf + 0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


def test_it_begins_as_the_denoiser_of_kernels(begun):
    width = float(jax.nn.softplus(-1.0))
    found = of(begun, NOISY, CONTEXT)
    np.testing.assert_allclose(found, pretrain.by_kernels(NOISY, SIGMA, CONTEXT, width), rtol=1e-4)


def test_no_order_of_rows_or_columns_matters(moved):
    found = of(moved, NOISY, CONTEXT)
    assert not np.allclose(found, of(jax.tree.map(lambda leaf: 0.9 * leaf, moved), NOISY, CONTEXT), atol=1e-3)
    np.testing.assert_allclose(of(moved, NOISY, CONTEXT[::-1]), found, rtol=1e-3, atol=1e-4)
    columns = jnp.array([2, 0, 1])
    np.testing.assert_allclose(
        of(moved, NOISY[:, columns], CONTEXT[:, columns]), found[:, columns], rtol=1e-3, atol=1e-4
    )


def test_a_query_does_not_see_the_others(moved):
    other = NOISY.at[1:].add(3.0)
    np.testing.assert_allclose(of(moved, other, CONTEXT)[0], of(moved, NOISY, CONTEXT)[0], rtol=1e-3, atol=1e-4)


def test_any_width_fits_and_it_is_a_denoiser(moved):
    wide = jnp.asarray(RNG.normal(size=(20, 7)), jnp.float32)
    level = NoiseLevel(jnp.array(0.8), jnp.array(0.4))
    denoise = in_context_denoiser(NETWORK, moved, wide)
    assert denoise(wide[:4], level).shape == (4, 7)
    # At alpha .8 as at alpha 1, for the row and the noise over alpha.
    np.testing.assert_allclose(
        denoise(0.8 * wide[:4], level), denoise(wide[:4], NoiseLevel(jnp.array(1.0), jnp.array(0.5))), rtol=1e-4
    )


def test_the_bars_are_what_they_are_called():
    level = NoiseLevel(jnp.array(1.0), jnp.array(0.5))
    np.testing.assert_allclose(
        pretrain.BARS["empirical"](NOISY, SIGMA, CONTEXT), empirical_denoiser(CONTEXT)(NOISY, level), rtol=1e-4
    )
    # Of Gaussian rows the Gaussian denoiser is the best, and leaves sigma^2 / (1 + sigma^2) of every column.
    key = jax.random.key(0)
    rows = jax.random.normal(key, (4000, 2))
    noisy = rows[:2000] + 0.5 * jax.random.normal(jax.random.fold_in(key, 1), (2000, 2))
    sigma = jnp.full(2000, 0.5)
    left = pretrain.error(pretrain.by_gaussian(noisy, sigma, rows[2000:]), rows[:2000], sigma)
    assert float(left.mean()) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("kind", [prior.mixture, prior.causal, prior.copula, prior.table])
def test_tables_are_finite_and_no_two_alike(kind):
    made = jax.vmap(lambda key: kind(key, 64, 5))(jax.random.split(jax.random.key(0), 8))
    assert made.shape == (8, 64, 5)
    assert np.isfinite(made).all()
    assert len(np.unique(np.asarray(made)[:, 0, 0].round(6))) > 4
    assert (np.asarray(made).std(axis=1) > 1e-6).mean() > 0.9


def test_a_split_is_on_the_scale_of_its_context():
    context, queries = prior.split(jax.random.key(3), 50, 20, 4)
    assert np.abs(context.mean(axis=0)).max() < 0.2
    assert np.abs(queries).max() <= 10
    assert queries.shape == (20, 4)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "WIDTHS", (2,))
    clock = iter(np.arange(0.0, 1e4))  # a second between two looks at the clock
    monkeypatch.setattr(pretrain.time, "perf_counter", lambda: next(clock))
    small = {"context": 8, "queries": 4, "tables": 2, "width": 8, "depth": 1, "held_out": 2, "between": 2}

    def run(name, minutes):
        place = {"run_dir": tmp_path / name, "out": tmp_path / f"{name}.jsonl"}
        return pretrain.run(pretrain.Config(minutes=minutes, **small, **place))

    at_once = run("once", 4 / 60)
    run("twice", 2 / 60)
    resumed = run("twice", 4 / 60)
    assert [record["step"] for record in at_once] == [2, 4, 6, 8]
    assert resumed == at_once
    lines = (tmp_path / "twice.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 8
    with pytest.raises(ValueError, match="minutes and sizes are above 0"):
        run("none", 0)
