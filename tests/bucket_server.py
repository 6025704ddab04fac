"""A server on this machine that behaves like the bucket of released checkpoints, and misbehaves on request."""

import base64
import contextlib
import hashlib

from local_server import QuietHandler, serve
from pix2seq_hf.conversion.checksums import crc32c


def b64(digest):
    return base64.b64encode(digest).decode()


class Bucket:
    """What the server has and how it behaves.

    `plan[path]` holds one behaviour per request, the last one for good: `None`, a status code, `("cut", bytes)`,
    `("length", stated)`, `("stored", stated)`, `"no range"`, `"wrong range"`, `"no validator"`, `"no length"`,
    `"bad md5"`, `"bad crc32c"`.
    """

    def __init__(self):
        self.files, self.plan, self.requests, self.url = {}, {}, [], None

    def behaviour(self, path):
        steps = self.plan.get(path, [None])
        return steps.pop(0) if len(steps) > 1 else steps[0]


class Handler(QuietHandler):
    def do_GET(self):
        bucket = self.server.bucket
        bucket.requests.append((self.path, self.headers.get("Range")))
        step = bucket.behaviour(self.path)
        if isinstance(step, int):
            self.send_error(step)
            return
        if self.path not in bucket.files:
            self.send_error(404)
            return
        data = bucket.files[self.path]
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        start, wanted = 0, self.headers.get("Range")
        if wanted and step != "no range" and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(data) > 0:
            self.send_error(416)
            return
        body = data[start:]
        kind, amount = step if isinstance(step, tuple) else (step, 0)
        self.send_response(206 if start else 200)
        if step != "no length":
            self.send_header("Content-Length", str(amount if kind == "length" else len(body)))
        if start:
            first = start + 1 if step == "wrong range" else start
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        if step != "no validator":
            self.send_header("ETag", tag)
        md5 = b64(hashlib.md5(b"other" if step == "bad md5" else data).digest())
        crc = b64(crc32c(b"other" if step == "bad crc32c" else data).to_bytes(4, "big"))
        self.send_header("x-goog-hash", f"crc32c={crc}")
        self.send_header("x-goog-hash", f"md5={md5}")
        self.send_header("x-goog-stored-content-length", str(amount if kind == "stored" else len(data)))
        self.end_headers()
        self.wfile.write(body[:amount] if kind == "cut" else body)
        self.close_connection = True


@contextlib.contextmanager
def serve_bucket():
    """Serve a new [`Bucket`] while the context lasts."""
    bucket = Bucket()
    with serve(Handler, bucket=bucket) as address:
        bucket.url = f"{address}/bucket"
        yield bucket
