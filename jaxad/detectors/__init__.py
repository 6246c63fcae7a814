"""Detectors: ``fit`` on normal rows, ``score_samples`` on any rows (larger = more normal, scikit-learn's sign)."""
