"""Scores: ``(key, denoise, x, levels, ...) -> [levels, batch]``, larger = more anomalous, all from one trained denoiser.

Two promises hold for every score here. *A row's score is a function of that row alone*: the noise is drawn once, with the shape of
one sample, and shared by all rows, so batch, order and device count do not matter and differences between rows are not blurred by
different noise. *Memory is bounded*: levels and draws are ``vmap``ped in groups whose noisy copies of ``x`` fit in ``memory_budget``
bytes, the rest is looped with ``lax.map`` (the network's activations come on top, about ``width / features`` times as much).

Scores of one jump take ``levels`` of shape ``[levels]``; scores that walk back step by step take paths of shape
``[levels, steps]`` (``noise.reverse_paths``), one row per starting level; a score that goes along one path takes ``[steps]`` and returns
a vector of statistics per row, ``[statistics, batch]``. A ``Combination`` makes one number per row of either.

- ``errors``: one jump (``reconstruction_error``, ``denoising_error``, ``flow_residual``, ``projection_regret``) and along reverse paths
- ``norms``: the score's length at the clean row (``score_norm``, ``log_score_norm``)
- ``paths``: DDIM inversion (``path_statistics``, ``path_curvature``)
- ``densities``: ``variational_bound``, ``negative_log_likelihood``, ``time_posterior``
- ``conditional``: a part of the row given the rest (``inpaint``, ``conditional_error``)
- ``maps``: where in an image, [levels, batch, height, width] (``reconstruction_error_map``, ``denoising_error_map``, ``smooth``)
- ``inpainting``: images hidden and filled in part by part (``checkerboard``, ``random_masks``, ``inpainting_error``, and its map)
- ``guided``: reconstruction drawn towards the image (``guided_reconstruction_error``, and its map, ``norm_guided_error_map``)
- ``combination``: ``z_mean``, ``z_max``, ``total``, ``typicality``, ``likelihood_ratio``, ``mahalanobis``, ``gmm``, ``knn``
"""

from jaxad.scoring.combination import (
    Combination,
    LevelStatistics,
    Mixture,
    Neighbours,
    Whitening,
    gmm,
    knn,
    level_statistics,
    likelihood_ratio,
    mahalanobis,
    standardise,
    total,
    typicality,
    z_max,
    z_mean,
)
from jaxad.scoring.conditional import conditional_error, inpaint
from jaxad.scoring.densities import negative_log_likelihood, time_posterior, variational_bound
from jaxad.scoring.draws import MEMORY_BUDGET, Draw, Score
from jaxad.scoring.errors import (
    ancestral_reconstruction_error,
    ddim_reconstruction_error,
    denoising_error,
    flow_residual,
    projection_regret,
    reconstruction_error,
    unnoised_reverse_error,
)
from jaxad.scoring.guided_errors import guided_reconstruction_error, guided_reconstruction_map, norm_guided_error_map
from jaxad.scoring.inpainting import checkerboard, inpainting_error, inpainting_error_map, random_masks
from jaxad.scoring.maps import denoising_error_map, reconstruction_error_map, smooth
from jaxad.scoring.norms import log_score_norm, score_norm
from jaxad.scoring.paths import path_curvature, path_statistics

__all__ = [
    "MEMORY_BUDGET",
    "Combination",
    "Draw",
    "LevelStatistics",
    "Mixture",
    "Neighbours",
    "Score",
    "Whitening",
    "ancestral_reconstruction_error",
    "checkerboard",
    "conditional_error",
    "ddim_reconstruction_error",
    "denoising_error",
    "denoising_error_map",
    "flow_residual",
    "gmm",
    "guided_reconstruction_error",
    "guided_reconstruction_map",
    "inpaint",
    "inpainting_error",
    "inpainting_error_map",
    "knn",
    "level_statistics",
    "likelihood_ratio",
    "log_score_norm",
    "mahalanobis",
    "negative_log_likelihood",
    "norm_guided_error_map",
    "path_curvature",
    "path_statistics",
    "projection_regret",
    "random_masks",
    "reconstruction_error",
    "reconstruction_error_map",
    "score_norm",
    "smooth",
    "standardise",
    "time_posterior",
    "total",
    "typicality",
    "unnoised_reverse_error",
    "variational_bound",
    "z_max",
    "z_mean",
]
