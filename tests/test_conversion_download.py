"""Downloads from a server on this machine that breaks off, lies and refuses."""

import threading
import zlib

import pytest

from bucket_server import serve_bucket
from pix2seq_hf.conversion import convert, download
from pix2seq_hf.conversion.checksums import crc32c, find_mismatch
from pix2seq_hf.conversion.released import RELEASED, TOKENIZER_OBJECT, find_released, format_table, suggest_released

DATA = bytes(zlib.crc32(str(i).encode()) % 256 for i in range(300_000))
NAME = "coco_det_finetune/vit_b_640x640"


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve_bucket() as bucket:
        bucket.files["/bucket/file"] = DATA
        yield bucket


@pytest.fixture
def fetch(bucket, tmp_path):
    waits = []

    def call(path="file"):
        url = f"{bucket.url}/{path}"
        return download.download_file(url, tmp_path / path, show_progress=False, timeout=5, wait=waits.append)

    call.waits, call.folder = waits, tmp_path
    return call


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_arrives_whole_and_is_not_fetched_twice(bucket, fetch):
    assert fetch().read_bytes() == DATA
    assert fetch().read_bytes() == DATA
    assert bucket.requests == [("/bucket/file", None)]
    assert visible(fetch.folder) == ["file"]


def test_an_empty_file_arrives(bucket, fetch):
    bucket.files["/bucket/empty"] = b""
    assert fetch("empty").read_bytes() == b""


def test_a_cut_connection_goes_on_where_it_ended(bucket, fetch):
    bucket.plan["/bucket/file"] = [("cut", 100_000), ("cut", 50_000), None]
    assert fetch().read_bytes() == DATA
    assert [wanted for _, wanted in bucket.requests] == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_call_goes_on_with_the_part_of_an_earlier_one(bucket, fetch):
    bucket.plan["/bucket/file"] = [("cut", 100_000), 503]
    with pytest.raises(OSError, match=r"503.*go on after 100000 bytes"):
        fetch()
    assert not (fetch.folder / "file").exists()
    bucket.plan["/bucket/file"], bucket.requests[:] = [None], []
    assert fetch().read_bytes() == DATA
    assert bucket.requests == [("/bucket/file", "bytes=100000-")]
    assert visible(fetch.folder) == ["file"]


def test_a_part_that_was_complete_but_not_checked_is_only_checked(bucket, fetch, monkeypatch):
    monkeypatch.setattr(download, "find_mismatch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fetch()
    assert not (fetch.folder / "file").exists()
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert fetch().read_bytes() == DATA
    assert len(bucket.requests) == 1


def test_a_file_that_changed_between_attempts_is_not_mixed(bucket, fetch):
    bucket.plan["/bucket/file"] = [("cut", 100_000), 503]
    with pytest.raises(OSError, match="503"):
        fetch()
    bucket.files["/bucket/file"] = DATA[::-1]
    bucket.plan["/bucket/file"] = [None]
    assert fetch().read_bytes() == DATA[::-1]


def test_a_server_without_ranges_starts_again(bucket, fetch):
    bucket.plan["/bucket/file"] = [("cut", 100_000), "no range"]
    assert fetch().read_bytes() == DATA


def test_a_server_that_sends_another_range_is_not_believed(bucket, fetch):
    bucket.plan["/bucket/file"] = [("cut", 100_000), "wrong range", None]
    assert fetch().read_bytes() == DATA


def test_without_a_validator_nothing_is_resumed(bucket, fetch):
    bucket.plan["/bucket/file"] = ["no validator"]
    assert fetch().read_bytes() == DATA
    (fetch.folder / "file").rename(fetch.folder / "file.part")
    (fetch.folder / "file.part.json").write_text('{"url": null}')
    bucket.plan["/bucket/file"] = [None]
    assert fetch().read_bytes() == DATA
    assert [wanted for _, wanted in bucket.requests] == [None, None]


def test_a_length_that_is_too_long_is_an_error_and_not_a_file(bucket, fetch):
    # both stated lengths agree with each other, but the data never comes
    bucket.plan["/bucket/file"] = [("cut", 100_000), ("cut", 0)]
    with pytest.raises(OSError, match="100000 of 300000 bytes"):
        fetch()
    assert not (fetch.folder / "file").exists()
    assert fetch.waits == [1.0, 1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize("lie", [("length", 299_000), ("stored", 299_000), ("length", 301_000)])
def test_lengths_that_contradict_each_other_are_an_error(bucket, fetch, lie):
    bucket.plan["/bucket/file"] = [lie]
    with pytest.raises(ValueError, match="contradicts itself"):
        fetch()
    assert not (fetch.folder / "file").exists()


def test_without_a_length_the_stored_length_counts(bucket, fetch):
    bucket.plan["/bucket/file"] = ["no length"]
    assert fetch().read_bytes() == DATA


@pytest.mark.parametrize("fault", ["bad md5", "bad crc32c"])
def test_a_wrong_checksum_is_tried_once_more_and_then_an_error(bucket, fetch, fault):
    bucket.plan["/bucket/file"] = [fault, None]
    assert fetch().read_bytes() == DATA
    (fetch.folder / "file").unlink()
    bucket.plan["/bucket/file"] = [fault]
    with pytest.raises(ValueError, match=f"damaged twice: the server states the {fault.split()[1]}"):
        fetch()
    assert visible(fetch.folder) == []


def test_an_unknown_file_is_an_error_at_once(bucket, fetch):
    with pytest.raises(ValueError, match=r"/bucket/nothing: the server answers 404.*base URL"):
        fetch("nothing")
    assert len(bucket.requests) == 1 and fetch.waits == []


def test_a_busy_server_is_asked_again_after_growing_waits(bucket, fetch):
    bucket.plan["/bucket/file"] = [503, 503, 503, None]
    assert fetch().read_bytes() == DATA
    assert fetch.waits == [1.0, 2.0, 4.0]
    (fetch.folder / "file").unlink()
    bucket.plan["/bucket/file"] = [503]
    with pytest.raises(OSError, match=f"503.*{download.RETRIES} attempts"):
        fetch()


def test_no_server_is_an_error(tmp_path):
    with pytest.raises(OSError, match="no connection"):
        download.download_file("http://127.0.0.1:9/x", tmp_path / "x", show_progress=False, wait=lambda _: None)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "gs://pix2seq/x", "pix2seq/x"])
def test_other_addresses_are_refused(tmp_path, url):
    with pytest.raises(ValueError, match="must begin with https"):
        download.download_file(url, tmp_path / "x")


def test_two_threads_fetch_once(bucket, fetch):
    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (fetch.folder / "file").read_bytes() == DATA
    assert len(bucket.requests) == 1


def test_a_bar_is_drawn(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pix2seq_hf.progress.SECONDS_BETWEEN_LINES", 0)  # also of what takes less, where no terminal is
    download.download_file(f"{bucket.url}/file", tmp_path / "file")
    assert "file: 100%" in capsys.readouterr().err


@pytest.fixture
def released(bucket):
    folder = f"/bucket/{NAME}"
    bucket.files |= {
        f"{folder}/checkpoint": b'model_checkpoint_path: "gs://pix2seq/somewhere/ckpt-74844"\n',
        f"{folder}/config.json": b"{}",
        f"{folder}/ckpt-74844.index": b"index",
        f"{folder}/ckpt-74844.data-00000-of-00001": DATA,
        f"/bucket/{TOKENIZER_OBJECT}": b"pieces",
    }
    return folder


def test_a_released_checkpoint_arrives_with_all_its_files(bucket, released, tmp_path):
    options = {"cache_dir": tmp_path, "base_url": bucket.url + "/", "show_progress": False}
    prefix = download.download_checkpoint(RELEASED[NAME], **options)
    assert prefix.name == "ckpt-74844"
    assert visible(prefix.parent) == ["checkpoint", "ckpt-74844.data-00000-of-00001", "ckpt-74844.index", "config.json"]
    count = len(bucket.requests)
    assert download.download_checkpoint(RELEASED[NAME], **options) == prefix
    assert len(bucket.requests) == count
    assert download.download_tokenizer(**options).read_bytes() == b"pieces"


def test_the_cache_of_one_server_is_not_taken_for_anothers(bucket, released, tmp_path):
    first = download.download_tokenizer(tmp_path, bucket.url, show_progress=False)
    bucket.files[f"/bucket/other/{TOKENIZER_OBJECT}"] = b"other pieces"
    second = download.download_tokenizer(tmp_path, bucket.url + "/other", show_progress=False)
    assert (first.read_bytes(), second.read_bytes()) == (b"pieces", b"other pieces")


def test_a_page_in_place_of_the_checkpoint_file_is_refused(bucket, released, tmp_path):
    bucket.files[f"{released}/checkpoint"] = b"<html>sign in</html>"
    with pytest.raises(ValueError, match="not the state of a checkpoint"):
        download.download_checkpoint(RELEASED[NAME], tmp_path, bucket.url, show_progress=False)
    bucket.files[f"{released}/checkpoint"] = b'model_checkpoint_path: "ckpt-74844"\n'
    assert download.download_checkpoint(RELEASED[NAME], tmp_path, bucket.url, show_progress=False).name == "ckpt-74844"


def test_a_released_text_checkpoint_brings_its_tokenizer(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "download_checkpoint", lambda released, **options: tmp_path / released.name)
    bucket.files[f"/bucket/{TOKENIZER_OBJECT}"] = b"pieces"
    options = {"cache_dir": tmp_path, "base_url": bucket.url, "show_progress": False}
    prefix, tokenizer = convert.locate("multi_task/ckpt/vit_b_640x640", None, options)
    assert prefix == tmp_path / "multi_task/ckpt/vit_b_640x640" and tokenizer.read_bytes() == b"pieces"
    assert convert.locate(NAME, None, options)[1] is None


def test_the_default_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("PIX2SEQ_HF_CACHE", raising=False)
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.default_cache_dir() == tmp_path / "pix2seq_hf"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert download.default_cache_dir() == tmp_path / "home/pix2seq_hf"
    monkeypatch.setenv("PIX2SEQ_HF_CACHE", str(tmp_path / "mine"))
    assert download.default_cache_dir() == tmp_path / "mine"


@pytest.mark.parametrize("length", [0, 1, 2, 3, 31, 32, 33, 1000, 4097])
def test_crc32c_equals_the_definition(length):
    data, expected = DATA[:length], 0xFFFFFFFF
    for byte in data:
        expected ^= byte
        for _ in range(8):
            expected = (expected >> 1) ^ (0x82F63B78 if expected & 1 else 0)
    assert crc32c(data) == expected ^ 0xFFFFFFFF
    assert crc32c(data[length // 3 :], crc32c(data[: length // 3])) == crc32c(data)


def test_crc32c_of_the_standard_check_value():
    assert crc32c(b"123456789") == 0xE3069283


def test_a_file_without_stated_checksums_is_accepted(tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    assert find_mismatch(tmp_path / "x", {}) is None
    assert "md5" in find_mismatch(tmp_path / "x", {"md5": "AAAA"})


def test_the_table_lists_the_18_released_checkpoints():
    lines = format_table().splitlines()
    assert len(RELEASED) == 18 and len(lines) == 19
    row = next(line for line in lines if line.startswith("coco_det_finetune/vit_l_1333x1333"))
    assert row.split()[-5:] == ["detection", "1333x1333", "50.0", "341.2", "M"]
    assert all(len(line) <= 120 for line in lines)


def test_names_are_found_and_suggested():
    assert find_released(f"gs://pix2seq/{NAME}/").architecture == "vit-b"
    assert find_released("vit_b_640x640") is None
    assert suggest_released("coco_det_finetune/vitb_640x640")[0] == NAME
    assert set(suggest_released("vit-b_640x640")[:2]) == {NAME, "multi_task/ckpt/vit_b_640x640"}
    assert suggest_released("nonsense") == []
