"""The program for a GPU, without one: every check runs in small, and whatever cuts it, what was measured stays."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gpu
from experiments.gpu import Check, Config
from experiments.on_gpu import networks, tables
from experiments.on_gpu.flops import forward_flops, product_flops
from experiments.on_gpu.watch import Records, Watch, attempted, read_records
from jaxad.denoisers import DiT

ROOT = Path(__file__).parents[1]
FIELDS = {"run", "check", "name", "seconds", "device", "versions", "commit", "tiny"}


def start(*options) -> subprocess.Popen:
    words = [sys.executable, "-m", "experiments.gpu", "--tiny", *map(str, options)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --------------------------------------------------------------------------------------------------------------- the real checks


@pytest.mark.slow
def test_every_check_leaves_records_without_an_error(tmp_path):
    out = tmp_path / "results.jsonl"
    printed, errors = (program := start("--out", out, "--seconds", "1800")).communicate(timeout=1500)
    assert program.returncode == 0, printed + errors
    records = lines_of(out)
    assert not [record for record in records if "error" in record or "cut" in record]
    assert list(dict.fromkeys(record["check"] for record in records)) == [
        check.name for check in gpu.all_checks(None).values()
    ]
    assert all(record.keys() >= FIELDS | {"numbers"} for record in records)
    compared = [record["numbers"] for record in records if record["check"] == "correctness"]
    assert len(compared) == 5
    assert all(numbers["one_device"] and numbers["parity_highest"] <= 1 for numbers in compared)
    peers = [record["numbers"]["parameters"] for record in records if record["name"].startswith("U-Net")]
    assert all(of["jaxad"] == of["diffusers"] for of in peers)
    assert f"{len(records)} records" in printed


@pytest.mark.slow
def test_the_cheapest_check_runs_and_a_second_run_is_appended(tmp_path):
    out = tmp_path / "new" / "results.jsonl"
    for times in (1, 2):
        printed, errors = (program := start("--checks", 3, "--out", out, "--commit", "abc")).communicate(timeout=300)
        assert program.returncode == 0, printed + errors
        records = lines_of(out)
        assert [record["check"] for record in records] == ["recommended, kNN"] * 3 * times
    assert not [record for record in records if "error" in record]
    assert {record["commit"] for record in records} == {"abc"}
    assert records[0]["numbers"]["every_distance_on_the_device"]["largest_relative_difference"] < 1e-4
    assert "3 records on cpu" in printed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_keeps_what_it_had_and_says_so(tmp_path, number):
    out = tmp_path / "results.jsonl"
    program = start("--checks", 3, 1, "--out", out)
    try:
        until = time.monotonic() + 200
        while not (out.exists() and out.read_bytes().count(b"\n")):
            assert time.monotonic() < until
            assert program.poll() is None, program.communicate()
            time.sleep(0.05)
        program.send_signal(number)
        printed, errors = program.communicate(timeout=120)
    finally:
        program.kill()
    assert program.returncode == 75, printed + errors
    *measured, last = lines_of(out)
    assert measured
    assert all("numbers" in record for record in measured)
    assert last["stopped"] == number.name
    assert "told to stop" in printed


def test_an_unknown_check_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no check 9: choose among 1, 2"):
        gpu.run(Config(checks=(9,), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------- checks made up here


def good(tiny, budget):
    yield {"name": "good", "numbers": {"tiny": tiny, "budget": budget, "nothing": math.nan, "many": [np.float32(1.5)]}}


def raises(tiny, budget):
    yield {"name": "first", "numbers": {}}
    raise RuntimeError("no memory\nand a long trace")


def sleeps(tiny, budget):
    yield {"name": "first", "numbers": {}}
    time.sleep(60)


def goes_on(tiny, budget):
    while True:
        time.sleep(0.05)
        yield {"name": "one more", "numbers": {}}


def run(tmp_path, *checks, **settings):
    return gpu.run(Config(out=tmp_path / "results.jsonl", run_id="now", **settings), checks)


def test_a_check_that_raises_leaves_an_error_and_the_others_go_on(tmp_path):
    records = run(tmp_path, Check("bad", 60, raises), Check("good", 60, good))
    assert [record["name"] for record in records] == ["first", "failed", "good"]
    assert records[1]["error"] == "RuntimeError: no memory"
    assert records == lines_of(tmp_path / "results.jsonl")
    numbers = records[2]["numbers"]
    assert 100 < numbers.pop("budget") <= 120  # what the first check left is the second one's
    assert numbers == {"tiny": False, "nothing": None, "many": [1.5]}
    assert all(record.keys() >= FIELDS for record in records)
    text = gpu.table(records)
    assert "ERROR RuntimeError: no memory" in text
    assert "3 records on cpu" in text
    assert "1 errors, 0 cut" in text


@pytest.mark.parametrize("slow", [sleeps, goes_on])
def test_the_time_limit_of_a_check_is_kept(tmp_path, slow):
    began = time.monotonic()
    records = run(tmp_path, Check("slow", 0.5, slow), Check("good", 30, good))
    assert time.monotonic() - began < 10
    assert records[-2]["cut"].startswith("time limit")
    assert records[-1]["name"] == "good"
    assert not [record for record in records if "error" in record]


def test_no_check_begins_after_the_whole_time(tmp_path):
    records = run(tmp_path, Check("slow", 60, sleeps), Check("good", 60, good), seconds=0.5)
    assert [record.get("cut", "")[:9] for record in records] == ["", "time limi", "not begun"]


def test_the_timer_of_others_is_given_back():
    before = signal.getitimer(signal.ITIMER_REAL)[0]
    handler = signal.getsignal(signal.SIGALRM)
    with Watch() as watch:
        assert watch.step(iter([{"name": "one"}]), time.monotonic() + 5) == {"name": "one"}
    after = signal.getitimer(signal.ITIMER_REAL)[0]
    assert (after > 0) == (before > 0)
    assert before - 5 < after <= before
    assert signal.getsignal(signal.SIGALRM) is handler


STUCK = """
import ctypes
from functools import partial
from experiments import gpu

def stuck(tiny, budget):
    yield {"name": "first", "numbers": {}}
    libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)  # for ever, and no signal ends it: as in a compiler

real = gpu.all_checks
gpu.all_checks = lambda folder: {1: gpu.Check("stuck", 1.0, stuck)} | {3: real(folder)[3]}
gpu.Watch = partial(gpu.Watch, grace=1.0)
raise SystemExit(gpu.main())
"""


@pytest.mark.slow
def test_a_call_that_does_not_come_back_costs_its_check_alone(tmp_path):
    """The process is replaced by a new one, with the same number, that goes on with the next check."""
    out = tmp_path / "results.jsonl"
    words = [sys.executable, "-c", STUCK, "--tiny", "--checks", "1", "3", "--out", str(out)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    records = lines_of(out)
    assert [record["check"] for record in records] == ["stuck"] * 2 + ["recommended, kNN"] * 3
    assert records[1]["cut"].startswith("a call did not end")
    assert len({record["run"] for record in records}) == 1
    assert "5 records" in done.stdout


def test_a_call_that_does_not_come_back_is_ended_by_sigterm(tmp_path):
    out = tmp_path / "results.jsonl"
    script = STUCK.replace('"stuck", 1.0', '"stuck", 100.0')
    words = [sys.executable, "-c", script, "--tiny", "--checks", "1", "3", "--out", str(out)]
    program = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 200
        while not out.exists() or not out.read_bytes():
            assert time.monotonic() < until
            time.sleep(0.05)
        program.terminate()
        printed, _ = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == 75
    assert "0 errors, 1 cut" in printed
    assert [record.get("cut", "")[:12] for record in lines_of(out)] == ["", "told to stop"]


# ------------------------------------------------------------------------------------------------------------------------- parts


def test_records_survive_a_line_that_was_cut(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"run": "now", "name": "old"}\n{"run": "now", "na')
    records = Records(path, {"run": "now"})
    records.write({"name": "new"})
    records.write({"name": "other", "run": "then"})
    records.close()
    assert [record["name"] for record in read_records(path, "now")] == ["old", "new", "other"]


def test_numbers_may_come_with_an_error():
    (record,) = attempted([("one", lambda: {"rows": 3, "error": "Disagreement: by far"})])
    assert (record["numbers"], record["error"]) == ({"rows": 3}, "Disagreement: by far")


def test_flops_are_those_of_the_formula():
    tokens, hidden, depth, patch = 16, 32, 2, 4
    network = DiT(hidden=hidden, depth=depth, heads=2, patch_size=patch)
    block = 24 * tokens * hidden**2 + 4 * tokens**2 * hidden + 12 * hidden**2
    ends = 2 * 2 * tokens * patch**2 * hidden + 4 * hidden**2 + 2 * (256 * hidden + hidden**2)
    assert forward_flops(network, (16, 16, 1)) == depth * block + ends
    picture, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 5))

    def convolved(picture, kernel):
        from jax import lax

        return lax.conv_general_dilated(picture, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert product_flops(convolved, picture, kernel) == 2 * 4 * 4 * 5 * 27
    assert product_flops(lambda rows: jnp.stack([rows @ rows for _ in range(3)]), jnp.ones((2, 2))) == 3 * 16


def test_without_the_peer_ours_is_measured_alone(monkeypatch):
    monkeypatch.setattr(networks, "find_spec", lambda package: None if package == "diffusers" else package)
    peer, why = networks._peer(networks.TINY_UNET, np.zeros((2, 8, 8, 1), np.float32))
    assert peer is None
    assert why == "none: diffusers not installed; ours is measured alone"


def test_what_travels_are_the_ten_sets_first_and_then_the_smallest(tmp_path, monkeypatch):
    source, target = tmp_path / "data", tmp_path / "carried"
    sizes = {"29_Pima": 500, "45_wine": 100, "42_WBC": 50, "1_ALOI": 4000}
    for name, size in sizes.items():
        path = source / "adbench" / "Classical" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    copied = tables.carry(source, target, most_bytes=1000)
    assert [path.stem for path in copied] == ["29_Pima", "42_WBC", "45_wine"]
    assert (target / "adbench" / "Classical" / "42_WBC.npz").stat().st_size == 50
