"""Compiled programs are kept on disk by a plain fit, and by one variable they are not."""

import os
import subprocess
import sys

import pytest

FIT = """
import numpy as np
from jaxad.detectors import KNNDetector
KNNDetector().fit(np.random.default_rng(0).normal(size=(50, 3))).score_samples(np.zeros((1, 3)))
"""


@pytest.mark.parametrize(("enabled", "kept"), [("true", True), ("false", False)])
def test_a_fit_keeps_what_it_compiled(tmp_path, enabled, kept):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    environment |= {
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_ENABLE_COMPILATION_CACHE": enabled,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    subprocess.run([sys.executable, "-c", FIT], env=environment, check=True)
    assert bool(list(tmp_path.glob("jaxad/xla/*-cache"))) == kept


def test_a_folder_of_the_users_stands(tmp_path):
    mine = tmp_path / "mine"
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(mine), "XDG_CACHE_HOME": str(tmp_path / "other")}
    subprocess.run(
        [sys.executable, "-c", FIT], env=environment | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}, check=True
    )
    assert list(mine.glob("*-cache"))
    assert not (tmp_path / "other").exists()
