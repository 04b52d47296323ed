"""The storm of `kill_storm` over an output in an object store: a file or a folder there, on a server of its own.

The state is asked of the server's own file service, not through the code under test. A store renames nothing, so the three
spans are: units are committed, the last of them stands until the manifest is written, and from there to the end.
"""

import contextlib
import http.client
import json
import os
from pathlib import Path

from tests.faults.kill_storm import OLD, OLD_PART, ROWS, Storm, digest, old_manifest
from tests.servers import Weed

UNITS = -(-ROWS // 1024)


class StoreStorm(Storm):
    glance = 0.005

    def __init__(self, folder: Path, adapter: str, to: str, server: Weed) -> None:
        self._server = server
        self._wait(self._fork(lambda: server.make("bucket")))
        os.environ.update(server.environment, XDG_CACHE_HOME=str(folder / "cache"))
        self._name = "out.parquet" if to == "store" else "out"
        self._manifest = "out.parquet.manifest.json" if to == "store" else "out/manifest.json"
        super().__init__(folder, adapter, to)

    @property
    def target(self) -> str:
        return f"s3://bucket/{self._name}"

    def check_through(self) -> None:
        assert self.state() == "complete", "the resumed run has other bytes"
        names = [self._name]
        if self.to != "store":
            told = json.loads(self._read(self._manifest) or b"")["output"]["parts"]
            receipts = {f"{Path(part['name']).parents[1]}/receipts" for part in told}
            names = [f"out/{part['name']}" for part in told]
            names += [f"out/{folder}/{unit:05d}.json" for folder in receipts for unit in range(UNITS)]
            names += ["out/_SUCCESS"]
        found = {name for name in self._files() if not name.startswith(".uploads/")}
        assert found == {*names, self._manifest}, sorted(found ^ {*names, self._manifest})
        assert not any((self.folder / "cache").glob("*/*.work"))

    def reset(self, old: bool) -> None:
        for name in self._files():
            self._ask("DELETE", name)
        if old:
            if self.to != "store":
                self._ask("PUT", "out/_SUCCESS")
            self._ask("PUT", self._name if self.to == "store" else f"out/{OLD_PART}", OLD)
            self._ask("PUT", self._manifest, old_manifest(self.to != "store"))

    def _content(self) -> str:
        manifest = self._read(self._manifest)
        told = json.loads(manifest)["output"] if manifest else None
        if self.to == "store":
            found = self._read(self._name)
            assert told is None or (found and told["sha256"] == digest(found)), (
                "the manifest speaks of another"
            )
            return digest(found) if found is not None else ""
        assert told or self._read("out/_SUCCESS") is None, "a success that no manifest speaks of"
        parts = (
            [(self._read(f"out/{part['name']}") or b"", part["sha256"]) for part in told["parts"]]
            if told
            else []
        )
        assert all(digest(data) == sha256 for data, sha256 in parts), "a part is torn"
        shas = [sha256 for _, sha256 in parts]
        return shas[0] if len(shas) == 1 else digest("".join(shas).encode()) if shas else ""

    def _kept(self) -> set[str]:
        names = {name for name in self._files() if "/receipts/" in name}
        with contextlib.suppress(OSError):  # the folder goes meanwhile
            names.update(path.name for path in (self.folder / "cache").glob("*/*/shards/*.parquet"))
        return names

    def _publishing(self) -> bool:
        return sum("/receipts/" in name for name in self._files()) == UNITS

    def _last_inode(self) -> int | None:
        data = self._read(self._manifest)
        return None if data is None else hash(data)

    def _files(self, folder: str = "") -> dict[str, int]:
        """Names of all files in the bucket, and their sizes."""
        status, data = self._ask("GET", f"{folder}/?limit=10000" if folder else "?limit=10000")
        files: dict[str, int] = {}
        for entry in (json.loads(data)["Entries"] or ()) if status == 200 else ():
            name = entry["FullPath"].removeprefix("/buckets/bucket/")
            if entry["Mode"] & 1 << 31:
                files.update(self._files(name))
            else:
                files[name] = entry["FileSize"]
        return files

    def _read(self, name: str) -> bytes | None:
        status, data = self._ask("GET", name)
        return data if status == 200 else None

    def _ask(self, method: str, name: str, data: bytes = b"") -> tuple[int, bytes]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._server.filer)) as connection:
            connection.request(method, f"/buckets/bucket/{name}", data, {"Accept": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
