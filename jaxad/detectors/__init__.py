"""Detectors: ``fit`` on normal rows, ``score_samples`` on any rows (larger = more normal, scikit-learn's sign)."""

from jaxad.detectors.conformal import ConformalDetector
from jaxad.detectors.consensus import ConsensusDetector
from jaxad.detectors.copula import COPOD, ECOD
from jaxad.detectors.diffusion import DiffusionDetector
from jaxad.detectors.diffusion_time import DTECategorical, DTEInverseGamma
from jaxad.detectors.estimator import Detector, Estimator, Learned
from jaxad.detectors.faces import PyODDetector
from jaxad.detectors.fitting import fit_many
from jaxad.detectors.gaussian import MahalanobisDetector, SquaredNorm
from jaxad.detectors.image import ImageDetector
from jaxad.detectors.neighbours import DTENonParametric, KNNDetector
from jaxad.detectors.scorer import Scorer, static
from jaxad.detectors.series import SeriesDetector
from jaxad.detectors.taught import CycleDetector
from jaxad.standardiser import Standardiser

__all__ = [
    "COPOD",
    "ECOD",
    "ConformalDetector",
    "ConsensusDetector",
    "CycleDetector",
    "DTECategorical",
    "DTEInverseGamma",
    "DTENonParametric",
    "Detector",
    "DiffusionDetector",
    "Estimator",
    "ImageDetector",
    "KNNDetector",
    "Learned",
    "MahalanobisDetector",
    "PyODDetector",
    "Scorer",
    "SeriesDetector",
    "SquaredNorm",
    "Standardiser",
    "fit_many",
    "static",
]
