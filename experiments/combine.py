"""How much should the evidence of each view count?

    python -m experiments.combine measure --data-dir ../shared/data
    python -m experiments.combine learn

Runtime: ``measure`` 25 minutes without networks (``--num-networks 0``), about two hours with them, 1 core, fits are kept in OUT and not
repeated; ``learn`` a minute. Expected: docs/methods.md, "How it was made".

The weights are learned over data sets, never inside one. ``measure`` fits the recommended detector on every set and keeps what each
view says of the test rows, so that a rule is tried on hundreds of sets in seconds. Sets that choose: numbers 000 to 079 of OddBench and
OvRBench, and for wide tables embeddings of pictures (``experiments.embeddings``). Numbers 080 to 119 confirm, once, when all is fixed
(``--groups confirm``). The sets of ADBench are reported. ``learn`` judges rules by cross-validation over sets, and writes the weights
to jaxad/detectors/view_weights.json.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import wilcoxon

from jaxad import ConsensusDetector, data
from jaxad.cli import exit_on_user_error, use_compilation_cache
from jaxad.detectors.catalogue import ROWS, choose
from jaxad.detectors.evidence import combine, view_weights
from jaxad.evaluation import clean, current_commit
from jaxad.metrics import auroc, average_precision

BASELINES = ("1nn", "knn-mean", "knn", "mahalanobis", "iforest", "ecod", "ocsvm")
WEIGHTS = Path("jaxad/detectors/view_weights.json")
SHARES = {"tables": 0.7, "embeddings": 0.3}
"""How much the groups count in what is learned."""


@dataclass(frozen=True)
class Measure:
    """Fit on every set of the groups; keep the views' evidence for its test rows, and what the baselines reach."""

    data_dir: Path = Path("../shared/data")
    groups: tuple[str, ...] = ("tables", "embeddings")
    num_networks: int = 2
    seed: int = 0
    every: int = 1
    """Only every so many sets."""
    contamination: float = 0.0
    """This share of the training rows is exchanged for anomalies, at most half of those there are; the group is then called
    <group>-<share>."""
    embeddings: Path = Path("runs/embeddings")
    out: Path = Path("runs/combine")


@dataclass(frozen=True)
class Learn:
    """Try rules by cross-validation over sets, and write the weights."""

    measured: Path = Path("runs/combine")
    strengths: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    """Of the pull towards equal weights."""
    sets: tuple[int, ...] = (20, 40, 80)
    """Sizes of the learning curve, beside all."""
    out: Path = WEIGHTS


@dataclass(frozen=True)
class Report:
    """Tables of groups that are measured, with the weights that are shipped."""

    measured: Path = Path("runs/combine")
    groups: tuple[str, ...] = ("tables", "embeddings", "confirm", "ResNet-18", "Classical")
    out: Path = Path("runs/combine/report.jsonl")


# ------------------------------------------------------------------------------------------------------------------ measure


def sets(config: Measure) -> Iterator[tuple[str, str, np.ndarray, np.ndarray, np.ndarray]]:
    """``(group, name, train, test, labels)``."""
    files = [
        *(("tables" if int(path.stem[-3:]) < 80 else "confirm", path) for path in _files(config.data_dir / "oddbench")),
        *(("embeddings", path) for path in _files(config.embeddings)),
    ]
    for group, path in files:
        if group in config.groups:
            with np.load(path, allow_pickle=False) as of:
                yield group, path.stem, of["train"].astype(float), of["test"].astype(float), of["y"].astype(int)
    for name in data.adbench_names(config.data_dir):
        group = "ResNet-18" if name.startswith(("CIFAR10", "MVTec-AD")) else "Classical"
        if group in config.groups:
            split = clean(data.adbench(name, config.data_dir), config.seed)
            yield group, name, split.train, split.test, split.labels


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*_*.npz"))


def mixed(train, test, labels, share: float, seed: int):
    """``(train, test, labels)`` with anomalies moved from the test rows to the training rows, in the place of as many normal ones."""
    rng = np.random.default_rng(seed)
    anomalies = rng.permutation(np.flatnonzero(labels == 1))
    moved = anomalies[: min(round(share * len(train)), len(anomalies) // 2)]
    kept = rng.permutation(len(train))[len(moved) :]
    rest = np.delete(np.arange(len(test)), moved)
    return rng.permutation(np.concatenate([train[kept], test[moved]])), test[rest], labels[rest]


def measure(config: Measure) -> None:
    found = list(sets(config))[:: config.every]
    if not found:
        raise ValueError(f"{config.data_dir} holds no set of the groups {', '.join(config.groups)}")
    for group, name, train, test, labels in track(found, "data sets"):
        if config.contamination:
            group = f"{group}-{config.contamination:g}"
            train, test, labels = mixed(train, test, labels, config.contamination, config.seed)
        path = config.out / group / f"{name}.npz"
        if path.exists():
            continue
        jax.clear_caches()  # a process may hold so many programs: after a hundred sets of other shapes LLVM finds no memory
        detector = ConsensusDetector(num_networks=config.num_networks, random_state=config.seed).fit(train)
        seen = detector.scores_by_view(test)
        reached = []
        for baseline in BASELINES:
            make: Any = choose((baseline,), ROWS)[baseline]
            try:
                scores = -make(config.seed).fit(train).score_samples(test)
            except ValueError:  # scikit-learn's one-class SVM on huge values: it has no number here
                reached.append((np.nan, np.nan))
                continue
            reached.append((auroc(labels, scores), average_precision(labels, scores)))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path,
            labels=labels,
            evidence=np.array(list(seen.values()), np.float32),
            views=list(seen),
            shape=np.array(train.shape),
            baselines=100 * np.array(reached),
        )


# -------------------------------------------------------------------------------------------------------------------- learn


@dataclass(frozen=True)
class Seen:
    """What was measured of one set."""

    group: str
    name: str
    labels: np.ndarray
    evidence: np.ndarray
    columns: int
    baselines: np.ndarray
    """[baselines, 2]: AUROC and average precision."""

    def judged(self, weights: np.ndarray) -> tuple[float, float]:
        """AUROC and average precision of a rule."""
        scores = np.asarray(
            combine(jnp.asarray(self.evidence), jnp.asarray(weights, jnp.float32)[: len(self.evidence)])
        )
        return 100 * auroc(self.labels, scores), 100 * average_precision(self.labels, scores)


def load(folder: Path, groups: tuple[str, ...]) -> list[Seen]:
    """All that is measured."""
    found = []
    for group in groups:
        for path in _files(folder / group):
            with np.load(path, allow_pickle=False) as of:
                found.append(Seen(group, path.stem, of["labels"], of["evidence"], int(of["shape"][1]), of["baselines"]))
    if not found:
        raise ValueError(
            f"{folder} holds nothing measured of {', '.join(groups)}; run `python -m experiments.combine measure`"
        )
    return found


def rows_of(found: list[Seen], anomalies: int = 50, normal: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """As many anomalies and normal rows of every set: ``[sets, views, rows]``, twice. A view that a small set lacks says nothing."""
    rng, views = np.random.default_rng(0), max(len(seen.evidence) for seen in found)
    both = []
    for seen in found:
        evidence = np.zeros((views, len(seen.labels)), np.float32)
        evidence[: len(seen.evidence)] = seen.evidence
        for label, count in ((1, anomalies), (0, normal)):
            of = np.flatnonzero(seen.labels == label)
            both.append(evidence[:, rng.choice(of, count, replace=len(of) < count)])
    return np.stack(both[::2]), np.stack(both[1::2])


def weights_of(parameters: dict, columns: Any) -> Any:
    """Positive, log-linear in the number of columns: as ``evidence.view_weights``."""
    return jax.nn.softplus(parameters["intercept"] + parameters["slope"] * jnp.log(columns / 8.0))


@partial(jax.jit, static_argnames="steps")
def learned(anomalies, normal, columns, share, strength, steps: int = 200) -> dict:
    """The weights for which anomalies come before normal rows most often, a smooth AUROC, averaged over sets by ``share``."""
    equal = {"intercept": jnp.full(anomalies.shape[1], jnp.log(jnp.e - 1)), "slope": jnp.zeros(anomalies.shape[1])}

    def loss(parameters):
        weights = jax.vmap(partial(weights_of, parameters))(columns)
        above, below = (jax.vmap(combine)(rows, weights) for rows in (anomalies, normal))
        margins = (above[:, :, None] - below[:, None, :]) / jnp.std(below, axis=1)[:, None, None]
        pull = sum(jnp.sum((now - then) ** 2) for now, then in zip(parameters.values(), equal.values(), strict=True))
        return share @ jnp.mean(jax.nn.sigmoid(-4 * margins), axis=(1, 2)) + strength * pull

    optimizer = optax.adam(optax.cosine_decay_schedule(0.08, steps))

    def step(carry, _):
        parameters, state = carry
        updates, state = optimizer.update(jax.grad(loss)(parameters), state)
        return (optax.apply_updates(parameters, updates), state), None

    begin: Any = (equal, optimizer.init(equal))
    end: Any = jax.lax.scan(step, begin, None, steps)[0]
    return end[0]


def _share(found: list[Seen]) -> np.ndarray:
    groups = np.array([seen.group for seen in found])
    share = np.array([SHARES[group] / np.sum(groups == group) for group in groups])
    return share / share.sum()


def cross_validated(found: list[Seen], strength: float, folds: int = 5, sets: int | None = None) -> np.ndarray:
    """[sets, 2]: AUROC and average precision of each by weights learned without it and without sets of its source."""
    rng = np.random.default_rng(0)
    source = np.array([seen.name.rsplit("_", 1)[0] if seen.group == "embeddings" else seen.name for seen in found])
    names = rng.permutation(np.unique(source))
    fold = np.array([np.flatnonzero(names == of)[0] % folds for of in source])
    anomalies, normal = rows_of(found)
    columns, judged = np.array([float(seen.columns) for seen in found]), np.zeros((len(found), 2))
    for left_out in range(folds):
        rest = rng.permutation(np.flatnonzero(fold != left_out))[:sets]
        share = _share([found[i] for i in rest])
        parameters = learned(anomalies[rest], normal[rest], columns[rest], share, strength)
        for i in np.flatnonzero(fold == left_out):
            judged[i] = found[i].judged(np.asarray(weights_of(parameters, columns[i])))
    return judged


def learn(config: Learn) -> None:
    found = load(config.measured, tuple(SHARES))
    groups = np.array([seen.group for seen in found])
    views = max(seen.evidence.shape[0] for seen in found)
    rules = {"equal weights": np.array([seen.judged(np.ones(views)) for seen in found])}
    for strength in config.strengths:
        rules[f"learned, pull {strength:g}"] = cross_validated(found, strength)
    # The simplest within one standard error of the best: the strongest pull.
    total = {name: judged[:, 0] @ _share(found) for name, judged in rules.items()}
    best = max(total, key=lambda name: total[name])
    chosen = config.strengths[-1]
    for strength in sorted(config.strengths, reverse=True):
        behind = (rules[best] - rules[f"learned, pull {strength:g}"])[:, 0]
        if behind @ _share(found) <= behind.std() / np.sqrt(len(behind)):
            chosen = strength
            break
    for count in config.sets:
        rules[f"learned of {count} sets"] = cross_validated(found, chosen, sets=count)
    nearest = np.array([seen.baselines[0] for seen in found])
    shown = Table("rule", *(f"{group}: AUROC, AP, worst against 1-NN" for group in SHARES))
    for name, judged in rules.items():
        cells = []
        for group in SHARES:
            of = groups == group
            if of.any():
                means, worst = judged[of].mean(axis=0), (judged - nearest)[of, 0].min()
                cells.append(f"{means[0]:.2f} {means[1]:.2f} {worst:+.1f}")
        shown.add_row(name, *cells)
    Console(width=160).print(shown)
    anomalies, normal = rows_of(found)
    columns = np.array([float(seen.columns) for seen in found])
    parameters = learned(anomalies, normal, columns, _share(found), chosen)
    with np.load(config.measured / found[0].group / f"{found[0].name}.npz", allow_pickle=False) as of:
        names = of["views"].tolist()
    card = {
        "what": "weights of the recommended detector's views: softplus(intercept + slope log(columns / 8))",
        "learned on": {group: int(np.sum(groups == group)) for group in SHARES},
        "by": f"python -m experiments.combine learn (pull {chosen:g}), measured at {current_commit()}",
        "views": names,
    } | {name: np.round(np.asarray(values, float), 4).tolist() for name, values in parameters.items()}
    config.out.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print(f"{config.out}: pull {chosen:g}")


# ------------------------------------------------------------------------------------------------------------------- report


def report(config: Report) -> list[dict]:
    """One record a set, and a table a group."""
    records = []
    for group in config.groups:
        if not (config.measured / group).is_dir():
            continue
        found = load(config.measured, (group,))
        ours = np.array([seen.judged(view_weights(seen.columns)) for seen in found])
        theirs = np.array([seen.baselines for seen in found])
        shown = Table(f"{group}, {len(found)} sets", "AUROC", "AP", "against it", "Wilcoxon p", "worst")
        shown.add_row("recommended", *(f"{value:.2f}" for value in ours.mean(axis=0)), "", "", "")
        for number, name in enumerate(BASELINES):
            there = np.isfinite(theirs[:, number, 0])
            gain = (ours[:, 0] - theirs[:, number, 0])[there]
            p = float(np.asarray(wilcoxon(gain))[1]) if np.any(gain) else 1.0
            mean = theirs[there, number].mean(axis=0)
            shown.add_row(
                name, f"{mean[0]:.2f}", f"{mean[1]:.2f}", f"{gain.mean():+.2f}", f"{p:.2g}", f"{gain.min():+.1f}"
            )
        Console(width=120).print(shown)
        for seen, both in zip(found, ours, strict=True):
            row = {"group": group, "dataset": seen.name, "recommended": both.round(3).tolist()}
            others = zip(BASELINES, seen.baselines, strict=True)
            records.append(row | {n: of.round(3).tolist() if np.isfinite(of).all() else None for n, of in others})
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return records


if __name__ == "__main__":
    with exit_on_user_error():
        use_compilation_cache()
        config = tyro.cli(Measure | Learn | Report, description=__doc__)
        {Measure: measure, Learn: learn, Report: report}[type(config)](config)
