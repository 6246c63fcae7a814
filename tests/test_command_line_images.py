"""`jaxad fit` and `jaxad score` on folders of pictures, and `jaxad import-weights`: as a user types them."""

import csv
import signal

import numpy as np
import pytest
from command_line import jaxad
from PIL import Image

from jaxad import export_detector
from jaxad.detectors import fitting
from jaxad.detectors.persistence import load_detector


def draw(rng, bright_square=False):
    picture = (120 + 20 * np.sin(np.arange(16) / 2)[None, :] + rng.normal(0, 5, (16, 16))).clip(0, 255)
    if bright_square:
        picture[4:10, 5:11] = 250
    return Image.fromarray(picture.astype(np.uint8))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """24 good pictures to learn from, and a folder with six good ones and six with a square."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for folder, count, spoilt in (("good", 24, False), ("new", 6, False), ("new", 6, True)):
        (root / folder).mkdir(exist_ok=True)
        for index in range(count):
            draw(rng, spoilt).save(root / folder / f"{'square' if spoilt else 'fine'}_{index:02}.png")
    return root


@pytest.fixture(scope="module")
def model(pictures):
    path = pictures / "model"
    assert jaxad("fit", pictures / "good", "--out", path, "--num-steps", 20) == 0
    return path


def test_a_folder_becomes_a_detector_and_scores(pictures, model, tmp_path):
    out, page, maps = tmp_path / "scores.csv", tmp_path / "page.html", tmp_path / "maps.npz"
    assert jaxad("score", model, pictures / "new", "--out", out, "--page", page, "--maps", maps, "--alpha", 0.2) == 0
    with out.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert list(rows[0]) == ["file", "anomaly_score", "p_value", "flagged"]
    values = {row["file"]: float(row["anomaly_score"]) for row in rows}
    spoilt, fine = (np.array([v for n, v in values.items() if n.startswith(kind)]) for kind in ("square", "fine"))
    assert spoilt.min() > fine.max(), values
    assert all(row["flagged"] == "1" for row in rows if row["file"].startswith("square"))
    with np.load(maps) as saved:
        assert saved["maps"].shape == (12, 16, 16)
        assert len(saved["files"]) == 12
    assert "<html" in page.read_text(encoding="utf-8")[:200].lower()
    # What the command writes is what the library says.
    stack = np.stack([np.asarray(Image.open(pictures / "new" / file)) for file in values])[..., None]
    np.testing.assert_allclose(list(values.values()), -load_detector(model).score_samples(stack), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_bundle_scores_a_folder_and_maps_it_as_its_model_does(pictures, model, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    assert jaxad("export", model, "--out", bundle) == 0
    found = {}
    for scorer in (model, bundle):
        out, maps, plain = (tmp_path / f"{scorer.name}{end}" for end in (".csv", ".npz", "_plain.csv"))
        assert jaxad("score", scorer, pictures / "new", "--out", out, "--maps", maps) == 0
        assert jaxad("score", scorer, pictures / "new", "--out", plain) == 0
        with np.load(maps) as saved, out.open() as file, plain.open() as alone:
            rows = [(row["file"], float(row["anomaly_score"]), row["flagged"]) for row in csv.DictReader(file)]
            again = [float(row["anomaly_score"]) for row in csv.DictReader(alone)]
            found[scorer] = rows, again, saved["maps"], float(saved["threshold"])
    (rows, again, maps, threshold), (their_rows, their_again, their_maps, their_threshold) = found.values()
    assert [(file, flagged) for file, _, flagged in rows] == [(file, flagged) for file, _, flagged in their_rows]
    np.testing.assert_allclose([row[1] for row in their_rows], [row[1] for row in rows], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(their_again, again, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(their_maps, maps, rtol=1e-2, atol=1e-2 * maps.std())
    assert their_threshold == threshold
    capsys.readouterr()
    words = ("score", bundle, pictures / "new", "--out", tmp_path / "x.csv")
    assert jaxad(*words, "--page", tmp_path / "page.html") == 2
    assert "is a bundle, which scores and maps but makes no page" in capsys.readouterr().err
    # Exported from Python, it does not say how pictures become arrays.
    export_detector(load_detector(model), bundle)
    assert jaxad(*words) == 2
    assert "does not say how its data is read from files" in capsys.readouterr().err


def test_a_broken_picture_is_named_and_skipped_only_when_told(pictures, model, tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    draw(np.random.default_rng(1)).save(folder / "a.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    assert jaxad("score", model, folder, "--out", tmp_path / "x.csv") != 0
    assert "broken.png" in "".join(capsys.readouterr()).replace("\n", "")
    assert not (tmp_path / "x.csv").exists()
    assert jaxad("score", model, folder, "--out", tmp_path / "x.csv", "--skip-broken") == 0
    assert len((tmp_path / "x.csv").read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize("what", ["empty", "mixed sizes", "few"])
def test_folders_nothing_can_be_learned_from(what, tmp_path, capsys):
    folder, rng = tmp_path / "folder", np.random.default_rng(2)
    folder.mkdir()
    if what != "empty":
        for index in range(9 if what == "mixed sizes" else 3):
            picture = draw(rng)
            (picture.resize((12, 20)) if what == "mixed sizes" and index == 5 else picture).save(
                folder / f"{index}.png"
            )
    assert jaxad("fit", folder, "--out", tmp_path / "model") != 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "Traceback" not in said
    assert {"empty": "got an empty folder", "mixed sizes": "size", "few": "at least 8"}[what] in said
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("file", "network", "message"),
    [
        ("weights.pt", '{"class": "DiT", "hidden": 16, "depth": 1, "heads": 2}', "safetensors"),
        ("weights.safetensors", '{"class": "VAE"}', "class UNet or DiT"),
        ("weights.safetensors", '{"class": "DiT", "wide": 3}', "class UNet or DiT"),
        ("weights.safetensors", '{"class": "DiT", "hidden": 16, "depth": 1, "heads": 2}', "weights.safetensors"),
    ],
)
def test_weights_that_cannot_be_imported(file, network, message, tmp_path, capsys):
    (tmp_path / file).write_bytes(b"not weights at all")
    out = tmp_path / "params.safetensors"
    arguments = ("import-weights", tmp_path / file, "--out", out, "--network", network, "--size", 8)
    assert jaxad(*arguments) != 0
    said = "".join("".join(capsys.readouterr()).split())
    assert "".join(message.split()) in said
    assert "Traceback" not in said
    assert not out.exists()


@pytest.mark.slow
def test_read_batch_by_batch_and_kept_in_a_run_directory(pictures, tmp_path, capsys):
    pytest.importorskip("grain")
    words = ("fit", pictures / "good", "--num-steps", 20, "--stream", "--run-dir", tmp_path / "run", "--tensorboard")
    assert jaxad(*words, "--out", tmp_path / "model") == 0
    assert "24 pictures in" in capsys.readouterr().out
    assert list((tmp_path / "run" / "denoiser").glob("step_*"))
    assert list((tmp_path / "run" / "denoiser").glob("events.out.tfevents.*"))
    # The same command finds the work done: another model folder, the same scores.
    assert jaxad(*words, "--out", tmp_path / "again") == 0
    picture = np.asarray(Image.open(pictures / "new" / "square_00.png"))[None, ..., None]
    first, again = (load_detector(tmp_path / name).score_samples(picture) for name in ("model", "again"))
    np.testing.assert_array_equal(first, again)
    # Other pictures are another run.
    assert jaxad("fit", pictures / "new", *words[2:], "--out", tmp_path / "other") == 2
    assert "holds another run" in capsys.readouterr().err


@pytest.mark.slow
def test_stopped_by_a_signal_it_says_how_to_go_on(pictures, tmp_path, monkeypatch, capsys):
    look = fitting._keep

    def stopped(run, *rest):
        signal.raise_signal(signal.SIGTERM)
        look(run, *rest)

    monkeypatch.setattr(fitting, "_keep", stopped)
    words = ("fit", pictures / "good", "--num-steps", 70, "--run-dir", tmp_path / "run", "--out", tmp_path / "model")
    assert jaxad(*words) == 75
    assert (told := capsys.readouterr().err).count("stopped at step 50") == 1
    assert "the same command goes on from there" in told
    assert not (tmp_path / "model").exists()


def test_curves_without_a_run_directory_and_a_batch_beyond_memory_are_refused(pictures, tmp_path, monkeypatch, capsys):
    assert jaxad("fit", pictures / "good", "--out", tmp_path / "model", "--tensorboard") == 2
    assert "--run-dir" in capsys.readouterr().err
    monkeypatch.setattr(fitting, "available_bytes", lambda device: 2**20)
    monkeypatch.setattr(fitting, "LARGE_BATCH", 1)
    assert jaxad("fit", pictures / "good", "--out", tmp_path / "model") == 2
    assert "batch_size=64 needs about" in capsys.readouterr().err
