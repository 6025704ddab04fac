"""A server on this machine that takes uploads of models as the Hub does, for small files, and has them afterwards."""

import base64
import contextlib
import json

from local_server import QuietHandler, serve


class Hub:
    """What was uploaded: `files[repository][path]` is the content."""

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}
        self.url = None


class Handler(QuietHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        """Metadata of a file; that of one which is not there is an error with a name."""
        repository, _, path = self.path.lstrip("/").partition("/resolve/main/")
        content = self.server.hub.files.get(repository, {}).get(path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", f'"{hash(content):x}"')
            self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        return content

    def do_GET(self):
        self.wfile.write(self.do_HEAD() or b"")

    def do_POST(self):
        hub, parts = self.server.hub, self.path.partition("?")[0].strip("/").split("/")
        body = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            hub.files.setdefault(repository, {})
            answer = {"url": f"{hub.url}/{repository}"}
        elif parts == ["api", "validate-yaml"]:
            answer = {"errors": [], "warnings": []}
        elif parts[-2] == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
        elif parts[-2] == "commit":
            repository = "/".join(parts[2:4])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"success": True, "commitOid": "0" * 40, "commitUrl": f"{hub.url}/{repository}/commit/0"}
        else:
            return self.send_error(501, f"the Hub of tests does not know {self.path}")
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def serve_hub():
    """Serve a new [`Hub`] while the context lasts."""
    hub = Hub()
    with serve(Handler, hub=hub) as address:
        hub.url = address
        yield hub
