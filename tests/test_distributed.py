"""Several local processes with gloo collectives: the scores of one, stopped together, taken up by any number.

Equal means to rounding, because processes add up gradients in another order: scores and losses to a relative 1e-4 of the largest.
"""

import json
import os
import re
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from command_line import jaxad
from distributed_worker import NEW, ROWS, make, outcome
from PIL import Image

from jaxad.cli import Devices
from jaxad.data import DataError, ImageDataset, PictureFiles, image_batches
from jaxad.detectors import DiffusionDetector, ImageDetector
from jaxad.detectors.persistence import load_detector
from jaxad.runtime import distributed
from jaxad.runtime.runs import RunDirectory, open_run
from jaxad.runtime.sharding import data_mesh

CLOSE = 1e-4
WORKER = Path(__file__).parent / "distributed_worker.py"


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Compiled programs that the processes of this file share."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture
def together(tmp_path, programs):
    """A function that runs a task on so many processes: ``[(exit code, what it printed, what it found or None)]``."""

    def run(processes, what="fit", *, devices=1, timeout=30, **task):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(programs),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        common = {"what": what, "coordinator": coordinator, "processes": processes, "timeout": timeout}
        common |= {"model": str(tmp_path / "model"), **task}
        results = [tmp_path / f"found-{processes}-{process}.npz" for process in range(processes)]
        started = [
            subprocess.Popen(
                [sys.executable, str(WORKER), json.dumps({**common, "process": process, "out": str(results[process])})],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for process in range(processes)
        ]
        try:
            printed = [process.communicate(timeout=500)[0] for process in started]
        finally:
            for process in started:
                process.kill()
        ended = []
        for process, text, result in zip(started, printed, results, strict=True):
            found = dict(np.load(result)) if result.exists() else None
            result.unlink(missing_ok=True)
            ended.append((process.returncode, text, found))
        return ended

    return run


@cache
def alone():
    return outcome(make().fit(ROWS))


def assert_equal(found, expected):
    for name, values in expected.items():
        np.testing.assert_allclose(
            found[name], values, rtol=0, atol=CLOSE * max(np.abs(values).max(), 1e-3), err_msg=name
        )


def all_found(ended):
    for code, printed, found in ended:
        assert code == 0, printed
        assert printed.rstrip().endswith("done")
        assert found is not None
    return [found for _, _, found in ended]


# --------------------------------------------------------------------------------------------------------- equal to one process


@pytest.mark.slow
def test_two_processes_train_and_score_as_one(together, tmp_path):
    ended = together(2)
    expected = alone()
    for found in all_found(ended):
        assert found["devices"].tolist() == [2, 1]
        assert_equal(found, expected)
    # One bar and one model for both, which any process may load.
    assert ["loss" in printed for _, printed, _ in ended] == [True, False]
    saved = load_detector(tmp_path / "model").score_samples(NEW)
    np.testing.assert_allclose(saved, expected["scores"], atol=CLOSE * np.abs(expected["scores"]).max())


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices", "cut"), [(2, 2, True), (4, 1, False), (4, 1, True)])
def test_more_processes_and_a_state_cut_over_them(together, tmp_path, processes, devices, cut):
    run_dir = tmp_path / "run"
    for found in all_found(together(processes, devices=devices, cut=cut, run_dir=str(run_dir))):
        assert found["devices"].tolist() == [processes * devices, devices]
        assert_equal(found, alone())
    # What they saved together one process reads: a finished run, with nothing left to train.
    again = make(run_dir=run_dir).fit(ROWS)
    np.testing.assert_array_equal(again.losses_, found["losses"])
    np.testing.assert_allclose(again.score_samples(NEW), found["scores"], atol=CLOSE)


@pytest.mark.slow
def test_every_process_decodes_its_own_part_of_every_picture_batch(together, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, picture in enumerate(np.random.default_rng(0).integers(0, 256, (24, 16, 16)).astype(np.uint8)):
        Image.fromarray(picture).save(folder / f"{number:02}.png")
    files = PictureFiles(folder)
    one = ImageDetector(num_steps=20, batch_size=8).fit(files)
    expected = {"losses": one.losses_, "scores": one.score_samples(files), "maps": one.where(files)}
    found = all_found(together(2, "pictures", folder=str(folder)))
    whole = next(image_batches(files, batch_size=8, seed=3))
    np.testing.assert_array_equal(np.concatenate([each["part"] for each in found]), whole)
    for each in found:
        assert each["num_read"] == 4
        assert_equal(each, expected)


def test_parts_of_batches_are_the_batches_of_any_number_of_processes():
    pictures = ImageDataset("toy", np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1))
    whole = image_batches(pictures, batch_size=4, seed=1)
    halves = [image_batches(pictures, batch_size=4, seed=1, part=(process, 2)) for process in range(2)]
    for _ in range(6):  # over the end of two epochs
        np.testing.assert_array_equal(np.concatenate([next(half) for half in halves]), next(whole))
    # The state of two is the state of one, and of four.
    quarters = [image_batches(pictures, batch_size=4, seed=1, part=(process, 4)) for process in range(4)]
    for quarter in quarters:
        quarter.set_state(halves[1].get_state())
    np.testing.assert_array_equal(np.concatenate([next(quarter) for quarter in quarters]), next(whole))
    for part, batch_size in (((2, 2), 4), ((0, 3), 4)):
        with pytest.raises(DataError, match="endless batches that they divide evenly"):
            image_batches(pictures, batch_size=batch_size, seed=1, part=part)


# ------------------------------------------------------------------------------------------------------ killed, stopped, refused


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "killed"), [(2, 1), (2, 0), (4, 2)])
def test_a_killed_process_stops_the_others_and_any_number_goes_on(together, tmp_path, processes, killed):
    run_dir = str(tmp_path / "run")
    ended = together(processes, run_dir=run_dir, kill=killed, signal="SIGKILL", timeout=10, cut=killed == 2)
    assert ended.pop(killed)[0] == -9
    for code, printed, found in ended:
        assert (code, found) == (distributed.LOST, None)
        lost = "process 0, which holds the job together, is gone" if killed == 0 else f"process {killed} has not been"
        assert f"of {processes} stops: {lost}" in printed
        assert "with a run directory the same command goes on from there, on any number of processes" in printed
    assert [path.name for path in Path(run_dir).glob("step_*")] == ["step_00000050"]
    number = {2: 4, 4: 2}[processes] if killed else 1
    for found in all_found(together(number, run_dir=run_dir)):
        assert_equal(found, alone())


@pytest.mark.slow
def test_a_process_told_to_stop_stops_all_and_one_goes_on(together, tmp_path):
    run_dir = tmp_path / "run"
    ended = together(2, run_dir=str(run_dir), kill=1, signal="SIGTERM")
    assert [code for code, _, _ in ended] == [75, 75]
    assert sorted(path.name for path in run_dir.glob("step_*")) == ["step_00000050", "step_00000100"]
    assert_equal(outcome(make(run_dir=RunDirectory(run_dir)).fit(ROWS)), alone())


@pytest.mark.slow
@pytest.mark.parametrize("refusing", [0, 1])
def test_a_process_that_fails_takes_the_other_with_it(together, refusing):
    ended = together(2, refused=refusing)
    code, printed, _ = ended[refusing]
    assert code == 1
    assert printed.rstrip().endswith("ValueError: this process does not like its rows")
    code, printed, _ = ended[1 - refusing]
    assert code == distributed.LOST
    assert f"process {refusing} has stopped (ValueError: this process does not like its rows)" in printed


@pytest.mark.slow
def test_a_run_directory_in_use_is_refused_to_the_whole_job(together, tmp_path):
    with open_run(tmp_path / "run"):
        ended = together(2, run_dir=str(tmp_path / "run"))
    for code, printed, _ in ended:
        assert code in (1, distributed.LOST)
        assert f"is in use by process {os.getpid()}" in printed


# --------------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.slow
def test_what_the_user_can_mend_ends_every_process_of_the_command_with_2(tmp_path):
    np.save(tmp_path / "rows.npy", np.full((50, 2), np.nan))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "jaxad.cli", "fit", str(tmp_path / "rows.npy"), "--out", str(tmp_path / "model")]
    command += ["--detector", "ddpm", "--coordinator", address, "--processes", "2", "--process-id"]
    started = [
        subprocess.Popen(
            [*command, str(i)], env=os.environ | {"JAX_PLATFORMS": "cpu"}, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    for process in started:
        told = process.communicate(timeout=120)[1]
        assert process.returncode == 2, told
        assert "NaN" in told
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "settings", "told"),
    [
        (("host:1234", 2), {}, r"its own number, or none of them; got \('host:1234', 2, None\)"),
        (("host", 2, 0), {}, "expected the coordinator as host:port, such as 10.0.0.1:1234, got 'host'"),
        (("host:1234", 2, 2), {}, "counts from 0 to num_processes - 1, got 2 of 2"),
        ((), {"timeout": 0}, "timeout is a number of seconds above 0, got 0"),
    ],
)
def test_processes_that_cannot_be_joined(arguments, settings, told):
    with pytest.raises(ValueError, match=told), distributed.joined(*arguments, **settings):
        pass


def test_nobody_says_which_process_this_is():
    code = "from jaxad.runtime.distributed import joined\nwith joined(): pass"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "ValueError: no Slurm, Open MPI, Kubernetes or TPU pod says which process this is: give the" in ended.stderr


def test_one_process_is_its_own_main():
    assert distributed.is_main()
    assert distributed.from_main(lambda: [1]) == [1]
    assert distributed.any_process([False, True]) == [False, True]
    np.testing.assert_array_equal(distributed.rows_of_all(ROWS), ROWS)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--processes", 2, "--process-id", 0), "need --coordinator host:port, the address of process 0"),
        (("--coordinator", "auto", "--devices", "one"), "several processes train on all of their devices"),
        (("--coordinator", "host:1234", "--processes", 2), "its own number, or none of them"),
        (("--devices", "all", "--detector", "copod"), "copod has no mesh, it is fitted on one device"),
        (("--devices", "cut"), "recommended has no shard_parameters, .* choose --devices all"),
        (("--devices", "cut", "--detector", "dte-c"), "dte-c has no shard_parameters, .* choose --devices all"),
    ],
)
def test_devices_a_detector_cannot_be_fitted_on(words, told, tmp_path, capsys):
    np.save(tmp_path / "rows.npy", ROWS)
    assert jaxad("fit", tmp_path / "rows.npy", "--out", tmp_path / "model", *words) == 2
    assert re.search(told, capsys.readouterr().err)
    assert not (tmp_path / "model").exists()


def test_what_a_detector_is_told_of_its_devices():
    has = DiffusionDetector().get_params()
    assert Devices().settings("ddpm", has) == {}
    assert Devices("all").settings("ddpm", has) == {"mesh": data_mesh()}
    assert Devices("cut").settings("ddpm", has) == {"mesh": data_mesh(), "shard_parameters": True}
