"""Few-shot anomalies: the frozen network at the start and at strength 0, real kinds at strength 1, the background to the bit."""

import dataclasses
import doctest
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import generation as g
from jaxad import noise, sampling, training
from jaxad.denoisers import MLP, DiT
from jaxad.denoising import classifier_free, make_denoiser, network_output

pytestmark = pytest.mark.slow
"""Half a minute of compiling."""

few_shot = importlib.import_module(
    "jaxad.generation.few_shot"
)  # the function of this name is all that the package shows

SIDE, BRIGHT, STRIPED = 16, 0, 1
NETWORK = DiT(hidden=32, depth=1, heads=2, patch_size=4)
SCHEDULE = noise.cosine(200)
LEVELS = SCHEDULE[np.arange(1, 198, 14)]


def normal_pictures(key, count):
    """A smooth ramp of random slope and grey, a little grainy."""
    slope_key, grey_key, grain_key = jax.random.split(key, 3)
    ramp, slope = jnp.linspace(-1, 1, SIDE), 0.5 * jax.random.normal(slope_key, (count, 2, 1, 1))
    smooth = slope[:, 0] * ramp[None, :, None] + slope[:, 1] * ramp[None, None, :]
    grey = 0.5 * jax.random.normal(grey_key, (count, 1, 1))
    return (smooth + grey + 0.05 * jax.random.normal(grain_key, (count, SIDE, SIDE)))[..., None]


def spoilt_pictures(key, count):
    """``(pictures, masks, kinds)``: a square of 7 pixels that is bright, or striped in black and grey."""
    picture_key, place_key, grain_key = jax.random.split(key, 3)
    x, kinds = normal_pictures(picture_key, count), np.arange(count) % 2
    corner, at = jax.random.randint(place_key, (count, 2), 1, SIDE - 8), jnp.arange(SIDE)[None]
    along = [(at >= corner[:, axis, None]) & (at < corner[:, axis, None] + 7) for axis in (0, 1)]
    mask = along[0][:, :, None] & along[1][:, None, :]
    stripes = jnp.where(at // 2 % 2 == 0, -2.0, 0.0)[..., None]
    content = jnp.where((kinds == BRIGHT)[:, None, None], 2.0, stripes)
    content = content + 0.05 * jax.random.normal(grain_key, mask.shape)
    return jnp.where(mask, content, x[..., 0])[..., None], mask, kinds


NORMALS = normal_pictures(jax.random.key(0), 128)
ANOMALIES, MASKS, KINDS = spoilt_pictures(jax.random.key(2), 6)
HELD_OUT, PLACES, ASKED = spoilt_pictures(jax.random.key(4), 12)
X = normal_pictures(jax.random.key(5), 12)
SMALL = DiT(hidden=16, depth=1, heads=2, patch_size=8)
NEW = jax.tree.map(lambda leaf: leaf + 0.05, SMALL.init(jax.random.key(0), X, jnp.zeros(12))["params"])


@pytest.fixture(scope="module")
def params():
    optimizer = training.adam(3e-3)
    state = training.init_state(jax.random.key(1), NETWORK, optimizer, X[:1], jnp.zeros(1))
    loss = training.simple_loss(NETWORK)
    return training.fit(
        state, NORMALS, SCHEDULE, loss=loss, optimizer=optimizer, num_steps=300, batch_size=16, ema_decay=0.98
    )[0].ema


@pytest.fixture(scope="module")
def learned(params):
    """``(adapters, losses)`` after 300 steps on three anomalies of each kind; the network's parameters must be left alone."""
    before = jax.tree.map(np.array, params)
    learned = g.adapt(jax.random.key(3), NETWORK, params, ANOMALIES, MASKS, KINDS, NORMALS, SCHEDULE, num_steps=300)
    jax.tree.map(np.testing.assert_array_equal, before, params)
    return learned


@pytest.fixture(scope="module")
def make(params, learned):
    """``(key, strength) -> Generated`` on the normal pictures X, compiled once."""
    return jax.jit(
        lambda key, strength: g.few_shot(key, NETWORK, params, learned[0], X, PLACES, ASKED, LEVELS, strength=strength)
    )


@pytest.mark.slow
def test_examples():
    result = doctest.testmod(few_shot)
    assert result.attempted
    assert not result.failed


# ------------------------------------------------------------------------------------------------------- the frozen network


def everything_on(adapters):
    """The last matrices away from 0: the adapters change the network."""
    return jax.tree.map(lambda leaf: leaf + 0.1, adapters)


@jax.jit
def estimate(params, noisy):
    return make_denoiser(NETWORK, params)(noisy, SCHEDULE[100].to(jnp.float32))


def test_adapters_change_nothing_at_the_start_and_nothing_at_strength_0(params):
    new = few_shot.init_adapters(jax.random.key(0), NETWORK, params, 2)
    changed = jax.jit(few_shot.adapted_params)
    for adapters, strength in ((new, 1.0), (everything_on(new), 0.0)):
        same = changed(params, adapters, PLACES, ASKED, strength)
        assert not same["hint"].any()
        jax.tree.map(np.testing.assert_array_equal, {name: same[name] for name in params}, params)
        np.testing.assert_array_equal(estimate(same, X), estimate(params, X))
    off = estimate(params, X)
    changes = [
        np.abs(estimate(changed(params, everything_on(new), PLACES, ASKED, strength), X) - off).mean()
        for strength in (0.001, 0.01, 0.05)
    ]
    assert 1e-5 < changes[0] < changes[1] < changes[2]


def test_every_part_of_the_adapters_has_a_say(params):
    adapters = everything_on(few_shot.init_adapters(jax.random.key(0), NETWORK, params, 2))

    @jax.jit
    def output(adapters):
        return estimate(few_shot.adapted_params(params, adapters, PLACES, ASKED), X)

    for part in ("low_rank", "tokens", "where", "attention"):
        doubled = jax.tree.map(lambda leaf: 2 * leaf, getattr(adapters, part))
        other = dataclasses.replace(adapters, **{part: doubled})
        assert np.abs(output(adapters) - output(other)).max() > 1e-4, part


def test_the_hint_knows_the_mask_the_kind_and_the_place(params):
    adapters = everything_on(few_shot.init_adapters(jax.random.key(0), NETWORK, params, 2))
    mask = np.zeros((3, SIDE, SIDE), bool)
    mask[0, 4:8, 4:8] = mask[1, 4:8, 4:8] = mask[2, 8:12, 4:8] = True
    hint = jax.jit(few_shot.adapted_params)(params, adapters, jnp.asarray(mask), np.array([0, 1, 0]))["hint"]
    grid = np.asarray(hint).reshape(3, 4, 4, -1)  # patches of 4 pixels
    assert np.abs(grid[0] - grid[1]).mean() > 1e-3
    # One patch down in the image is one patch down in the hint, where the border is not near.
    np.testing.assert_allclose(grid[0, 1, 1], grid[2, 2, 1], atol=0.2 * np.abs(grid[0, 1, 1]).max())
    assert np.abs(grid[0, 1, 1] - grid[2, 1, 1]).max() > 1e-3


def test_strength_0_is_the_frozen_networks_in_painting_to_the_bit(params, make):
    @jax.jit
    def in_painted(key):
        start_key, path_key = jax.random.split(key)
        start = noise.add_noise(X, jax.random.normal(start_key, X.shape), LEVELS[-1].to(X.dtype))
        denoise, inside = make_denoiser(NETWORK, params), PLACES[..., None]
        return sampling.ddim(path_key, lambda z, level: jnp.where(inside, denoise(z, level), X), start, LEVELS)

    made = make(jax.random.key(6), 0.0)
    np.testing.assert_array_equal(made.x, in_painted(jax.random.key(6)))
    assert np.abs(made.x - X)[np.asarray(made.mask)].min() > 0


# ---------------------------------------------------------------------------------------------------------- what is learned


def test_the_loss_falls_and_every_part_has_learned(params, learned):
    adapters, losses = learned
    assert losses.shape == (300,)
    assert losses[-40:].mean() < 0.6 * losses[:20].mean()
    start = few_shot.init_adapters(jax.random.split(jax.random.key(3))[0], NETWORK, params, 2)
    moved = jax.tree.map(lambda new, old: float(np.abs(new - old).max()), adapters, start)
    assert min(jax.tree.leaves(moved)) > 1e-3


def distance(rows, kind):
    """From each row to the nearest real held-out anomaly of this kind, by what a square holds, wherever it is: [rows]."""

    def squares(pictures):
        corner = np.array([np.argwhere(place)[0] for place in np.asarray(PLACES)])
        cut = [pictures[i, y : y + 7, x : x + 7, 0] for i, (y, x) in enumerate(corner)]
        # Stripes lie on the picture's own raster: put their phase aside by the sorted values of the square.
        return np.sort(np.asarray(cut).reshape(len(cut), -1), axis=1)

    real = squares(np.asarray(HELD_OUT))[kind == ASKED]
    return np.sqrt(((squares(np.asarray(rows))[:, None] - real[None]) ** 2).mean(axis=2)).min(axis=1)


def test_kinds_come_out_as_asked_and_further_with_more_strength(make):
    made = {strength: make(jax.random.key(6), strength) for strength in (0.0, 0.5, 1.0)}
    for kind in (BRIGHT, STRIPED):
        of_kind = kind == ASKED
        own = {strength: distance(one.x, kind)[of_kind].mean() for strength, one in made.items()}
        other = distance(made[1.0].x, 1 - kind)[of_kind].mean()
        assert own[1.0] < other  # without adapters, bright squares come out nearer to the stripes
        assert own[1.0] < 0.7 * own[0.0]
        assert own[1.0] < own[0.5] < own[0.0]


def test_the_background_is_the_same_to_the_bit(make):
    made = make(jax.random.key(6), 1.0)
    mask = np.broadcast_to(np.asarray(PLACES)[..., None], X.shape)
    np.testing.assert_array_equal(made.mask, mask)
    np.testing.assert_array_equal(np.asarray(made.x)[~mask], np.asarray(X)[~mask])
    assert (made.kind == int(g.Kind.FEW_SHOT)).all()


def test_the_loss_is_the_error_inside_and_the_departure_outside(params):
    adapters = everything_on(few_shot.init_adapters(jax.random.key(0), NETWORK, params, 2))
    schedule, anomalous = SCHEDULE.to(X.dtype), jnp.arange(12) < 5

    @jax.jit
    def both():
        options = {"network": NETWORK, "params": params, "mask": PLACES, "kinds": ASKED, "anomalous": anomalous}
        index, eps = training.draw_levels_and_noise(jax.random.key(7), X, schedule)
        noisy, level = noise.add_noise(X, eps, schedule[index]), schedule[index]
        changed = few_shot.adapted_params(params, adapters, PLACES, ASKED)
        learned, _ = network_output(NETWORK, changed, noisy, level)
        frozen, _ = network_output(NETWORK, params, noisy, level)
        losses = [
            few_shot.few_shot_loss(jax.random.key(7), adapters, X, schedule, background=one, **options)
            for one in (0.0, 0.1)
        ]
        return losses, (learned - noise.VELOCITY.target(X, eps, level)) ** 2, (learned - frozen) ** 2

    losses, error, departure = both()
    place = np.asarray(PLACES)
    inside = np.mean([np.asarray(error)[i][place[i]].mean() for i in range(5)])
    outside = np.mean([np.asarray(departure)[i][~place[i]].mean() for i in range(12)])
    np.testing.assert_allclose(losses[0], inside, rtol=1e-4)
    np.testing.assert_allclose(losses[1] - losses[0], 0.1 * outside, rtol=1e-3)


def test_guidance_is_classifier_free_against_the_frozen_network(params, learned):
    level = SCHEDULE[np.array([0, 198])]  # two steps, which can be written out

    @jax.jit
    def made(key):
        return g.few_shot(key, NETWORK, params, learned[0], X, PLACES, ASKED, level, weight=1.5).x

    changed = few_shot.adapted_params(params, learned[0], PLACES, ASKED)
    guided = jax.jit(classifier_free(make_denoiser(NETWORK, changed), make_denoiser(NETWORK, params), 1.5))
    two, known, level = made(jax.random.key(6)), PLACES[..., None], level.to(X.dtype)
    start_key, _ = jax.random.split(jax.random.key(6))
    z = noise.add_noise(X, jax.random.normal(start_key, X.shape), level[1])
    clean = jnp.where(known, guided(z, level[1]), X)
    z = noise.add_noise(clean, noise.noise_from_clean(clean, z, level[1]), level[0])
    np.testing.assert_allclose(two, jnp.where(known, guided(z, level[0]), X), rtol=1e-3, atol=1e-3)


def test_learning_and_making_are_functions_of_a_key(make):
    few = {"num_steps": 2, "batch_size": 2, "mirror": True, "shift": 1}

    def learn(key):
        return g.adapt(key, SMALL, NEW, ANOMALIES, MASKS, KINDS, NORMALS[:8], SCHEDULE, **few)

    def keys(*seeds):
        return jax.random.wrap_key_data(jnp.stack([jax.random.key_data(jax.random.key(seed)) for seed in seeds]))

    many = jax.jit(jax.vmap(learn))
    (adapters, losses), (swapped, swapped_losses) = many(keys(2, 3)), many(keys(3, 2))
    np.testing.assert_array_equal(losses, swapped_losses[::-1])
    assert (losses[0] != losses[1]).all()
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(one, other[::-1]), adapters, swapped)
    made = jax.vmap(make, in_axes=(0, None))(keys(2, 3), 1.0)
    np.testing.assert_allclose(made.x[0], make(jax.random.key(2), 1.0).x, rtol=1e-3, atol=1e-3)


def test_a_batch_has_every_kind_as_often_and_noise_of_all_levels_for_anomalies():
    """One example of the first kind, five of the second; the levels of a batch go up with its rows."""
    kinds, x = np.array([0, 1, 1, 1, 1, 1]), jnp.arange(6.0)[:, None, None, None] + jnp.zeros(ANOMALIES.shape)

    def draw(key):
        return few_shot._batch(key, x, MASKS, kinds, x[:3] - 10, 4, 1, True)

    rows, mask, kind, anomalous = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 300))
    assert (anomalous.sum(axis=1) == 4).all()
    np.testing.assert_array_equal(rows[:, :, 0, 0, 0] >= 0, anomalous)
    np.testing.assert_array_equal(kinds[np.asarray(rows[anomalous][:, 0, 0, 0], int)], kind[anomalous])
    assert abs(float(kind.mean()) - 0.5) < 0.05
    assert abs(float(kind[anomalous].mean()) - 0.5) < 0.05
    place = np.asarray(anomalous).mean(axis=0)
    assert 0.4 < place.min() < place.max() < 0.6
    assert mask.any(axis=(2, 3)).all()


# -------------------------------------------------------------------------------------------------------------------- in words


def words(text):
    return np.stack([np.full(5, len(text)), np.arange(5.0)])


def test_kinds_in_words():
    tokens = g.describe(words, ["bright", "with stripes"])
    few = {"num_steps": 3, "batch_size": 2, "tokens": tokens}
    adapters, losses = jax.jit(lambda key: g.adapt(key, SMALL, NEW, ANOMALIES, MASKS, KINDS, NORMALS, SCHEDULE, **few))(
        jax.random.key(0)
    )
    np.testing.assert_array_equal(adapters.tokens, tokens)  # what is learned is what to make of them
    start = few_shot.init_adapters(jax.random.split(jax.random.key(0))[0], SMALL, NEW, tokens)
    assert np.abs(adapters.attention["value"] - start.attention["value"]).max() > 1e-4
    assert np.isfinite(losses).all()


# -------------------------------------------------------------------------------------------------------------------- mistakes


def learn(**changed):
    arguments = {"network": SMALL, "params": NEW, "images": ANOMALIES, "masks": MASKS, "kinds": KINDS}
    arguments |= {"normals": NORMALS, "schedule": SCHEDULE, "num_steps": 1} | changed
    return lambda: g.adapt(jax.random.key(0), **arguments)


def ask(**changed):
    def call():
        arguments = {
            "network": NETWORK,
            "params": NEW,
            "x": X,
            "mask": PLACES,
            "kinds": ASKED,
            "levels": LEVELS,
        } | changed
        arguments["adapters"] = few_shot.init_adapters(jax.random.key(0), SMALL, NEW, 2)
        return g.few_shot(jax.random.key(0), **arguments)

    return call


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (learn(masks=MASKS[:, :8]), r"a mask of one of the shapes.*\(6, 16, 16\).*got \(6, 8, 16\)"),
        (learn(masks=MASKS.at[1].set(False)), "1 of 6 masks that are empty"),
        (learn(masks=MASKS.at[1].set(True)), "1 of 6 masks that are full"),
        (learn(kinds=np.array([0, 1])), r"integer kind from 0 on for each of 6 anomalies, got int64 \(2,\)"),
        (learn(kinds=KINDS - 1), "integer kind from 0 on.*from -1 to 0"),
        (learn(kinds=2 * KINDS), "at least one anomaly of each of 3 kinds.*without a gap"),
        (learn(images=ANOMALIES[:1], masks=MASKS[:1], kinds=np.array([1])), "at least one anomaly of each of 2 kinds"),
        (lambda: jax.jit(lambda kinds: learn(kinds=kinds)())(KINDS), "close over them instead of passing them to jit"),
        (learn(images=ANOMALIES.at[2].set(NORMALS[5])), "1 of 6 anomalies are identical to a normal row"),
        (learn(normals=NORMALS[:, :8]), "must have one row shape"),
        (learn(normals=NORMALS[..., 0]), "needs images of shape"),
        (learn(images=ANOMALIES.at[0, 0, 0, 0].set(jnp.nan)), "needs finite anomalies"),
        (
            learn(images=jnp.tile(ANOMALIES, 3), normals=jnp.tile(NORMALS, 3)),
            r"does not take rows of shape \(16, 16, 3\)",
        ),
        (learn(network=MLP(width=8, depth=1)), "changes the attention of a DiT with a patch_size, got MLP"),
        (learn(num_steps=0), "num_steps, batch_size and learning_rate above 0.*'num_steps': 0"),
        (learn(shift=16), "a shift of 0 to 15 pixels"),
        (learn(tokens=jnp.ones((3, 2, 5))), "each of 3 kinds, and of no others"),
        (learn(tokens=jnp.ones((2, 5))), r"takes tokens \[kinds, tokens, features\].*got \(2, 5\)"),
        (ask(strength=1.5), "takes a strength from 0 to 1, got 1.5"),
        (ask(weight=-1.0), "takes a strength from 0 to 10, got -1"),
        (ask(mask=PLACES[:, :8]), r"got \(12, 8, 16\)"),
        (ask(mask=jnp.zeros_like(PLACES)), "12 of 12 masks that are empty"),
        (ask(kinds=ASKED + 1), "a kind from 0 to 1 for each of 12 images, got .* from 1 to 2"),
        (ask(kinds=ASKED[:3]), "a kind from 0 to 1 for each of 12 images"),
        (ask(x=jnp.tile(X, 3)), r"does not take rows of shape \(16, 16, 3\)"),
        (ask(levels=LEVELS[3]), "at least 2 levels"),
        (lambda: g.describe(lambda text: np.ones(5), ["a", "b"]), r"one shape \[tokens, features\].*got \[\(5,\)\]"),
        (lambda: g.describe(lambda text: np.ones((len(text), 5)), ["a", "bb"]), r"got \[\(1, 5\), \(2, 5\)\]"),
        (lambda: g.describe(lambda text: np.full((1, 5), np.nan), ["a"]), "finite numbers"),
        (lambda: g.describe(words, []), r"at least one text, got \[\] for 0 texts"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_loss_that_is_not_finite_is_reported():
    with pytest.raises(FloatingPointError, match="not finite at step 0; lower the learning rate"):
        learn(params=jax.tree.map(lambda leaf: leaf * jnp.nan, NEW))()
