"""How good are scores: rankings (here), maps (``localisation``), and numbers one can act on (``calibration``)."""

from jaxad.metrics.ranking import (
    CriticalDifference,
    WilcoxonResult,
    auroc,
    average_precision,
    bootstrap_interval,
    critical_difference,
    f1_at_k,
    fpr_at_tpr,
    paired_bootstrap_interval,
    wilcoxon_against,
)

__all__ = [
    "CriticalDifference",
    "WilcoxonResult",
    "auroc",
    "average_precision",
    "bootstrap_interval",
    "critical_difference",
    "f1_at_k",
    "fpr_at_tpr",
    "paired_bootstrap_interval",
    "wilcoxon_against",
]
