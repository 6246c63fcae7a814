"""Does the cycle help: the recommended detector before and after it, without labels and with five known anomalies?

    python -m experiments.cycle

Runtime: about two minutes per data set and seed on 2 cores. Protocol ``clean`` (half of the normal rows train, no anomaly does); five
anomalies are drawn from the test rows by the seed, left out of the test of *every* method, and given to those that take labels. Logistic
regression, a random forest and DeepSAD get the same five, and kNN stands beside. Settings are the defaults everywhere. Written to
``experiments/results/cycle.jsonl``, one line per data set and seed; a run goes on where the last one stopped. Expected: the tables of
docs/generation.md, which ``python -m experiments.render`` makes of the records with ``table`` and ``differences``. With anomalies among
the training rows: ``python -m experiments.cycle --contamination 0.05 --seeds 0 --out experiments/results/cycle_contaminated.jsonl``.
"""

import json
import time
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from scipy.stats import t
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.images import read
from jaxad import data
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.detectors import ConsensusDetector, CycleDetector, DiffusionDetector, KNNDetector
from jaxad.detectors import taught as estimator
from jaxad.evaluation import clean, current_commit, device_name
from jaxad.metrics import auroc, average_precision

KNOWN = 5
TITLES = {
    "knn": "kNN",
    "recommended": "recommended",
    "cycle": "cycle",
    "cycle-5": "cycle, five known",
    "logistic-5": "logistic regression, five",
    "forest-5": "random forest, five",
    "deepsad-5": "DeepSAD, five",
}
MEASURES = {"auroc": "AUROC", "average_precision": "average precision"}


@dataclass(frozen=True)
class Config:
    data_dir: Path | None = None
    """Folder with adbench/<group>/<name>.npz."""
    datasets: tuple[str, ...] = ()
    """Empty: all that are in ``data_dir``."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    contamination: float = 0.0
    """Share of anomalies among the training rows; drawn from the test rows, at most half of those that are not known, and not tested."""
    out: Path = Path(__file__).parent / "results" / "cycle.jsonl"


class Remembered(ConsensusDetector):
    """The recommended detector, which is fitted once on the same rows: both cycles of a cell begin with the same two."""

    fits: ClassVar[dict[bytes, dict]] = {}

    def fit(self, X, y=None):
        rows = np.ascontiguousarray(X).tobytes()
        if rows not in self.fits:
            self.fits[rows] = vars(super().fit(X)).copy()
        vars(self).update(self.fits[rows])
        return self


class RememberedDenoiser(DiffusionDetector):
    """Likewise."""

    fits: ClassVar[dict[Any, dict]] = {}

    def fit(self, X, y=None):
        key = np.ascontiguousarray(X).tobytes(), self.random_state
        if key not in self.fits:
            self.fits[key] = vars(super().fit(X)).copy()
        vars(self).update(self.fits[key])
        return self


def run(config: Config) -> list[dict]:
    """One record per data set and seed that is not on file.

    Raises:
        ValueError: a contamination that is not in [0, .5), or another than that of the records on file.
    """
    if not 0 <= config.contamination < 0.5:
        raise ValueError(f"contamination is a share of the training rows in [0, .5), got {config.contamination}")
    names = [data.adbench_name(name) for name in config.datasets] or data.adbench_names(config.data_dir)
    lines = read(config.out)
    done = {(line["dataset"], line["seed"]) for line in lines}
    other = {line.get("contamination", 0.0) for line in lines} - {config.contamination}
    if other:
        raise ValueError(
            f"{config.out} holds runs with a contamination of {other.pop()}, not {config.contamination}: give another --out"
        )
    config.out.parent.mkdir(parents=True, exist_ok=True)  # now, not after the first set's minutes
    records = []
    for seed in config.seeds:
        for name in names:
            if (name, seed) in done:
                continue
            record = cell(data.adbench(name, config.data_dir), seed, config.contamination)
            # Every shape is compiled anew; a process that keeps them all runs out of memory maps after some 15 sets.
            jax.clear_caches()
            with config.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            shown = {key: record["auroc"][key] for key in record["auroc"]}
            Console(width=160, highlight=False).print(name, seed, shown, record["seconds"])
            records.append(record)
    return records


def cell(dataset, seed: int, contamination: float = 0.0) -> dict:
    """AUROC and average precision of every method, and what the cycles did."""
    started = time.perf_counter()
    parts = clean(dataset, seed)
    train, test, labels = parts.train, parts.test, parts.labels
    rng = np.random.default_rng(seed)
    anomalies = rng.permutation(np.flatnonzero(labels == 1))
    known, others = anomalies[:KNOWN], anomalies[KNOWN:]
    mixed_in = others[: min(round(contamination / (1 - contamination) * len(train)), len(others) // 2)]
    if len(mixed_in):
        train = rng.permutation(np.concatenate([train, test[mixed_in]]))
    # Copies of a training row among the anomalies teach nothing; the cycle refuses them.
    fresh = ~(test[known][:, None] == train[None]).all(axis=2).any(axis=1)
    few = test[known][fresh]
    rest = np.delete(np.arange(len(labels)), np.concatenate([known, mixed_in]))
    x, y = test[rest], labels[rest]
    scores: dict[str, Any] = {"knn": -KNNDetector().fit(train).score_samples(x)}
    Remembered.fits.clear()
    RememberedDenoiser.fits.clear()
    estimator.DiffusionDetector = RememberedDenoiser
    cycles = {"cycle": CycleDetector(Remembered()).fit(train)}
    scores["recommended"] = -cycles["cycle"].first_.score_samples(x)
    scores["cycle"] = -cycles["cycle"].score_samples(x)
    if len(few):
        cycles["cycle-5"] = CycleDetector(Remembered()).fit(train, anomalies=few)
        scores["cycle-5"] = -cycles["cycle-5"].score_samples(x)
        both, target = np.concatenate([train, few]), np.repeat([0, 1], [len(train), len(few)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for what, model in (
                ("logistic-5", LogisticRegression(class_weight="balanced", max_iter=2000)),
                ("forest-5", RandomForestClassifier(300, class_weight="balanced", random_state=seed)),
            ):
                scores[what] = make_pipeline(StandardScaler(), model).fit(both, target).predict_proba(x)[:, 1]
        scale = StandardScaler().fit(train)
        scores["deepsad-5"] = deep_sad(scale.transform(train), scale.transform(few), seed)(scale.transform(x))
    return {
        "dataset": dataset.name,
        "seed": seed,
        "num_train": len(train),
        "known": len(few),
        "contamination": contamination,
        "mixed_in": len(mixed_in),
        "auroc": {what: round(100 * auroc(y, score), 2) for what, score in scores.items()},
        "average_precision": {what: round(100 * average_precision(y, score), 2) for what, score in scores.items()},
        "cycles": {
            what: {
                "accepted": each.accepted_,
                "reason": each.reason_,
                "rounds": each.rounds_,
                "direction": hasattr(each, "direction_"),
                "head": hasattr(each, "head_"),
            }
            for what, each in cycles.items()
        },
        "seconds": round(time.perf_counter() - started, 1),
        "device": device_name(),
        "commit": current_commit(),
    }


def deep_sad(normals, anomalies, seed: int, *, num_steps: int = 3000, weight: float = 1.0):
    """DeepSAD (Ruff et al., ICLR 2020): normal rows near a centre, known anomalies far from it; ``rows -> distance``.

    Its recipe: no biases, so that no constant solution exists; initialised as an auto-encoder (here a third of the steps), centre = mean of
    the first embeddings, loss ``|z - c|^2`` for normal rows and ``weight / |z - c|^2`` for known anomalies, Adam. The published code draws
    a batch from all rows; here every batch holds 16 known anomalies beside 128 normal rows, or they would hardly be seen.
    """
    features = normals.shape[1]
    sizes = (features, 128, 64, 32)
    keys = jax.random.split(jax.random.key(seed), 8)
    matrix = jax.nn.initializers.he_normal()
    encoder = [matrix(key, size) for key, size in zip(keys, pairwise(sizes), strict=False)]
    decoder = [matrix(key, size) for key, size in zip(keys[3:], pairwise(sizes[::-1]), strict=False)]
    normals, anomalies = jnp.asarray(normals, jnp.float32), jnp.asarray(anomalies, jnp.float32)

    def mapped(layers, rows):
        for layer in layers[:-1]:
            rows = jax.nn.leaky_relu(rows @ layer, 0.1)
        return rows @ layers[-1]

    def trained(params, loss, key, num_steps):
        optimizer = optax.adamw(optax.piecewise_constant_schedule(1e-3, {2 * num_steps // 3: 0.1}), weight_decay=1e-6)

        def step(carry, number):
            params, state = carry
            gradient = jax.grad(loss)(params, *jax.random.split(jax.random.fold_in(key, number)))
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(num_steps))[0][0]

    def batch(key, rows, count):
        return rows[jax.random.randint(key, (count,), 0, len(rows))]

    def reconstruction(params, key, _):
        rows = batch(key, normals, 128)
        return jnp.mean((mapped(params["decoder"], mapped(params["encoder"], rows)) - rows) ** 2)

    @jax.jit
    def fitted():
        both: Any = trained({"encoder": encoder, "decoder": decoder}, reconstruction, keys[6], num_steps // 3)
        start = both["encoder"]
        centre = mapped(start, normals).mean(axis=0)
        centre = jnp.where(jnp.abs(centre) < 0.1, jnp.where(centre < 0, -0.1, 0.1), centre)  # as published

        def loss(layers, normal_key, anomaly_key):
            near = jnp.sum((mapped(layers, batch(normal_key, normals, 128)) - centre[None]) ** 2, axis=1)
            far = jnp.sum((mapped(layers, batch(anomaly_key, anomalies, 16)) - centre[None]) ** 2, axis=1)
            return (jnp.sum(near) + weight * jnp.sum(1 / (far + 1e-6))) / 144

        return trained(start, loss, keys[7], num_steps), centre

    layers, centre = fitted()
    return lambda rows: np.asarray(
        jnp.sum((mapped(layers, jnp.asarray(rows, jnp.float32)) - centre[None]) ** 2, axis=1)
    )


def table(records: list[dict]) -> str:
    """AUROC of a row per data set, mean over its seeds; *closed* counts the runs in which the cycle gave back the first detector."""
    cells = _cells(records)
    sets = {name: [cell for (other, _), cell in cells.items() if other == name] for name, _ in cells}
    lines = [f"| data set | seeds | {' | '.join(TITLES.values())} |", "|---|---:|" + "---:|" * len(TITLES)]
    for number_and_name in sorted(sets, key=lambda name: (not name[0].isdigit(), _plain(name).lower())):
        own = sets[number_and_name]
        columns = []
        for method in TITLES:
            mean = np.mean([cell["auroc"][method] for cell in own])
            closed = sum(not cell["cycles"][method]["accepted"] for cell in own) if method in own[0]["cycles"] else 0
            columns.append(f"{mean:.1f} (closed {closed})" if closed else f"{mean:.1f}")
        lines.append(f"| {_plain(number_and_name)} | {len(own)} | {' | '.join(columns)} |")
    for measure, title in MEASURES.items():
        means = [
            np.mean([np.mean([cell[measure][method] for cell in own]) for own in sets.values()]) for method in TITLES
        ]
        lines.append(f"| **mean {title}** | | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    return "\n".join(lines)


def differences(records: list[dict]) -> str:
    """What a cycle gains over the others, in points: mean over sets of the mean over seeds, 95 % t interval over sets, mean by seed."""
    cells = _cells(records)
    names, seeds = dict.fromkeys(name for name, _ in cells), sorted({seed for _, seed in cells})
    lines = [
        "| difference | measure | mean, 95 % over sets | sets up / level / down | by seed |",
        "|---|---|---:|---:|---:|",
    ]
    pairs = [("cycle", "recommended"), *(("cycle-5", what) for what in TITLES if what not in ("cycle", "cycle-5"))]
    for method, other in pairs:
        for measure, title in MEASURES.items():
            gains = {key: cell[measure][method] - cell[measure][other] for key, cell in cells.items()}
            own = np.array([np.mean([gains[name, seed] for seed in seeds if (name, seed) in gains]) for name in names])
            half = t.ppf(0.975, len(own) - 1) * own.std(ddof=1) / np.sqrt(len(own))
            by_seed = [np.mean([gain for (_, each), gain in gains.items() if each == seed]) for seed in seeds]
            # Records are rounded to a hundredth of a point.
            counts = (own > 0.05).sum(), (abs(own) <= 0.05).sum(), (own < -0.05).sum()
            lines.append(
                f"| {TITLES[method]} less {TITLES[other]} | {title} | {own.mean():+.2f} ± {half:.2f} | "
                f"{' / '.join(map(str, counts))} | {', '.join(f'{gain:+.2f}' for gain in by_seed)} |"
            )
    return "\n".join(lines)


def _cells(records: list[dict]) -> dict[tuple[str, int], dict]:
    """The last record of each data set and seed, if a known anomaly is left in it: else nothing was learned from any."""
    return {(record["dataset"], record["seed"]): record for record in records if record["known"]}


def _plain(name: str) -> str:
    """Without ADBench's number."""
    return name.split("_", 1)[1] if name[0].isdigit() else name


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        run(tyro.cli(Config, description=__doc__))
