"""Anomaly detection and anomaly generation with diffusion models in JAX.

Underneath, pure functions (``noise``, ``denoising``, ``sampling``, ``scoring``) that compose with every JAX transform; on top,
scikit-learn estimators (``DiffusionDetector`` and friends).
"""

from jaxad import (
    closed_form,
    data,
    denoisers,
    denoising,
    localisation,
    metrics,
    noise,
    sampling,
    scoring,
    sharding,
    training,
)
from jaxad.detectors import (
    COPOD,
    ECOD,
    ConsensusDetector,
    DiffusionDetector,
    DTECategorical,
    DTEInverseGamma,
    DTENonParametric,
    ImageDetector,
    KNNDetector,
    MahalanobisDetector,
    SquaredNorm,
    fit_many,
)
from jaxad.evaluation import evaluate

__version__ = "0.1.0"

__all__ = [
    "COPOD",
    "ECOD",
    "ConsensusDetector",
    "DTECategorical",
    "DTEInverseGamma",
    "DTENonParametric",
    "DiffusionDetector",
    "ImageDetector",
    "KNNDetector",
    "MahalanobisDetector",
    "SquaredNorm",
    "closed_form",
    "data",
    "denoisers",
    "denoising",
    "evaluate",
    "fit_many",
    "localisation",
    "metrics",
    "noise",
    "sampling",
    "scoring",
    "sharding",
    "training",
]
