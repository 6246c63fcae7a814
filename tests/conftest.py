"""Strict settings for the whole suite: eight simulated devices, no silent broadcasting, no key used twice, warnings are errors."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with `adbench/`: JAXAD_DATA_DIR, else ../shared/data beside the checkout; a user has neither, so tests skip."""
    candidates = [os.environ.get("JAXAD_DATA_DIR"), Path(__file__).parents[2] / "shared" / "data"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "adbench").is_dir():
            return Path(candidate)
    pytest.skip("no data directory with adbench/ in it: set JAXAD_DATA_DIR")


@pytest.fixture(scope="session")
def reference_dir(data_dir) -> Path:
    """The folder with the numbers to reproduce, beside the data."""
    folder = data_dir.parent / "reference"
    if not folder.is_dir():
        pytest.skip("no reference numbers beside the data directory")
    return folder
