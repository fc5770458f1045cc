"""A web server on the loopback address that serves, cuts off and withholds what tests ask it to."""

import contextlib
import hashlib
import http.server
import threading
import urllib.parse


class Site:
    """A site and what it was asked for.

    Attributes:
      files: content by path.
      cuts: bytes after which the answers to the next requests are cut off.
      ranges: whether parts are sent.
      length: how the end of an answer is told: "length", "chunks", or "" for not at all.
      asked: paths and Range headers of the requests so far.
      url: its address.
    """

    def __init__(self):
        self.files, self.cuts, self.asked = {}, [], []
        self.ranges, self.length, self.url = True, "length", ""


def handler_of(site):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = urllib.parse.unquote(self.path.partition("?")[0])
            site.asked.append((path, self.headers["Range"]))
            if path not in site.files:
                self.send_error(404)
                return
            content, start = site.files[path], 0
            tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
            if site.ranges and self.headers["Range"] and self.headers["If-Range"] == tag:
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start and start >= len(content):
                self.send_error(416)
                return
            self.send(content, start, tag)

        def send(self, content, start, tag):
            self.protocol_version = "HTTP/1.1" if site.length == "chunks" else "HTTP/1.0"
            self.send_response(206 if start else 200)
            self.send_header("ETag", tag)
            if start:
                held = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", held)
            part = content[start:]
            sent = part[: site.cuts.pop(0)] if site.cuts else part
            if site.length == "length":
                self.send_header("Content-Length", str(len(part)))
            if site.length == "chunks":
                self.send_header("Transfer-Encoding", "chunked")
                size = f"{len(part):x}\r\n".encode()
                sent = size + sent + (b"\r\n0\r\n\r\n" if len(sent) == len(part) else b"")
            self.end_headers()
            with contextlib.suppress(OSError):  # the other side may be gone
                self.wfile.write(sent)
            self.close_connection = True

        def log_message(self, *arguments):
            pass

    return Handler


@contextlib.contextmanager
def serving():
    """Serve a Site while the context lasts."""
    site = Site()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(site))
    site.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
