"""From data sets and detectors to honest records: protocols (here), and sweeps of them (``sweep``)."""

from jaxad.evaluation.protocols import (
    PROTOCOLS,
    Evaluation,
    Protocol,
    Split,
    clean,
    current_commit,
    device_name,
    dte,
    evaluate,
    twin_share,
    versions,
)

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "Protocol",
    "Split",
    "clean",
    "current_commit",
    "device_name",
    "dte",
    "evaluate",
    "twin_share",
    "versions",
]
