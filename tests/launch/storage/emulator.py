"""A bucket on loopback: what gcsfs and TensorStore use of Cloud Storage's JSON interface, in memory, and faults.

gcp-storage-emulator, which is on PyPI, knows no preconditions (ifGenerationMatch), by which TensorStore replaces a file
in one move, answers one connection at a time, and never fails.
"""

import base64
import contextlib
import http.server
import itertools
import json
import os
import re
import threading
import urllib.parse
from unittest import mock

import google_crc32c


class Emulator:
    """Use it in `with`. buckets: {name: {object name: (generation, bytes)}}.

    fault: a function of (method, path, query) that gives a status to answer with instead, or None.
    seen: the (method, path) of every request. history: what the buckets held after each change, as `buckets` has it.
    """

    def __init__(self, *buckets):
        self.buckets = {name: {} for name in buckets}
        self.fault = lambda method, path, query: None
        self.lock, self.generations, self.uploads = threading.Lock(), itertools.count(1), {}
        self.seen, self.history = [], []

    def __enter__(self):
        self._server = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"store": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self):
        """What makes both libraries, and this process's children, come here, with no credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",
            "NO_GCE_CHECK": "true",
            "GCE_METADATA_ROOT": "127.0.0.1:1",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "CLOUDSDK_CONFIG": os.devnull,
        }

    def names(self, prefix="", bucket="bucket"):
        return sorted(name for name in self.buckets[bucket] if name.startswith(prefix))

    def note(self):
        self.history.append({bucket: dict(objects) for bucket, objects in self.buckets.items()})

    @contextlib.contextmanager
    def failing(self, statuses, counts=lambda method, path, query: True):
        """Answers with the next of these statuses, as long as there are any, where counts(...); yields what is left."""
        left = list(statuses)
        fault = lambda *request: left.pop(0) if left and counts(*request) else None
        with mock.patch.object(self, "fault", fault):
            yield left


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Nothing: a client has closed its connection."""


class _Handler(http.server.BaseHTTPRequestHandler):
    store = None
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm, wbufsize = True, -1

    def log_message(self, *_):
        pass

    def handle_any(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        place = re.fullmatch(r"(?:/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", url.path)
        with self.store.lock:
            path = urllib.parse.unquote(url.path)
            self.store.seen.append((self.command, path))
            if status := self.store.fault(self.command, path, query):
                return self.answer(status, {"error": {"code": status, "message": "injected"}})
            if "upload_id" in query:
                return self.resume(query["upload_id"], body)
            bucket, name = place[1], urllib.parse.unquote(place[2] or "")
            objects = self.store.buckets.get(bucket)
            if objects is None:
                text = "The specified bucket does not exist."
                return self.answer(404, {"error": {"code": 404, "message": text}})
            if self.command == "POST":
                return self.insert(bucket, objects, query, body)
            if not name:
                return self.answer(200, self.listing(bucket, objects, query) if "/o" in url.path else {"name": bucket})
            generation, content = objects.get(name, (0, b""))
            if int(query.get("ifGenerationMatch", generation)) != generation:
                return self.answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
            if not generation:
                return self.answer(404, {"error": {"code": 404, "message": f"No such object: {bucket}/{name}"}})
            if query.get("ifGenerationNotMatch") == str(generation):
                return self.answer(304)
            if self.command == "DELETE":
                del objects[name]
                self.store.note()
                return self.answer(204)
            if query.get("alt") != "media" and not url.path.startswith("/download"):
                return self.answer(200, _metadata(bucket, name, objects))
            self.media(generation, content)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def media(self, generation, content):
        headers, status, size = {"X-Goog-Generation": str(generation)}, 200, len(content)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or size), size - 1)
            if first > last:
                return self.answer(416, b"", headers)
            content, status = content[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self.answer(status, content, headers)

    def insert(self, bucket, objects, query, body):
        name = query.get("name")
        if query["uploadType"] == "resumable":
            name = name or json.loads(body)["name"]
            self.store.uploads[name] = (bucket, name, b"")
            host, quoted = self.headers["Host"], urllib.parse.quote(name, safe="")
            place = f"http://{host}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={quoted}"
            return self.answer(200, {}, {"Location": place})
        if query["uploadType"] == "multipart":
            mark = re.search(r"boundary=[\"']?([^\"';]+)", self.headers["Content-Type"])[1].encode()
            about, body = (part.split(b"\n", 1)[1] for part in body.split(b"--" + mark)[1:3])
            name = name or json.loads(re.search(rb"\{.*\}", about, re.DOTALL)[0])["name"]
            body = re.split(rb"\r?\n\r?\n", body, maxsplit=1)[1]
            body = body[: -2 if body.endswith(b"\r\n") else -1]
        generation = objects.get(name, (0, b""))[0]
        if int(query.get("ifGenerationMatch", generation)) != generation:
            return self.answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        self.put(bucket, name, body)

    def resume(self, key, body):
        bucket, name, sofar = self.store.uploads[key]
        self.store.uploads[key] = (bucket, name, sofar + body)
        if self.headers["Content-Range"].endswith("/*"):
            return self.answer(308, b"", {"Range": f"bytes=0-{len(sofar + body) - 1}"})
        self.put(bucket, name, sofar + body)

    def put(self, bucket, name, content):
        self.store.buckets[bucket][name] = (next(self.store.generations), bytes(content))
        self.store.note()
        self.answer(200, _metadata(bucket, name, self.store.buckets[bucket]))

    def listing(self, bucket, objects, query):
        prefix, delimiter, items, prefixes = query.get("prefix", ""), query.get("delimiter"), [], set()
        first, last = query.get("startOffset", ""), query.get("endOffset")
        for name in sorted(name for name in objects if name.startswith(prefix)):
            head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if cut:
                prefixes.add(prefix + head + cut)
            elif name >= first and (not last or name < last):
                items.append(name)
        start = int(query.get("pageToken", 0))
        end = start + min(int(query.get("maxResults", 1000)), 20)  # a page is short, so that there are several
        more = {"nextPageToken": str(end)} if end < len(items) else {}
        page = [_metadata(bucket, name, objects) for name in items[start:end]]
        return {"kind": "storage#objects", "items": page, "prefixes": [] if start else sorted(prefixes), **more}

    def answer(self, status, content=b"", headers=None):
        content = json.dumps(content).encode() if isinstance(content, dict) else content
        self.send_response(status)
        kind = "application/json" if content[:1] == b"{" else "application/octet-stream"
        for name, value in {"Content-Type": kind, "Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()


def _metadata(bucket, name, objects):
    generation, content = objects[name]
    checksum = base64.b64encode(google_crc32c.Checksum(content).digest()).decode()
    times = dict.fromkeys(("updated", "timeCreated"), "2026-01-01T00:00:00.000Z")
    facts = {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(content)), "crc32c": checksum}
    return facts | times | {"generation": str(generation), "metageneration": "1"}
