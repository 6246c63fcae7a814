"""ADBench: names, the sets that are here, what a file must hold, and fetching (from this machine, not the network)."""

import functools
import http.server
import importlib
import io
import threading

import numpy as np
import pytest

from jaxad.data import ADBENCH_GROUPS, ADBENCH_NAMES, DataError, adbench, adbench_names, content_digest
from jaxad.data.sources import download

# The module: the package gives its name to the function.
module = importlib.import_module("jaxad.data.adbench")

X = np.array([[1.0, 2.0], [3.0, np.nan], [5.0, -6.0]])
Y = np.array([0, 0, 1])

# Rows, features and anomalies as the ADBench paper lists them.
PUBLISHED = {
    "6_cardio": (1831, 21, 176),
    "10_cover": (286048, 10, 2747),
    "23_mammography": (11183, 6, 260),
    "26_optdigits": (5216, 64, 150),
    "38_thyroid": (3772, 6, 93),
    "45_wine": (129, 13, 10),
}


def test_the_paper_counts_57_sets_in_121_files():
    assert {group: len(names) for group, names in ADBENCH_GROUPS.items()} == {
        "Classical": 47,
        "CV_by_ResNet18": 61,
        "NLP_by_BERT": 13,
    }
    assert len(set(ADBENCH_NAMES)) == len({name.lower() for name in ADBENCH_NAMES}) == 121
    families = {name.rsplit("_", 1)[0] if name[-1].isdigit() else name.split("_")[0] for name in ADBENCH_NAMES[47:]}
    images, texts = (
        ("CIFAR10", "FashionMNIST", "MNIST-C", "MVTec-AD", "SVHN"),
        ("20news", "agnews", "amazon", "imdb", "yelp"),
    )
    assert families == {*images, *texts}
    assert ADBENCH_NAMES[5] == "6_cardio"
    assert ADBENCH_NAMES[46] == "47_yeast"


def save(folder, name="6_cardio", group="Classical", **members):
    path = folder / "adbench" / group / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **members)
    return path


@pytest.mark.parametrize("name", ["6_cardio", "cardio", "CARDIO", "6_Cardio"])
def test_names_with_and_without_number_in_any_case(tmp_path, name):
    save(tmp_path, X=X, y=Y)
    data = adbench(name, tmp_path)
    assert data.name == "6_cardio"
    np.testing.assert_array_equal(data.x, X)
    np.testing.assert_array_equal(data.y, Y)
    assert data.source == "ADBench Classical, content not verified"


def test_image_and_text_sets_keep_their_file_names(tmp_path):
    save(tmp_path, "CIFAR10_4", "CV_by_ResNet18", X=X, y=Y)
    save(tmp_path, "20news_0", "NLP_by_BERT", X=X, y=Y)
    save(tmp_path, "unknown", X=X, y=Y)
    assert adbench("cifar10_4", tmp_path).name == "CIFAR10_4"
    assert adbench("20NEWS_0", tmp_path).name == "20news_0"
    assert adbench_names(tmp_path) == ("CIFAR10_4", "20news_0")
    assert adbench_names(tmp_path / "nowhere") == ()


def test_where_the_data_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    save(tmp_path / "home" / ".cache" / "jaxad", "6_cardio", X=X, y=Y)
    save(tmp_path / "set", "45_wine", X=X, y=Y)
    monkeypatch.delenv("JAXAD_DATA_DIR", raising=False)
    assert adbench_names() == ("6_cardio",)
    monkeypatch.setenv("JAXAD_DATA_DIR", "")
    assert adbench_names() == ("6_cardio",)
    monkeypatch.setenv("JAXAD_DATA_DIR", str(tmp_path / "set"))
    assert adbench_names() == ("45_wine",)
    assert adbench_names(tmp_path) == ()
    with pytest.raises(DataError, match=r"no file .*/set/adbench/Classical/6_cardio\.npz; pass download=True"):
        adbench("cardio")


def test_unknown_name():
    with pytest.raises(DataError, match=r"unknown ADBench set '7_cardio'; did you mean 'cardio'"):
        adbench("7_cardio")
    with pytest.raises(DataError, match=r"'CIFAR10_10'; did you mean 'CIFAR10_"):
        adbench("CIFAR10_10")
    with pytest.raises(DataError, match="known: ALOI, "):
        adbench("../../etc/passwd")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"X": X}, "labels under the key 'y'"),
        ({"X": np.array([[np.nan, np.inf]]), "y": Y[:1]}, "found inf in row 0 .*column 1"),
        ({"X": X, "y": Y + 1}, "found 2"),
        ({"y": Y}, "one of the keys"),
    ],
)
def test_files_that_hold_something_else(tmp_path, members, message):
    save(tmp_path, **members)
    with pytest.raises(DataError, match=message):
        adbench("cardio", tmp_path)


# The sets that are here


def test_every_set_here_is_the_published_one(data_dir):
    names = adbench_names(data_dir)
    if not names:
        pytest.skip(f"no ADBench files in {data_dir}")
    for name in names:
        data = adbench(name, data_dir)
        rows, features = data.x.shape
        assert data.name == name
        assert data.y.shape == (rows,)
        assert 0 < data.y.sum() < rows / 2 or name in ("MVTec-AD_pill", "MVTec-AD_cable"), name
        assert data.x.dtype == (np.float32 if name in ADBENCH_GROUPS["CV_by_ResNet18"] else np.float64)
        assert np.isfinite(data.x).all()
        if name in module.DIGESTS:
            assert data.source == f"ADBench {module._GROUP_OF[name]} @ 3dac822", name
        if name in PUBLISHED:
            assert (rows, features, data.y.sum()) == PUBLISHED[name]


def test_digests_are_of_known_sets():
    assert len(module.DIGESTS) == 42
    assert set(module.DIGESTS) <= set(ADBENCH_NAMES)
    assert all(len(digest) == 64 for digest in module.DIGESTS.values())


def test_digest_sees_numbers_only():
    x, y = np.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]), np.array([0, 1])
    digest = content_digest(x, y)
    assert digest == content_digest(np.asfortranarray(x).astype(">i2"), y.astype(bool))
    assert digest == content_digest(np.where(x == 0, -0.0, x), y)
    others = [(x.reshape(3, 2), y), (x, 1 - y), (x[::-1], y), (np.where(x == 5, np.nextafter(5, 6), x), y)]
    assert len({digest, *(content_digest(*other) for other in others)}) == 5
    missing = np.where(x == 5, np.nan, x)
    assert content_digest(missing, y) == content_digest(-missing * -1, y)


# Fetching


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine with one ADBench file, in place of the repository."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "server"
    save(folder, X=X, y=Y)
    handler = functools.partial(QuietHandler, directory=folder / "adbench")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as answering:
        thread = threading.Thread(target=answering.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{answering.server_port}"
        answering.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_download_verifies_and_stores(tmp_path, monkeypatch, server):
    monkeypatch.setattr(module, "URL", server)
    monkeypatch.setitem(module.DIGESTS, "6_cardio", content_digest(X, Y))
    data = adbench("cardio", tmp_path, download=True)
    assert data.source == "ADBench Classical @ 3dac822"
    np.testing.assert_array_equal(data.x, X)
    monkeypatch.setattr(module, "URL", "http://127.0.0.1:9/nobody")
    assert adbench("cardio", tmp_path, download=True).name == "6_cardio"  # it is here now
    assert [path.name for path in (tmp_path / "adbench" / "Classical").iterdir()] == ["6_cardio.npz"]


def test_download_that_holds_something_else_leaves_nothing(tmp_path, monkeypatch, server):
    monkeypatch.setattr(module, "URL", server)
    with pytest.raises(DataError, match=r"expected content with digest .*changed on its way"):
        adbench("cardio", tmp_path, download=True)
    assert list((tmp_path / "adbench" / "Classical").iterdir()) == []


def test_download_without_a_known_digest_warns(tmp_path, monkeypatch, server):
    monkeypatch.setattr(module, "URL", server)
    monkeypatch.delitem(module.DIGESTS, "6_cardio")
    with pytest.warns(UserWarning, match="content is unverified"):
        data = adbench("cardio", tmp_path, download=True)
    assert "not verified" in data.source


def test_download_that_cannot_be_reached(tmp_path, monkeypatch, server):
    monkeypatch.setattr(module, "URL", server)
    with pytest.raises(DataError, match=r"could not fetch http://127.*45_wine\.npz.*404.*put it at .*45_wine\.npz"):
        adbench("wine", tmp_path, download=True)
    monkeypatch.setattr(module, "URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"could not fetch http://127.*check the network"):
        adbench("wine", tmp_path, download=True)
    assert list((tmp_path / "adbench" / "Classical").iterdir()) == []


def test_download_is_bounded_and_needs_a_folder(tmp_path, server):
    with pytest.raises(DataError, match="at most 10 bytes"):
        download(f"{server}/Classical/6_cardio.npz", tmp_path / "a.npz", verify=lambda _: None, max_bytes=10)
    assert not (tmp_path / "a.npz").exists()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot make the folder"):
        download(server, tmp_path / "file" / "a.npz", verify=lambda _: None)


def test_a_redirection_away_from_https_is_refused(tmp_path, monkeypatch):
    answer = io.BytesIO(b"rows")
    answer.url = "http://elsewhere/rows"  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: answer)
    with pytest.raises(DataError, match="not encrypted"):
        download("https://here/rows", tmp_path / "a.npz", verify=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_pinned_address():
    assert module.URL.startswith("https://raw.githubusercontent.com/Minqi824/ADBench/3dac822")
    assert len(module.COMMIT) == 40
