"""data/video.py: frames with their numbers, upright, and one line where a video or a library is missing."""

import sys

import numpy as np
import pytest
from PIL import Image

from pix2seq_hf.data import video
from pix2seq_hf.data.pictures import PictureError
from pix2seq_hf.data.video import Source, find_reader, is_video, list_sources, read_frames

SIZE = (48, 64)  # height, width
QUARTER_TURN = ((0, 1, 0), (-1, 0, 0), (0, 0, 1))  # of a film's display matrix: clockwise, as a phone held upright


def gray_of(number):
    return 30 * number


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Seven frames at ten per second: the left half red, the right half brighter from frame to frame."""
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        for number in range(7):
            pixels = np.full((*SIZE, 3), gray_of(number), np.uint8)
            pixels[:, :32] = (250, 20, 20)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


READERS = {
    "torchcodec": (video._has_torchcodec, video._read_with_torchcodec),
    "av": (video._has_av, video._read_with_av),
}


@pytest.fixture(params=READERS)
def reader(request, monkeypatch):
    """Each library that is installed in turn."""
    is_usable, read = READERS[request.param]
    if not is_usable():
        pytest.skip(f"{request.param} is not installed")
    monkeypatch.setattr(video, "find_reader", lambda name: read)


def test_frames_have_numbers_times_and_pixels(reader, clip):
    frames = list(read_frames(clip))
    assert [frame.number for frame in frames] == list(range(7))
    assert [frame.seconds for frame in frames] == pytest.approx([number / 10 for number in range(7)])
    for frame in frames:
        assert (frame.image.mode, frame.image.size) == ("RGB", SIZE[::-1])
        assert np.abs(np.array(frame.image.getpixel((50, 20))) - gray_of(frame.number)).max() < 10
        assert np.abs(np.array(frame.image.getpixel((10, 20))) - (250, 20, 20)).max() < 25


@pytest.mark.parametrize(("step", "numbers"), [(3, [0, 3, 6]), (7, [0]), (100, [0])])
def test_every_nth_frame(reader, clip, step, numbers):
    frames = list(read_frames(clip, step))
    assert [frame.number for frame in frames] == numbers
    assert np.abs(np.array(frames[-1].image.getpixel((50, 20))) - gray_of(numbers[-1])).max() < 10


def test_films_of_phones_are_turned_upright(reader, clip, tmp_path):
    content = bytearray(clip.read_bytes())
    matrix = content.index(b"tkhd") + 44
    for row, scale in enumerate((1 << 16, 1 << 16, 1 << 30)):
        for column in range(3):
            number = QUARTER_TURN[row][column] * (1 << 30 if column == 2 else scale if row < 2 else 1 << 16)
            start = matrix + 4 * (3 * row + column)
            content[start : start + 4] = number.to_bytes(4, "big", signed=True)
    (tmp_path / "phone.mp4").write_bytes(content)
    frame = next(read_frames(tmp_path / "phone.mp4"))
    assert frame.image.size == SIZE  # now higher than wide
    assert np.abs(np.array(frame.image.getpixel((24, 10))) - (250, 20, 20)).max() < 25  # left has become top
    assert max(frame.image.getpixel((24, 54))) < 25


def test_files_that_are_no_videos(reader, clip, tmp_path):
    (tmp_path / "text.mp4").write_text("no video " * 100)
    (tmp_path / "empty.mp4").touch()
    for name, words in (("text", "is not a video"), ("empty", "is empty"), ("gone", "No such file")):
        path = tmp_path / f"{name}.mp4"
        with pytest.raises(PictureError, match=words) as caught:
            list(read_frames(path))
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    with pytest.raises(PictureError, match=r"its frames have 3,072 pixels \(64 x 48\), the limit is 3,000"):
        list(read_frames(clip, max_pixels=3000))


def test_damaged_videos_give_what_is_whole(reader, clip, tmp_path):
    """Whatever the damage, nothing but `PictureError` is raised, and no frame comes twice."""
    content = clip.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(20):
        damaged = bytearray(content)
        if trial % 2:
            for place in rng.integers(0, len(content), 60):
                damaged[place] = int(rng.integers(256))
        else:
            del damaged[int(rng.integers(1, len(content))) :]
        (tmp_path / "bad.mp4").write_bytes(damaged)
        problems = []
        sources = list(list_sources([tmp_path / "bad.mp4"], problems))
        assert len(problems) <= 1 and all(line.startswith(f"{tmp_path / 'bad.mp4'}: ") for line in problems)
        numbers = [source.frame for source in sources]
        assert numbers == sorted(set(numbers))


def test_pictures_and_videos_in_order(clip, tmp_path):
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    problems = []
    sources = list(list_sources([tmp_path / "a.png", clip, tmp_path / "gone.png"], problems, step=4))
    assert [(source.path.name, source.frame) for source in sources] == [
        *(("a.png", None), ("clip.mp4", 0), ("clip.mp4", 4), ("gone.png", None))
    ]
    assert sources[0].load().size == (5, 4) and sources[1].load().size == (64, 48) and problems == []
    with pytest.raises(PictureError, match=r"gone\.png"):
        sources[3].load()
    assert isinstance(sources[0], Source)


def test_without_a_library_both_are_named(monkeypatch, tmp_path):
    for name in ("torchcodec", "torchcodec.decoders", "av"):
        monkeypatch.setitem(sys.modules, name, None)  # importing them fails
    with pytest.raises(ValueError, match=r"walk.mp4: .*TorchCodec \(pip install torchcodec.*PyAV \(pip install av\)"):
        find_reader("walk.mp4")
    with pytest.raises(ValueError, match=r"walk\.mp4"):
        list(read_frames(tmp_path / "walk.mp4"))


def test_names():
    assert is_video("a/Walk.MP4") and is_video("x.webm")
    assert not is_video("a.gif") and not is_video("mp4") and not is_video("a.mp4.png")
