"""Kinds of data on the command line, one plug a file. ``KINDS`` is the one list of them: commands ask a plug and never which kind it is."""

import dataclasses
import difflib
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jaxad.cli.kinds.picture_kind import Pictures
from jaxad.cli.kinds.series_kind import Series
from jaxad.cli.kinds.table_kind import Tables


class Kind(Protocol):
    """What a kind of data brings.

    ``Fitting``, ``Scoring`` and ``Generating`` are frozen dataclasses of its options, each with a default; tyro reads them. Kinds may have
    options of one name, if they mean the same and have the same default.
    """

    key: str
    """Under which a saved model remembers how its data was read (``extra``)."""
    words: str
    """``a file of rows``, say."""
    items: str
    """``rows``, say."""
    default: str
    """The detector's name in the catalogue, unless another one is asked for."""
    ours: tuple[str, ...]
    """The names of our own detectors of this kind, in the order that a message lists them: known before anything is imported."""
    to_score: str
    """The rest of ``jaxad score MODEL``, as an example."""
    Fitting: type
    Scoring: type
    Generating: type

    def holds(self, data: Path, options: Any) -> bool:
        """Is this data of the kind? By a look at the disk, and at the options given if the disk does not tell."""
        ...

    def detectors(self) -> Mapping[str, Any]:
        """Those that can be fitted: part of the catalogue."""
        ...

    def settings(self, options: Any, given: set[str]) -> dict[str, Any]:
        """What a detector is told of the options that were given."""
        ...

    def limits(self, options: Any, has: Mapping[str, Any], resumes: bool, say: Any) -> dict[str, Any]:
        """What a detector with the settings ``has`` is told unless it was told otherwise; ``say`` prints a sentence."""
        ...

    def read(
        self, data: Path, options: Any, has: Mapping[str, Any], say: Any
    ) -> tuple[Any, dict[str, Any], dict[str, Any], str]:
        """``(rows to learn from, what to remember of reading them, key among it, what the detector is told of them, how many in words)``.

        ``has`` are the detector's settings; ``say`` prints a sentence.
        """
        ...

    def tell(self, fitted: Any, data: Path, options: Any, say: Any) -> None:
        """What the fit has found out about what it learned from."""
        ...

    def score(self, asked: "Asked", options: Any) -> None:
        """Write the csv file, and what else the options ask for."""
        ...

    def generate(self, model: Path, out: Path, made: dict[str, Any], options: Any) -> None:
        """Write anomalies; ``made`` holds ``count`` (or None), ``strength`` (several, or none) and ``seed``."""
        ...


class Asked(NamedTuple):
    """What ``jaxad score`` is asked for; ``loaded`` is a ``bulk.Loaded``."""

    model: Path
    loaded: Any
    data: Path
    out: Path
    alpha: float | None
    fdr: float | None

    @property
    def rates(self) -> dict[str, Any]:
        """Which rows are flagged."""
        return {"alpha": self.alpha, "fdr": self.fdr}


KINDS: list[Kind] = [Tables(), Pictures(), Series()]
"""Later ones are asked first. The first one takes what no other does, and is that of models that remember nothing."""


def options_of(command: str) -> Any:
    """The options of all kinds for ``Fitting``, ``Scoring`` or ``Generating`` in one record, which is an instance of each kind's own."""
    parts = tuple(dict.fromkeys(getattr(kind, command) for kind in KINDS))
    return dataclasses.dataclass(frozen=True)(type("KindOptions", parts, {"__doc__": ""}))


def of_data(data: Path, options: Any = None) -> Kind:
    """The kind that recognises what lies there."""
    return next((kind for kind in reversed(KINDS) if kind.holds(data, options)), KINDS[0])


def of_model(extra: Mapping[str, Any] | None) -> Kind:
    """The kind that a model was fitted on, by what it remembers."""
    return next((kind for kind in reversed(KINDS) if kind.key in (extra or {})), KINDS[0])


def of_options(command: str, options: Any) -> Kind | None:
    """The one kind that has an option which was given; None: no option tells."""
    found = [kind for kind in KINDS if given(options) & _names(getattr(kind, command))]
    return found[0] if len(found) == 1 else None


def check_detector(kind: Kind, name: str, data: Path) -> None:
    """Raise a ValueError unless we or an installed package list a detector of this name.

    By itself, not by ``catalogue.choose``, which asks for JAX, scikit-learn and pandas: seconds before a typing error is said.
    """
    known = [*kind.ours, *(point.name for point in entry_points(group="jaxad.detectors"))]
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=3)
        means = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(known)}"
        raise ValueError(f"unknown detector {name!r}: {means}, for {kind.words} such as {data}")


def refuse_others(kind: Kind, command: str, options: Any) -> None:
    """Raise a ValueError for an option that means nothing for this kind."""
    if others := sorted(given(options) - _names(getattr(kind, command))):
        raise ValueError(f"--{others[0].replace('_', '-')} means nothing for {kind.words}: leave it out")


def _names(options: type) -> set[str]:
    return {field.name for field in dataclasses.fields(options)}


def given(options: Any) -> set[str]:
    """The names of options that are not as they are by default."""
    return {field.name for field in dataclasses.fields(options) if getattr(options, field.name) != field.default}
