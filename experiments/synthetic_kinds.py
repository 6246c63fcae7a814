"""Which detectors find which kind of anomaly, on ADBench's four synthetic kinds?

    python -m experiments.synthetic_kinds --data-dir ../shared/data

Runtime: about 15 minutes on 2 cores. Expected: docs/generation.md. The normal rows of ten sets, 800 at most, are replaced by rows of a
fitted Gaussian mixture (``dependency``: of a Gaussian copula, where ADBench has a vine), and the anomalies by one of four kinds
(``generation.adbench_synthetic``), a tenth of the rows. Everything else is the protocol ``clean``. Records: ``OUT/results.jsonl``; those
in ``experiments/results/synthetic_kinds.jsonl`` are what the page shows (``--show``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console

from jaxad import DiffusionDetector, data, scoring
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.data import Dataset
from jaxad.denoisers import MLP
from jaxad.detectors import Detector
from jaxad.detectors.catalogue import choose
from jaxad.evaluation import Evaluation, sweep
from jaxad.generation import ADBENCH_KINDS, adbench_synthetic

DATASETS = (
    "breastw",
    "cardio",
    "Cardiotocography",
    "Ionosphere",
    "landsat",
    "pendigits",
    "Pima",
    "satimage-2",
    "thyroid",
    "yeast",
)
CLASSICAL = ("knn", "lof", "iforest", "ocsvm", "ecod", "copod", "mahalanobis")
DIFFUSION: dict[str, Callable] = {
    "ddpm": scoring.denoising_error,
    "ddpm-conditional": scoring.conditional_error,
}
"""A small diffusion detector, briefly trained, with one score and with another."""

RECORDS = Path(__file__).parent / "results" / "synthetic_kinds.jsonl"


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with adbench/; default: JAXAD_DATA_DIR, else ~/.cache/jaxad."""
    datasets: tuple[str, ...] = DATASETS
    detectors: tuple[str, ...] = (*CLASSICAL, *DIFFUSION)
    kinds: tuple[str, ...] = ADBENCH_KINDS
    seeds: tuple[int, ...] = (0,)
    most_rows: int = 800
    """Normal rows of a set, drawn with seed 0."""
    num_steps: int = 600
    """Training steps of the diffusion detectors."""
    out: Path = Path("runs/synthetic_kinds")
    show: bool = False
    """Only print the table of ``experiments/results/synthetic_kinds.jsonl``."""


def synthetic(name: str, kind: str, data_dir: Path | None, most_rows: int) -> Dataset:
    """The set ``name`` with rows drawn anew and anomalies of one kind, ten normal rows to one."""
    real = data.adbench(name, data_dir)
    if real.y is None:
        raise ValueError(f"{name} has no labels, by which its normal rows would be known")
    rows = real.x[real.y == 0]
    rows = rows[np.random.default_rng(0).permutation(len(rows))[:most_rows]]
    normals, anomalies = adbench_synthetic(kind, rows, max(10, len(rows) // 10), random_state=0)
    return Dataset(
        name=f"{name}/{kind}",
        x=np.concatenate([normals, anomalies]),
        y=np.repeat([0, 1], [len(normals), len(anomalies)]),
        source=f"{real.source}, drawn anew",
    )


def run(config: Config) -> list[Evaluation]:
    """Every cell; ``table.md`` beside the records."""
    names = [data.adbench_name(name) for name in config.datasets]
    sets = {
        f"{name}/{kind}": partial(synthetic, name, kind, config.data_dir, config.most_rows)
        for name in names
        for kind in config.kinds
    }

    def diffusion(score, seed):
        network = MLP(width=128, depth=2)
        return DiffusionDetector(network, scorer=score, draws=1, num_steps=config.num_steps, random_state=seed)

    table: dict[str, Callable[[int], Detector]] = {
        **choose(CLASSICAL),
        **{name: partial(diffusion, score) for name, score in DIFFUSION.items()},
    }
    records = sweep.run(sets, choose(config.detectors, table), out=config.out, protocol="clean", seeds=config.seeds)
    (config.out / "table.md").write_text(by_kind(records), encoding="utf-8")
    return records


def by_kind(records: list[Evaluation]) -> str:
    """Mean AUROC in percent over the sets, kind by detector, in Markdown, and the detectors from best to worst."""
    detectors = list(dict.fromkeys(record.detector for record in records))
    kinds = list(dict.fromkeys(record.dataset.rpartition("/")[2] for record in records))
    lines = [f"| kind | {' | '.join(detectors)} | best three |", "|---|" + "---:|" * len(detectors) + "---|"]
    for kind in kinds:
        means = {
            detector: 100
            * np.mean([r.auroc for r in records if r.detector == detector and r.dataset.endswith(f"/{kind}")])
            for detector in detectors
        }
        best = sorted(means, key=lambda name: -means[name])[:3]
        lines.append(f"| {kind} | {' | '.join(f'{means[name]:.1f}' for name in detectors)} | {', '.join(best)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        settings = tyro.cli(Config, description=__doc__)
        text = by_kind(sweep.read_results(RECORDS) if settings.show else run(settings))
        Console(width=200).print(text, highlight=False)
