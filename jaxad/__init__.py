"""Anomaly detection and anomaly generation with diffusion models in JAX.

Underneath, pure functions (``noise``, ``denoising``, ``sampling``, ``scoring``) that compose with every JAX transform; on top,
scikit-learn estimators (``DiffusionDetector`` and friends).

Names are imported when they are first asked for (PEP 562): ``jaxad.shipping.bundle``, which scores with what ``jaxad export`` wrote, needs
neither flax nor scikit-learn, and must not wait for them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxad import (
        closed_form,
        data,
        denoisers,
        denoising,
        detectors,
        evaluation,
        generation,
        metrics,
        noise,
        reports,
        runtime,
        sampling,
        scoring,
        shipping,
        training,
    )
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
        SeriesDetector,
        SquaredNorm,
        fit_many,
    )
    from jaxad.detectors.persistence import load_detector, save_detector
    from jaxad.evaluation import evaluate
    from jaxad.shipping.bundle import load_scorer
    from jaxad.shipping.export import export_detector

__version__ = "0.2.0"

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
    "SeriesDetector",
    "SquaredNorm",
    "closed_form",
    "data",
    "denoisers",
    "denoising",
    "detectors",
    "evaluate",
    "evaluation",
    "export_detector",
    "fit_many",
    "generation",
    "load_detector",
    "load_scorer",
    "metrics",
    "noise",
    "reports",
    "runtime",
    "sampling",
    "save_detector",
    "scoring",
    "shipping",
    "training",
]

_ELSEWHERE = {
    "evaluate": "jaxad.evaluation",
    "export_detector": "jaxad.shipping.export",
    "load_detector": "jaxad.detectors.persistence",
    "load_scorer": "jaxad.shipping.bundle",
    "save_detector": "jaxad.detectors.persistence",
}
"""Where a function is defined; classes and ``fit_many`` are in ``jaxad.detectors``, the other names are rooms."""


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'jaxad' has no attribute {name!r}")
    if name in _ELSEWHERE:
        found = getattr(import_module(_ELSEWHERE[name]), name)
    elif name == "fit_many" or name[0].isupper():
        found = getattr(import_module("jaxad.detectors"), name)
    else:
        found = import_module(f"jaxad.{name}")
    globals()[name] = found  # the next time it is there without asking
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
