"""data/pictures.py: which files are meant, the right pixels of every mode, and one line for every broken file."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from pix2seq_hf.data.pictures import PictureError, expand_lists, find_pictures, load_picture, read_jpeg_header
from pix2seq_hf.data.rows import load_pixels

RED, GREEN = (255, 0, 0), (0, 128, 0)


@pytest.fixture
def two_colors():
    """A picture of 8 x 4 pixels whose left half is red and right half green."""
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4], pixels[:, 4:] = RED, GREEN
    return Image.fromarray(pixels)


def pixels_of(path):
    image = load_picture(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def test_palette_and_plain_pixels_are_exact(tmp_path, two_colors):
    expected = np.asarray(two_colors)
    two_colors.save(tmp_path / "plain.png")
    two_colors.quantize(8).save(tmp_path / "palette.png")
    assert Image.open(tmp_path / "palette.png").mode == "P"
    for name in ("plain.png", "palette.png"):
        assert np.abs(pixels_of(tmp_path / name) - expected).max() == 0, name


def test_cmyk_is_converted(tmp_path, two_colors):
    two_colors.convert("CMYK").save(tmp_path / "cmyk.tif")
    assert np.abs(pixels_of(tmp_path / "cmyk.tif") - np.asarray(two_colors)).max() <= 1


def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert pixels_of(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_gray_and_gray_with_alpha(tmp_path):
    gray = np.array([[0, 100, 255]], np.uint8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    assert pixels_of(tmp_path / "gray.png")[0].tolist() == [[0] * 3, [100] * 3, [255] * 3]
    Image.merge("LA", [Image.fromarray(gray), Image.fromarray(np.array([[255, 255, 0]], np.uint8))]).save(
        tmp_path / "la.png"
    )
    assert pixels_of(tmp_path / "la.png")[0].tolist() == [[0] * 3, [100] * 3, [255] * 3]


def test_transparency_shows_white(tmp_path):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    assert pixels_of(tmp_path / "alpha.png")[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_exif_rotation_is_applied(tmp_path, two_colors):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    two_colors.save(tmp_path / "turned.png", exif=exif)
    pixels = pixels_of(tmp_path / "turned.png")
    assert pixels.shape == (8, 4, 3)
    assert pixels[0, 0].tolist() == list(RED) and pixels[-1, 0].tolist() == list(GREEN)


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (5, 5), color) for color in (RED, GREEN)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert pixels_of(tmp_path / "moving.gif")[0, 0].tolist() == list(RED)


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000)])
def test_extreme_shapes(tmp_path, size):
    Image.new("RGB", size, RED).save(tmp_path / "thin.png")
    assert load_picture(tmp_path / "thin.png").size == size


def broken_files(folder, picture):
    """Files that are no usable pictures, with a word of the line that each must give."""
    picture.resize((200, 200)).save(folder / "whole.jpg")
    content = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    picture.resize((200, 200)).save(folder / "whole.png")
    (folder / "truncated.png").write_bytes((folder / "whole.png").read_bytes()[:100])
    (folder / "empty.jpg").touch()
    (folder / "page.jpg").write_text("<html>404 not found</html>")
    (folder / "folder.jpg").mkdir()
    return {
        "truncated.jpg": "truncated",
        "truncated.png": "truncated",
        "empty.jpg": "is empty",
        "page.jpg": "is not a picture",
        "folder.jpg": "is a folder",
        "missing.jpg": "No such file",
        "nul\0.jpg": "null",
    }


def test_broken_files_give_one_line_with_the_name(tmp_path, two_colors):
    for name, word in broken_files(tmp_path, two_colors).items():
        with pytest.raises(PictureError) as caught:
            load_picture(tmp_path / name)
        message = str(caught.value)
        assert word in message, message
        assert name.rstrip("\0.jpg") in message and "\n" not in message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PictureError, match="not a regular file"):
        load_picture(tmp_path / "pipe.jpg")


def png_of_size(width, height):
    """A valid PNG header that promises `width` x `height` pixels, with hardly any data behind it."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(11_000, 10_000), (14_000, 10_000), (60_000, 60_000)])
def test_bombs_are_refused_before_decoding(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png_of_size(*size))
    limit_before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PictureError, match=r"bomb\.png: has .*limit") as caught:
            load_picture(tmp_path / "bomb.png")
    assert "100,000,000" in str(caught.value)
    assert Image.MAX_IMAGE_PIXELS == limit_before


def test_pixel_limit_is_an_option(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "small.png")
    assert load_picture(tmp_path / "small.png", max_pixels=600).size == (30, 20)
    with pytest.raises(PictureError, match=r"600 pixels \(30 x 20\), the limit is 599"):
        load_picture(tmp_path / "small.png", max_pixels=599)


def test_find_pictures_in_files_folders_and_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "deep/c.webp", "odd[1].jpg", "empty/x.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def names(*sources):
        found, problems = find_pictures(sources)
        return [path.as_posix() for path in found], problems

    assert names("b.jpg", "nowhere.jpg") == (["b.jpg", "nowhere.jpg"], [])  # missing files are named when loaded
    assert names(str(tmp_path))[0] == [f"{tmp_path.as_posix()}/{name}" for name in ("a.PNG", "b.jpg", "odd[1].jpg")]
    assert names("**/*.webp", "odd[1].jpg") == (["deep/c.webp", "odd[1].jpg"], [])
    assert names("b.jpg", "*.jpg", "./b.jpg")[0] == ["b.jpg", "odd[1].jpg"]
    assert names("*.tiff", "empty") == ([], ["*.tiff: matches no file", "empty: is a folder without pictures"])


def test_damaged_exif_data_do_not_spoil_a_picture(tmp_path, two_colors):
    exif = Image.Exif()
    exif[0x0112] = 6
    damaged = exif.tobytes().replace(b"MM\0*", b"M\xaf\0*")  # no longer the header that EXIF data begin with
    two_colors.save(tmp_path / "damaged.webp", exif=damaged, lossless=True)
    assert pixels_of(tmp_path / "damaged.webp").shape == (4, 8, 3)


def test_lists_on_a_stream_are_put_in_place():
    stream = io.BytesIO("a.jpg\n\n with space.png\r\nü.png".encode() + b"\n\xff.png")
    names = ["a.jpg", " with space.png", "ü.png", os.fsdecode(b"\xff.png")]
    assert expand_lists(["x.png", "-", "y"], stream) == ["x.png", *names, "y"]
    assert expand_lists(["-"], io.BytesIO()) == []
    with pytest.raises(ValueError, match="only one"):
        expand_lists(["-", "-"], io.BytesIO())


def test_the_stream_is_not_touched_without_need():
    assert expand_lists(["a", "b"], None) == ["a", "b"]


def test_contents_of_files_are_read_as_files_are(tmp_path, two_colors):
    two_colors.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert load_picture(content, name="a.png").tobytes() == load_picture(tmp_path / "a.png").tobytes()
    for broken, reason in ((b"", "is empty"), (b"words", "is not a picture"), (content[:-30], "is truncated")):
        with pytest.raises(PictureError, match=f"^shard 3: {reason}"):
            load_picture(broken, name="shard 3")


@pytest.mark.filterwarnings("ignore:The image decoding")  # torchvision's, on its way out
class TestPixelsOfATrainingPicture:
    """`load_pixels` decodes JPEG by another library than the rest: it must not matter."""

    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    @pytest.mark.parametrize("options", [{}, {"quality": 30}, {"progressive": True}, {"subsampling": 0}])
    def test_jpeg_gives_the_pixels_of_pillow(self, tmp_path, monkeypatch, mode, options):
        noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
        path = tmp_path / "noise.jpg"
        Image.fromarray(noise).convert(mode).save(path, **options)
        found = load_pixels(path, (37, 53))
        assert found.dtype == torch.uint8 and found.shape == (3, 37, 53)
        assert np.array_equal(found.permute(1, 2, 0), np.asarray(load_picture(path)))
        assert load_pixels("a.jpg", (37, 53), path.read_bytes()).equal(found)
        monkeypatch.setattr("pix2seq_hf.data.rows.decode_jpeg", None)
        assert load_pixels(path, (37, 53)).equal(found)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_turned_jpeg(self, tmp_path, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8))
        noise.save(tmp_path / "turned.jpg", exif=exif)
        with Image.open(tmp_path / "turned.jpg") as image:
            stored = np.array(image)
        assert np.array_equal(load_pixels(tmp_path / "turned.jpg", (24, 40)).permute(1, 2, 0), stored)
        if orientation >= 5:
            upright = np.asarray(load_picture(tmp_path / "turned.jpg"))
            assert np.array_equal(load_pixels(tmp_path / "turned.jpg", (40, 24)).permute(1, 2, 0), upright)

    def test_broken_files_give_one_line_with_the_name(self, tmp_path, two_colors):
        for name, word in broken_files(tmp_path, two_colors).items():
            with pytest.raises(PictureError, match=word) as caught:
                load_pixels(tmp_path / name, (200, 200))
            assert "\n" not in str(caught.value) and name.rstrip("\0.jpg") in str(caught.value)
        content = (tmp_path / "truncated.jpg").read_bytes()
        with pytest.raises(PictureError, match=r"picture 3: is truncated"):
            load_pixels("picture 3", (200, 200), content)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"x" * 70}, {"icc_profile": b"y" * 70_000}])
def test_headers_of_jpeg_files(options):
    for mode, colors in {"L": 1, "RGB": 3, "CMYK": 4}.items():
        stream = io.BytesIO()
        Image.new(mode, (53, 37)).save(stream, "JPEG", **options)
        content = stream.getvalue()
        assert read_jpeg_header(content) == (37, 53, colors)
        for length in range(0, 400, 7):  # damaged files are never read as something else
            assert read_jpeg_header(content[:length]) in (None, (37, 53, colors))
    png = io.BytesIO()
    Image.new("RGB", (53, 37)).save(png, "PNG")
    assert read_jpeg_header(png.getvalue()) is None and read_jpeg_header(b"") is None


def test_an_annotated_bomb_is_not_decoded(tmp_path, monkeypatch):
    path = tmp_path / "large.jpg"
    Image.new("L", (400, 300)).save(path)
    monkeypatch.setattr("pix2seq_hf.data.rows.MAX_PIXELS", 400 * 300 - 1)
    monkeypatch.setattr("pix2seq_hf.data.rows.decode_jpeg", lambda *arguments: pytest.fail("decoded"))
    assert load_pixels(path, (300, 400)).shape == (3, 300, 400)  # by Pillow, which has a limit of its own
