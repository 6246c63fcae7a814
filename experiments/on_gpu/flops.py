"""Floating-point operations that a network needs, and those that a device can do at most."""

import math
from typing import Any

import jax

PEAK_BFLOAT16 = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}
"""By ``device_kind``: products of bfloat16 with sums in float32, dense, from the data sheets of the SXM cards."""


def peak() -> float | None:
    """Of the default device; None where nobody has looked it up."""
    return PEAK_BFLOAT16.get(jax.devices()[0].device_kind)


def forward_flops(network, shape: tuple[int, ...]) -> float:
    """Of one evaluation on one sample of ``shape``: products of matrices and convolutions, a multiplication and an addition each."""
    inputs: Any = (jax.ShapeDtypeStruct((1, *shape), "float32"), jax.ShapeDtypeStruct((1,), "float32"))
    params = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return product_flops(network.apply, params, *inputs)


def product_flops(function, *arguments) -> float:
    """Of all products of matrices and convolutions that ``function`` asks for, whatever a compiler makes of them.

    >>> import jax.numpy as jnp
    >>> product_flops(jnp.matmul, jnp.ones((2, 3)), jnp.ones((3, 5)))
    60.0
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, options = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            left, right = (variable.aval.shape for variable in equation.invars[:2])
            if name == "dot_general":
                terms = math.prod(left[axis] for axis in options["dimension_numbers"][0][0])
            else:
                terms = math.prod(right) // right[options["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * terms
        else:
            repeats = options.get("length", 1) if name == "scan" else 1
            inner = [
                value for option in options.values() for value in (option if isinstance(option, tuple) else [option])
            ]
            total += repeats * sum(_of(getattr(value, "jaxpr", value)) for value in inner if _has_equations(value))
    return total


def _has_equations(value) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")
