# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # jaxad in a minute
#
# Train a diffusion model on normal rows only, score rows by how badly it denoises them, and look at where the signal comes from.

# %%
# On Colab, run first: %pip install jaxad

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_curve

from jaxad import DiffusionDetector, KNNDetector, SquaredNorm, data, metrics, noise, scoring

# %% [markdown]
# ## Fit and score
#
# Pictures of the digit 3 (8 x 8 pixels, here 64 columns) are normal, all other digits are anomalous.
# Half of the normal rows train; no label is used in training.
# `score_samples` has scikit-learn's sign, larger = more normal; `jaxad.metrics` takes anomaly scores, larger = more anomalous.

# %%
digits = data.builtin("digits_3")
normal = np.random.default_rng(0).permutation(np.flatnonzero(digits.y == 0))
train, test = normal[: len(normal) // 2], np.concatenate([normal[len(normal) // 2 :], np.flatnonzero(digits.y == 1)])
labels = digits.y[test]
print(digits)

# %%
detector = DiffusionDetector().fit(digits.x[train])
untrained = DiffusionDetector(num_steps=0).fit(digits.x[train])  # the same network, which never took a step
rivals = {
    "diffusion": detector,
    "diffusion, untrained": untrained,
    "kNN": KNNDetector(standardize=True).fit(digits.x[train]),
    "squared norm": SquaredNorm().fit(digits.x[train]),
}
scores = {name: -rival.score_samples(digits.x[test]) for name, rival in rivals.items()}
{name: round(metrics.auroc(labels, score), 3) for name, score in scores.items()}

# %% [markdown]
# A diffusion detector has learned something only if it beats the same network untrained, and it has earned its
# training time only if it beats kNN. Show both whenever you show a result.

# %%
for name, score in scores.items():
    false_positive, true_positive, _ = roc_curve(labels, score)
    plt.step(false_positive, true_positive, where="post", label=f"{name}, {metrics.auroc(labels, score):.3f}")
plt.plot([0, 1], [0, 1], color="gray", linewidth=0.5)
plt.xlabel("false positive rate")
plt.ylabel("true positive rate")
_ = plt.legend(title="AUROC")
# %% [markdown]
# ## The error by noise level
#
# A score is computed at every noise level. Low noise asks about details, high noise about the whole: the two curves part
# where the anomalies of this data set live. The levels are combined by what held-out normal rows score at each.

# %%
by_level = detector.scores_by_level(digits.x[test])
sigma = detector.scorer_.levels.sigma
for label, name in enumerate(("normal", "anomalous")):
    plt.plot(sigma, by_level[:, labels == label].mean(axis=1), marker="o", label=name)
plt.xscale("log")
plt.yscale("log")
plt.xlabel("noise level, sigma (1 = spread of the training data)")
plt.ylabel("mean error of the predicted noise")
_ = plt.legend()
# %% [markdown]
# ## The pure functions underneath
#
# The trained denoiser is a function `(noisy, level) -> clean estimate` and a schedule is an array of noise levels, so `vmap` runs over
# timesteps. One noise draw is shared by all rows: a row's score depends on that row alone.

# %%
denoise = detector.denoiser()
rows = jnp.asarray(detector.standardiser_(digits.x[test]))
levels = noise.log_uniform(30, sigma_min=0.02, sigma_max=5.0)
draw = jax.random.normal(jax.random.key(0), (1, rows.shape[1]))
clean = jax.jit(jax.vmap(lambda level: denoise(noise.add_noise(rows, draw, level), level)))(levels)
print(clean.shape)  # levels, rows, features

# %%
error = jnp.mean((clean - rows) ** 2, axis=-1)
area_by_level = [metrics.auroc(labels, np.asarray(of_level)) for of_level in error]
plt.plot(levels.sigma, area_by_level, marker="o")
plt.axhline(metrics.auroc(labels, scores["kNN"]), color="gray", linestyle="--", label="kNN")
plt.xscale("log")
plt.xlabel("noise level, sigma")
plt.ylabel("AUROC of one level and one draw")
_ = plt.legend()
# %% [markdown]
# ## Another score, the same network
#
# Scores are chosen after training. Walking back in ten DDIM steps costs ten times as much as the single jump above.

# %%
paths = noise.reverse_paths(noise.cosine(1000), starts=[99, 249, 499, 749], num_steps=10)
walked = scoring.ddim_reconstruction_error(jax.random.key(1), denoise, rows, paths)
[round(metrics.auroc(labels, np.asarray(of_path)), 3) for of_path in walked]
