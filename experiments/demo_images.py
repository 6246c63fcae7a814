"""Can a detector of clothes be trained in twelve minutes on two CPU cores?

    python -m experiments.demo_images --data-dir ../shared/data        # or: make demo-images

Ankle boots of Fashion-MNIST are normal, everything else is not. Trains ``ImageDetector`` with its denoiser of pixels on 2,000 boots, with a
progress bar, measures on 500 test pictures, and writes a page with reconstructions and maps. Without a prepared
Fashion-MNIST, ``--download`` fetches it through tensorflow-datasets (``pip install 'jaxad[data]'``). Expected: docs/images.md.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from jaxad import data
from jaxad.cli import exit_on_user_error, plain_console, use_compilation_cache
from jaxad.detectors import ImageDetector
from jaxad.detectors.persistence import check_writable, save_detector
from jaxad.reports.picture_page import measured, write_image_report


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with tfds/; default: JAXAD_DATA_DIR, else ~/.cache/jaxad."""
    name: str = "fashion_mnist"
    """A tensorflow-datasets set of pictures."""
    normal_class: int = 9
    """The class that is normal."""
    num_steps: int = 800
    """Training steps of the denoiser of pixels."""
    download: bool = False
    """Fetch the set if it is not there."""
    out: Path = Path("runs/demo-images")
    """Folder for the page and the detector."""


def run(config: Config) -> Path:
    """Train, measure, write; the path of the page."""
    console = plain_console()
    config.out.mkdir(parents=True, exist_ok=True)
    check_writable(config.out / "model")
    started = time.perf_counter()
    train, test = data.one_vs_rest(
        config.name, config.normal_class, config.data_dir, most_train=2000, download=config.download
    )
    # As many of the normal class as of all others together.
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(np.flatnonzero(test.y == label))[:250] for label in (0, 1)])
    test = test.take(rows)
    console.print(f"{train!r}")
    detector = ImageDetector(num_steps=config.num_steps, verbose=1).fit(train.x)
    fitted = time.perf_counter()
    found = measured(test, -detector.score_samples(test.x))
    save_detector(detector, config.out / "model", extra={})
    page = write_image_report(
        detector, test, config.out / "report.html", title=f"{train.name}: what is not one of these?"
    )
    console.print(", ".join(f"{name} {value:.4f}" for name, value in found.items()))
    console.print(
        f"{fitted - started:.0f} s to read and train, {time.perf_counter() - started:.0f} s in all. "
        f"Page: {page}   Detector: {config.out / 'model'}"
    )
    return page


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        run(tyro.cli(Config, description=__doc__))
