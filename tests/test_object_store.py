"""Objects on a real S3 server, also when the network misbehaves, somebody else writes there, or a clock is wrong."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from server_store.errors import StoreError
from server_store.object_store import Keys, ObjectStore, Place
from tests.fault_proxy import FaultProxy, Kind, fault_proxy
from tests.seaweedfs import S3Server

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[1]
DATA = bytes(range(256)) * 1200  # 300 kB


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def store_at(server: S3Server, endpoint: str = "", *, patience_s: float = 20.0, **changes: str) -> ObjectStore:
    """A store of the operator in a folder of its own; ``changes`` to its place."""
    place = {"bucket": server.bucket, "prefix": f"t-{uuid.uuid4().hex[:8]}", "endpoint_url": endpoint or server.endpoint} | changes
    return ObjectStore(Place(**place), Keys(*server.key), patience_s=patience_s, timeout_s=2.0)


@pytest.fixture
def store(s3_server: S3Server) -> ObjectStore:
    return store_at(s3_server)


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(s3_server.port) as running:
        yield running


@pytest.fixture
def behind(proxy: FaultProxy, s3_server: S3Server) -> ObjectStore:
    """A store that is reached through the proxy."""
    return store_at(s3_server, proxy.endpoint)


def refusal(act: object) -> StoreError:
    with pytest.raises(StoreError) as caught:
        act()  # type: ignore[operator]
    assert "X-Amz" not in str(caught.value) and "secret" not in str(caught.value).replace("the secret", "")
    return caught.value


# What it does


def test_what_was_put_is_fetched(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "own").write_bytes(DATA)
    store.put_file("runs/r/a", tmp_path / "own", sha(DATA))
    store.get("runs/r/a", tmp_path / "got", sha(DATA), len(DATA))
    assert (tmp_path / "got").read_bytes() == DATA and store.size("runs/r/a") == len(DATA)
    assert store.holds("runs/r/a", sha(DATA), len(DATA)) and not store.holds("runs/r/a", sha(b"other"), len(DATA))
    assert store.read("runs/r/a", len(DATA)) == DATA
    assert [(one.key, one.size) for one in store.list("runs/")] == [("runs/r/a", len(DATA))]
    store.delete("runs/r/a")
    store.delete("runs/r/a")  # it is gone already
    assert store.size("runs/r/a") is None and store.read("runs/r/a", 9) is None and list(store.list()) == []


def test_a_store_sees_its_own_folder_alone(s3_server: S3Server) -> None:
    one, other = store_at(s3_server), store_at(s3_server)
    one.put("a", b"1")
    assert other.size("a") is None and list(other.list()) == []
    for key in ("../a", "/a", "", "a//b", "a/../b", ".hidden", "ü", 1000 * "a"):
        with pytest.raises(ValueError):
            one.put(key, b"")


def test_a_listing_is_whole_however_many_there_are(store: ObjectStore) -> None:
    for number in range(7):
        store.put(f"many/{number}", b"")
    ask, store.client.list_objects_v2 = store.client.list_objects_v2, lambda **asked: ask(**asked, MaxKeys=3)
    assert [one.key for one in store.list("many/")] == [f"many/{number}" for number in range(7)]


def test_a_large_file_goes_in_parts_and_comes_back(store: ObjectStore, tmp_path: Path) -> None:
    block = os.urandom(2**20)
    with (tmp_path / "own").open("wb") as file:
        for _ in range(130):
            file.write(block)
    whole = sha(130 * block)
    store.put_file("large", tmp_path / "own", whole)
    assert store.holds("large", whole, 130 * 2**20) and "-" in store.client.head_object(**store._at("large"))["ETag"]
    store.get("large", tmp_path / "got", whole, 130 * 2**20)
    assert (tmp_path / "got").stat().st_size == 130 * 2**20
    store.delete("large")


@pytest.mark.parametrize(("kind", "after"), [("cut down", 60), ("cut down", 300), ("cut up", 20_000_000), ("status", 503)])
def test_parts_that_break_are_put_again(behind: ObjectStore, proxy: FaultProxy, tmp_path: Path, kind: Kind, after: float) -> None:
    with (tmp_path / "own").open("wb") as file:
        file.truncate(65 * 2**20)
    proxy.fail(kind, 3, after)
    behind.put_file("large", tmp_path / "own", "00ff")
    assert behind.holds("large", "00ff", 65 * 2**20) and proxy.seen[kind] == 3
    behind.delete("large")


# Bytes that are not what was announced


def test_an_object_that_is_missing_or_was_replaced_is_not_accepted(store: ObjectStore, tmp_path: Path) -> None:
    assert refusal(lambda: store.get("a", tmp_path / "got", sha(DATA), len(DATA))).code == "CAFE-691"
    (tmp_path / "own").write_bytes(DATA)
    store.put_file("a", tmp_path / "own", sha(DATA))
    for other in (DATA[::-1], DATA[:-1], DATA + b"x", b""):
        store.put("a", other)
        assert refusal(lambda: store.get("a", tmp_path / "got", sha(DATA), len(DATA))).code == "CAFE-692"
        assert not store.holds("a", sha(DATA), len(DATA))
    assert not [path for path in tmp_path.iterdir() if "got" in path.name]


def test_an_object_larger_than_allowed_is_not_read(behind: ObjectStore, proxy: FaultProxy, tmp_path: Path) -> None:
    behind.put("a", 30 * 2**20 * b"x")
    for act in (lambda: behind.read("a", 1000), lambda: behind.get("a", tmp_path / "got", sha(DATA), len(DATA))):
        assert refusal(act).code == "CAFE-692"
    assert proxy.seen["bytes down"] < 20 * 2**20  # what was on its way already


# URLs


def fetch(url: str, data: bytes | None = None, method: str = "GET") -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_url_does_one_thing_with_one_object(store: ObjectStore) -> None:
    store.put("a", b"12345")
    store.put("b", b"other")
    get, put = store.url_get("a", 60), store.url_put("c", 5, 60)
    assert fetch(get) == 200 and fetch(get.replace("/a?", "/b?")) == 403
    assert fetch(get, b"12345", "PUT") == 403 and fetch(get, method="DELETE") == 403
    assert fetch(put, b"1234", "PUT") == 403 and fetch(put, b"123456", "PUT") == 403 and store.size("c") is None
    assert fetch(put, b"12345", "PUT") == 200 and fetch(put) == 403 and store.size("c") == 5


def test_a_url_ends(store: ObjectStore) -> None:
    store.put("a", b"12345")
    url = store.url_get("a", 1)
    assert fetch(url) == 200
    time.sleep(2.1)
    assert fetch(url) == 403
    for seconds in (0, 8 * 24 * 3600):
        with pytest.raises(ValueError):
            store.url_get("a", seconds)


def test_a_url_for_enrolment_takes_any_size(store: ObjectStore) -> None:
    assert fetch(store.url_put("request", None, 3600.5), b"whatever", "PUT") == 200
    assert store.read("request", 100) == b"whatever"


# A network that misbehaves

FAULTS: list[tuple[Kind, int, float]] = [
    ("refuse", 2, 0), ("status", 2, 503), ("status", 2, 500), ("status", 1, 429), ("black hole", 1, 0), ("slow", 1, 0.3),
    ("cut up", 2, 300), ("cut down", 2, 100), ("cut up", 2, 150_000), ("cut down", 3, 100_000), ("flip up", 1, 150_000),
    ("flip down", 1, 150_000),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "times", "after"), FAULTS)
def test_what_passes_is_waited_out(
    behind: ObjectStore, store: ObjectStore, proxy: FaultProxy, tmp_path: Path, kind: Kind, times: int, after: float
) -> None:
    (tmp_path / "own").write_bytes(DATA)
    if kind.endswith("down") or after < 1000:
        behind.put_file("a", tmp_path / "own")
        proxy.fail(kind, times, after)
        behind.get("a", tmp_path / "got", sha(DATA), len(DATA))
        assert (tmp_path / "got").read_bytes() == DATA and proxy.seen[kind] == times
        proxy.heal()
    if kind.endswith("up") or after < 1000:
        before = proxy.seen[kind]
        proxy.fail(kind, times, after)
        behind.put_file("b", tmp_path / "own")
        assert proxy.seen[kind] > before
        assert behind.read("b", len(DATA)) == DATA


def test_a_listing_that_was_cut_is_no_empty_one(behind: ObjectStore, proxy: FaultProxy) -> None:
    """The library takes an answer that ends among its headers for a short one."""
    behind.put("a", b"1")
    for after in (20, 60, 200, 400):
        proxy.fail("cut down", 2, after)
        assert [one.key for one in behind.list()] == ["a"]
        proxy.fail("cut down", 2, after)
        assert behind.size("a") == 1 and behind.abort_stale_uploads() == 0


def test_a_body_that_breaks_is_gone_on_with_and_not_begun_anew(behind: ObjectStore, proxy: FaultProxy, tmp_path: Path) -> None:
    """Every connection is cut after 100 kB, so a fetch that began anew would never end."""
    behind.put("a", DATA)
    proxy.fail("cut down", 1000, 100_000)
    behind.get("a", tmp_path / "got", sha(DATA), len(DATA))
    assert (tmp_path / "got").read_bytes() == DATA and proxy.seen["cut down"] >= 3


def test_a_connection_that_always_damages_is_never_believed(behind: ObjectStore, proxy: FaultProxy, tmp_path: Path) -> None:
    behind.put("a", DATA)
    proxy.fail("flip down", 1000, 150_000)
    assert refusal(lambda: behind.get("a", tmp_path / "got", sha(DATA), len(DATA))).code in ("CAFE-683", "CAFE-692")
    assert list(tmp_path.iterdir()) == []


def test_patience_ends(s3_server: S3Server, proxy: FaultProxy, tmp_path: Path) -> None:
    store = store_at(s3_server, proxy.endpoint, patience_s=3.0)
    for kind, after in (("status", 503), ("refuse", 0)):
        proxy.fail(kind, 1000, after)  # type: ignore[arg-type]
        began = time.monotonic()
        assert refusal(lambda: store.put("a", b"")).code == "CAFE-683"
        assert time.monotonic() - began < 25
        proxy.heal()


def test_the_store_is_down_for_a_while(behind: ObjectStore, proxy: FaultProxy) -> None:
    """More refusals than the library's own tries and its quota for them would bear."""
    proxy.fail("refuse", 10_000)
    threading.Timer(6.0, proxy.heal).start()
    behind.put("a", DATA)
    assert behind.read("a", len(DATA)) == DATA and proxy.seen["refuse"] > 4


def test_nothing_listens_there(s3_server: S3Server) -> None:
    store = store_at(s3_server, "http://127.0.0.1:1", patience_s=1.0)
    for act in (lambda: store.put("a", b""), lambda: store.size("a"), lambda: list(store.list())):
        assert refusal(act).code == "CAFE-683"


def test_what_does_not_pass_is_not_tried_again(s3_server: S3Server, proxy: FaultProxy) -> None:
    wrong = ObjectStore(Place(s3_server.bucket, endpoint_url=proxy.endpoint), Keys(s3_server.key[0], "wrong"), patience_s=30.0)
    began = time.monotonic()
    assert refusal(lambda: wrong.put("a", b"")).code == "CAFE-684"
    assert proxy.seen["connections"] == 1 and time.monotonic() - began < 10


# What a person did wrong


def test_refusals_say_what_is_wrong(s3_server: S3Server) -> None:
    place = Place(s3_server.bucket, endpoint_url=s3_server.endpoint)
    unknown = ObjectStore(place, Keys("UNKNOWNKEY", "nothing"))
    assert "does not know this access key" in refusal(lambda: unknown.put("a", b"")).message
    wrong = ObjectStore(place, Keys(s3_server.key[0], "wrong-one"))
    assert "does not belong" in refusal(lambda: wrong.put("a", b"")).message
    assert refusal(lambda: wrong.size("a")).code == "CAFE-684"  # an answer to HEAD has no words of its own
    powerless = ObjectStore(place, Keys(*s3_server.powerless))
    assert "may not do that" in refusal(lambda: powerless.put("a", b"")).message
    elsewhere = ObjectStore(Place("another-bucket", endpoint_url=s3_server.endpoint), Keys(*s3_server.admin))
    for act in (lambda: elsewhere.put("a", b""), lambda: elsewhere.size("a"), lambda: list(elsewhere.list())):
        told = refusal(act)
        assert told.code == "CAFE-685" and "another-bucket" in told.message


def test_without_a_key_it_says_so(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    place = Place(s3_server.bucket, endpoint_url=s3_server.endpoint)
    assert refusal(lambda: ObjectStore(place).put("a", b"")).code == "CAFE-694"
    assert refusal(lambda: ObjectStore(place).url_get("a", 60)).code == "CAFE-694"
    assert refusal(lambda: ObjectStore(place, profile="nobody")).code == "CAFE-694"
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        f"[hospital]\naws_access_key_id = {s3_server.key[0]}\naws_secret_access_key = {s3_server.key[1]}\n"
    )
    ObjectStore(place, profile="hospital").put("a-profile", b"")


class _Page(BaseHTTPRequestHandler):
    """A web server that is no object store."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Welcome")

    def do_PUT(self) -> None:
        self.send_response(405)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_an_address_that_is_no_object_store(s3_server: S3Server) -> None:
    with HTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store = store_at(s3_server, f"http://127.0.0.1:{server.server_port}", patience_s=1.0)
        assert refusal(lambda: list(store.list())).code == "CAFE-683"  # the library takes a page for a server in trouble
        assert refusal(lambda: store.put("a", b"")).code == "CAFE-695"
        server.shutdown()
    assert refusal(lambda: store_at(s3_server, "no address at all")).code == "CAFE-693"


CLOCK = """
import sys
from server_store.errors import StoreError
from server_store.object_store import Keys, ObjectStore, Place
store = ObjectStore(Place(sys.argv[1], endpoint_url=sys.argv[2]), Keys(sys.argv[3], sys.argv[4]), patience_s=5)
for act in (lambda: store.put("a", b""), lambda: store.size("a")):
    try:
        act()
        print("done")
    except StoreError as error:
        print(error.code, error.message)
"""


@pytest.mark.parametrize(("shift", "words"), [("-21m", "21 minutes behind"), ("+1d", "1440 minutes ahead of")])
def test_clocks_that_differ_are_named(s3_server: S3Server, shift: str, words: str) -> None:
    if shutil.which("faketime") is None:
        pytest.skip("no faketime on this machine; `make system` installs it where it may")
    command = ["faketime", "-f", shift, sys.executable, "-c", CLOCK, s3_server.bucket, s3_server.endpoint, *s3_server.key]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all(line.startswith("CAFE-686") and words in line for line in lines), done.stdout


# What a killed process leaves


def test_parts_of_an_upload_that_never_ended_are_dropped(store: ObjectStore) -> None:
    begun = store.client.create_multipart_upload(**store._at("half"))
    store.client.upload_part(**store._at("half"), UploadId=begun["UploadId"], PartNumber=1, Body=5 * 2**20 * b"x")
    assert store.size("half") is None  # nothing is seen of it
    assert store.abort_stale_uploads() == 0  # it may be going on
    assert store.abort_stale_uploads(timedelta(0)) == 1
    assert store.abort_stale_uploads(timedelta(0)) == 0
