"""Tables, CSV, pictures and the page, from evaluations made by hand."""

import csv
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy.stats import wilcoxon

from jaxad import metrics
from jaxad.evaluation import Evaluation, sweep
from jaxad.reports import figures, page, tables

HOSTILE = "<script>alert('x')</script> | \"a\" $\\frac{ _b_\n\x1b東 &amp;"
VOID = {"meta", "br", "img"}


def record(dataset="wine", detector="knn", auroc=0.9, *, seed=0, protocol="clean", **changes):
    made = Evaluation(dataset, detector, protocol, seed, auroc, 0.8, 0.1, 0.7, 60, 40, 0.0, 0.5, 0.25)
    where = {"commit": "abc123", "device": "cpu, 2 cores", "versions": {"jax": "0.10.2"}}
    return replace(made, **{**where, **changes})


def square(protocol="clean", num_datasets=7):
    """Three detectors on some data sets: b is always best, c always worst."""
    return [
        record(f"set{index}", name, 0.7 + index / 100 + gain, protocol=protocol)
        for index in range(num_datasets)
        for name, gain in (("knn", 0.0), ("b", 0.05 + index / 1000), ("c", -0.1))
    ]


def cells(markdown):
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return rows[0], {row[0]: row[1:] for row in rows[2:]}


class Page(HTMLParser):
    """Tags in order of appearance, attributes, text outside of styles; fails on tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)


def page_of(tmp_path, evaluations, **settings):
    path = page.write_report(evaluations, tmp_path / "page.html", **settings)
    assert path == tmp_path / "page.html"
    return path.read_text(encoding="utf-8")


def store_scores(out, evaluations):
    (out / "scores").mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for evaluation in evaluations:
        labels = np.arange(evaluation.num_test) % 4 == 0
        sweep._write_scores(sweep._scores_path(out, evaluation), labels, rng.normal(size=len(labels)) + labels)


# ------------------------------------------------------------------------------------------------------------------ tables


def test_markdown_table_has_percent_the_best_in_bold_a_mean_and_a_rank():
    header, rows = cells(
        page.markdown_table(
            [record("x", "a", 0.5), record("x", "b", 0.75), record("y", "a", 1.0), record("y", "b", 0.5)]
        )
    )
    assert header == ["data set", "a", "b"]
    assert rows["x"] == ["50.00", "**75.00**"]
    assert rows["y"] == ["**100.00**", "50.00"]
    assert rows["mean"] == ["**75.00**", "62.50"]
    assert rows["average rank"] == ["**1.50**", "**1.50**"]


def test_smaller_is_better_for_false_positives():
    evaluations = [record(detector="a", fpr_at_95_tpr=0.2), record(detector="b", fpr_at_95_tpr=0.1)]
    _, rows = cells(page.markdown_table(evaluations, metric="fpr_at_95_tpr"))
    assert rows["wine"] == ["20.00", "**10.00**"]
    assert rows["average rank"] == ["2.00", "**1.00**"]
    assert (
        page.comparison_table(evaluations, "a", metric="fpr_at_95_tpr")
        .splitlines()[2]
        .startswith("| b | +10.00 | 1 / 0 / 0 |")
    )


def test_equal_at_two_decimals_is_equally_bold():
    _, rows = cells(page.markdown_table([record(detector="a", auroc=0.90001), record(detector="b", auroc=0.90002)]))
    assert rows["wine"] == ["**90.00**", "**90.00**"]


def test_seeds_give_a_mean_and_a_spread_and_the_caption_says_where_numbers_come_from():
    text = page.markdown_table([record(auroc=0.8), record(auroc=0.9, seed=7, device="H200", commit=None)])
    assert cells(text)[1]["wine"] == ["**85.00 ± 7.07**"]
    assert "Protocol clean; seeds 0, 7; cpu, 2 cores; H200; commit abc123; unknown." in text
    assert "not every cell" in page.markdown_table([record(), record(seed=1), record(detector="b")])


def test_missing_cells_are_shown_and_left_out_of_the_means():
    _, rows = cells(page.markdown_table([record("x", "a", 0.5), record("x", "b", 0.6), record("y", "a", 1.0)]))
    assert rows["y"] == ["**100.00**", "–"]
    assert rows["mean over 1 complete of 2 rows"] == ["50.00", "**60.00**"]
    _, rows = cells(page.markdown_table([record("x", "a"), record("y", "b")]))
    assert rows["mean over 0 complete of 2 rows"] == rows["average rank"] == ["–", "–"]


def test_published_numbers_stand_beside_ours_and_take_no_part_in_ranks():
    evaluations = [record("x", auroc=0.8), record("y", auroc=0.9)]
    published = {"kNN (paper)": {"x": 0.99, "y": 0.97}, "other": {"y": 0.5}}
    text = page.markdown_table(evaluations, published=published)
    header, rows = cells(text)
    assert header == ["data set", "knn", "kNN (paper)", "other"]
    assert rows["x"] == ["**80.00**", "99.00", "–"]
    assert rows["mean"] == ["**85.00**", "98.00", "–"]
    assert rows["average rank"] == ["**1.00**", "", ""]
    assert "Published elsewhere, not computed here: kNN (paper), other." in text
    with pytest.raises(ValueError, match="divide percent by 100"):
        page.markdown_table(evaluations, published={"paper": {"x": 97.1}})


@pytest.mark.parametrize(
    ("evaluations", "message"),
    [
        ([], "got none"),
        ([record(), record(protocol="dte")], "exactly one protocol, got clean, dte"),
        ([record(), record(auroc=0.1)], "given twice"),
    ],
)
def test_tables_that_would_lie_are_refused(evaluations, message):
    for table in (page.markdown_table, page.comparison_table):
        with pytest.raises(ValueError, match=message):
            table(evaluations)


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="choose one of auroc"):
        page.markdown_table([record()], metric="accuracy")


def test_comparison_counts_wins_and_tests_over_data_sets():
    evaluations = square()
    header, rows = cells(page.comparison_table(evaluations))
    assert header[0] == "against knn"
    gains = [0.05 + index / 1000 for index in range(7)]
    assert rows["b"] == [f"+{100 * np.mean(gains):.2f}", "7 / 0 / 0", f"{wilcoxon(gains).pvalue:.4f}", "7"]
    assert rows["c"][:2] == ["-10.00", "0 / 0 / 7"]


def test_comparison_has_no_p_value_on_fewer_than_six_sets():
    _, rows = cells(page.comparison_table([*square(num_datasets=5), record("other", "alone")]))
    assert rows["b"][2:] == ["n/a", "5"]
    assert rows["alone"] == ["–", "–", "–", "0"]
    with pytest.raises(ValueError, match="no detector 'forest'"):
        page.comparison_table(square(), "forest")


def test_hostile_names_stay_one_cell_of_markdown():
    text = page.markdown_table([record(HOSTILE, "a|b")])
    assert "<" not in text
    assert "a&#124;b" in text.splitlines()[0]
    assert text.splitlines()[2].count("|") == 3
    assert "](" not in page.markdown_table([record("![x](https://example.org)")])
    assert "&amp;amp;" in text


def test_csv_reads_back(tmp_path):
    path = page.write_csv([record(HOSTILE), record(seed=1)], tmp_path / "results.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["dataset"] == HOSTILE
    assert (rows[1]["seed"], float(rows[1]["auroc"]), rows[1]["versions"]) == ("1", 0.9, "jax=0.10.2")
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


# ---------------------------------------------------------------------------------------------------------------- pictures


def curve(seed, shift=1.0, rows=300):
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.2).astype(np.uint8)
    return labels, rng.normal(size=rows) + shift * labels


PICTURES = {
    "roc": lambda names, picture: figures.roc_curves(
        {n: curve(i) for i, n in enumerate(names)}, title=names[0], picture=picture
    ),
    "ranks": lambda names, picture: figures.critical_difference(names, np.eye(3) * 0.2 + 0.5, picture=picture),
    "spread": lambda names, picture: figures.spread(
        {n: [0.5, 0.9] for n in names}, label="AUROC in %", picture=picture
    ),
    "lines": lambda names, picture: figures.lines(
        {"rows": ([10, 100], {n: [0.5, 0.9] for n in names})}, label="AUROC in %", picture=picture
    ),
    "losses": lambda names, picture: figures.held_out_loss(
        {n: [0.9, 0.4, 0.5] for n in names}, every=200, picture=picture
    ),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_are_well_formed_name_everybody_and_take_the_ink_of_the_page(kind):
    svg = PICTURES[kind](["knn", "_hidden", HOSTILE], "svg").decode()
    texts = "".join(ElementTree.fromstring(svg).itertext())
    assert "knn" in texts
    assert "_hidden" in texts
    assert "<script>" in texts
    assert "<script" not in svg
    assert "currentColor" in svg
    assert "\x1b" not in svg
    assert PICTURES[kind](["knn", "_hidden", "x"], "png").startswith(b"\x89PNG")
    with pytest.raises(ValueError, match='"svg" or "png"'):
        PICTURES[kind](["knn", "b", "c"], "pdf")


def test_pictures_are_reproducible():
    assert PICTURES["spread"](["a", "b"], "svg") == PICTURES["spread"](["a", "b"], "svg")


def test_roc_curves_of_many_rows_stay_small():
    big = {f"detector {index}": curve(index, rows=20_000) for index in range(3)}
    assert len(figures.roc_curves(big)) < 40_000


def test_pictures_refuse_what_they_cannot_show():
    with pytest.raises(ValueError, match="at least one detector"):
        figures.roc_curves({})
    with pytest.raises(ValueError, match="two data sets and three detectors"):
        figures.critical_difference(["a", "b"], np.ones((5, 2)))
    with pytest.raises(ValueError, match="two data sets and three detectors"):
        figures.critical_difference(["a", "b", "c"], np.ones((1, 3)))
    with pytest.raises(ValueError, match="at least one value"):
        figures.spread({"a": []}, label="AUROC")
    with pytest.raises(ValueError, match="one number per value"):
        figures.lines({"rows": ([10, 100], {"a": [0.5]})}, label="AUROC")
    with pytest.raises(ValueError, match="at least one look"):
        figures.held_out_loss({"a": []}, every=200)


def test_bars_join_the_longest_runs_within_the_difference():
    assert figures._cliques(np.array([1.0, 1.5, 2.4, 4.0]), 1.0) == [(1.0, 1.5), (1.5, 2.4)]
    assert figures._cliques(np.array([1.0, 1.5, 2.0]), 5.0) == [(1.0, 2.0)]
    assert figures._cliques(np.array([1.0, 3.0]), 1.0) == []


def test_the_fast_bootstrap_is_the_bootstrap_of_metrics():
    labels, scores = curve(0)
    scores = np.round(scores, 1)  # with ties
    drawn = page.resampled_auroc(labels, scores, num_resamples=2000)
    slow = metrics.bootstrap_interval(metrics.auroc, labels, scores, seed=1)
    np.testing.assert_allclose(np.quantile(drawn, [0.025, 0.975]), slow, atol=0.008)
    assert drawn.mean() == pytest.approx(metrics.auroc(labels, scores), abs=0.003)


# -------------------------------------------------------------------------------------------------------------------- page


def test_page_shows_every_part_for_every_protocol(tmp_path):
    evaluations = square() + square("dte")
    store_scores(tmp_path, evaluations)
    published = {"dte": {"kNN (paper)": {"set0": 0.6543}}}
    text = page_of(tmp_path, evaluations, scores_dir=tmp_path, published=published, num_resamples=20)
    parsed = Page(text)
    words = " ".join(parsed.texts)
    for protocol in ("clean", "dte"):
        assert f"Protocol {protocol}" in parsed.texts
    for metric in tables.METRICS.values():
        assert parsed.texts.count(metric.title) >= 4  # in the summary and over its table, twice
    assert "65.43" in parsed.texts
    assert "kNN (paper)" in parsed.texts
    assert "95% interval" in parsed.texts
    assert any(name == "title" and "bootstrap" in value for name, value in parsed.attributes)
    assert parsed.tags.count("svg") == 2 * (7 + 2)  # ROC curves of seven sets, ranks and spread, twice
    for fact in ("abc123", "cpu, 2 cores", "jax 0.10.2"):
        assert fact in words
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_page_needs_nothing_from_outside(tmp_path):
    evaluations = square()
    store_scores(tmp_path, evaluations)
    text = page_of(tmp_path, evaluations, scores_dir=tmp_path, num_resamples=5)
    parsed = Page(text)
    assert {"script", "link", "iframe", "object", "img"}.isdisjoint(parsed.tags)
    for name, value in parsed.attributes:
        assert not name.startswith("on")
        if name in ("href", "xlink:href", "src"):
            assert value.startswith("#")
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_hostile_names_are_text_everywhere(tmp_path):
    hostile = [
        replace(
            item,
            dataset=item.dataset + HOSTILE,
            detector=item.detector.replace("b", HOSTILE),
            device=HOSTILE,
            commit=HOSTILE,
        )
        for item in square(HOSTILE, num_datasets=2)
    ]
    store_scores(tmp_path, hostile)
    text = page_of(
        tmp_path,
        hostile,
        scores_dir=tmp_path,
        title=HOSTILE,
        reference=HOSTILE,
        num_resamples=5,
        published={HOSTILE: {HOSTILE: {}}},
    )
    parsed = Page(text)
    assert "script" not in parsed.tags
    assert sum("<script>" in words for words in parsed.texts) > 20
    assert "half \ud800".encode("utf-8", "replace").decode() in page_of(tmp_path, [record("half \ud800")])


def test_leaks_are_told_in_plain_words(tmp_path):
    clean = page_of(tmp_path, [record()])
    assert "no test row has an exact copy" in clean
    assert "Read these numbers with care" not in clean
    leaky = page_of(tmp_path, [record("x", protocol="dte", twin_share=0.5), record("y", protocol="dte")])
    assert "25.00% of the test rows have an exact copy among the training rows, and 50.00% on x" in leaky


def test_page_of_little_says_what_is_missing(tmp_path):
    text = page_of(tmp_path, [record("x", "a"), record("y", "b")], scores_dir=tmp_path)
    assert "no fair mean to show" in text
    assert "it takes a detector named knn" in text
    assert "takes three detectors with two data sets" in text
    assert "ROC curves" not in text
    assert "95% interval" not in text


def test_intervals_need_the_scores_of_every_data_set(tmp_path):
    evaluations = square()
    store_scores(tmp_path, evaluations[:-1])  # c on the last set has none
    text = page_of(tmp_path, evaluations, scores_dir=tmp_path, num_resamples=5)
    summary = text[text.index("Summary") : text.index("All data sets")]
    assert summary.count(" to ") == 2
    assert summary.count("<td>–</td>") == 1


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path):
    before = page_of(tmp_path, [record()])
    with pytest.raises(ValueError, match="given twice"):
        page.write_report([record(), record()], tmp_path / "page.html")
    with pytest.raises(ValueError, match="at least one evaluation"):
        page.write_report([], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == before
    with pytest.raises(FileNotFoundError):
        page.write_report([record()], tmp_path / "nowhere" / "page.html")
