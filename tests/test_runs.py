"""Run directories: killed, stopped or damaged, a training goes on to the very result it would have had."""

import os
import shutil
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from jaxad import noise, training
from jaxad.data import PictureFiles
from jaxad.denoisers import MLP, DiT
from jaxad.detectors import ConsensusDetector, DiffusionDetector, DTECategorical, ImageDetector, fitting
from jaxad.detectors.persistence import load_detector, save_detector
from jaxad.runtime import runs, sharding
from jaxad.runtime.checkpoint import CheckpointError
from jaxad.runtime.runs import RunDirectory, RunStopped, open_run

ROWS = np.random.default_rng(0).normal(size=(120, 4))
PICTURES = np.random.default_rng(1).integers(0, 256, (24, 8, 8, 1)).astype(np.uint8)
ALWAYS = {"minutes": 0.0}


def diffusion(**settings):
    return DiffusionDetector(MLP(width=16, depth=1), num_steps=250, batch_size=16, **settings)


def image(**settings):
    network = DiT(hidden=16, depth=1, heads=2, patch_size=4)
    return ImageDetector(network, num_steps=120, batch_size=8, **settings)


MAKERS = {
    "diffusion": (diffusion, ROWS),
    "dte": (lambda **settings: DTECategorical(num_steps=120, batch_size=16, **settings), ROWS),
    "consensus": (lambda **settings: ConsensusDetector(num_steps=500, **settings), ROWS),
    "image": (image, PICTURES),
}


class Killed(BaseException):
    """What no handler in the library catches, as it would not catch SIGKILL."""


def killed_at(monkeypatch, looks):
    """Training dies at the given look, before anything of that look is saved."""
    seen = iter(range(looks))
    keep = fitting._keep

    def dying(*arguments):
        if next(seen, None) is None:
            raise Killed
        keep(*arguments)

    monkeypatch.setattr(fitting, "_keep", dying)


def assert_same(tree, expected):
    leaves, wanted = jax.tree.leaves(tree), jax.tree.leaves(expected)
    assert len(leaves) == len(wanted)
    for leaf, other in zip(leaves, wanted, strict=True):
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        ("diffusion", 1),
        ("diffusion", 4),
        ("dte", 2),
        pytest.param("consensus", 1, marks=pytest.mark.slow),
        pytest.param("image", 1, marks=pytest.mark.slow),
    ],
)
def test_a_killed_training_ends_where_it_would_have(name, looks, tmp_path, monkeypatch):
    make, rows = MAKERS[name]
    whole = make().fit(rows)
    run_dir = RunDirectory(tmp_path / "run", **ALWAYS)
    with monkeypatch.context() as patch:
        killed_at(patch, looks)
        with pytest.raises(Killed):
            make(run_dir=run_dir).fit(rows)
    taken_up = []
    with monkeypatch.context() as patch:
        restore = runs.Run.restore
        patch.setattr(runs.Run, "restore", lambda self, of: taken_up.append(restore(self, of)) or taken_up[-1])
        resumed = make(run_dir=run_dir).fit(rows)
    assert any(found is not None for found in taken_up)
    if name == "image":
        assert_same(resumed.scorer_.tables, whole.scorer_.tables)
    for attribute in ("params_", "losses_", "validation_losses_"):
        if hasattr(whole, attribute):
            assert_same(getattr(resumed, attribute), getattr(whole, attribute))
    np.testing.assert_array_equal(resumed.score_samples(rows), whole.score_samples(rows))


@pytest.mark.slow
def test_several_networks_killed_and_taken_up(tmp_path, monkeypatch):
    network = MLP(width=16, depth=1)

    def train(run=None):
        return fitting.train_many(
            jax.random.split(jax.random.key(0), 2),
            network,
            [ROWS[:60].astype(np.float32), ROWS[:50].astype(np.float32)],
            [ROWS[60:90].astype(np.float32), ROWS[90:].astype(np.float32)],
            noise.cosine(100),
            (ROWS[:1].astype(np.float32), np.zeros(1, np.float32)),
            loss=training.simple_loss(network),
            optimizer=training.adam(1e-3, num_steps=600),
            num_steps=600,
            batch_size=16,
            run=run,
        )

    settings = RunDirectory(tmp_path / "run", **ALWAYS)
    with monkeypatch.context() as patch:
        killed_at(patch, 1)
        with pytest.raises(Killed), open_run(settings) as run:
            train(run)
    with open_run(settings) as run:
        assert_same(train(run), train())


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    first = diffusion(run_dir=tmp_path / "run").fit(ROWS)
    monkeypatch.setattr(fitting.training, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert_same(diffusion(run_dir=tmp_path / "run").fit(ROWS).scorer_.params, first.scorer_.params)


@pytest.mark.slow
def test_training_from_files_reads_on_where_it_stopped(tmp_path, monkeypatch):
    pytest.importorskip("grain")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, picture in enumerate(PICTURES):
        Image.fromarray(picture[..., 0]).save(folder / f"{number:02}.png")
    monkeypatch.setattr("jaxad.detectors.image.MOST_IN_MEMORY", 12)
    whole = image().fit(PictureFiles(folder))
    run_dir = RunDirectory(tmp_path / "run", **ALWAYS)
    with monkeypatch.context() as patch:
        killed_at(patch, 2)
        with pytest.raises(Killed):
            image(run_dir=run_dir).fit(PictureFiles(folder))
    resumed = image(run_dir=run_dir).fit(PictureFiles(folder))
    assert_same(resumed.scorer_, whole.scorer_)
    assert_same(resumed.losses_, whole.losses_)
    np.testing.assert_array_equal(resumed.score_samples(PictureFiles(folder)), whole.score_samples(PICTURES))


@pytest.mark.slow
def test_cut_over_devices_and_resumed_on_others(tmp_path, monkeypatch):
    """To rounding: devices add up in another order."""
    if jax.device_count() < 8:
        pytest.skip("needs eight simulated devices")
    eight, two = (sharding.data_mesh(jax.devices()[:count]) for count in (8, 2))
    whole = diffusion().fit(ROWS)
    run_dir = RunDirectory(tmp_path / "run", **ALWAYS)
    killed_at(monkeypatch, 2)
    with pytest.raises(Killed):
        diffusion(run_dir=run_dir, mesh=eight, shard_parameters=True).fit(ROWS)
    monkeypatch.undo()
    resumed = diffusion(run_dir=run_dir, mesh=two).fit(ROWS)
    np.testing.assert_allclose(resumed.score_samples(ROWS), whole.score_samples(ROWS), rtol=2e-3, atol=2e-3)


# ------------------------------------------------------------------------------------------------------------------ checkpoints


def saved(path, steps, **settings):
    with open_run(RunDirectory(path, **settings)) as run:
        assert run.restore({"rows": "a"}) is None
        for step in steps:
            run.save(step, {"table": np.full(3, step)}, {})
    return sorted(entry for entry in os.listdir(path) if entry.startswith("step"))


def test_the_newest_few_are_kept(tmp_path):
    assert saved(tmp_path / "run", range(5), keep=3) == [f"step_{step:08d}" for step in (2, 3, 4)]


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "foreign"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, harm):
    saved(tmp_path / "run", [1, 2])
    newest = tmp_path / "run" / "step_00000002"
    if harm == "cut":
        description = newest / "detector.json"
        description.write_text(description.read_text()[:-40])
    elif harm == "flip":
        file = max(
            (file for file in (newest / "arrays").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size
        )
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif harm == "empty":
        shutil.rmtree(newest / "arrays")
    else:
        (newest / "detector.json").write_text("[]")
    with open_run(tmp_path / "run") as run, pytest.warns(UserWarning, match="step_00000002 is damaged .*one before"):
        arrays, content = run.restore({"rows": "a"})
    assert content["step"] == 1
    assert arrays["table"].tolist() == [1, 1, 1]


def test_what_a_killed_save_left_is_swept_up(tmp_path):
    saved(tmp_path / "run", [1])
    (tmp_path / "run" / ".jaxad-saving-0123").mkdir()
    with open_run(tmp_path / "run") as run:
        assert run.restore({"rows": "a"})[1]["step"] == 1
    assert not (tmp_path / "run" / ".jaxad-saving-0123").exists()


def test_another_run_in_the_directory_is_refused_and_told_apart(tmp_path):
    diffusion(run_dir=tmp_path / "run").fit(ROWS)
    before = sorted(os.listdir(tmp_path / "run"))
    with pytest.raises(CheckpointError, match=r"another run, of other rows \(\w+ then, \w+ now\), seed"):
        diffusion(run_dir=tmp_path / "run", random_state=1).fit(ROWS)
    with pytest.raises(CheckpointError, match=r"other learning rate \(0.001 then, 0.01 now\)"):
        diffusion(run_dir=tmp_path / "run", learning_rate=0.01).fit(ROWS)
    assert sorted(os.listdir(tmp_path / "run")) == before


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    def full(*_):
        raise CheckpointError("cannot save to x, nothing was changed there: No space left on device")

    with open_run(tmp_path / "run") as run:
        run.restore({"rows": "a"})
        run.save(1, {"table": np.ones(3)}, {})
        run.wait()
        monkeypatch.setattr(runs, "save_checkpoint", full)
        run.save(2, {"table": np.ones(3)}, {})
        with pytest.raises(CheckpointError, match="No space left"):
            run.save(3, {"table": np.ones(3)}, {})
        assert run.restore({"rows": "a"})[1]["step"] == 1


# ------------------------------------------------------------------------------------------------------------ lock and signals


def test_a_second_process_is_refused(tmp_path):
    with open_run(tmp_path / "run"):
        second = subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; from jaxad.runtime.runs import open_run\nwith open_run(sys.argv[1]): pass",
                tmp_path / "run",
            ],
            capture_output=True,
            text=True,
        )
    assert second.returncode == 1
    assert f"is in use by process {os.getpid()}" in second.stderr
    with open_run(tmp_path / "run"):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_a_code_of_its_own(tmp_path, monkeypatch, number):
    whole, before = diffusion().fit(ROWS), signal.getsignal(signal.SIGTERM)
    keep, run_dir = fitting._keep, RunDirectory(tmp_path / "run", minutes=60)

    def interrupted(*arguments):
        if not arguments[0].stopping:
            signal.raise_signal(number)
        keep(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_keep", interrupted)
        with pytest.raises(RunStopped, match="stopped at step 50, saved in") as stopped:
            diffusion(run_dir=run_dir).fit(ROWS)
    assert stopped.value.code == runs.STOPPED == 75
    assert signal.getsignal(signal.SIGTERM) is before
    assert_same(diffusion(run_dir=run_dir).fit(ROWS).scorer_.params, whole.scorer_.params)


def test_a_signal_no_training_hears_stops_behind_it(tmp_path):
    with pytest.raises(RunStopped, match="after the training"), open_run(tmp_path / "run"):
        signal.raise_signal(signal.SIGTERM)


def test_a_second_ctrl_c_interrupts_at_once(tmp_path):
    with open_run(tmp_path / "run") as run:
        signal.raise_signal(signal.SIGINT)
        assert run.stopping
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        run._shared.stop.clear()


def test_outside_the_main_thread_signals_are_left_alone(tmp_path):
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with open_run(tmp_path / "run"):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


# ------------------------------------------------------------------------------------------------------------ curves and mistakes


def test_curves_for_tensorboard(tmp_path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  (the format: length, crc, data, crc)

    diffusion(run_dir=RunDirectory(tmp_path / "run", tensorboard=True)).fit(ROWS)
    (file,) = (tmp_path / "run").glob("events.out.tfevents.*")
    data, at, found = file.read_bytes(), 0, {}
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    assert [step for step, _ in found["loss"]] == [50, 100, 150, 200, 250]
    assert [step for step, _ in found["held-out_loss"]] == [200, 250]
    assert len([name for name in found if "sigma" in name]) == fitting.LEVELS_SHOWN
    assert all(value > 0 for _, value in found["rows_per_second"] + found["memory_in_GiB"])


def test_a_saved_detector_leaves_the_run_directory_behind(tmp_path):
    save_detector(diffusion(run_dir=tmp_path / "run").fit(ROWS), tmp_path / "model")
    assert load_detector(tmp_path / "model").run_dir is None


@pytest.mark.parametrize("settings", [{"minutes": -1}, {"minutes": float("nan")}, {"keep": 1}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="minutes >= 0 and keep >= 2"):
        RunDirectory("run", **settings)


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "run", tmp_path / "file"):
        with pytest.raises(CheckpointError, match="cannot keep a run in"):
            diffusion(run_dir=path).fit(ROWS)
