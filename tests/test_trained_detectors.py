"""It learned: every trained detector beats its untrained self, a shuffled control and a constant on real data."""

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr

from jaxad import data, noise, scoring, training
from jaxad.denoisers import MLP, DiT
from jaxad.detectors import DiffusionDetector, DTECategorical, DTEInverseGamma, SquaredNorm, fit_many
from jaxad.detectors.catalogue import DIT, untrained_dit
from jaxad.detectors.estimator import Standardiser
from jaxad.detectors.fitting import ProgressBar, hold_out, train, train_many
from jaxad.evaluation import clean
from jaxad.metrics import auroc
from jaxad.runtime.sharding import data_mesh


@pytest.fixture(scope="module")
def split():
    return clean(data.builtin("digits_8"), seed=0)


TRAINED = {
    "ddpm": lambda steps: DiffusionDetector(MLP(width=128, depth=2), num_steps=steps),
    "dit": lambda steps: DiffusionDetector(DiT(hidden=64, depth=2, heads=4, patch_size=None), num_steps=steps),
    "dte-c": lambda steps: DTECategorical(num_steps=steps),
    "dte-ig": lambda steps: DTEInverseGamma(num_steps=steps),
}


@pytest.mark.parametrize(
    "name", ["ddpm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dit", "dte-c", "dte-ig"))]
)
def test_training_beats_no_training_shuffled_columns_and_a_constant(name, split):
    def measured(detector, rows):
        return auroc(split.labels, -detector.fit(rows).score_samples(split.test))

    rng = np.random.default_rng(0)
    shuffled = np.stack(
        [rng.permutation(column) for column in split.train.T], axis=1
    )  # marginals kept, dependence gone
    trained = measured(TRAINED[name](800), split.train)
    untrained = measured(TRAINED[name](0), split.train)
    control = measured(TRAINED[name](800), shuffled)
    assert trained > 0.9
    assert trained > untrained + 0.01, f"untrained network reaches {untrained:.3f}, trained {trained:.3f}"
    assert trained > control + 0.02, f"without the dependence between columns {control:.3f}, with it {trained:.3f}"
    assert trained > auroc(split.labels, np.zeros(len(split.labels))) + 0.3


@pytest.mark.slow
def test_an_untrained_dit_is_the_norm_and_a_trained_one_is_not(split):
    """The paper's DiT column is the squared norm to 0.1: a zero-initialised DiT returns a multiple of its input."""
    norm = -SquaredNorm().fit(split.train).score_samples(split.test)
    untrained = -untrained_dit(0).fit(split.train).score_samples(split.test)
    assert auroc(split.labels, untrained) == pytest.approx(auroc(split.labels, norm), abs=5e-4)
    assert spearmanr(norm, untrained).statistic > 0.999
    trained = untrained_dit(0).set_params(num_steps=600, network=DIT, prediction=None, learning_rate=1e-3)
    trained = -trained.fit(split.train).score_samples(split.test)
    assert spearmanr(norm, trained).statistic < 0.99
    assert abs(auroc(split.labels, trained) - auroc(split.labels, norm)) > 0.01


@pytest.mark.slow
def test_one_network_answers_other_scores_after_fit(split):
    detector = DiffusionDetector(MLP(width=128, depth=2), num_steps=400).fit(split.train)
    params = detector.scorer_.params
    _, held_out = hold_out(split.train, np.random.RandomState(1))
    scores = [detector.score_samples(split.test)]
    detector.set_params(scorer=scoring.reconstruction_error, aggregate=scoring.z_max).calibrate(held_out)
    scores.append(detector.score_samples(split.test))
    paths = noise.reverse_paths(noise.cosine(100), [20, 40], 5)
    detector.set_params(scorer=scoring.ddim_reconstruction_error, levels=paths, aggregate=scoring.z_mean).calibrate(
        held_out
    )
    scores.append(detector.score_samples(split.test))
    assert all(map(np.array_equal, *map(jax.tree.leaves, (detector.scorer_.params, params))))
    assert detector.scores_by_level(split.test).shape == (2, len(split.test))
    assert all(auroc(split.labels, -score) > 0.8 for score in scores)
    assert not np.allclose(scores[0], scores[1])


def test_learned_variance_trains_with_the_hybrid_loss(split):
    detector = DiffusionDetector(MLP(width=64, depth=1, learned_variance=True), num_steps=200).fit(split.train)
    assert detector.losses_[-50:].mean() < detector.losses_[:50].mean()
    assert np.isfinite(detector.score_samples(split.test)).all()


@pytest.mark.slow
def test_eight_devices_fit_and_score_like_one(split):
    one, eight = (
        DiffusionDetector(MLP(width=32, depth=1), num_steps=50, mesh=mesh).fit(split.train).score_samples(split.test)
        for mesh in (None, data_mesh(jax.devices()))
    )
    np.testing.assert_allclose(eight, one, rtol=5e-3, atol=5e-3)


@pytest.mark.slow
def test_early_stopping_keeps_the_best_parameters_on_held_out_rows():
    rows = np.random.default_rng(0).normal(size=(40, 30))
    detector = DiffusionDetector(MLP(width=128, depth=2), num_steps=4000, learning_rate=3e-3).fit(rows)
    assert len(detector.losses_) < 4000, "thirty columns of noise and 27 rows are memorised long before step 4,000"
    best = int(np.argmin(detector.validation_losses_))
    assert best < len(detector.validation_losses_) - 1


def test_a_deviation_in_a_constant_column_is_seen():
    rows = np.random.default_rng(0).normal(size=(300, 3))
    rows[:, 1] = 7.0
    detector = DiffusionDetector(MLP(width=32, depth=1), num_steps=200).fit(rows)
    normal, odd = detector.score_samples([[0.0, 7.0, 0.0], [0.0, 10.0, 0.0]])
    assert odd < normal - 1


def test_values_at_the_edge_of_float32_give_finite_scores():
    rows = np.random.default_rng(0).normal(size=(100, 3))
    detector = DiffusionDetector(MLP(width=16, depth=1), num_steps=20).fit(rows)
    scores = detector.score_samples([[1e30, 0.0, 0.0], [-1e300, 1e300, 0.0], [0.0, 0.0, 0.0]])
    assert np.isfinite(scores).all()
    assert scores[2] > max(scores[:2])


def test_images_are_standardised_by_channel():
    images = np.random.default_rng(0).normal(5.0, 3.0, size=(20, 4, 4, 2)).astype(np.float32)
    standardise = Standardiser.fit(images)
    assert standardise.mean.shape == (2,)
    assert abs(standardise(images).mean()) < 1e-5
    detector = DiffusionDetector(DiT(hidden=16, depth=1, heads=2, patch_size=2), num_steps=10).fit(images)
    assert detector.score_samples(images[:3]).shape == (3,)
    with pytest.raises(ValueError, match="fitted on rows of shape"):
        detector.score_samples(images[:, :2])


def test_a_loss_that_leaves_the_finite_names_the_step():
    rows = np.random.default_rng(0).normal(size=(64, 3))

    def exploding_loss(network, prediction):
        simple = training.simple_loss(network, prediction)
        return lambda *args, **options: simple(*args, **options) / 0.0

    with pytest.raises(FloatingPointError, match="at step 0"):
        DiffusionDetector(MLP(width=16, depth=1), num_steps=5, loss=exploding_loss).fit(rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"draws": 0}, "draws"),
        ({"num_steps": -1}, "num_steps"),
        ({"false_alarm_rate": 0.9}, "false_alarm_rate"),
    ],
)
def test_settings_out_of_range_are_refused_before_training(settings, message):
    detector = DiffusionDetector(MLP(width=16, depth=1), **{"num_steps": 2, **settings})
    with pytest.raises(ValueError, match=message):
        detector.fit(np.random.default_rng(0).normal(size=(30, 2)))


# ------------------------------------------------------------------------------------------------------ several at once


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [200, 1400])
def test_networks_trained_together_are_those_trained_alone(num_steps):
    """Tables of different lengths in one vmapped program: losses, parameters and stopping as in separate fits."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(size, 3)).astype(np.float32) for size in (100, 70, 130)]
    held_out = [rng.normal(size=(size, 3)).astype(np.float32) for size in (30, 20, 40)]
    network = MLP(width=16, depth=1)
    common = (noise.cosine(100), (rows[0][:1], np.zeros(1, np.float32)))
    settings = {
        "loss": training.simple_loss(network, noise.VELOCITY),
        "optimizer": training.adam(1e-2, num_steps=num_steps),
        "num_steps": num_steps,
        "batch_size": 16,
    }
    together = train_many(jax.random.split(jax.random.key(3), 3), network, rows, held_out, *common, **settings)
    for i, (params, losses, values) in enumerate(zip(*together, strict=True)):
        # The same keys serve both, on purpose, which jax_debug_key_reuse would not have.
        alone = train(jax.random.split(jax.random.key(3), 3)[i], network, rows[i], held_out[i], *common, **settings)
        np.testing.assert_allclose(losses[:100], alone[1][:100], rtol=1e-3)
        shared = min(len(values), len(alone[2]))
        np.testing.assert_allclose(values[:shared], alone[2][:shared], rtol=5e-3)
        if num_steps == 200:  # rounding grows with the steps
            for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(alone[0]), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-2, atol=2e-3)
        else:
            # One look more or less, where two looks are equally good up to rounding.
            assert abs(len(values) - len(alone[2])) <= 1
            assert len(losses) == 200 * len(values)


def test_networks_trained_together_need_rows_of_one_width():
    rows = [np.zeros((5, 2), np.float32), np.zeros((5, 3), np.float32)]
    with pytest.raises(ValueError, match="one shape"):
        train_many(
            jax.random.split(jax.random.key(0), 2),
            MLP(width=4, depth=1),
            rows,
            rows,
            noise.cosine(10),
            (),
            loss=training.simple_loss(MLP(width=4, depth=1)),
            optimizer=training.adam(),
            num_steps=1,
            batch_size=2,
        )


@pytest.mark.slow
def test_detectors_fitted_together_score_like_those_fitted_alone():
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=(size, 4)) * [1, 2, 3, 4] for size in (120, 90, 150)]
    queries = rng.normal(size=(40, 4)) * 3

    def make(seed):
        return DiffusionDetector(MLP(width=32, depth=1), num_steps=300, batch_size=32, random_state=seed)

    together = fit_many([make(seed) for seed in range(3)], tables)
    for seed, detector in enumerate(together):
        alone = make(seed).fit(tables[seed])
        np.testing.assert_allclose(detector.score_samples(queries), alone.score_samples(queries), rtol=2e-3, atol=2e-3)
        assert detector.offset_ == pytest.approx(alone.offset_, abs=2e-2)


def test_detectors_fitted_together_must_agree():
    rows = np.zeros((40, 2)) + np.arange(40)[:, None]
    quick = {"network": MLP(width=8, depth=1), "num_steps": 10}
    with pytest.raises(ValueError, match=r"agree in .*num_steps"):
        fit_many([DiffusionDetector(**quick), DiffusionDetector(**{**quick, "num_steps": 20})], [rows, rows])
    with pytest.raises(ValueError, match="agree in schedule"):
        fit_many([DiffusionDetector(**quick), DiffusionDetector(**quick, schedule=noise.linear(100))], [rows, rows])
    with pytest.raises(ValueError, match="one data set per detector"):
        fit_many([DiffusionDetector(**quick)], [])
    with pytest.raises(ValueError, match="one device"):
        fit_many([DiffusionDetector(**quick, mesh=data_mesh())], [rows])


def test_in_a_file_the_progress_bar_ends_its_line(capsys):
    with ProgressBar("MLP", 10, verbose=1) as bar:
        bar.update(10, {"loss": 0.5, "held-out loss": 0.25, "rows per second": 2000.0, "memory in GiB": 1.0})
    out = capsys.readouterr().out
    assert "10/10" in out
    assert out.endswith("2,000 rows/s, 1.0 GiB\n")
