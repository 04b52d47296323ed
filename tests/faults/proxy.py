"""A proxy before a store that fails as stores and networks do: it answers 503, 409 or 412, hangs, or has a request done
and loses the answer."""

import contextlib
import http.client
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>of the tests</Message></Error>"
CODES = {503: "SlowDown", 409: "ConditionalRequestConflict", 412: "PreconditionFailed"}
HANG = 3.0  # seconds


class Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.met: list[str] = []  # the faults that requests met
        self.sent = 0  # bytes of answers
        self._faults: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def fail(self, pattern: str, *what: str) -> None:
        """The next requests whose ``METHOD path`` matches meet these faults, one each."""
        self._faults += [(pattern, each) for each in what]

    def fault(self, line: str) -> str | None:
        with self._lock:
            for index, (pattern, what) in enumerate(self._faults):
                if re.search(pattern, line):
                    del self._faults[index]
                    self.met.append(what)
                    return what
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault(f"{self.command} {self.path}")
        if fault == "hang":
            time.sleep(HANG)
            self.close_connection = True
        elif fault is None or fault == "lose":
            upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream)
            upstream.request(self.command, self.path, body, dict(self.headers.items()))
            answer = upstream.getresponse()
            data = answer.read()
            if fault == "lose":
                self.close_connection = True
            else:
                self._answer(answer.status, data, dict(answer.getheaders()))
            upstream.close()
        else:
            data = ERROR.format(CODES[int(fault)]).encode()
            self._answer(int(fault), data, {"Content-Type": "application/xml"})

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        length = headers.pop("Content-Length", None) if self.command == "HEAD" else str(len(data))
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command != "HEAD":
            self.server.sent += len(data)
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def log_message(self, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def proxy(upstream: int) -> Iterator[Proxy]:
    with Proxy(upstream) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
