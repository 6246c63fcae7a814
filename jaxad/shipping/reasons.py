"""Why was a row flagged? The columns that say most, in words, for the csv of scores."""

from typing import Any

import numpy as np

from jaxad.data import FrameEncoder
from jaxad.detectors.explanation import shapley_contributions

MOST_NORMAL_ROWS = 2000
"""Normal rows among which the nearest one is looked for."""


class Reasons:
    """``reasons(rows, cells, flagged)``: a sentence for every row, empty for those that are not flagged.

    What a column contributes is measured against the nearest normal row: Shapley values, which add up to the difference of the two scores
    (``explanation.shapley_contributions``). Only columns that raise the score are named.

    Args:
        detector: fitted, with a scorer that remembers normal rows.
        encoder: which made the rows; None: they are numbers.
        columns: their names, without an encoder.
        most: columns named.

    Raises:
        ValueError: a detector that remembers no normal rows.
    """

    def __init__(self, detector: Any, encoder: FrameEncoder | None, columns: Any, most: int):
        scorer: Any = getattr(detector, "scorer_", None)
        if not hasattr(scorer, "normal_rows"):
            raise ValueError(
                f"--why: a {type(detector).__name__} remembers no normal rows to compare with; the recommended detector does, as jaxad fit "
                "saves it"
            )
        self.detector, self.encoder, self.most = detector, encoder, most
        normal = detector.standardiser_.undo(scorer.normal_rows())
        rng = np.random.default_rng(0)
        self.normal = normal[rng.permutation(len(normal))[:MOST_NORMAL_ROWS]]
        width = normal.shape[1]
        self.groups = np.arange(width) if encoder is None else encoder.groups_
        self.names = list(encoder.names_) if encoder is not None else [str(n) for n in (columns or range(width))]
        self.is_code = np.isin(np.arange(width), [] if encoder is None else encoder.categorical_features_)

    def __call__(self, rows: np.ndarray, cells: Any, flagged: np.ndarray) -> list[str]:
        """``[rows]`` sentences; ``cells`` are those of the file, None: as the rows have them."""
        said = [""] * len(rows)
        which = np.flatnonzero(flagged)
        if not len(which):
            return said
        X = np.asarray(rows[which], np.float64)
        _, contributions = shapley_contributions(self.detector, X, self._nearest(X), groups=self.groups, num_orders=4)
        for place, row in enumerate(which):
            order = np.argsort(-contributions[place])[: self.most]
            parts = [
                f"{self.names[column]}={self._cell(rows, cells, row, column)} ({contributions[place, column]:+.2f})"
                for column in order
                if contributions[place, column] > 0
            ]
            said[row] = "; ".join(parts)
        return said

    def _nearest(self, X: np.ndarray) -> np.ndarray:
        """The nearest normal row of each, with its gaps."""
        scale, found = self.detector.standardiser_.scale, np.empty_like(X)
        for row, x in enumerate(X):
            apart = np.where(self.is_code, (self.normal != x).astype(float), np.abs(self.normal - x) / scale)
            nearest = self.normal[np.nansum(np.minimum(apart, 10.0) ** 2, axis=1).argmin()]
            found[row] = np.where(np.isnan(x), np.nan, nearest)
        return found

    def _cell(self, rows, cells, row, column) -> str:
        if cells is not None:
            return str(cells[self.names[column]].iloc[row])
        return f"{rows[row, column]:.6g}"
