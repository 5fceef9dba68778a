"""A site's end of an object store: links that expire, break, lie or lead elsewhere, mostly on a real S3 server behind a bad network."""

from __future__ import annotations

import hashlib
import io
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_connection
from typing import ClassVar
from urllib.parse import urlsplit

import pytest
from cafe_kit import http_request, links
from cafe_kit.errors import CafeError
from cafe_kit.orders import Blob
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from server_store.object_store import Keys, ObjectStore, Place
from tests.fault_proxy import FaultProxy, Kind, fault_proxy
from tests.seaweedfs import S3Server

DATA = bytes(range(256)) * 1200  # 300 kB


def blob_of(data: bytes) -> Blob:
    return Blob(hashlib.sha256(data).hexdigest(), len(data))


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PATIENCE_S", 15.0)
    monkeypatch.setattr(http_request, "SILENCE_S", 2.0)


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(s3_server.port) as running:
        yield running


@pytest.fixture
def store(proxy: FaultProxy, s3_server: S3Server) -> ObjectStore:
    """The operator's store; its links lead through the proxy."""
    return ObjectStore(Place(s3_server.bucket, f"l-{uuid.uuid4().hex[:8]}", endpoint_url=proxy.endpoint), Keys(*s3_server.key))


def refusal(act: Callable[[], object], url: str) -> CafeError:
    """What a person is told: never the link, nor any part of it that opens anything."""
    with pytest.raises(CafeError) as caught:
        act()
    text = repr(caught.value) + repr(caught.value.__cause__)
    assert url not in text and "Signature=" not in text and caught.value.__cause__ is None
    return caught.value


# Which addresses are gone to


@pytest.mark.parametrize("place", ["https://s3.example.org/b/k?X=1", "http://127.0.0.1:9000/b", "http://localhost/b", "http://[::1]:9/b"])
def test_links_that_may_be_used(place: str) -> None:
    assert links.is_link(place)


@pytest.mark.parametrize(
    "place",
    [
        "http://s3.example.org/b", "http://127.0.0.1.example.org/b", "ftp://127.0.0.1/b", "file:///etc/passwd", "/abs/path", "", "https://",
        "https://user:pass@s3.example.org/b", "http://[::1/b", "https://s3.example.org:0/b", "https://s3.example.org:99999/b",
        "https://s3.example.org/a b", "https://s3.example.org/a\r\nHost: x", "https://ö.example.org/", "http://localhost@evil.example/",
    ],
)  # fmt: skip
def test_addresses_that_are_not_gone_to(place: str, tmp_path: Path) -> None:
    assert not links.is_link(place)
    (tmp_path / "body").write_bytes(b"x")
    for act in (lambda: links.fetch(place, blob_of(b"x")), lambda: links.upload(tmp_path / "body", place), lambda: links.read(place, 9)):
        assert refusal(act, place or "nothing").code == "CAFE-161"


# With a real store


@pytest.mark.system
def test_there_and_back(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(DATA)
    links.upload(tmp_path / "body", store.url_put("a", len(DATA), 60))
    links.upload(tmp_path / "body", store.url_put("a", len(DATA), 60))  # once more: the same bytes
    assert links.fetch(store.url_get("a", 60), blob_of(DATA)) == DATA
    assert links.read(store.url_get("a", 60), 10) == DATA[:11] and links.read(store.url_get("b", 60), 10) is None
    store.put("empty", b"")
    assert links.fetch(store.url_get("empty", 60), blob_of(b"")) == b""


FAULTS: list[tuple[Kind, int, float]] = [
    ("refuse", 3, 0), ("status", 3, 503), ("status", 2, 500), ("status", 1, 429), ("black hole", 1, 0), ("slow", 1, 0.1),
    ("cut up", 2, 300), ("cut down", 2, 100), ("cut up", 2, 150_000), ("cut down", 3, 100_000), ("flip up", 1, 150_000),
    ("flip down", 1, 150_000),
]  # fmt: skip


@pytest.mark.system
@pytest.mark.parametrize(("kind", "times", "after"), FAULTS)
def test_what_passes_is_waited_out(store: ObjectStore, proxy: FaultProxy, tmp_path: Path, kind: Kind, times: int, after: float) -> None:
    (tmp_path / "body").write_bytes(DATA)
    put, get = store.url_put("a", len(DATA), 60), store.url_get("a", 60)
    proxy.fail(kind, times if kind.endswith("up") or after < 1000 else 0, after)
    links.upload(tmp_path / "body", put)
    proxy.heal()
    assert store.read("a", len(DATA)) == DATA  # a body that was damaged on its way was not taken
    met = proxy.seen[kind]
    proxy.fail(kind, times if kind.endswith("down") or after < 1000 else 0, after)
    assert links.fetch(get, blob_of(DATA)) == DATA
    assert (met or not kind.endswith("up")) and (proxy.seen[kind] > met or (kind.endswith("up") and after > 1000))


@pytest.mark.system
def test_a_body_that_breaks_is_gone_on_with(store: ObjectStore, proxy: FaultProxy) -> None:
    """Every connection is cut after 100 kB, so a fetch that began anew would never end."""
    store.put("a", DATA)
    url = store.url_get("a", 60)
    proxy.fail("cut down", 1000, 100_000)
    assert links.fetch(url, blob_of(DATA)) == DATA and proxy.seen["cut down"] >= 3


@pytest.mark.system
def test_a_file_that_was_begun_is_gone_on_with_by_another_link(store: ObjectStore, tmp_path: Path) -> None:
    store.put("a", DATA)
    for begun in (DATA[:100_000], DATA, DATA + b"too much", b""):
        with (tmp_path / "part").open("w+b") as file:
            file.write(begun)
            links.receive(store.url_get("a", 60), file, len(DATA))
        assert (tmp_path / "part").read_bytes() == DATA


@pytest.mark.system
def test_a_connection_that_always_damages_is_never_believed(store: ObjectStore, proxy: FaultProxy) -> None:
    store.put("a", DATA)
    url = store.url_get("a", 60)
    proxy.fail("flip down", 1000, 150_000)
    assert refusal(lambda: links.fetch(url, blob_of(DATA)), url).code == "CAFE-107"


@pytest.mark.system
def test_other_bytes_are_not_accepted_and_too_many_are_not_read(store: ObjectStore, proxy: FaultProxy) -> None:
    for other in (DATA[::-1], DATA[:-1], DATA + b"x", b""):
        store.put("a", other)
        url = store.url_get("a", 60)
        assert refusal(lambda: links.fetch(url, blob_of(DATA)), url).code == "CAFE-107"  # noqa: B023
    store.put("a", DATA)
    file, url = io.BytesIO(), store.url_get("a", 60)
    assert refusal(lambda: links.receive(url, file, len(DATA) - 1), url).code == "CAFE-107" and file.getvalue() == b""


@pytest.mark.system
def test_patience_ends(store: ObjectStore, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PATIENCE_S", 2.0)
    url = store.url_get("a", 60)
    for kind, after in (("status", 503), ("refuse", 0)):
        proxy.fail(kind, 1000, after)  # type: ignore[arg-type]
        began = time.monotonic()
        told = refusal(lambda: links.fetch(url, blob_of(DATA)), url)
        assert told.code == "CAFE-162" and time.monotonic() - began < 10
        proxy.heal()


@pytest.mark.system
def test_links_that_are_refused_say_why_and_are_not_tried_again(store: ObjectStore, proxy: FaultProxy, tmp_path: Path) -> None:
    store.put("a", DATA)
    (tmp_path / "body").write_bytes(DATA)
    get, put = store.url_get("a", 1), store.url_put("a", len(DATA), 1)
    time.sleep(2.5)
    proxy.seen.clear()
    late = refusal(lambda: links.fetch(get, blob_of(DATA)), get)
    assert late.code == "CAFE-161" and "it expired 1 minute ago" in late.message
    assert refusal(lambda: links.upload(tmp_path / "body", put), put).code == "CAFE-161"
    gone = store.url_get("nothing", 60)
    assert "not there" in refusal(lambda: links.fetch(gone, blob_of(DATA)), gone).message
    short = store.url_put("a", len(DATA) - 1, 60)
    assert refusal(lambda: links.upload(tmp_path / "body", short), short).code == "CAFE-161"
    bent = store.url_get("a", 60).replace("/a?", "/b?")
    assert "SignatureDoesNotMatch" in refusal(lambda: links.fetch(bent, blob_of(DATA)), bent).message
    assert proxy.seen["connections"] == 5


@pytest.mark.system
def test_a_link_from_the_future_names_the_clocks(store: ObjectStore) -> None:
    store.put("a", DATA)
    url = store.url_get("a", 60)
    told = next(part for part in urlsplit(url).query.split("&") if part.startswith("X-Amz-Date="))
    later = (datetime.now(UTC) + timedelta(minutes=21)).strftime("X-Amz-Date=%Y%m%dT%H%M%SZ")
    shifted = url.replace(told, later)
    found = refusal(lambda: links.fetch(shifted, blob_of(DATA)), shifted)
    assert found.code == "CAFE-163" and "21 minutes" in found.message


# Servers that are no store


class _Odd(BaseHTTPRequestHandler):
    """Answers as its path says."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        _Odd.asked.append(self.path)
        match self.path.strip("/").partition("?")[0]:
            case "redirect":
                self._answer(307, {"Location": "http://169.254.169.254/secret", "Content-Length": "0"})
            case "huge":
                self._answer(200, {"Content-Length": str(10**12)}, b"x" * 100)
            case "endless":
                self._answer(200, {"Connection": "close"}, b"x" * 10_000)
            case "drip":
                self._answer(200, {"Content-Length": "1000"})
                for _ in range(1000):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.05)
            case _:
                self._answer(200, {"Content-Length": "2"}, b"ok")
        self.close_connection = True

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def odd_server(context: ssl.SSLContext | None = None) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Odd) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign,assignment]
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _Odd.asked.clear()
        yield server.server_port
        server.shutdown()


def test_a_redirect_is_not_followed() -> None:
    with odd_server() as port:
        url = f"http://127.0.0.1:{port}/redirect"
        assert "not followed" in refusal(lambda: links.fetch(url, blob_of(b"ok")), url).message


def test_what_is_too_large_or_of_unknown_size_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PATIENCE_S", 1.0)
    with odd_server() as port:
        huge, endless = f"http://127.0.0.1:{port}/huge", f"http://127.0.0.1:{port}/endless"
        assert refusal(lambda: links.fetch(huge, blob_of(b"ok")), huge).code == "CAFE-107" and len(_Odd.asked) == 1
        assert refusal(lambda: links.fetch(endless, blob_of(b"ok")), endless).code == "CAFE-162"


def test_a_server_that_drips_does_not_hold_a_site_for_ever() -> None:
    with odd_server() as port:
        url, began = f"http://127.0.0.1:{port}/drip", time.monotonic()
        assert refusal(lambda: links.fetch(url, Blob(64 * "0", 1000), 1.0), url).code == "CAFE-162"
        assert time.monotonic() - began < 5


def test_a_full_disk_is_not_called_an_unreachable_store() -> None:
    with odd_server() as port, Path("/dev/full").open("r+b", buffering=0) as full, pytest.raises(OSError, match="No space"):
        links.receive(f"http://127.0.0.1:{port}/", full, 2)


# TLS and proxies


@pytest.fixture(scope="module")
def own_authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that no machine trusts by itself."""
    import ipaddress

    folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hospital")]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "own.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "own.pem", folder / "key.pem")
    return folder / "own.pem", context


@pytest.fixture(autouse=True)
def no_proxies_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_a_certificate_of_their_own_authority(own_authority: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch) -> None:
    file, context = own_authority
    with odd_server(context) as port:
        url = f"https://127.0.0.1:{port}/"
        told = refusal(lambda: links.fetch(url, blob_of(b"ok")), url)
        assert told.code == "CAFE-162" and "certificate" in told.message and "SSL_CERT_FILE" in told.hint
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        assert links.fetch(url, blob_of(b"ok")) == b"ok"


class _Connect(BaseHTTPRequestHandler):
    """A proxy that opens tunnels for those who may."""

    asked: ClassVar[list[tuple[str, str]]] = []

    def do_CONNECT(self) -> None:
        _Connect.asked.append((self.path, self.headers.get("Proxy-Authorization", "")))
        host, _, port = self.path.rpartition(":")
        with create_connection((host, int(port))) as there:
            self.send_response(200)
            self.end_headers()
            threading.Thread(target=self._copy, args=(there.recv, self.connection.sendall), daemon=True).start()
            self._copy(self.connection.recv, there.sendall)

    def do_GET(self) -> None:
        _Connect.asked.append((self.path, ""))
        self.send_error(403)

    def _copy(self, take: Callable[[int], bytes], give: Callable[[bytes], object]) -> None:
        try:
            while block := take(65536):
                give(block)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        pass


def test_the_proxy_that_is_named_is_used_for_https_and_for_nothing_else(
    own_authority: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, context = own_authority
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with (
        odd_server(context) as port,
        odd_server() as plain,
        ThreadingHTTPServer(("127.0.0.1", 0), _Connect) as via,
    ):
        threading.Thread(target=via.serve_forever, daemon=True).start()
        _Connect.asked.clear()
        monkeypatch.setenv("HTTPS_PROXY", f"http://ward:s%40cret@127.0.0.1:{via.server_port}")
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{via.server_port}")
        assert links.fetch(f"https://127.0.0.1:{port}/?X-Amz-Signature=1", blob_of(b"ok")) == b"ok"
        assert _Connect.asked == [(f"127.0.0.1:{port}", "Basic d2FyZDpzQGNyZXQ=")]  # the host, and nothing of the link
        assert links.fetch(f"http://127.0.0.1:{plain}/", blob_of(b"ok")) == b"ok"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert links.fetch(f"https://127.0.0.1:{port}/", blob_of(b"ok")) == b"ok"
        assert len(_Connect.asked) == 1
        via.shutdown()
