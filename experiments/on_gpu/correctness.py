"""Check 1: does a fitted detector score on the accelerator as on the processor?"""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.on_gpu.watch import attempted
from jaxad import (
    ConsensusDetector,
    DiffusionDetector,
    ImageDetector,
    export_detector,
    load_detector,
    load_scorer,
    save_detector,
)
from jaxad.denoisers import MLP, DiT, UNet
from jaxad.detectors.catalogue import DIT
from jaxad.shipping.bundle import TOLERANCE, parity

DEFAULT_TOLERANCE = 20
"""Times ``TOLERANCE``, for products at the device's default precision: tensor cores round float32 to ten bits (TF32)."""


def check(tiny: bool, budget: float) -> Iterator[dict[str, Any]]:
    """A record for each detector, fitted on the default device and scored there and on the processor."""
    rng = np.random.default_rng(0)
    columns = 5 if tiny else 20
    mixing = rng.normal(size=(columns, columns))
    train, test = (rng.normal(size=(rows, columns)) @ mixing for rows in ((150, 64) if tiny else (2000, 1000)))
    test[::4] *= 3
    # Few and small: the same pictures go through the network on the processor too, which takes most of this check's time.
    learned, scored, side = (20, 20, 8) if tiny else (256, 64, 16)
    pictures = rng.normal(size=(learned + scored, side, side, 1)).cumsum(1).cumsum(2)
    steps = 10 if tiny else 500
    unet = (
        UNet(channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8, groups=4)
        if tiny
        else UNet(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(4,), head_channels=32)
    )
    recommended = ConsensusDetector(num_networks=1 if tiny else 2, num_steps=steps)
    ddpm = DiffusionDetector(MLP(width=16, depth=1) if tiny else None, num_steps=steps)
    dit = DiffusionDetector(DiT(hidden=16, depth=1, heads=2, patch_size=None) if tiny else DIT, num_steps=steps)
    pixels = DiffusionDetector(unet, num_steps=steps, batch_size=16 if tiny else 64)
    image = ImageDetector(unet, num_steps=steps, batch_size=64)
    of_pictures = (pictures[:learned], pictures[learned:])
    cells = [
        ("recommended", partial(compared, recommended, train, test)),
        ("ddpm", partial(compared, ddpm, train, test)),
        ("dit", partial(compared, dit, train, test)),
        ("unet on pictures", partial(compared, pixels, *of_pictures)),
        ("bundle of ddpm", partial(bundle_compared, ddpm, test)),
        ("bundle of recommended", partial(bundle_compared, recommended, test)),
        ("image detector with a unet", partial(compared, image, *of_pictures)),
        ("bundle of ddpm, exported there", partial(exported_there, ddpm, test)),
    ]
    yield from attempted(cells[:5] if tiny else cells)


def processor() -> jax.Device:
    """The processor as a device beside the accelerator, in one process."""
    return jax.devices("cpu")[0]


def on_processor(detector, rows) -> np.ndarray:
    """The scores of the same fitted detector on the processor: saved, and loaded where arrays go to it."""
    with tempfile.TemporaryDirectory() as folder, jax.default_device(processor()):
        save_detector(detector, Path(folder) / "model")
        return load_detector(Path(folder) / "model").score_samples(rows)


def judged(expected, by_precision: dict[str, np.ndarray]) -> dict[str, Any]:
    """The largest difference from ``expected``, as a multiple of what is tolerated (``bundle.parity``), at each precision of products."""
    allowed = {"highest": 1.0, "default": float(DEFAULT_TOLERANCE)}
    numbers: dict[str, Any] = {
        "devices": [str(jax.devices()[0]), str(processor())],
        "one_device": jax.devices()[0].platform == "cpu",
        "rows": len(expected),
        "tolerance": f"{TOLERANCE} of the score plus {TOLERANCE} of the scores' spread; default: {DEFAULT_TOLERANCE} times that",
    }
    for precision, scores in by_precision.items():
        numbers[f"parity_{precision}"] = parity(expected, scores)
        numbers[f"largest_difference_{precision}"] = float(np.abs(expected - scores).max())
    missed = [name for name in by_precision if not numbers[f"parity_{name}"] <= allowed[name]]
    if missed:
        numbers["error"] = f"Disagreement: beyond what is tolerated at precision {', '.join(missed)}"
    return numbers


def at_precisions(score) -> dict[str, np.ndarray]:
    """The scores with products of matrices in full float32, and as the device does them unless told otherwise."""
    with jax.default_matmul_precision("highest"):
        exact = score()
    return {"highest": exact, "default": score()}


def compared(detector, train, test) -> dict[str, Any]:
    """Fitted here, scored here and on the processor."""
    detector.fit(train)
    return judged(on_processor(detector, test), at_precisions(lambda: detector.score_samples(test)))


def bundle_compared(detector, test) -> dict[str, Any]:
    """Exported on the processor, loaded on both. Products in a bundle are always in full float32."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        with jax.default_device(processor()):
            save_detector(detector, Path(folder) / "model")
            loaded = load_detector(Path(folder) / "model")
            export_detector(loaded, path)
            expected = load_scorer(path).score_samples(test)
        return judged(expected, {"highest": load_scorer(path).score_samples(test)})


def exported_there(detector, test) -> dict[str, Any]:
    """Exported where it was fitted, which compares the bundle with the detector at the device's own precision."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        export_detector(detector, path)
        with jax.default_device(processor()):
            expected = load_scorer(path).score_samples(test)
        return judged(expected, {"highest": load_scorer(path).score_samples(test)})
