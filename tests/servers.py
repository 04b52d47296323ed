"""Object stores for the tests: real servers of their own, on loopback and in a temporary folder."""

import base64
import contextlib
import functools
import hashlib
import hmac
import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import MappingProxyType
from typing import Self
from urllib.parse import urlsplit

from filelock import FileLock

from batch.parent import tie_to

AZURITE = "azurite@3.35.0"
AZURITE_HOME = Path(sys.prefix, "azurite")  # in .venv: no part of the repository
SECONDS = 60.0  # for a server to answer


class Server:
    """A server's process. Kill it and start it again: it keeps its port and its data."""

    scheme = ""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.environment: dict[str, str] = {}  # how to reach it
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(exist_ok=True)
        self.start()

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=functools.partial(tie_to, os.getpid()),
            )
        deadline = time.monotonic() + SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the server did not answer"
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def uri(self, bucket: str, name: str = "") -> str:
        return f"{self.scheme}://{bucket}/{name}"

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.ask("GET", "/")
            return True
        return False

    def ask(self, method: str, path: str, headers: Mapping[str, str] = MappingProxyType({})) -> int:
        """The status of the answer."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as connection:
            connection.request(method, path, headers=dict(headers))
            return connection.getresponse().status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()


class Weed(Server):
    """SeaweedFS, which speaks S3."""

    scheme = "s3"

    def __init__(self, folder: Path) -> None:
        self._others = [free_port() for _ in range(6)]
        super().__init__(folder)
        self.environment = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
        }

    @property
    def filer(self) -> int:
        """The port of its own file service, which asks for no key."""
        return self._others[4]

    def command(self) -> list[str]:
        keys = [{"accessKey": "key", "secretKey": "a-secret-of-the-tests"}]
        reader = [{"accessKey": "reader", "secretKey": "a-secret-of-the-tests"}]
        identities = [
            {"name": "all", "credentials": keys, "actions": ["Admin", "Read", "Write", "List"]},
            {"name": "reader", "credentials": reader, "actions": ["Read", "List"]},
        ]
        (self.folder / "s3.json").write_text(json.dumps({"identities": identities}))
        (self.folder / "data").mkdir(exist_ok=True)
        ports = [
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
        ]
        program = str(Path(sys.executable).with_name("weed"))
        return [
            *(program, "server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"),
            *(f"-{name}={port}" for name, port in zip(ports, self._others, strict=True)),
            *(f"-s3.port={self.port}", f"-s3.port.grpc={free_port()}", "-s3.config=s3.json"),
            *("-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
            *("-volume.max=1000", "-master.volumeSizeLimitMB=64", "-s3.iam=false"),
        ]  # fmt: skip

    def make(self, bucket: str) -> None:
        import obstore
        from obstore.store import S3Store

        config = {"access_key_id": "key", "secret_access_key": "a-secret-of-the-tests", "region": "us-east-1"}
        store = S3Store(
            bucket,
            config={**config, "endpoint": f"http://127.0.0.1:{self.port}"},  # type: ignore[arg-type]
            client_options={"allow_http": True},
        )
        signed = urlsplit(obstore.sign(store, "PUT", "", timedelta(minutes=5)))
        for _ in range(100):  # it answers before it can store
            with contextlib.suppress(Exception):
                if self.ask("PUT", f"{signed.path}?{signed.query}") in (200, 409):
                    obstore.put(store, "made", b"")
                    obstore.delete(store, "made")
                    return
            time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text()[-2000:])


class Azurite(Server):
    """Azure's storage with flat names, which knows no move."""

    scheme = "az"
    account = "devstoreaccount1"
    key = base64.b64encode(b"a-secret-of-the-tests").decode()

    def __init__(self, folder: Path) -> None:
        install_azurite()
        super().__init__(folder)
        self.environment = {
            "AZURE_STORAGE_ACCOUNT_NAME": self.account,
            "AZURE_STORAGE_ACCOUNT_KEY": self.key,
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{self.port}/{self.account}",
            "AZURE_ALLOW_HTTP": "true",
        }

    def command(self) -> list[str]:
        main = AZURITE_HOME / "node_modules/azurite/dist/src/blob/main.js"
        place = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--location", "data"]
        return ["node", str(main), "--silent", *place, "--skipApiVersionCheck", "--disableTelemetry"]

    def start(self) -> None:
        os.environ["AZURITE_ACCOUNTS"] = f"{self.account}:{self.key}"
        super().start()

    def make(self, bucket: str) -> None:
        date = format_datetime(datetime.now(UTC), usegmt=True)
        headers = {"x-ms-date": date, "x-ms-version": "2021-12-02"}
        told = "".join(f"{name}:{value}\n" for name, value in headers.items())
        text = f"PUT{chr(10) * 12}{told}/{self.account}/{self.account}/{bucket}\nrestype:container"
        signed = hmac.new(base64.b64decode(self.key), text.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {self.account}:{base64.b64encode(signed).decode()}"
        assert self.ask("PUT", f"/{self.account}/{bucket}?restype=container", headers) == 201


def install_azurite() -> None:
    """From npm's registry, once, without any package's scripts."""
    with FileLock(f"{AZURITE_HOME}.lock"):
        if (AZURITE_HOME / AZURITE).exists():
            return
        shutil.rmtree(AZURITE_HOME, ignore_errors=True)
        AZURITE_HOME.mkdir()
        line = [
            "npm",
            "install",
            "--prefix",
            str(AZURITE_HOME),
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
        ]
        subprocess.run([*line, AZURITE], check=True, capture_output=True)
        (AZURITE_HOME / AZURITE).touch()


def free_port() -> int:
    """Below those that the kernel gives to connections: one of them could take it before the server does."""
    while True:
        port = 15_000 + secrets.randbelow(17_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
