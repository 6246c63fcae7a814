"""``jaxad fit``."""

import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxad.cli import kinds
from jaxad.cli.devices import ONE_DEVICE, Devices
from jaxad.cli.terminal import exit_on_mendable, plain_console, say_if_nothing_is_flagged

RATE = 0.05


def fit(
    data: Annotated[Path, tyro.conf.Positional],
    out: Path,
    detector: str | None = None,
    seed: int = 0,
    false_alarm_rate: float = RATE,
    run_dir: Path | None = None,
    save_minutes: float = 5.0,
    tensorboard: bool = False,
    where: Annotated[Devices, tyro.conf.OmitArgPrefixes] = ONE_DEVICE,
    *,
    by_kind: Annotated[
        Any, tyro.conf.arg(constructor_factory=lambda: kinds.options_of("Fitting")), tyro.conf.OmitArgPrefixes
    ],
) -> None:
    """Learn what is normal from a file of normal rows, or a folder of normal pictures, and save the detector.

    Args:
        data: .csv, .parquet, .npy or .npz (key X, labels y if any) of normal rows; rows labelled 1 are left out. Or a folder of pictures
            (PNG, JPEG, BMP, TIFF), or one with train/good.
        out: folder for the fitted detector.
        detector: for tables, one of recommended (the default), ddpm, dit, dte-c, dte-ig, dte-np, knn, knn-mean, 1nn, copod, ecod,
            mahalanobis, norm, or one that an installed package lists; for pictures image.
        seed: random seed.
        false_alarm_rate: share of normal rows or pictures that may be flagged, between 0 and 0.5.
        run_dir: folder to keep the state of the training in; if it is stopped (Ctrl-C, SIGTERM: exit code 75) or killed, the same command
            goes on from there, to the same result.
        save_minutes: with run_dir: minutes between two saves.
        tensorboard: with run_dir: write curves for TensorBoard there.
        where: one device, several, or several processes (docs/scaling.md).
        by_kind: of tables, of pictures.
    """
    if tensorboard and run_dir is None:
        raise ValueError("--tensorboard writes its curves to the run directory: name one with --run-dir")
    if not data.exists():
        raise ValueError(f"{data}: expected a file of rows or a folder of pictures, found nothing; check the path")
    kind = kinds.of_data(data, by_kind)
    kinds.refuse_others(kind, "Fitting", by_kind)
    kinds.check_detector(kind, detector or kind.default, data)
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed is a whole number from 0 to {2**32 - 1}, got {seed}")
    if not 0 <= false_alarm_rate <= 0.5:
        raise ValueError(
            f"--false-alarm-rate is a share of normal {kind.items} between 0 and 0.5, got {false_alarm_rate}"
        )
    # Inside as well: what ends one of several processes has to be its exit code by the time the others hear of it.
    with where.joined(), exit_on_mendable():
        from jaxad.detectors.catalogue import choose
        from jaxad.detectors.persistence import check_writable, save_detector
        from jaxad.runtime.runs import RunDirectory

        console, name = plain_console(of_main=True), detector or kind.default
        chosen: Any = choose([name], kind.detectors())[name](seed)
        has = chosen.get_params()
        asked = kind.settings(by_kind, kinds.given(by_kind))
        if "false_alarm_rate" in has or false_alarm_rate != RATE:
            asked["false_alarm_rate"] = false_alarm_rate
        if unknown := [option for option in asked if option not in has]:
            raise ValueError(
                f"--{unknown[0].replace('_', '-').replace('max-seconds', 'minutes')}: {name} has no such setting"
            )
        asked = kind.limits(by_kind, has, resumes=run_dir is not None, say=console.print) | asked
        settings = {**asked, **where.settings(name, has)} | ({"verbose": 1} if "verbose" in has else {})
        if run_dir is not None:
            if "run_dir" not in has:
                raise ValueError(f"--run-dir: {name} is fitted in one go, there is no state to keep")
            settings["run_dir"] = RunDirectory(run_dir, save_minutes, tensorboard=tensorboard)
        chosen.set_params(**settings)
        check_writable(out)
        rows, reading, of_rows, what = kind.read(data, by_kind, has, console.print)
        chosen.set_params(**of_rows)
        started = time.perf_counter()
        try:
            chosen.fit(rows)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "interrupted, and nothing was kept: with --run-dir FOLDER the same command would go on from there"
                if run_dir is None
                else f"interrupted; the same command goes on from what was last saved in {run_dir}"
            ) from None
        seconds = time.perf_counter() - started
        if chosen.scorer_ is None:
            raise ValueError(
                f"{name} scores a row by the rows scored with it: what is saved here scores each by itself, use it from Python"
            )
        save_detector(chosen, out, extra={**reading, "detector": name, "seed": seed, "rows": len(rows)})
        console.print(
            f"{name} fitted on {what} in {seconds:.1f} s and saved to {out}; "
            f"score {kind.items} with: jaxad score {out} {kind.to_score}"
        )
        kind.tell(chosen, data, by_kind, console.print)
        say_if_nothing_is_flagged(chosen, None, kind.items, console.print)
