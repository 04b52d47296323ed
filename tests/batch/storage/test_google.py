"""Google's store, whose conditions are on an object's generation: obstore's own client against a server of a few lines."""

import http.server
import itertools
import json
import re
import threading
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

import pytest

from batch.errors import StorageError
from batch.storage.location import Location
from batch.storage.store import store_at
from tests.conftest import reaching

GENERATION = "x-goog-generation"
NOTHING: Mapping[str, str] = MappingProxyType({})


class Objects(http.server.BaseHTTPRequestHandler):
    """One bucket, as the XML API shows it."""

    held: dict[str, tuple[int, bytes]]  # generation and bytes, by key
    numbers: "itertools.count[int]"

    def _answer(self, status: int, facts: Mapping[str, str] = NOTHING, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**facts, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        there, wanted = self.held.get(self._key, (0, b""))[0], self.headers["x-goog-if-generation-match"]
        if wanted is not None and wanted != str(there):
            return self._answer(412)
        self.held[self._key] = next(self.numbers), data
        self._answer(200, self._facts())

    def do_GET(self) -> None:
        if self._key not in self.held:
            return self._answer(404)
        data = self.held[self._key][1]
        if not (wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")):
            return self._answer(200, self._facts(), data)
        start, last = map(int, wanted.groups())
        told = {"Content-Range": f"bytes {start}-{last}/{len(data)}"}
        self._answer(206, {**self._facts(), **told}, data[start : last + 1])

    do_HEAD = do_GET

    def _facts(self) -> dict[str, str]:
        generation = str(self.held[self._key][0])
        return {"ETag": f'"{generation}"', GENERATION: generation, "Last-Modified": formatdate(usegmt=True)}

    def log_message(self, *told: object) -> None: ...


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    own = type("Own", (Objects,), {"held": {}, "numbers": itertools.count(1000)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), own) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        account, nobody = tmp_path / "account.json", dict.fromkeys(("client_email", "private_key"), "")
        address = f"http://127.0.0.1:{server.server_port}"
        account.write_text(
            json.dumps({**nobody, "private_key_id": "", "gcs_base_url": address, "disable_oauth": True})
        )
        environment = {"GOOGLE_SERVICE_ACCOUNT": str(account), "GOOGLE_ALLOW_HTTP": "true"}
        with reaching(environment, tmp_path, monkeypatch):
            yield "gs://bucket"
        server.shutdown()


def test_an_object_is_replaced_where_it_is_the_one_that_was_seen(google: str) -> None:
    store = store_at(Location.of(f"{google}/night"))
    assert store.create("manifest.json", b"one") and not store.create("manifest.json", b"two")
    first = store.version("manifest.json")
    store.replace("manifest.json", b"two", first)
    assert store.read("manifest.json") == b"two" and store.version("manifest.json") != first
    for over in (first, None):
        with pytest.raises(StorageError, match="another run"):
            store.replace("manifest.json", b"three", over)
