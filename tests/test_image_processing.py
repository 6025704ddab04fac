"""Pictures of every kind become the right pixels, in both backends, and boxes find back to the picture."""

import base64
import io
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from pix2seq_hf.image_processing_pix2seq import (
    Pix2SeqImageProcessor,
    Pix2SeqImageProcessorPil,
    load_rgb_image,
    open_image,
    resized_size,
    scale_boxes,
    upright_size,
)

BACKENDS = [Pix2SeqImageProcessor, Pix2SeqImageProcessorPil]
SIZE = {"height": 32, "width": 48}


@pytest.fixture(params=BACKENDS, ids=["torchvision", "pil"])
def backend(request):
    return request.param


def pixels(backend, image, **options):
    """The network input of one picture at its own size: no resizing, no padding, so pixels can be read off."""
    options = {"do_resize": False, "do_pad": False, **options}
    return backend()(image, return_tensors="pt", **options)["pixel_values"][0]


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def saved(image, tmp_path, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return str(path)


@pytest.mark.parametrize(
    "original, target, expected",
    [
        ((480, 640), (640, 640), (480, 640)),
        ((17, 23), (160, 160), (118, 160)),  # 118.26: upscales
        ((5, 4), (2, 2), (2, 2)),  # 1.6
        ((2, 5), (10, 15), (6, 15)),
        ((2, 4), (10, 5), (2, 5)),  # 2.5 rounds to even
        ((6, 4), (21, 100), (21, 14)),
        ((1, 5000), (640, 640), (1, 640)),  # the reference rounds the height to 0 and fails
        ((5000, 1), (640, 640), (640, 1)),
        ((1, 1), (640, 640), (640, 640)),
    ],
)
def test_resized_size(original, target, expected):
    assert resized_size(original, target) == expected


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_resized_size_refuses_empty_pictures(size):
    with pytest.raises(ValueError, match="positive"):
        resized_size(size, (640, 640))


def test_padding_and_scale(backend):
    image = noise(20, 30, 3)
    result = backend(size=SIZE)(image, return_tensors="pt")["pixel_values"]
    assert result.shape == (1, 3, 32, 48) and result.dtype == torch.float32
    square = backend(size=SIZE)(noise(24, 24, 3), return_tensors="pt")["pixel_values"][0]
    assert (square[:, :, 32:] == np.float32(0.3)).all()
    assert (square[:, :, 31] != np.float32(0.3)).any()
    white = np.full((32, 32, 3), 255, dtype=np.uint8)
    result = backend(size=SIZE, padding_value=0.0)(white, return_tensors="pt")["pixel_values"][0]
    assert (result[:, :, :32] == 1).all() and (result[:, :, 32:] == 0).all()


def test_backends_agree():
    shapes = [(90, 70, 3), (33, 200, 3), (10, 10, 3), (1, 300, 3), (300, 1, 3), (5000, 7, 3), (640, 2, 3)]
    images = [noise(*shape) for shape in shapes]
    for height, width in ((32, 48), (200, 1), (1, 200), (1, 1)):
        size = {"height": height, "width": width}
        first, second = (cls(size=size)(images, return_tensors="pt")["pixel_values"] for cls in BACKENDS)
        assert (first - second).abs().max() < 1e-5, size


def test_resizing_is_done_in_float():
    image = noise(64, 96, 3)
    rounded = np.asarray(Image.fromarray(image).resize((48, 32), Image.Resampling.BILINEAR))
    result = Pix2SeqImageProcessor(size=SIZE)(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0) * 255
    assert 0.3 < np.abs(result - rounded).max() <= 1  # Pillow rounds to 8 bits after each axis


def test_every_container_gives_the_same_pixels(backend, tmp_path):
    array = noise(20, 30, 3)
    first = np.moveaxis(array, -1, 0)
    path = saved(Image.fromarray(array), tmp_path, "picture.png")
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    read_only = array.copy()
    read_only.flags.writeable = False
    images = [
        Image.fromarray(array),
        array,
        first,
        np.ascontiguousarray(first),
        array[::-1, ::-1][::-1, ::-1],
        read_only,
        torch.from_numpy(array),
        torch.from_numpy(first.copy()),
        path,
        tmp_path / "picture.png",
        encoded,
        "data:image/png;base64," + encoded,
        array.astype(np.int64),
        array.astype(np.float64),
        array.astype(">f4"),
        torch.from_numpy(first.astype(np.float32)).to(torch.bfloat16).float(),
        first.astype(np.uint16) * 257,
    ]
    processor = backend(size=SIZE)
    expected = processor(images[0], return_tensors="pt")["pixel_values"]
    for number, image in enumerate(images):
        result = processor(image, return_tensors="pt")["pixel_values"]
        if number == 15:  # bfloat16 holds 8 bits
            assert (result - expected).abs().max() < 1 / 128
        else:
            assert (result - expected).abs().max() < 1e-6, number
    together = processor(images[:15], return_tensors="pt")["pixel_values"]
    assert together.shape == (15, 3, 32, 48) and (together - expected).abs().max() < 1e-6
    nested = processor([images[:2], images[2:5]], return_tensors="pt")["pixel_values"]
    assert nested.shape[0] == 5
    stacked = processor(np.stack([array, array]), return_tensors="pt")["pixel_values"]
    assert torch.equal(stacked, expected.expand(2, -1, -1, -1))


def test_float_pictures_in_zero_to_one(backend):
    array = noise(32, 48, 3)
    scaled = array.astype(np.float32) * np.float32(1 / 255)
    expected = pixels(backend, array)
    assert torch.equal(pixels(backend, scaled, do_rescale=False), expected)


def test_gray_pictures(backend):
    gray = noise(20, 30)
    expected = pixels(backend, np.repeat(gray[..., None], 3, axis=-1))
    for image in (gray, gray[None], gray[..., None], torch.from_numpy(gray), Image.fromarray(gray)):
        assert torch.equal(pixels(backend, image), expected)
    black_and_white = gray > 127
    expected = np.repeat(black_and_white[None].astype(np.float32), 3, axis=0)
    for image in (black_and_white, Image.fromarray(black_and_white)):
        assert np.allclose(pixels(backend, image), expected, atol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_gray_is_scaled_not_clipped(backend, tmp_path, suffix):
    gray = noise(20, 30, dtype=np.uint16)
    path = saved(Image.fromarray(gray), tmp_path, f"deep.{suffix}")
    expected = (gray / 65535).astype(np.float32)
    for image in (path, Image.open(path), gray, gray[None], torch.from_numpy(gray)):
        result = pixels(backend, image)
        assert result.shape == (3, 20, 30)
        assert np.abs(result.numpy() - expected).max() < 1e-6
    drawn = np.asarray(load_rgb_image(path))
    assert drawn.dtype == np.uint8 and np.abs(drawn / 255 - expected[..., None]).max() <= 0.5 / 255 + 1e-6


def test_modes_without_a_stated_range(backend):
    gray = noise(8, 8).astype(np.float32)
    assert np.allclose(pixels(backend, Image.fromarray(gray.astype(np.int32)))[0], gray / 255, atol=1e-6)
    assert np.allclose(pixels(backend, Image.fromarray(gray.astype(np.int32) * 257))[0], gray / 255, atol=1e-6)
    assert np.allclose(pixels(backend, Image.fromarray(gray))[0], gray / 255, atol=1e-6)
    assert np.allclose(pixels(backend, Image.fromarray(gray / 255))[0], gray / 255, atol=1e-6)


def test_cmyk_jpeg(backend, tmp_path):
    image = Image.new("CMYK", (16, 8), (0, 255, 255, 0))  # red
    result = pixels(backend, saved(image, tmp_path, "red.jpg", quality=100))
    assert result.shape == (3, 8, 16)
    assert (result - torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)).abs().max() < 0.02


def test_transparency_shows_white(backend, tmp_path):
    rgba = np.zeros((5, 6, 4), dtype=np.uint8)
    rgba[..., 0] = 200  # red lies under all of it
    rgba[:, 3:, 3] = 255  # and shows on the right
    rgba[0, :, 3] = 128
    alpha = rgba[..., 3:] / 255
    expected = np.moveaxis((rgba[..., :3] * alpha + 255 * (1 - alpha)) / 255, -1, 0)
    image = Image.fromarray(rgba)
    path = saved(image, tmp_path, "alpha.png")
    for given in (image, path, rgba, np.moveaxis(rgba, -1, 0), torch.from_numpy(rgba)):
        assert np.abs(pixels(backend, given).numpy() - expected).max() < 1 / 255
    assert np.abs(pixels(backend, rgba / 255, do_rescale=False).numpy() - expected).max() < 1e-6
    gray_alpha = image.convert("LA")
    assert (pixels(backend, gray_alpha)[:, 1:, :3] == 1).all()


def test_palettes(backend, tmp_path):
    image = Image.new("P", (6, 4))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.paste(1, (3, 0, 6, 4))
    result = pixels(backend, saved(image, tmp_path, "palette.png"))
    assert result[:, 0, 0].tolist() == [1, 0, 0] and result[:, 0, 5].tolist() == [0, 1, 0]
    clear = pixels(backend, saved(image, tmp_path, "clear.png", transparency=1))
    assert clear[:, 0, 0].tolist() == [1, 0, 0] and clear[:, 0, 5].tolist() == [1, 1, 1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(backend, tmp_path, orientation):
    upright = np.zeros((8, 16, 3), dtype=np.uint8)
    upright[:4, :4] = 255  # white in the top left corner
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = Image.fromarray(upright)
    if orientation in undo:
        image = image.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(image, tmp_path, "turned.png", exif=exif)
    for given in (path, Image.open(path)):
        assert np.array_equal(pixels(backend, given).numpy().transpose(1, 2, 0), upright / np.float32(255))
    assert upright_size(Image.open(path)) == (8, 16)
    assert load_rgb_image(path).size == (16, 8)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_animations_give_their_first_frame(backend, tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(frames[0], tmp_path, f"moving.{suffix}", save_all=True, append_images=frames[1:], **options)
    result = pixels(backend, path)
    assert (result == torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)).all()


@pytest.mark.parametrize("height, width", [(1, 1), (1, 5000), (5000, 1), (2, 3), (1, 3)])
def test_extreme_shapes(backend, height, width):
    array = noise(height, width, 3)
    processor = backend(size={"height": 640, "width": 640})
    results = [processor(image, return_tensors="pt")["pixel_values"] for image in (Image.fromarray(array), array)]
    assert results[0].shape == (1, 3, 640, 640) and torch.isfinite(results[0]).all()
    assert torch.equal(*results)  # an RGB array of one row is not taken for a gray one
    assert -1e-6 <= results[0].min() and results[0].max() <= 1 + 1e-6


def test_addresses(backend, tmp_path):
    array = noise(20, 30, 3)
    saved(Image.fromarray(array), tmp_path, "picture.png")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *arguments: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        result = pixels(backend, address + "picture.png")
        assert torch.equal(result, pixels(backend, array))
        with pytest.raises(OSError, match="404"):
            pixels(backend, address + "missing.png")
        server.shutdown()


def test_bad_files_are_named(tmp_path):
    empty, text, cut, broken = (tmp_path / name for name in ("empty.png", "text.jpg", "cut.jpg", "broken.png"))
    empty.write_bytes(b"")
    text.write_text("not a picture")
    Image.fromarray(noise(64, 64, 3)).save(cut)
    cut.write_bytes(cut.read_bytes()[:-500])
    Image.fromarray(noise(64, 64, 3)).save(broken)
    content = bytearray(broken.read_bytes())
    content[60:90] = bytes(30)
    broken.write_bytes(content)
    for path in (empty, text, cut, broken, tmp_path, tmp_path / "missing.png"):
        with pytest.raises((OSError, ValueError), match=path.name) as caught:
            open_image(str(path))
        assert "\n" not in str(caught.value)


def test_decompression_bomb(tmp_path, monkeypatch):
    path = saved(Image.fromarray(noise(64, 64, 3)), tmp_path, "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 3)
    with pytest.raises(ValueError, match=r"bomb\.png"):
        open_image(path)


def test_mistakes_get_a_clear_line(backend):
    image = noise(20, 30, 3)
    with pytest.raises(ValueError, match="height and width"):
        backend(size={"shortest_edge": 32})
    with pytest.raises(ValueError, match="crop"):
        backend(size=SIZE)(image, do_center_crop=True, crop_size=SIZE)
    with pytest.raises(ValueError, match="60 x 60"):
        backend(size=SIZE)(noise(60, 60, 3), do_resize=False)
    with pytest.raises(ValueError, match="channels"):
        backend(size=SIZE)(noise(20, 30, 7))
    with pytest.raises(ValueError, match="empty"):
        backend(size=SIZE)([])
    with pytest.raises(TypeError, match="int"):
        backend(size=SIZE)([7])


def test_normalisation_on_request(backend):
    image = noise(32, 48, 3)
    options = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.2, 0.1]}
    result = pixels(backend, image, **options)
    expected = (pixels(backend, image) - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.5, 0.2, 0.1]
    ).view(3, 1, 1)
    assert (result - expected).abs().max() < 1e-5


def test_save_and_load(backend, tmp_path):
    processor = backend(size={"height": 64, "width": 96}, padding_value=0.5)
    processor.save_pretrained(tmp_path)
    again = backend.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert again.to_dict()["size"] == {"height": 64, "width": 96} and again.padding_value == 0.5


def test_without_torchvision(tmp_path):
    array = noise(20, 30, 3)
    np.save(tmp_path / "picture.npy", array)
    Pix2SeqImageProcessor(size=SIZE).save_pretrained(tmp_path)
    script = """
import sys
sys.modules["torchvision"] = None
import numpy, pix2seq_hf
from transformers import AutoImageProcessor
processor = AutoImageProcessor.from_pretrained(sys.argv[1])
assert type(processor) is pix2seq_hf.Pix2SeqImageProcessorPil, type(processor)
assert type(pix2seq_hf.Pix2SeqProcessor().image_processor) is pix2seq_hf.Pix2SeqImageProcessorPil
pixels = processor(numpy.load(sys.argv[1] + "/picture.npy"), return_tensors="np")["pixel_values"]
numpy.save(sys.argv[1] + "/pixels.npy", pixels)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    expected = Pix2SeqImageProcessorPil(size=SIZE)(array, return_tensors="np")["pixel_values"]
    assert np.array_equal(np.load(tmp_path / "pixels.npy"), expected)


def test_scale_boxes_undoes_the_padding():
    # 20 x 40 into 64 x 64: the picture fills the upper 32 rows
    boxes = scale_boxes(torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.25, 0.5, 0.125, 0.25]]), (20, 40), (64, 64))
    assert boxes.tolist() == [[0, 0, 40, 20], [20, 10, 10, 5]]
    assert scale_boxes(torch.zeros(0, 4), (20, 40), (64, 64)).shape == (0, 4)


def test_post_process_object_detection(backend):
    outputs = {
        "scores": torch.tensor([[0.9, 0.4, 0.8], [0.2, 0.1, 0.0]]),
        "labels": torch.tensor([[7, 8, 0], [1, 2, 3]]),
        "pred_boxes": torch.tensor([[[0.0, 0.0, 0.5, 1.0]] * 3] * 2),
    }
    processor = backend(size={"height": 64, "width": 64})
    sizes = torch.tensor([[20, 40], [64, 64]])
    found, nothing = processor.post_process_object_detection(outputs, 0.5, sizes)
    assert found["labels"].tolist() == [7]  # the slot without a label is left out whatever its score
    assert found["scores"].tolist() == pytest.approx([0.9])
    assert found["boxes"].tolist() == [[0, 0, 40, 20]]
    assert nothing["boxes"].shape == (0, 4) and nothing["labels"].shape == nothing["scores"].shape == (0,)
    relative = processor.post_process_object_detection(outputs, threshold=0.0)
    assert relative[0]["boxes"].tolist() == [[0, 0, 1, 0.5]] * 2 and len(relative[1]["labels"]) == 2
    with pytest.raises(ValueError, match="1 target_sizes were given for 2 pictures"):
        processor.post_process_object_detection(outputs, 0.5, [(20, 40)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", [(480, 640, 3), (1, 5000, 3), (3, 20000, 3), (2000, 3000, 3)])
def test_on_a_gpu(shape):
    image = noise(*shape)
    processor = Pix2SeqImageProcessor()
    expected = processor(image, return_tensors="pt")["pixel_values"]
    for given in (image, torch.from_numpy(image).cuda()):
        result = processor(given, device="cuda", return_tensors="pt")["pixel_values"]
        assert result.is_cuda and (result.cpu() - expected).abs().max() < 1e-5
