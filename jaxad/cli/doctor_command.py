"""``jaxad doctor``."""

import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from jaxad.runtime.compilation import compilation_cache


def doctor() -> None:
    """Devices, versions, what is missing, and where data are looked for."""
    import jax
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from jaxad import data

    table = Table("what", "found", "if missing")
    devices = ", ".join(f"{device.platform}:{device.device_kind}" for device in jax.devices())
    table.add_row("devices", devices, escape("pip install 'jaxad[cuda]' for an NVIDIA GPU"))
    if shutil.which("nvidia-smi") and jax.default_backend() == "cpu":
        table.add_row("[red]GPU", "[red]present, but JAX runs on the CPU", escape("pip install 'jaxad[cuda]'"))
    table.add_row("python", sys.version.split()[0], "3.11 or newer")
    for package in (
        "jaxad",
        "jax",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
        "scikit-learn",
        "scipy",
        "pandas",
        "matplotlib",
    ):
        table.add_row(package, version(package), "")
    for package, module, extra in (
        ("pyarrow", "pyarrow", "parquet files: jaxad[data]"),
        ("tensorflow-datasets", "tensorflow_datasets", "image data sets: jaxad[data]"),
        ("grain", "grain", "data larger than memory: jaxad[data]"),
    ):
        try:
            found = version(package) if find_spec(module) else "[yellow]not installed"
        except PackageNotFoundError:
            found = "[yellow]not installed"
        table.add_row(package, found, escape(extra))
    found = data.adbench_names()
    table.add_row("ADBench sets", str(len(found)), "set JAXAD_DATA_DIR to a folder with adbench/<group>/<name>.npz")
    table.add_row("compilation cache", escape(str(compilation_cache())), "")
    Console().print(table)
