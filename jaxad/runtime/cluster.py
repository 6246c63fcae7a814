"""Work on a Ray cluster: cells of a sweep, files to score. Each is one task; what comes back is written by the process that asked.

Ray is optional (``pip install 'jaxad[ray]'``); without it, and without a cluster to go to, the same call works here, one by one.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import jax

Elsewhere = Callable[[Callable[..., Any], Sequence[tuple]], Iterator[tuple[int, Any]]]
"""``elsewhere(function, many arguments)`` gives ``(number of the arguments, result)`` of each, in the order in which they are finished."""

RETRIES = 3
"""So many times a task is started anew after its worker died, was out of memory or lost its host; an error of its own is not repeated."""

LOCAL = "local"


@contextmanager
def on_ray(
    address: str = LOCAL, *, cpus: float = 1, gpus: float = 0, workers: int | None = None
) -> Iterator[Elsewhere | None]:
    """A cluster to work on: that at ``address`` (``"auto"``, ``"host:6379"``), or ``"local"``, one of this machine for the time being.

    ``cpus`` and ``gpus`` is what a task takes; Ray hides GPUs from a task with ``gpus=0``, and with a fraction, several tasks share one.
    ``workers`` bounds the tasks that run at once, on a local cluster. jaxad must be installed on all hosts, and what a task reads must be
    where they all find it. Gives None, which stands for this process, with a warning where Ray is not installed and none but a local
    cluster was asked for.

    Raises:
        ValueError: a task that takes nothing, or fewer than one worker.
        ImportError: Ray is not installed and ``address`` names a cluster.
        ConnectionError: there is no cluster at ``address``.
        RuntimeError: from the iteration: a task whose workers died ``RETRIES`` + 1 times.
    """
    if cpus < 0 or gpus < 0 or cpus + gpus == 0 or (workers is not None and workers < 1):
        raise ValueError(
            f"a task takes some share of a CPU or GPU, and needs a worker; got {cpus=}, {gpus=}, {workers=}"
        )
    if find_spec("ray") is None:
        if address != LOCAL:
            raise ImportError(f"a Ray cluster at {address} needs Ray: pip install 'jaxad[ray]'")
        warnings.warn(
            "Ray is not installed (pip install 'jaxad[ray]'): the work is done here, one by one", stacklevel=3
        )
        yield None
        return
    import ray
    from ray.exceptions import RayError, RayTaskError

    # Compiled programs are shared through the folder in use here; and tasks that share a GPU cannot each take three quarters of it.
    cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    environment = {"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {}
    if 0 < gpus < 1:
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    where: dict[str, Any] = {"address": address}
    if address == LOCAL:
        where |= {"include_dashboard": False} | ({} if workers is None else {"num_cpus": max(1, round(workers * cpus))})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called")  # what Ray forks becomes another program at once
        ray.init(**where, runtime_env={"env_vars": environment}, log_to_driver=False, configure_logging=False)

    def elsewhere(function, arguments):
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(function)
        waiting = {task.remote(*each): number for number, each in enumerate(arguments)}
        try:
            while waiting:
                [ready], _ = ray.wait(list(waiting), num_returns=1)
                number = waiting.pop(ready)
                try:
                    result = ray.get(ready)
                except RayTaskError as error:
                    raise error.cause from None
                except RayError as error:
                    raise RuntimeError(
                        f"task {number + 1} of {len(arguments)} lost its worker {RETRIES + 1} times, out of memory perhaps; give a "
                        f"task more CPUs, so that fewer run at once ({str(error).splitlines()[0]})"
                    ) from error
                yield number, result
        finally:
            for unfinished in waiting:
                ray.cancel(unfinished, force=True)

    try:
        yield elsewhere
    finally:
        ray.shutdown()
