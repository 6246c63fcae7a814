"""Strict settings for the whole suite: eight simulated devices, no silent broadcasting, no key used twice, warnings are errors."""

import os
import shutil
import tempfile
from pathlib import Path

# Compiling is most of what the suite does: without optimisation, and without the slower of XLA's two code generators, it takes
# half the time. `make slow` runs the same tests with the optimisation that users have.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# What one test, one worker or one command they start has compiled, the others need not: kept for this run alone.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"jaxad-tests-xla-{os.getpid()}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

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


MEASURED = ("measured orders of convergence", "scores against their formula")
"""Tables printed after the run; a test adds a line with ``record_property(title, line)``."""


def pytest_terminal_summary(terminalreporter):
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    properties = [entry for report in reports for entry in getattr(report, "user_properties", [])]
    for title in MEASURED:
        # A report exists for setup, call and teardown, each repeating what was recorded so far.
        lines = dict.fromkeys(line for name, line in properties if name == title)
        if lines:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.write_line(line)


def pytest_unconfigure():
    programs = os.environ["JAX_COMPILATION_CACHE_DIR"]
    if programs.endswith(f"jaxad-tests-xla-{os.getpid()}"):
        shutil.rmtree(programs, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Thousands of compiled programs in one process end in a segmentation fault of XLA's compiler: each file starts anew."""
    yield
    jax.clear_caches()
