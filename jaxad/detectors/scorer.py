"""What a fitted detector is: a ``Scorer``, a pytree of arrays with one pure call.

Whatever is done with a detector (``score_samples``, saving, export, serving, explanations, devices, fleets) is made from its scorer by
code that knows no detector by name. There is nothing else in it, so ``jax.jit(scorer)``, ``jax.grad``, ``jax.vmap`` over a stack of
scorers, ``jax.shard_map`` and ``jax.export`` work as they are.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxad.standardiser import nearer


def static(**settings: Any) -> Any:
    """A field of a scorer that is a setting and no array: part of the compiled program, so it has to be hashable."""
    return dataclasses.field(metadata={"static": True}, **settings)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static, dataclasses.field))
class Scorer:
    """A frozen record of arrays that is called with rows: ``scorer(rows [batch, *sample]) -> [batch]``, larger = more anomalous.

    Subclass it, name the fields, write ``__call__``: it becomes a dataclass and a pytree whose leaves are the arrays; what is declared
    ``static()`` is a setting. Rows are float32 and standardised (``estimator.Standardiser``). A row's score depends on that row alone.

    A scorer that can tell where a row is anomalous has a method ``where(rows) -> [batch, *places]`` as well: the same evidence laid out
    over the sample, one number a pixel for pictures; larger = more anomalous.

    >>> class Farthest(Scorer):
    ...     centre: Array
    ...     def __call__(self, rows):
    ...         return jnp.max(jnp.abs(rows - self.centre[None]), axis=1)
    >>> scorer = Farthest(jnp.zeros(2))
    >>> jax.jit(scorer)(jnp.array([[1.0, -3.0]])), jax.grad(lambda row: scorer(row[None])[0])(jnp.array([1.0, -3.0]))
    (Array([3.], dtype=float32), Array([ 0., -1.], dtype=float32))
    """

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        # Compared by identity: == between arrays is no yes or no.
        dataclasses.dataclass(frozen=True, eq=False)(cls)
        jax.tree_util.register_dataclass(cls)

    def __call__(self, rows: Float[Array, "batch *sample"]) -> Float[Array, " batch"]:
        """How anomalous is every row?"""
        raise NotImplementedError(f"{type(self).__name__} has no __call__, which makes a score of rows")


def tells_where(scorer: Any) -> bool:
    """Can this scorer say where a row is anomalous?"""
    return hasattr(scorer, "where")


def stack(scorers: Sequence[Any]) -> Any:
    """Scorers of one kind as one, with a leading axis on every array: what ``jax.vmap`` runs a fleet over.

    Raises:
        ValueError: other settings, or arrays of other shapes.

    >>> class Length(Scorer):
    ...     unit: Array
    ...     def __call__(self, rows):
    ...         return jnp.sum(rows**2, axis=1) / self.unit
    >>> both = stack([Length(jnp.float32(1)), Length(jnp.float32(2))])
    >>> jax.vmap(lambda scorer: scorer(jnp.ones((1, 4))))(both).tolist()
    [[4.0], [2.0]]
    """
    first = scorers[0]
    for other in scorers[1:]:
        shapes, others = (jax.tree.map(jnp.shape, each) for each in (first, other))
        if jax.tree.structure(other) != jax.tree.structure(first) or jax.tree.leaves(shapes) != jax.tree.leaves(others):
            raise ValueError(
                "scorers in a stack need the same settings and arrays of the same shapes; "
                "fit them on as many rows, with equal settings"
            )
    return jax.tree.map(lambda *leaves: (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves), *scorers)


class Rescaled(Scorer):
    """A scorer asked with rows on another scale than its own: ``scorer(nearer(rows * stretch + shift))``, along their last axis."""

    scorer: Any
    stretch: Float[Array | np.ndarray, "..."]
    shift: Float[Array | np.ndarray, "..."]
    farthest: Float[Array | np.ndarray, ""]

    def __call__(self, rows: Float[Array, "batch *sample"]) -> Float[Array, " batch"]:
        """The inner scorer's scores."""
        stretch, shift = (part.reshape(*(1,) * (rows.ndim - 1), -1) for part in (self.stretch, self.shift))
        return self.scorer(nearer(rows * stretch + shift, self.farthest))


class Average(Scorer):
    """The mean of several scores of a row."""

    scorers: tuple

    def __call__(self, rows: Float[Array, "batch *sample"]) -> Float[Array, " batch"]:
        """Their mean."""
        return jnp.mean(jnp.stack([scorer(rows) for scorer in self.scorers]), axis=0)


def root(square: Array) -> Array:
    """The square root, 0 at 0 and with a gradient of 0 there: a distance between equal rows must not turn a gradient into NaN."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
