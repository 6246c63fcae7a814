"""The README as a newcomer meets it: its examples run, its commands exist, its tables are what the records say."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from command_line import jaxad

from experiments import render
from jaxad import cli, data
from jaxad.detectors.catalogue import choose
from jaxad.evaluation import Evaluation, sweep

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
    ROOT / "experiments" / "README.md",
    ROOT / "CONTRIBUTING.md",
]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


# ------------------------------------------------------------------------------------------------------------------- examples


def test_the_first_screen_has_one_sentence_an_example_and_two_commands():
    first = "\n".join(README.splitlines()[:20])
    assert "```python" in first
    assert "make demo" in first
    assert "make test" in first


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_python_example_runs(number, capsys):
    exec(compile(EXAMPLES[number], f"README.md, example {number + 1}", "exec"), {})
    if number == 0:
        areas = [float(area) for area in re.findall(r"AUROC (\d\.\d+)", capsys.readouterr().out)]
        assert len(areas) == 2
        assert min(areas) > 0.9


# ------------------------------------------------------------------------------------------------------------------- commands


def commands_in(text: str) -> set[str]:
    """Every command of ours: lines of shell blocks, and code spans in the text."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    lines += [span.strip() for span in re.findall(r"`([^`\n]+)`", without_blocks)]
    return {
        line for line in lines if re.match(r"(make|jaxad|python -m experiments\.\w+)( |$)", line) and line != "jaxad"
    }


COMMANDS = sorted(set().union(*(commands_in(page.read_text(encoding="utf-8")) for page in PAGES if page.exists())))


def test_the_commands_are_found():
    assert {"make demo", "make test", "jaxad doctor"} <= set(COMMANDS)
    assert sum(command.startswith("jaxad fit") for command in COMMANDS)
    assert sum(command.startswith("python -m experiments") for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists_with_its_options(command, capsys, monkeypatch):
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{re.escape(words[1])}:", (ROOT / "Makefile").read_text(), re.M)
        return
    options = {word.split("=")[0] for word in words if word.startswith("--")}
    if words[0] == "jaxad":
        monkeypatch.setattr(sys, "argv", ["jaxad", words[1], "--help"])
        with pytest.raises(SystemExit) as finished:
            cli.main()
        assert finished.value.code == 0
        offered = capsys.readouterr().out
        assert f"jaxad {words[1]}" in offered
    else:
        module = ROOT / Path(*words[2].split(".")).with_suffix(".py")
        assert module.is_file()
        # A dataclass becomes the options; `experiments.table1.Config` inherits those of `experiments.adbench`.
        sources = module.read_text() + (ROOT / "experiments" / "adbench.py").read_text()
        offered = " ".join(f"--{name.replace('_', '-')}" for name in re.findall(r"^    (\w+): ", sources, re.M))
    assert options - {"--help"} <= set(re.findall(r"--[\w-]+", offered))


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


# --------------------------------------------------------------------------------------------------------------------- tables


def test_the_tables_are_what_the_records_say():
    stale = [path.name for path in render.run(render.Config(check=True))]
    assert not stale, f"{stale}: run python -m experiments.render"


RECORD = Evaluation("CIFAR10_4", "knn", "dte", 44, 0.9, 0.8, 0.1, 0.7, 60, 3, 0.0, 0.1, 0.1)
RECORDS = [RECORD, replace(RECORD, detector="ddpm", auroc=0.81), replace(RECORD, detector="norm", auroc=0.7)]


@pytest.fixture
def results(tmp_path):
    lines = [json.dumps(asdict(record)) for record in RECORDS]
    (tmp_path / "one.jsonl").write_text("\n".join(lines) + "\n")
    clean = [json.dumps(asdict(replace(record, protocol="clean"))) for record in RECORDS]
    (tmp_path / "two.jsonl").write_text("\n".join(clean) + "\n")
    return tmp_path


def block(head, body="stale\n"):
    kind_and_name = head.split()[0]
    return f"before\n\n<!-- {head} -->\n{body}<!-- /{kind_and_name} -->\n\nafter\n"


def test_a_block_is_written_from_records_with_the_papers_columns(results):
    text = render.render(block("table:one"), results)
    assert "| CIFAR10_4 | **90.00** | 81.00 | 70.00 | 76.31 |" in text
    assert text.startswith("before\n\n<!-- table:one -->\n\n| data set | knn | ddpm | norm | paper IForest |")
    assert text.endswith("<!-- /table:one -->\n\nafter\n")
    assert "stale" not in text
    assert render.render(text, results) == text


def test_columns_can_be_chosen_and_ordered(results):
    text = render.render(block("table:one detectors=norm,knn published=DDPM"), results)
    assert "| data set | norm | knn | paper DDPM |" in text
    assert "| data set | norm | knn |\n" in render.render(block("table:one detectors=norm,knn published="), results)


def test_the_papers_columns_stand_beside_its_own_protocol_only(results):
    assert "paper" not in render.render(block("table:two"), results)


def test_a_comparison_is_against_knn(results):
    assert "| ddpm | -9.00 | 0 / 0 / 1 | n/a | 1 |" in render.render(block("comparison:one"), results)


@pytest.fixture
def cycles(tmp_path):
    def cell(name, seed, five, accepted):
        areas = dict.fromkeys(("knn", "recommended", "cycle", "logistic-5", "forest-5", "deepsad-5"), 80.0) | {
            "cycle-5": five
        }
        made = {"cycle": {"accepted": False}, "cycle-5": {"accepted": accepted}}
        measured = {"known": 5, "auroc": areas, "average_precision": areas, "cycles": made}
        return {"dataset": name, "seed": seed, **measured}

    # The first record of wine is one that a later run replaced.
    cells = [cell("45_wine", 0, 10.0, True), cell("45_wine", 0, 80.0, False), cell("45_wine", 1, 83.0, True)]
    cells.append(cell("CIFAR10_4", 0, 82.5, True))
    cells.append({"dataset": "16_http", "seed": 0, "known": 0, "auroc": {"knn": 6.0}})
    (tmp_path / "cells.jsonl").write_text("".join(json.dumps(each) + "\n" for each in cells))
    return tmp_path


def test_the_cycles_table_counts_the_last_record_of_a_set_and_seed(cycles):
    text = render.render(block("cycle:cells"), cycles)
    assert "| wine | 2 | 80.0 | 80.0 | 80.0 (closed 2) | 81.5 (closed 1) | 80.0 |" in text
    assert "| CIFAR10_4 | 1 | 80.0 | 80.0 | 80.0 (closed 1) | 82.5 | 80.0 |" in text
    assert "| **mean AUROC** | | 80.0 | 80.0 | 80.0 | 82.0 | 80.0 |" in text


def test_the_cycles_gain_is_the_mean_over_sets_of_the_mean_over_seeds(cycles):
    text = render.render(block("gains:cells"), cycles)
    # Sets gain 1.5 and 2.5: mean 2, standard error 1/2, t(1 degree of freedom, 97.5 %) = 12.706.
    assert "| cycle, five known less recommended | AUROC | +2.00 ± 6.35 | 2 / 0 / 0 | +1.25, +3.00 |" in text
    assert "| cycle less recommended | average precision | +0.00 ± 0.00 | 0 / 2 / 0 | +0.00, +0.00 |" in text


def test_missing_records_are_said_to_be_missing(results):
    assert "No records yet" in render.render(block("table:three"), results)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table:one -->\n", "a block is not closed"),
        (block("table:one detectors=knm"), "no detector 'knm'.*knn"),
        (block("table:one published=DDMP"), "no column 'DDMP'.*DDPM"),
    ],
)
def test_a_marker_that_cannot_be_followed_is_refused(results, text, message):
    with pytest.raises(ValueError, match=message):
        render.render(text, results)


def test_check_changes_nothing_and_a_run_rewrites(results, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(block("table:one"))
    config = render.Config(check=True, root=tmp_path, results=results)
    assert render.run(config) == [tmp_path / "README.md"]
    assert "stale" in (tmp_path / "README.md").read_text()
    assert render.run(replace(config, check=False)) == [tmp_path / "README.md"]
    assert render.run(config) == []


# --------------------------------------------------------------------------------------------------------------- command line


def write_csv(path, x, y=None, columns=("a", "b", "c")):
    header, rows = list(columns), x
    if y is not None:
        header, rows = [*header, "label"], np.column_stack([x, y])
    np.savetxt(path, rows, delimiter=",", header=",".join(header), comments="")
    return path


@pytest.fixture
def files(tmp_path):
    """A folder with ``normal.csv`` (normal rows), ``new.csv`` (20 normal rows, 20 anomalies) and the same with labels."""
    rng = np.random.default_rng(0)
    write_csv(tmp_path / "normal.csv", rng.normal(size=(120, 3)))
    x, y = np.concatenate([rng.normal(size=(20, 3)), rng.normal(size=(20, 3)) + 6]), np.repeat([0, 1], 20)
    write_csv(tmp_path / "new.csv", x)
    write_csv(tmp_path / "labelled.csv", x, y)
    return tmp_path


def read_scores(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "row,anomaly_score,p_value,flagged"
    row, score, p, flagged = np.array([line.split(",") for line in lines[1:]], float).T
    assert row.tolist() == list(range(len(row)))
    assert ((p > 0) & (p <= 1)).all()
    assert (np.diff(p[np.argsort(score)]) <= 0).all()
    return score, flagged


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("detector", ["knn", "ecod", "norm"])
def test_fit_and_score(files, capsys, detector):
    assert jaxad("fit", files / "normal.csv", "--out", files / "model", "--detector", detector) == 0
    assert "120 rows of 3 features" in " ".join(capsys.readouterr().out.split())
    assert jaxad("score", files / "model", files / "new.csv", "--out", files / "scores.csv") == 0
    score, flagged = read_scores(files / "scores.csv")
    assert score[:20].max() < score[20:].min()
    assert flagged[20:].all()
    assert flagged[:20].mean() < 0.5


def test_rates_are_chosen_when_scoring(files, capsys):
    jaxad("fit", files / "normal.csv", "--out", files / "model", "--detector", "knn")
    words, flagged = ("score", files / "model", files / "new.csv", "--out", files / "scores.csv"), {}
    for rate in (("--alpha", 0), ("--alpha", 0.01), ("--alpha", 0.5), ("--fdr", 0.05)):
        assert jaxad(*words, *rate) == 0
        flagged[rate] = read_scores(files / "scores.csv")[1].astype(bool)
    assert not flagged["--alpha", 0].any()
    assert flagged["--alpha", 0.01].tolist() == [False] * 20 + [True] * 20
    assert flagged["--fdr", 0.05][20:].all()
    assert flagged["--fdr", 0.05][:20].sum() <= 2
    assert 5 <= flagged["--alpha", 0.5][:20].sum() <= 15
    for wrong, message in ((("--alpha", 0.1, "--fdr", 0.1), "give one"), (("--fdr", 1.5), "between 0 and 1")):
        assert jaxad(*words, *wrong) == 2
        assert message in capsys.readouterr().err


def test_labels_are_measured_against_and_not_scored(files, capsys):
    out = files / "scores.csv"
    jaxad("fit", files / "normal.csv", "--out", files / "model", "--detector", "knn")
    jaxad("score", files / "model", files / "new.csv", "--out", files / "plain.csv")
    capsys.readouterr()
    assert jaxad("score", files / "model", files / "labelled.csv", "--out", out, "--label-column", "label") == 0
    assert "AUROC 1.0000" in " ".join(capsys.readouterr().out.split())
    assert out.read_text() == (files / "plain.csv").read_text()


def test_rows_labelled_anomalous_are_left_out_of_training(files, capsys):
    model = files / "model"
    assert jaxad("fit", files / "labelled.csv", "--out", model, "--detector", "knn", "--label-column", "label") == 0
    assert "20 rows labelled anomalous are left out" in " ".join(capsys.readouterr().out.split())


def test_columns_are_found_by_name(files):
    jaxad("fit", files / "normal.csv", "--out", files / "model", "--detector", "ecod")
    table = data.read_table(files / "new.csv")
    write_csv(files / "turned.csv", table.x[:, [2, 0, 1]], columns="cab")
    for name in ("new", "turned"):
        assert jaxad("score", files / "model", files / f"{name}.csv", "--out", files / f"{name}_scores.csv") == 0
    assert (files / "new_scores.csv").read_text() == (files / "turned_scores.csv").read_text()


def test_a_trained_detector(files, monkeypatch, capsys):
    monkeypatch.setattr("jaxad.detectors.diffusion.default_num_steps", lambda num_rows: 100)
    assert jaxad("fit", files / "normal.csv", "--out", files / "model", "--detector", "ddpm") == 0
    assert "ddpm fitted on 120 rows" in " ".join(capsys.readouterr().out.split())
    assert jaxad("score", files / "model", files / "new.csv", "--out", files / "scores.csv") == 0
    score, _ = read_scores(files / "scores.csv")
    assert score[20:].mean() > score[:20].mean()


def test_the_recommended_detector_is_the_default(files, monkeypatch, capsys):
    monkeypatch.setattr("jaxad.detectors.consensus.FEWEST_LEARNED_ROWS", 1000)
    assert jaxad("fit", files / "normal.csv", "--out", files / "model") == 0
    assert "recommended fitted on 120 rows" in " ".join(capsys.readouterr().out.split())
    assert jaxad("score", files / "model", files / "new.csv", "--out", files / "scores.csv") == 0
    score, flagged = read_scores(files / "scores.csv")
    assert score[20:].mean() > score[:20].mean()
    assert flagged[20:].mean() > 0.5


def test_the_installed_command(files):
    """From the file to the scores in processes of their own; the second one loads what the first has saved."""
    command = Path(sys.executable).parent / "jaxad"
    environment = {**os.environ, "XDG_CACHE_HOME": str(files / "cache")}

    def run(*words):
        return subprocess.run(
            [command, *words], capture_output=True, text=True, cwd=files, env=environment, timeout=300
        )

    fitted = run("fit", "normal.csv", "--out", "model", "--detector", "knn")
    assert (fitted.returncode, fitted.stderr) == (0, "")
    scored = run("score", "model", "new.csv", "--out", "scores.csv")
    assert (scored.returncode, scored.stderr) == (0, "")
    assert len(read_scores(files / "scores.csv")[0]) == 40
    refused = run("score", "model", "nowhere.csv", "--out", "again.csv")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.fullmatch(r"jaxad: .*nowhere\.csv.*\n", refused.stderr)
    assert not (files / "again.csv").exists()


def test_a_path_is_printed_as_it_is(files, capsys):
    model = files / ("very long [red]" + 80 * "x")
    assert jaxad("fit", files / "normal.csv", "--out", model, "--detector", "knn") == 0
    assert str(model) in capsys.readouterr().out


def test_a_report_from_a_run(tmp_path, capsys):
    datasets = {"wine_0": data.wine}
    sweep.run(datasets, choose(["knn", "norm"]), out=tmp_path, progress=False)
    assert jaxad("report", tmp_path) == 0
    assert "wine_0" in (tmp_path / "report.html").read_text()
    assert jaxad("report", tmp_path / "results.jsonl", "--out", tmp_path / "page.html") == 0
    assert (tmp_path / "page.html").exists()
    assert "AUROC" in capsys.readouterr().out


def test_doctor(capsys):
    assert jaxad("doctor") == 0
    shown = capsys.readouterr().out
    assert "ADBench sets" in shown
    assert "jaxad[cuda]" in shown
    assert "jaxad[data]" in shown


# ------------------------------------------------------------------------------------------------------------------ bad input


@pytest.fixture
def bad(files):
    """``files`` with a model, and everything a user may get wrong."""
    jaxad("fit", files / "normal.csv", "--out", files / "model", "--detector", "knn")
    rows = data.read_table(files / "new.csv").x
    holes = rows.copy()
    holes[3, 1] = np.nan
    write_csv(files / "holes.csv", holes)
    write_csv(files / "renamed.csv", rows, columns="abd")
    write_csv(files / "narrow.csv", rows[:, :2], columns="ab")
    np.save(files / "narrow.npy", rows[:, :2])
    (files / "words.csv").write_text("a,b,c\n1,2,three\n2,3,4\n3,4,5\n")
    (files / "empty.csv").write_text("")
    (files / "folder").mkdir()
    write_csv(files / "anomalies.csv", rows, np.ones(len(rows)))
    (files / "run").mkdir()
    (files / "run" / "results.jsonl").write_text(json.dumps(asdict(RECORD)) + "\n")
    (files / "broken.jsonl").write_text("not a record\n")
    return files


FIT, SCORE = ("fit", "normal.csv", "--out"), ("score", "model", "new.csv", "--out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*FIT, "new_model", "--detector", "ddmp"), "unknown detector 'ddmp': .*ddpm"),
        ((*FIT, "new_model", "--detector", "iforest"), "unknown detector 'iforest'"),
        (("fit", "nowhere.csv", "--out", "new_model", "--detector", "knn"), "nowhere.csv"),
        (("fit", "folder", "--out", "new_model", "--detector", "knn"), "folder"),
        (("fit", "words.csv", "--out", "new_model", "--detector", "knn"), "'three'"),
        (("fit", "empty.csv", "--out", "new_model", "--detector", "knn"), "empty.csv"),
        ((*FIT, "new_model", "--detector", "knn", "--label-column", "lable"), "'lable'"),
        ((*FIT, "normal.csv", "--detector", "knn"), "normal.csv"),
        ((*FIT, "normal.csv/new_model", "--detector", "knn"), "normal.csv"),
        ((*FIT, "new_model", "--detector", "knn", "--false-alarm-rate", "0.9"), "--false-alarm-rate.*0.9"),
        ((*FIT, "new_model", "--detector", "dte-c", "--seed", "-1"), "--seed.*-1"),
        ((*FIT, "folder", "--detector", "knn"), "folder is not a saved jaxad detector"),
        (("score", "nowhere", "new.csv", "--out", "scores.csv"), "nowhere"),
        (("score", "folder", "new.csv", "--out", "scores.csv"), "folder"),
        (("score", "new.csv", "new.csv", "--out", "scores.csv"), "new.csv"),
        (("score", "model", "nowhere.csv", "--out", "scores.csv"), "nowhere.csv"),
        (("score", "model", "holes.csv", "--out", "scores.csv"), "holes.csv.*'b'"),
        (("score", "model", "renamed.csv", "--out", "scores.csv"), "expected the column 'c'"),
        (("score", "model", "narrow.csv", "--out", "scores.csv"), "expected the column 'c'"),
        (("score", "model", "narrow.npy", "--out", "scores.csv"), "3 features"),
        ((*SCORE, "folder"), "folder"),
        ((*SCORE, "nowhere/scores.csv"), "nowhere"),
        ((*SCORE, "normal.csv/scores.csv"), "normal.csv"),
        ((*SCORE, "new.csv"), "is the file to score"),
        (
            ("fit", "anomalies.csv", "--out", "new_model", "--detector", "knn", "--label-column", "label"),
            "no normal row",
        ),
        (("report", "nowhere"), "nowhere"),
        (("report", "run", "--out", "run/results.jsonl"), "the records themselves"),
        (("report", "run", "--out", "nowhere/page.html"), "nowhere"),
        (("report", "folder"), "folder"),
        (("report", "broken.jsonl"), "line 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_ends_in_one_sentence_and_leaves_nothing_behind(bad, monkeypatch, capsys, words, message):
    monkeypatch.chdir(bad)
    before = contents(bad)
    capsys.readouterr()
    assert jaxad(*words) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"jaxad: [^\n]+\n", captured.err)
    assert re.search(message, captured.err)
    assert contents(bad) == before
