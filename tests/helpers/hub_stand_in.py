"""A server on this machine that answers those calls of the Hugging Face hub that a model needs."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"


class _Handler(BaseHTTPRequestHandler):
    files: dict

    def log_message(self, *arguments):
        pass

    def _answer(self, body, status=200, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            wanted = json.loads(raw)
            self.server.repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            self._answer({"url": f"{self.server.url}/{self.server.repo}", "id": self.server.repo})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(raw)["files"]
            ]
            self._answer({"files": modes})
        elif "/commit/" in path:
            for line in map(json.loads, raw.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            url = f"{self.server.url}/{self.server.repo}/commit/{COMMIT}"
            self._answer({"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self._answer({"error": path}, 404)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/") and "/tree/" in path:
            self._answer(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                    for name, data in self.server.files.items()
                ]
            )
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._answer(
                {"id": self.server.repo, "modelId": self.server.repo, "sha": COMMIT}
                | {"siblings": siblings, "private": False, "tags": [], "downloads": 0, "likes": 0}
            )
        elif "/resolve/" in path and path.split(f"/resolve/{COMMIT}/")[-1] in self.server.files:
            data = self.server.files[path.split(f"/resolve/{COMMIT}/")[-1]]
            self._answer(data, ETag=f'"{_etag(data)}"', X_Repo_Commit=COMMIT)
        else:
            self._answer({"error": path}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET


def _etag(data):
    return hashlib.sha1(data).hexdigest()


@contextlib.contextmanager
def hub_stand_in():
    """Serve an empty hub; yields the server with `url`, `repo` and `files` (name to bytes)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.url, server.repo, server.files = f"http://127.0.0.1:{server.server_port}", "", {}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
