"""Is a fleet of small detectors trained as one program faster than one by one, and does it score the same?

    python -m experiments.fleet

Runtime: about 6 minutes for each network on 2 cores. 500 tables of 1,000 x 20 rows (each its own Gaussian, sizes ragged), one small
diffusion detector each: ``fit_many`` against 500 calls of ``fit``, compile time counted in both. Written to
``experiments/results/fleet.jsonl``. Expected: equal scores up to rounding; a ratio of times of 1.35 for 32x1 on two idle cores.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console

from jaxad.cli import exit_on_user_error
from jaxad.denoisers import MLP
from jaxad.detectors import DiffusionDetector, fit_many
from jaxad.evaluation import current_commit, device_name


@dataclass(frozen=True)
class Config:
    fleet: int = 500
    """Detectors."""
    rows: int = 1000
    features: int = 20
    num_steps: int = 500
    batch_size: int = 64
    networks: tuple[str, ...] = ("32x1", "64x2")
    """Width x depth of the detectors' MLPs."""
    ragged: bool = True
    """Tables of between half of ``rows`` and all of them, instead of all of one length."""
    out: Path = Path(__file__).parent / "results" / "fleet.jsonl"


def run(config: Config) -> list[dict]:
    """One record per network."""
    rng = np.random.default_rng(0)
    sizes = (
        rng.integers(config.rows // 2, config.rows + 1, config.fleet) if config.ragged else [config.rows] * config.fleet
    )
    tables = [
        rng.normal(size=(size, config.features)) @ rng.normal(size=(config.features, config.features)) for size in sizes
    ]
    records = []
    for network in config.networks:
        width, depth = map(int, network.split("x"))

        def fleet(width=width, depth=depth):
            return [
                DiffusionDetector(
                    MLP(width=width, depth=depth),
                    num_steps=config.num_steps,
                    batch_size=config.batch_size,
                    random_state=seed,
                )
                for seed in range(config.fleet)
            ]

        jax.clear_caches()
        started = time.perf_counter()
        together = fit_many(fleet(), tables)
        seconds_together = time.perf_counter() - started
        jax.clear_caches()
        started = time.perf_counter()
        alone = [detector.fit(table) for detector, table in zip(fleet(), tables, strict=True)]
        seconds_alone = time.perf_counter() - started
        apart = [
            np.abs(a.score_samples(table) - b.score_samples(table)).max() / np.ptp(b.score_samples(table))
            for a, b, table in zip(together, alone, tables, strict=True)
        ]
        record = {
            "network": network,
            "fleet": config.fleet,
            "rows": [int(min(sizes)), int(max(sizes))],
            "features": config.features,
            "steps": config.num_steps,
            "batch_size": config.batch_size,
            "seconds_together": round(seconds_together, 1),
            "seconds_alone": round(seconds_alone, 1),
            "ratio": round(seconds_alone / seconds_together, 2),
            "largest_difference_of_scores_over_their_range": float(np.max(apart)),
            "median_difference_of_scores_over_their_range": float(np.median(apart)),
            "device": device_name(),
            "commit": current_commit(),
        }
        Console(width=160, highlight=False).print(record)
        with config.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        records.append(record)
    return records


if __name__ == "__main__":
    with exit_on_user_error():
        run(tyro.cli(Config, description=__doc__))
