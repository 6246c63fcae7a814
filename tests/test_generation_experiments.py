"""The experiments on generated anomalies run, and print what they measured."""

import pytest

from experiments import generation_quality, synthetic_kinds


def test_synthetic_kinds_rank_detectors(data_dir, tmp_path):
    config = synthetic_kinds.Config(
        data_dir=data_dir,
        datasets=("yeast",),
        detectors=("knn", "ecod"),
        kinds=("global", "dependency"),
        most_rows=200,
        out=tmp_path,
    )
    records = synthetic_kinds.run(config)
    assert [record.dataset.partition("/")[2] for record in records] == ["global"] * 2 + ["dependency"] * 2
    found = {(record.dataset.partition("/")[2], record.detector): record.auroc for record in records}
    assert found["global", "knn"] > 0.9
    assert found["dependency", "ecod"] < 0.65
    table = (tmp_path / "table.md").read_text()
    assert table.splitlines()[0] == "| kind | knn | ecod | best three |"
    assert f"| {100 * found['dependency', 'knn']:.1f} |" in table


def test_a_quality_record_becomes_a_line():
    record = {"data": "toy", "generator": "point", "auroc_without": 0.9, "severity": 0.25}
    record |= {"utility_gain": 0.1, "utility_low": -0.01, "utility_high": 0.2}
    lines = generation_quality.markdown([record]).splitlines()
    assert lines[0] == "**toy**, kNN alone 0.900 AUROC"
    assert lines[-1] == "| point | 0.25 | +0.100 [-0.010, +0.200] |"


@pytest.mark.slow
def test_every_generator_is_measured(data_dir, tmp_path):
    out = tmp_path / "records.jsonl"
    config = generation_quality.Config(
        data_dir=data_dir, table="Pima", table_steps=200, picture_steps=50, rows=64, pictures=tmp_path, out=out
    )
    records = generation_quality.run(config)
    assert len(records) == len(out.read_text().splitlines()) == 22
    assert all(record["background"] == 0 for record in records if "background" in record)
    assert (tmp_path / "generators.png").is_file()
