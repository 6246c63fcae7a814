"""Compiling costs more than running where data are small: programs are kept on disk, and compiled with less effort on a CPU."""

import os
import sys
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

SHORTEST_KEPT = 0.2
SECONDS_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
"""Seconds of compiling from which on a program is kept, and JAX's own variable for them."""


def compilation_cache() -> Path:
    """Where they are kept between runs: under XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxad" / "xla"


def use_compilation_cache() -> None:
    """Switch on JAX's persistent compilation cache, unless a folder for it is set; JAX_ENABLE_COMPILATION_CACHE=false switches it off.

    Where JAX is not imported yet it is told by the environment: a command that is refused waits for no import.
    """
    if "jax" not in sys.modules:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compilation_cache()))
        os.environ.setdefault(SECONDS_VARIABLE, str(SHORTEST_KEPT))
        return
    import jax

    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(compilation_cache()))
        if SECONDS_VARIABLE not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_KEPT)


def quickly_compiled(function: Callable, **settings: Any) -> Callable:
    """``jax.jit(function, **settings)``; on a CPU with LLVM's first level of optimisation and the quicker of XLA's two code generators.

    What is scored or trained runs as fast, since its products and sorts come from libraries, and compiles in half the time: 600 steps of
    two networks and the first scores of a table in 9 s, not 31. Flags of the user's stand.
    """

    @cache
    def compiled(backend: str) -> Callable:
        import jax

        return jax.jit(function, compiler_options=_quick_options() if backend == "cpu" else None, **settings)

    @wraps(function)
    def call(*args, **kwargs):
        import jax

        return compiled(jax.default_backend())(*args, **kwargs)

    return call


@cache
def _quick_options() -> dict[str, Any] | None:
    """Those options that this XLA knows and that XLA_FLAGS does not set."""
    import jax

    wanted = {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}
    options = {}
    for name, value in wanted.items():
        if name in os.environ.get("XLA_FLAGS", ""):
            continue
        try:
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
        except jax.errors.JaxRuntimeError:  # another version of XLA
            continue
        options[name] = value
    return options or None
