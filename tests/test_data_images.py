"""Pictures from files and folders: every format and depth, the layout of MVTec AD, tiles, and all that is refused."""

import doctest
import importlib
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxad.data import DataError, ImageDataset, read_folder, read_image, read_mvtec, stitch, tiles
from jaxad.data.images import fit_picture

GRAY = np.random.default_rng(0).integers(0, 256, (10, 14), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (10, 14, 3), np.uint8)


def save(path, array=GRAY, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **options)
    return path


def huge_png(path, width=50_000, height=50_000):
    """A few dozen bytes that say they are billions of pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    return path


# ------------------------------------------------------------------------------------------------------------ one picture


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF"])
@pytest.mark.parametrize("array", [GRAY, COLOUR], ids=["gray", "colour"])
def test_lossless_formats_give_the_pixels_back(tmp_path, suffix, array):
    picture = read_image(save(tmp_path / f"a{suffix}", array))
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, array.reshape(10, 14, -1))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("CMYK", 3)])
@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_jpeg(tmp_path, suffix, mode, channels):
    flat = Image.new("RGB", (14, 10), (200, 100, 50)).convert(mode)
    picture = read_image(save(tmp_path / f"a{suffix}", flat, quality=100))
    assert picture.shape == (10, 14, channels)
    expected = np.asarray(flat.convert("L" if channels == 1 else "RGB")).reshape(10, 14, channels)
    assert np.abs(picture.astype(int) - expected).max() <= 4


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_16_bits_become_floats_in_the_unit_interval(tmp_path, suffix, channels):
    array = np.linspace(0, 65535, 140).astype(np.uint16).reshape(10, 14)
    picture = read_image(save(tmp_path / f"a{suffix}", array), channels=channels)
    assert picture.dtype == np.float32
    assert picture.shape == (10, 14, channels or 1)
    np.testing.assert_allclose(picture, np.repeat(array[..., None] / 65535, channels or 1, -1), atol=1e-7)


def test_16_bits_in_big_endian(tmp_path):
    array = (np.arange(140).reshape(10, 14) * 400).astype(">u2")
    strip = struct.pack(">2sHI", b"MM", 42, 8)
    tags = [(256, 3, 14), (257, 3, 10), (258, 3, 16), (259, 3, 1), (262, 3, 1), (277, 3, 1), (278, 3, 10)]
    entries = [struct.pack(">HHIHH", tag, kind, 1, value, 0) for tag, kind, value in tags]
    offset = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries.insert(5, struct.pack(">HHII", 273, 4, 1, offset))
    entries.append(struct.pack(">HHII", 279, 4, 1, array.nbytes))
    content = strip + struct.pack(">H", len(entries)) + b"".join(entries) + struct.pack(">I", 0) + array.tobytes()
    (tmp_path / "a.tif").write_bytes(content)
    np.testing.assert_allclose(read_image(tmp_path / "a.tif")[..., 0], array / 65535, atol=1e-7)


def test_palettes_and_black_and_white(tmp_path):
    palette = Image.fromarray(COLOUR // 128 * 255).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", palette)), expected)
    ink = Image.fromarray(GRAY).convert("1")
    assert set(np.unique(read_image(save(tmp_path / "b.png", ink)))) == {0, 255}


@pytest.mark.parametrize(
    "image",
    [
        Image.merge("RGBA", [*Image.fromarray(COLOUR).split(), Image.new("L", (14, 10), 0)]),
        Image.merge("LA", [Image.fromarray(GRAY), Image.new("L", (14, 10), 0)]),
    ],
    ids=["colour", "gray"],
)
def test_what_is_transparent_becomes_black(tmp_path, image):
    visible = image.copy()
    visible.putalpha(255)
    assert read_image(save(tmp_path / "a.png", image)).max() == 0
    expected = np.asarray(visible.convert("RGB" if image.mode == "RGBA" else "L")).reshape(10, 14, -1)
    np.testing.assert_array_equal(read_image(save(tmp_path / "b.png", visible)), expected)


def test_a_transparent_palette_colour_becomes_black(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([250, 0, 0, 0, 250, 0])
    palette.putpixel((1, 0), 1)
    path = save(tmp_path / "a.png", palette, transparency=0)
    assert read_image(path).tolist() == [[[0, 0, 0], [0, 250, 0]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright_as_exif_says(tmp_path, orientation):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255  # a white corner at the top left
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", np.ascontiguousarray(undo[orientation](upright)), exif=exif)
    np.testing.assert_array_equal(read_image(path), upright)


def test_channels_on_request(tmp_path):
    gray, colour = save(tmp_path / "g.png"), save(tmp_path / "c.png", COLOUR)
    np.testing.assert_array_equal(read_image(gray, channels=3), np.repeat(GRAY[..., None], 3, -1))
    luma = COLOUR @ [0.299, 0.587, 0.114]
    assert np.abs(read_image(colour, channels=1)[..., 0] - luma).max() <= 1


@pytest.mark.parametrize("channels", [0, 2, 4, "RGB"])
def test_wrong_channels(tmp_path, channels):
    with pytest.raises(DataError, match=r"expected channels to be 1 \(gray\), 3 \(RGB\) or None .*, got"):
        read_image(save(tmp_path / "a.png"), channels=channels)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.95])
def test_truncated_pictures(tmp_path, suffix, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path / f"a{suffix}", noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match=rf"a\{suffix}: expected a PNG, JPEG, BMP or TIFF picture.*fetch or save"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be read"), (b"not a picture", "cannot be read"), (b"%!PS-Adobe-3.0 EPSF-3.0\n", "cannot be read")],
)
def test_no_picture_at_all(tmp_path, content, message):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_image(tmp_path / "a.png")


def test_other_formats_under_a_known_name_are_refused(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match="expected a PNG, JPEG, BMP or TIFF picture"):
        read_image(tmp_path / "a.png")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="no file"):
        read_image(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="no file; for a folder use read_folder"):
        read_image(tmp_path)
    with pytest.raises(DataError, match=r"none\.png.*No such file"):
        read_image(tmp_path / "none.png")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_are_refused(tmp_path, mode):
    with pytest.raises(DataError, match=r"expected 8 or 16 bits per pixel, got 32 .*scale it"):
        read_image(save(tmp_path / "a.tif", Image.new(mode, (4, 4))))


def test_several_pages_are_refused(tmp_path):
    page = Image.fromarray(GRAY)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    with pytest.raises(DataError, match="several pages; save each page as its own file"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("side", [9_200, 12_000, 50_000])
def test_a_huge_picture_is_refused_by_its_header(tmp_path, side):
    path = huge_png(tmp_path / "bomb.png", side, side)
    assert path.stat().st_size < 200
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, as users have it
        with pytest.raises(DataError, match=r"bomb\.png: expected at most 80,000,000 pixels \(shrink it"):
            read_image(path)
    with pytest.raises(DataError, match="expected at most 80,000,000 pixels"):  # and with warnings as errors
        read_image(path)


def test_the_limit_of_pixels_can_be_set(tmp_path):
    path = save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"expected at most 139 pixels .*got 140 by its header"):
        read_image(path, most_pixels=139)
    assert read_image(path, most_pixels=140).shape == (10, 14, 1)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_pictures_are_read_or_refused(tmp_path, seed):
    rng = np.random.default_rng(seed)
    refusals = []
    for suffix in (".png", ".jpg", ".bmp", ".tif"):
        exif = Image.Exif()
        exif[0x0112] = 6
        content = save(tmp_path / f"whole{suffix}", COLOUR, exif=exif).read_bytes()
        for _ in range(100):
            damaged = bytearray(content)
            for position in rng.integers(0, len(content), rng.integers(1, 6)):
                damaged[position] = rng.integers(0, 256)
            path = tmp_path / f"damaged{suffix}"
            path.write_bytes(damaged)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    assert read_image(path).dtype in (np.uint8, np.float32)
                except DataError as error:
                    refusals.append(str(error))
    assert len(refusals) > 50
    assert all("damaged." in refusal for refusal in refusals)


# --------------------------------------------------------------------------------------------------------------- fitting


def test_resize_counts_every_pixel():
    stripes = np.zeros((8, 64, 1), np.uint8)
    stripes[:, ::2] = 200
    small = fit_picture(stripes, (2, 4), "resize")
    np.testing.assert_allclose(small, 100, atol=2)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_crop_keeps_the_middle_and_the_proportions(dtype):
    wide = np.zeros((10, 30, 3), dtype)
    wide[:, 10:20] = 1
    np.testing.assert_array_equal(fit_picture(wide, 10, "crop"), np.ones((10, 10, 3), dtype))
    assert fit_picture(wide, 10, "crop").dtype == dtype
    np.testing.assert_array_equal(fit_picture(wide.swapaxes(0, 1), 10, "crop"), 1)
    np.testing.assert_array_equal(fit_picture(wide, (5, 15), "crop")[:, 6:9], 1)


def test_floats_stay_in_the_unit_interval():
    picture = np.random.default_rng(0).integers(0, 2, (30, 30, 1)).astype(np.float32)
    for size in (7, 50):
        fitted = fit_picture(picture, size, "resize")
        assert fitted.min() >= 0
        assert fitted.max() <= 1


@pytest.mark.parametrize("size", [0, (0, 5), (5, -1), (1, 2, 3), 2.5, "28", (2.0, 2)])
def test_impossible_sizes(tmp_path, size):
    save(tmp_path / "a.png")
    with pytest.raises(DataError, match="expected a whole number of pixels from 1"):
        read_folder(tmp_path, size=size)


# --------------------------------------------------------------------------------------------------------------- folders


def test_a_plain_folder_is_read_by_name(tmp_path):
    for number, name in enumerate(["b.png", "a.PNG", "c.bmp"]):
        save(tmp_path / name, np.full((4, 6), number, np.uint8))
    (tmp_path / "notes.txt").write_text("left alone")
    (tmp_path / "._a.png").write_text("of another system: left alone")
    (tmp_path / "sub.png").mkdir()
    data = read_folder(tmp_path)
    assert data.files == ("a.PNG", "b.png", "c.bmp")
    assert data.x.shape == (3, 4, 6, 1)
    assert data.x[:, 0, 0, 0].tolist() == [1, 0, 2]
    assert data.y is None
    assert data.source == str(tmp_path)


def test_one_16_bit_picture_makes_all_floats(tmp_path):
    save(tmp_path / "a.png", np.full((4, 4), 255, np.uint8))
    save(tmp_path / "b.png", np.full((4, 4), 65535, np.uint16))
    x = read_folder(tmp_path).x
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, 1)


@pytest.mark.parametrize(("fit", "rows"), [("resize", 2), ("crop", 2), ("tile", 4)])
def test_mixed_sizes_with_a_rule(tmp_path, fit, rows):
    save(tmp_path / "a.png", GRAY)
    save(tmp_path / "b.png", GRAY[:, :10])
    data = read_folder(tmp_path, size=(10, 8), fit=fit, overlap=2)
    assert data.x.shape == (rows, 10, 8, 1)
    if fit == "tile":
        assert data.files == ("a.png", "a.png", "b.png", "b.png")
        np.testing.assert_array_equal(data.x[1, ..., 0], GRAY[:, 6:])


def test_mixed_sizes_and_channels_without_a_rule(tmp_path):
    save(tmp_path / "a.png", GRAY)
    save(tmp_path / "b.png", GRAY[:, :10])
    message = r"pictures of one size, got \[10, 14, 1\] .* in a.png and \[10, 10, 1\] in b.png; pass size="
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path)
    save(tmp_path / "b.png", COLOUR)
    with pytest.raises(DataError, match=r"\[10, 14, 1\] .* \[10, 14, 3\] in b.png; .*channels=1 or 3"):
        read_folder(tmp_path)
    assert read_folder(tmp_path, channels=1).x.shape == (2, 10, 14, 1)
    assert read_folder(tmp_path, channels=3).x.shape == (2, 10, 14, 3)


def test_a_broken_picture_is_refused_or_left_out_with_one_warning(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    huge_png(tmp_path / "c.png", 9_200, 9_200)
    save(tmp_path / "d.png")
    with pytest.raises(DataError, match=r"b\.png: expected a PNG"):
        read_folder(tmp_path)
    with pytest.warns(UserWarning, match=r"(?s)pictures left out: 2\n.*b\.png: .*c\.png: ") as caught:
        data = read_folder(tmp_path, on_error="skip")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert data.files == ("a.png", "d.png")


def test_nothing_left(tmp_path):
    (tmp_path / "a.png").write_bytes(b"broken")
    with (
        pytest.warns(UserWarning, match=r"a\.png: expected a PNG"),
        pytest.raises(DataError, match="at least one picture that can be used, all were left out"),
    ):
        read_folder(tmp_path, on_error="skip")


def test_a_picture_smaller_than_a_tile_is_named(tmp_path):
    save(tmp_path / "small.png")
    with pytest.raises(DataError, match=r"small\.png: expected pictures of at least the size of a tile, got 10 pixels"):
        read_folder(tmp_path, size=12, fit="tile")


@pytest.mark.parametrize("inside", [(), ("notes.txt",), ("train", "test")])
def test_a_folder_without_pictures(tmp_path, inside):
    for name in inside:
        (tmp_path / name).mkdir()
    found = "got only" if inside else "got an empty folder"
    with pytest.raises(DataError, match=rf"expected pictures .*{found}.*pass the folder that holds them"):
        read_folder(tmp_path)


def test_what_is_no_folder(tmp_path):
    with pytest.raises(DataError, match="expected a folder of pictures, got nothing"):
        read_folder(tmp_path / "none")
    with pytest.raises(DataError, match="expected a folder of pictures, got a file"):
        read_folder(save(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "stretch"}, "expected fit 'resize', 'crop' or 'tile'"),
        ({"on_error": "ignore"}, "on_error 'raise' or 'skip'"),
        ({"fit": "tile"}, "expected the size of a tile"),
        ({"fit": "tile", "size": 4, "overlap": 4}, "overlap from 0 to less than the size of a tile"),
    ],
)
def test_impossible_settings(tmp_path, options, message):
    save(tmp_path / "a.png")
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path, **options)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("target", ["picture", "nothing", "circle"])
def test_links_out_of_the_folder_are_always_refused(tmp_path, on_error, target):
    folder = tmp_path / "folder"
    save(folder / "a.png")
    save(tmp_path / "secret.png")
    targets = {"picture": tmp_path / "secret.png", "nothing": "/nobody/none.png", "circle": folder / "b.png"}
    (folder / "b.png").symlink_to(targets[target])
    with pytest.raises(DataError, match=r"b\.png: expected a file.* got a symbolic link"):
        read_folder(folder, on_error=on_error)


def test_links_within_the_folder_are_followed(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    assert read_folder(tmp_path).files == ("a.png", "b.png")


# ----------------------------------------------------------------------------------------------------------------- MVTec


@pytest.fixture
def mvtec(tmp_path):
    """Three normal training pictures, two normal and two anomalous for the test."""
    root = tmp_path / "bottle"
    for number in range(3):
        save(root / "train" / "good" / f"{number:03}.png", COLOUR)
    for number in range(2):
        save(root / "test" / "good" / f"{number:03}.png", COLOUR)
    mask = np.zeros((10, 14), np.uint8)
    mask[2:4, 3:5] = 255
    save(root / "test" / "crack" / "000.png", COLOUR)
    save(root / "ground_truth" / "crack" / "000_mask.png", mask)
    save(root / "test" / "dent" / "000.png", COLOUR)
    save(root / "ground_truth" / "dent" / "000.png", mask[::-1])
    return root


def test_mvtec(mvtec):
    train, test = read_mvtec(mvtec)
    assert (train.name, len(train.x), train.kinds) == ("bottle", 3, ("good",) * 3)
    assert train.y is not None
    assert train.y.sum() == 0
    assert train.masks is None
    assert test.kinds == ("crack", "dent", "good", "good")
    assert test.y is not None
    assert test.y.tolist() == [1, 1, 0, 0]
    assert test.files == ("test/crack/000.png", "test/dent/000.png", "test/good/000.png", "test/good/001.png")
    assert test.masks is not None
    assert test.masks.sum((1, 2)).tolist() == [4, 4, 0, 0]
    assert test.masks[0, 2:4, 3:5].all()
    assert test.masks[1, 6:8, 3:5].all()
    np.testing.assert_array_equal(test.x[0], COLOUR)


@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_masks_are_fitted_with_their_pictures_and_lose_no_thin_defect(mvtec, fit):
    line = np.zeros((10, 14), np.uint8)
    line[:, 7] = 1
    save(mvtec / "ground_truth" / "crack" / "000_mask.png", line)
    _, test = read_mvtec(mvtec, size=3, fit=fit, channels=1)
    assert test.x.shape == (4, 3, 3, 1)
    assert test.masks is not None
    assert test.masks.shape == (4, 3, 3)
    assert test.masks[0].any(axis=1).all()
    assert not test.masks[0].all()


def test_masks_of_enlarged_pictures_stay_sharp(mvtec):
    _, test = read_mvtec(mvtec, size=(20, 28))
    assert test.masks is not None
    assert test.masks[0].sum() == 16
    assert test.masks[0, 4:8, 6:10].all()


def test_without_ground_truth_there_are_no_masks(mvtec):
    (mvtec / "ground_truth").rename(mvtec / "elsewhere")
    train, test = read_mvtec(mvtec)
    assert train.masks is None
    assert test.masks is None
    assert test.y is not None
    assert test.y.sum() == 2


def test_a_missing_mask(mvtec):
    (mvtec / "ground_truth" / "crack" / "000_mask.png").unlink()
    with pytest.raises(
        DataError, match=r"test/crack/000\.png: expected its mask at .*000_mask\.png, and there is none"
    ):
        read_mvtec(mvtec)
    with pytest.warns(UserWarning, match=r"pictures left out: 1\n.*expected its mask"):
        _, test = read_mvtec(mvtec, on_error="skip")
    assert test.kinds == ("dent", "good", "good")


def test_a_mask_of_another_size(mvtec):
    save(mvtec / "ground_truth" / "crack" / "000_mask.png", np.zeros((14, 10), np.uint8))
    message = r"000_mask\.png: expected a mask of the size of its picture, \[10, 14\] .*got \[14, 10\]; save it"
    with pytest.raises(DataError, match=message):
        read_mvtec(mvtec)


def test_a_broken_mask(mvtec):
    (mvtec / "ground_truth" / "crack" / "000_mask.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"000_mask\.png: expected a PNG"):
        read_mvtec(mvtec)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("part", ["test/crack/000.png", "ground_truth/crack/000_mask.png", "test/crack", "train"])
def test_mvtec_links_out_of_the_folder(mvtec, on_error, part):
    (mvtec / part).rename(mvtec.parent / "outside")
    (mvtec / part).symlink_to(mvtec.parent / "outside")
    with pytest.raises(DataError, match=r"got a symbolic link to .*outside"):
        read_mvtec(mvtec, on_error=on_error)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train").rename(root / "training"), "found no folder train"),
        (lambda root: (root / "test").rename(root / "testing"), "found no folder test"),
        (lambda root: (root / "train" / "bad").mkdir(), r"got train with \['bad', 'good'\].*use read_folder"),
        (lambda root: (root / "test" / "empty").mkdir(), "expected pictures .*got an empty folder"),
        (lambda root: save(root / "train" / "good" / "000.png", COLOUR[:5]), "expected pictures of one size"),
        (
            lambda root: [save(path, GRAY) for path in (root / "train" / "good").iterdir()],
            "expected training and test pictures alike",
        ),
    ],
)
def test_other_layouts(mvtec, spoil, message):
    spoil(mvtec)
    with pytest.raises(DataError, match=message):
        read_mvtec(mvtec)


def test_mvtec_is_not_tiled(mvtec):
    with pytest.raises(DataError, match=r"cut them with tiles\(dataset\.x, size, overlap\)"):
        read_mvtec(mvtec, size=4, fit="tile")
    (mvtec / "train" / ".cache").mkdir()
    assert len(read_mvtec(mvtec)) == 2  # hidden folders are left alone


# ----------------------------------------------------------------------------------------------------------------- tiles


@pytest.mark.parametrize("size", [8, (5, 7), (20, 30)])
@pytest.mark.parametrize("overlap", [0, 3, (1, 2)])
@pytest.mark.parametrize("trailing", [(), (3,)])
def test_tiles_stitched_are_the_pictures(size, overlap, trailing):
    x = np.random.default_rng(0).normal(size=(2, 20, 30, *trailing))
    cut, grid = tiles(x, size, overlap)
    assert len(cut) == 2 * len(grid.corners)
    np.testing.assert_allclose(stitch(cut, grid), x, rtol=1e-12)
    single = stitch(cut.astype(np.float32), grid)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, x, rtol=1e-6)


def test_tiles_cover_everything_and_overlap_enough():
    for whole in range(8, 40):
        _, grid = tiles(np.zeros((1, whole, 8)), 8, overlap=(3, 0))
        assert grid.tops[0] == 0
        assert grid.tops[-1] == whole - 8
        assert (np.diff(grid.tops) <= 5).all()


def test_no_seam_where_neighbours_disagree():
    _, grid = tiles(np.zeros((1, 64, 112)), 64, overlap=16)
    maps = np.stack([np.full((64, 64), value, float) for value in (0, 1)])
    blended = stitch(maps, grid)[0]
    assert np.abs(np.diff(blended, axis=1)).max() < 0.15  # in steps of 1/16 on average, where it would be 1 at once
    assert blended[:, 0].max() == 0
    assert blended[:, -1].min() == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiles(np.zeros((1, 6, 10)), 8), "got 6 pixels for tiles of 8; use smaller tiles"),
        (lambda: tiles(np.zeros((1, 6, 10)), 4, overlap=4), "overlap from 0 to less than the size"),
        (lambda: tiles(np.zeros((1, 6, 10)), 0), "overlap from 0 to less than the size"),
        (lambda: tiles(np.zeros((6, 10)), 4), r"expected pictures of shape \[rows, height, width"),
        (lambda: stitch(np.zeros((3, 4, 4)), tiles(np.zeros((1, 8, 8)), 4)[1]), r"expected 4 maps .*got shape \[3, 4"),
    ],
)
def test_impossible_tiles(call, message):
    with pytest.raises(DataError, match=message):
        call()


# ------------------------------------------------------------------------------------------------------------- the record

X = np.zeros((3, 4, 5, 1), np.uint8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"x": X[..., 0]}, r"\[rows, height, width, channels\] .*got shape \[3, 4, 5\]; .*x\[\.\.\., None\]"),
        ({"x": X[:0]}, "at least one of each"),
        ({"x": np.zeros((2, 3, 32, 32), np.uint8)}, r"channels first; move them to the end with np\.moveaxis"),
        ({"x": X.astype(float)}, "expected pictures of uint8, or of float32"),
        ({"x": X.astype(np.float32) - 1}, r"finite floats in \[0, 1\], got values from -1"),
        ({"x": X.astype(np.float32) * np.nan}, r"finite floats in \[0, 1\], got values from nan"),
        ({"y": np.zeros(2)}, "expected 3 labels"),
        ({"y": np.array([0, 1, 7])}, r"values \[0, 1, 7\]; map classes first"),
        ({"masks": np.zeros((3, 4, 4), bool)}, r"boolean masks of shape \[3, 4, 5\] .*got bool of shape \[3, 4, 4\]"),
        ({"masks": np.zeros((3, 4, 5))}, "float64 .*compare with > 0"),
        ({"masks": np.ones((3, 4, 5), bool), "y": np.array([1, 0, 0])}, r"rows \[1, 2\] are labelled normal but"),
        ({"kinds": ("good",)}, "one entry of kinds per row, got 1 for 3 rows"),
        ({"files": ("a", "b")}, "one entry of files per row"),
    ],
)
def test_records_that_do_not_fit(fields, message):
    with pytest.raises(DataError, match=message):
        ImageDataset("toy", **{"x": X, **fields})


def test_taking_rows_takes_all_that_belongs_to_them():
    masks = np.zeros((3, 4, 5), bool)
    masks[2] = True
    x = X + np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    data = ImageDataset("toy", x, np.array([0, 0, 1]), masks, ("a", "b", "c"), "by hand", ("f", "g", "h"))
    for rows in ([2, 0], np.array([2, 0])):
        taken = data.take(rows)
        assert taken.x[:, 0, 0, 0].tolist() == [2, 0]
        assert (taken.kinds, taken.files, taken.source) == (("c", "a"), ("h", "f"), "by hand")
        assert taken.y is not None
        assert taken.y.tolist() == [1, 0]
        assert taken.masks is not None
        assert taken.masks.any((1, 2)).tolist() == [True, False]
    assert data.take(data.y == 1).kinds == ("c",)


@pytest.mark.parametrize("module", ["folders", "images", "tiles"])
def test_the_examples_in_the_docstrings(module):
    failed, attempted = doctest.testmod(importlib.import_module(f"jaxad.data.{module}"))
    assert attempted
    assert not failed
