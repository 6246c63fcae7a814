"""Anomaly detection and anomaly generation with diffusion models in JAX.

Underneath, pure functions (``noise``, ``denoising``, ``sampling``, ``scoring``) that compose with every JAX transform; on top,
scikit-learn estimators (``DiffusionDetector`` and friends).

Names are imported when they are first asked for (PEP 562): ``jaxad.bundle``, which scores with what ``jaxad export`` wrote, needs neither
flax nor scikit-learn, and must not wait for them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxad import (
        bundle,
        calibration,
        closed_form,
        cycle,
        data,
        denoisers,
        denoising,
        detectors,
        evaluation,
        export,
        generation,
        localisation,
        metrics,
        noise,
        quality,
        sampling,
        scoring,
        sharding,
        synthesis,
        training,
    )
    from jaxad.bundle import load_scorer
    from jaxad.detectors import (
        COPOD,
        ECOD,
        ConformalDetector,
        ConsensusDetector,
        CycleDetector,
        DiffusionDetector,
        DTECategorical,
        DTEInverseGamma,
        DTENonParametric,
        ImageDetector,
        KNNDetector,
        MahalanobisDetector,
        PyODDetector,
        SquaredNorm,
        fit_many,
    )
    from jaxad.evaluation import evaluate
    from jaxad.export import export_detector

__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(
        (
            "COPOD",
            "ECOD",
            "ConformalDetector",
            "ConsensusDetector",
            "CycleDetector",
            "DTECategorical",
            "DTEInverseGamma",
            "DTENonParametric",
            "DiffusionDetector",
            "ImageDetector",
            "KNNDetector",
            "MahalanobisDetector",
            "PyODDetector",
            "SquaredNorm",
            "fit_many",
        ),
        "jaxad.detectors",
    ),
    "evaluate": "jaxad.evaluation",
    "export_detector": "jaxad.export",
    "load_scorer": "jaxad.bundle",
}
"""Where a name is defined; the other names of ``__all__`` are modules."""

__all__ = [
    "COPOD",
    "ECOD",
    "ConformalDetector",
    "ConsensusDetector",
    "CycleDetector",
    "DTECategorical",
    "DTEInverseGamma",
    "DTENonParametric",
    "DiffusionDetector",
    "ImageDetector",
    "KNNDetector",
    "MahalanobisDetector",
    "PyODDetector",
    "SquaredNorm",
    "bundle",
    "calibration",
    "closed_form",
    "cycle",
    "data",
    "denoisers",
    "denoising",
    "detectors",
    "evaluate",
    "evaluation",
    "export",
    "export_detector",
    "fit_many",
    "generation",
    "load_scorer",
    "localisation",
    "metrics",
    "noise",
    "quality",
    "sampling",
    "scoring",
    "sharding",
    "synthesis",
    "training",
]


def __getattr__(name: str):
    if name in _HOME:
        found = getattr(import_module(_HOME[name]), name)
    elif name in __all__:
        found = import_module(f"jaxad.{name}")
    else:
        raise AttributeError(f"module 'jaxad' has no attribute {name!r}")
    globals()[name] = found  # the next time it is there without asking
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
