"""app/: what visitors may ask for, how results grow, which files and requests there are; no browser is needed."""

import asyncio
import json
import os
import sys
import threading
import time

import pytest
from PIL import Image

from broken_pictures import picture_bomb
from pix2seq_hf import cli
from pix2seq_hf.app import server
from pix2seq_hf.app.files import Visits, delete_old, swept, temporary_folder
from pix2seq_hf.app.guard import HEADERS, Guard, names_address
from pix2seq_hf.app.limits import Limits, StoppedError, Watch, check_number_of_files, read_upload, readable_name
from pix2seq_hf.app.runs import look, seldom, shrink
from pix2seq_hf.data.pictures import PictureError
from pix2seq_hf.engine import TaskOptions, run_tasks
from tiny_model import noise_picture
from tiny_multitask import multitask_model, multitask_processor

OPTIONS = {"threshold": 0.0, "seed": 1, "num_samples": 2}


@pytest.fixture(scope="module")
def model():
    return multitask_model()


@pytest.fixture(scope="module")
def processor(model):
    return multitask_processor(model.config)


def watched(seconds=60.0, stop=None):
    return Watch(seconds, stop)


@pytest.mark.parametrize("tasks", ["all", "object_detection", "captioning", "instance_segmentation,keypoint_detection"])
def test_the_end_is_what_the_whole_run_finds(model, processor, tasks):
    picture, options = noise_picture(60, 100), TaskOptions(tasks=tasks, max_sequences=64, **OPTIONS)
    [expected] = run_tasks(model, processor, [picture], options)
    *_, last = look(model, processor, picture, options, watched())
    assert (last.stage, last.problem) == ("", "")
    assert last.result.to_dict() == expected.to_dict()


def test_results_grow(model, processor):
    updates = list(look(model, processor, noise_picture(60, 100), TaskOptions(**OPTIONS), watched()))
    counts = [len(update.result.objects) for update in updates]
    assert counts == sorted(counts) and counts[0] == 0 and len(set(counts)) > 3
    stages = list(dict.fromkeys(update.stage for update in updates))
    assert stages == ["Looking for objects", "Looking for keypoints", "Drawing outlines", "Writing a caption", ""]


def test_stopping_keeps_what_was_found(model, processor):
    stop, threads = threading.Event(), threading.active_count()
    updates = look(model, processor, noise_picture(60, 100), TaskOptions(**OPTIONS), watched(stop=stop))
    for update in updates:
        if update.result.objects:
            stop.set()
    assert update.problem == "Stopped." and not update.stage
    assert 0 < len(update.result.objects) < 24 and threading.active_count() == threads


@pytest.mark.parametrize("stage", ["Looking for keypoints", "Drawing outlines", "Writing a caption"])
def test_stopping_within_later_tasks(model, processor, stage):
    stop = threading.Event()
    for update in look(model, processor, noise_picture(60, 100), TaskOptions(**OPTIONS), watched(stop=stop)):
        if update.stage == stage:
            stop.set()
    assert update.problem == "Stopped." and update.result.objects and not update.result.captions


def test_time_is_limited(model, processor):
    *_, last = look(model, processor, noise_picture(60, 100), TaskOptions(**OPTIONS), watched(seconds=1e-6))
    assert last.problem.startswith("The limit of 1e-06 s per picture is over.")


def test_nobody_listens_any_more(model, processor):
    threads = threading.active_count()
    updates = look(model, processor, noise_picture(60, 100), TaskOptions(**OPTIONS), watched())
    next(updates), next(updates)
    updates.close()
    assert threading.active_count() == threads


def test_seldom_keeps_stages_and_the_end(model, processor):
    picture = noise_picture(60, 100)
    updates = list(seldom(look(model, processor, picture, TaskOptions(**OPTIONS), watched()), seconds=60))
    assert len(updates) == 5 and updates[-1].stage == "" and updates[-1].result.captions


def test_shrunk_results(model, processor):
    [result] = run_tasks(model, processor, [noise_picture(60, 100)], TaskOptions(**OPTIONS))
    assert shrink(result, 100) is result
    small = shrink(result, 50)
    assert small.size == (30, 50) == small.image.size[::-1] == small.masks.shape[1:]
    assert small.boxes_xyxy == pytest.approx(result.boxes_xyxy / 2, abs=1e-4)
    assert small.masks.sum() == pytest.approx(result.masks.sum() / 4, rel=0.1)
    assert small.draw().width == 50


@pytest.mark.parametrize("name", list(Limits.__dataclass_fields__))
def test_limits_are_above_0(name):
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} 0: must be above 0"):
        Limits(**{name: 0})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (picture_bomb(), "bad.png: has more than 25,000,000 pixels, the limit"),
        (b"\x89PNG\r\n\x1a\n broken", "bad.png: "),
        (b"hello", "bad.png: is not a picture"),
        (b"", "bad.png: is empty"),
        (bytes(2_100_000), "bad.png: has 2.0 MB, the limit is 2 MB"),
    ],
)
def test_bad_uploads_are_one_line(tmp_path, content, message):
    path = tmp_path / "secret-place.png"
    path.write_bytes(content)
    with pytest.raises(PictureError) as caught:
        read_upload(str(path), "bad.png", Limits(max_megabytes=2))
    assert str(caught.value).startswith(message)
    assert "secret-place" not in str(caught.value) and "\n" not in str(caught.value)


def test_good_uploads(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (30, 20), 7).save(path)
    os.utime(path, (1, 1))
    picture = read_upload(str(path), "a.png", Limits())
    assert (picture.mode, picture.size) == ("RGB", (30, 20))
    assert time.time() - path.stat().st_mtime < 60  # its time begins anew
    path.unlink()
    with pytest.raises(PictureError, match=r"a.png: was deleted after 30 minutes; upload it again"):
        read_upload(str(path), "a.png", Limits())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("street.jpg", "street.jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\pictures\\a b.png", "a b.png"),
        ("<img src=x>.png", "_img src_x_.png"),
        ("a\nb\x00.png", "a_b_.png"),
        (".hidden", "hidden"),
        ("", "picture"),
        (None, "picture"),
        ("..", "picture"),
        ("Straße 街.jpeg", "Straße 街.jpeg"),
    ],
)
def test_readable_names(name, expected):
    assert readable_name(name) == expected


def test_long_names_are_cut():
    assert len(readable_name("x" * 500 + ".jpeg")) <= 80 and readable_name("x" * 500 + ".jpeg").endswith(".jpeg")
    assert len(readable_name("x" * 500)) == 80


def test_number_of_files():
    check_number_of_files([1, 2], Limits(max_files=2))
    with pytest.raises(ValueError, match="Choose some pictures first"):
        check_number_of_files([], Limits())
    with pytest.raises(ValueError, match="3 files were chosen, the limit is 2 at once"):
        check_number_of_files([1, 2, 3], Limits(max_files=2))


def test_temporary_folder_is_private_and_goes():
    with temporary_folder() as folder:
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "a").touch()
    assert not folder.exists()


def test_old_files_are_deleted(tmp_path):
    for name in ("old/a", "old/kept", "gone/b", "new/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        if "new" not in name:
            os.utime(tmp_path / name, (1, 1))
    os.utime(tmp_path / "gone", (1, 1))
    assert delete_old(tmp_path, 60, frozenset({tmp_path / "old/kept"})) == 2
    os.utime(tmp_path / "gone", (1, 1))
    delete_old(tmp_path, 60, frozenset({tmp_path / "old/kept"}))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["c", "kept", "new", "old"]


def test_sweeping_goes_on_by_itself(tmp_path):
    (tmp_path / "example").touch()
    with swept(tmp_path, minutes=0.002):
        (tmp_path / "upload").touch()
        end = time.monotonic() + 10
        while (tmp_path / "upload").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert not (tmp_path / "upload").exists() and (tmp_path / "example").exists()


def test_visits(tmp_path):
    visits = Visits(tmp_path / "results")
    first, second = visits.begin("a"), visits.begin("b")
    folder, stop = first.new_folder(), first.stop
    assert len(folder.parent.name) == 32 and folder.parent != second.folder
    visits.stop("a")
    assert stop.is_set() and not second.stop.is_set()
    assert visits.begin("a") is first and not first.stop.is_set()  # the next request is not stopped
    again = first.stop
    visits.begin("a")
    assert again.is_set()  # one request at a time
    visits.leave("a")
    assert not first.folder.exists() and first.stop.is_set()
    visits.leave("nobody"), visits.stop("nobody")


def ask(path, body=b"", method="POST", length=None, limits=None):
    """Send a request through the guard; return status, body, headers of the answer, and the body that came through."""
    sent, arrived = [], []

    async def app(scope, receive, send):
        arrived.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Security-Policy", b"none")]})
        await send({"type": "http.response.body", "body": b"fine"})

    parts = [{"type": "http.request", "body": body[:5], "more_body": True}, {"type": "http.request", "body": body[5:]}]

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(Guard(app, limits or Limits())(scope, receive, send))
    return sent[0]["status"], sent[1]["body"], dict(sent[0]["headers"]), arrived


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://example.org/a.png",
        "/gradio_api/file=%68ttps://example.org/a.png",
        "/gradio_api/proxy=https://example.org",
        "/gradio_api/run-history/records",
        "/monitoring/summary",
        "/gradio_api/process_recording",
        "/gradio_api/vibe-edit/",
    ],
)
def test_closed_requests(path):
    status, body, _, arrived = ask(path, method="GET")
    assert status == 404 and not arrived and json.loads(body) == {"detail": "this page does not have that"}


def test_open_requests_pass_whole():
    content = json.dumps({"data": [{"path": "/tmp/x.png"}, "https://in.a.text"]}).encode()
    status, body, headers, arrived = ask("/gradio_api/queue/join", content)
    assert (status, body, arrived) == (200, b"fine", [content])
    assert headers[b"content-security-policy"].decode() == HEADERS["content-security-policy"]
    assert b"Content-Security-Policy" not in headers


def test_addresses_are_not_fetched():
    content = json.dumps({"data": [[{"path": "http://169.254.169.254/", "meta": {}}]]}).encode()
    status, body, _, arrived = ask("/gradio_api/queue/join", content)
    assert status == 400 and not arrived and "addresses are not fetched" in body.decode()
    assert names_address([{"a": {"path": " HTTPS://x"}}]) and names_address({"path": "ftp://x"})
    assert not names_address({"path": "/tmp/a:b"}) and not names_address({"url": "http://127.0.0.1/file"})
    assert not names_address({"path": None}) and not names_address("http://x")


def test_long_requests():
    assert ask("/gradio_api/queue/join", bytes(1_000_001))[0] == 413
    limits = Limits(max_megabytes=1, max_files=2)
    assert ask("/gradio_api/upload", b"picture", length=1_000_000, limits=limits)[0] == 200
    assert ask("/gradio_api/upload", b"picture", length=4_000_000, limits=limits)[0] == 413
    assert ask("/gradio_api/upload", b"picture", limits=limits)[0] == 411


def test_missing_gradio_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["app", "--model", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"pix2seq app: error: {server.REMEDY}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-files", "0"], "--max-files 0: must be above 0"),
        (["--port", "70000"], "--port 70000: must lie between 1 and 65535"),
    ],
)
def test_wrong_options(capsys, options, message):
    assert cli.main(["app", "--model", "x", *options]) == 2
    assert capsys.readouterr().err == f"pix2seq app: error: {message}\n"


def test_stopped_error_is_no_value_error():
    assert not issubclass(StoppedError, ValueError)  # or it would be taken for a wrong option
