"""A folder as one file that travels, and the shelf that keeps what came: the same bytes for the same files, and nothing but files."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from cafe_kit import hashes, inputs, links, parcels
from cafe_kit.errors import CafeError
from cafe_kit.hashes import hash_folder
from cafe_kit.orders import Blob
from cafe_kit.shelf import Shelf
from hypothesis import given, settings
from hypothesis import strategies as st

from server_store.object_store import Keys, ObjectStore, Place
from tests.fault_proxy import fault_proxy
from tests.seaweedfs import S3Server

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 3000, "sub/tokenizer.json": b"[1]", "empty": b"", "öäü": b"x"}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model", FILES)


def refusal(act: Callable[[], object]) -> CafeError:
    with pytest.raises(CafeError) as caught:
        act()
    return caught.value


# Parcels


def test_the_same_files_give_the_same_bytes(model: Path, tmp_path: Path) -> None:
    blob = parcels.pack(model, tmp_path / "one.tar")
    data = (tmp_path / "one.tar").read_bytes()
    assert blob == Blob(hashlib.sha256(data).hexdigest(), len(data))
    other = write(tmp_path / "elsewhere", dict(reversed(FILES.items())))
    (other / ".hidden").write_bytes(b"left out")
    (other / ".git").mkdir()
    (other / ".git" / "config").write_bytes(b"left out, too")
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    assert parcels.pack(other, tmp_path / "two.tar") == blob
    assert blob.sha256 == "1d5701f7e621d8d7b9aa049f3826c88200185265ebeabe981bb1e27ba018db0f"
    assert parcels.size_of(model) == len(data) <= parcels.largest(hash_folder(model).size)
    with tarfile.open(tmp_path / "one.tar") as known:  # an ordinary tar, for those who look
        assert known.getnames() == sorted(FILES) and known.extractfile("config.json").read() == b"{}"  # type: ignore[union-attr]


def test_what_was_packed_is_unpacked(model: Path, tmp_path: Path) -> None:
    parcels.pack(model, tmp_path / "one.tar")
    parcels.unpack(tmp_path / "one.tar", tmp_path / "back", hash_folder(model).size)
    assert hash_folder(tmp_path / "back") == hash_folder(model)


def test_what_cannot_travel_is_said_before_it_is_packed(tmp_path: Path) -> None:
    for number, name in enumerate(("x" * 101, "a/" * 45 + "ü" * 10, "a\nb", "a:b", "a\\b")):
        folder = write(tmp_path / str(number), {name: b"1"})
        assert refusal(lambda: parcels.pack(folder, tmp_path / "p")).code == "CAFE-165"  # noqa: B023
    (tmp_path / "none").mkdir()
    assert refusal(lambda: parcels.pack(tmp_path / "none", tmp_path / "p")).code == "CAFE-165"


def hostile(entries: list[tarfile.TarInfo | tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar as others write it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as parcel:
        for entry in entries:
            info = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(entry[0])
            data = b"" if isinstance(entry, tarfile.TarInfo) else entry[1]
            info.size = len(data)
            parcel.addfile(info, io.BytesIO(data))
    return out.getvalue()


def info(name: str, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


GOOD = [("a", b"12345"), ("b", b"67890")]
HOSTILE = {
    "goes up": hostile([("../outside", b"1234567890")]),
    "goes up inside": hostile([("a/../../outside", b"1234567890")]),
    "absolute": hostile([("/tmp/outside", b"1234567890")]),
    "dot": hostile([("./a", b"1234567890")]),
    "hidden": hostile([(".bashrc", b"1234567890")]),
    "hidden folder": hostile([("a/.ssh/authorized_keys", b"1234567890")]),
    "link": hostile([info("a", type=tarfile.SYMTYPE, linkname="/etc/passwd"), ("b", b"1234567890")]),
    "hard link": hostile([info("a", type=tarfile.LNKTYPE, linkname="/etc/passwd"), ("b", b"1234567890")]),
    "device": hostile([info("a", type=tarfile.CHRTYPE, devmajor=1, devminor=3), ("b", b"1234567890")]),
    "pipe": hostile([info("a", type=tarfile.FIFOTYPE), ("b", b"1234567890")]),
    "folder": hostile([info("a", type=tarfile.DIRTYPE), ("a/b", b"1234567890")]),
    "set-user-id": hostile([info("a", mode=0o4755), ("b", b"1234567890")]),
    "owner": hostile([info("a", uid=1000, uname="ward"), ("b", b"1234567890")]),
    "time": hostile([info("a", mtime=1), ("b", b"1234567890")]),
    "twice": hostile([("a", b"12345"), ("a", b"67890")]),
    "out of order": hostile([("b", b"12345"), ("a", b"67890")]),
    "file and folder": hostile([("a", b"12345"), ("a/b", b"67890")]),
    "folder and file between": hostile([("a", b"12345"), ("a-", b""), ("a/b", b"67890")]),
    "too much": hostile([("a", b"12345"), ("b", b"678901")]),
    "too little": hostile([("a", b"12345"), ("b", b"6789")]),
    "pax": hostile([info("a", pax_headers={"comment": "x" * 10_000}), ("b", b"1234567890")], tarfile.PAX_FORMAT),
    "long name": hostile([("a" * 300, b"1234567890")]),
    "control": hostile([("a\x1b[2J", b"1234567890")]),
    "backslash": hostile([("..\\outside", b"1234567890")]),
    "empty": hostile([]),
    "cut": hostile(list(GOOD))[:1500],
    "cut in the header": hostile(list(GOOD))[:700],
    "no end": hostile(list(GOOD))[:2048],
    "something behind": hostile(list(GOOD)) + b"x" * 512,
    "much behind": hostile(list(GOOD)) + bytes(20_000),
    "no tar": b"PK\x03\x04" + bytes(4000),
    "nothing": b"",
    "gzip": gzip.compress(hostile(list(GOOD))),
}


def test_a_sound_tar_of_others_with_our_headers_is_taken(tmp_path: Path) -> None:
    """So that what follows is refused for its fault and not by the way it was made."""
    (tmp_path / "p").write_bytes(hostile([info("a", mode=0o644)]))
    sound = b""
    for name, data in GOOD:
        made = info(name, mode=0o644)
        made.size = len(data)
        sound += made.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)
    (tmp_path / "p").write_bytes(sound + bytes(1024))
    parcels.unpack(tmp_path / "p", tmp_path / "out", 10)
    assert (tmp_path / "out" / "b").read_bytes() == b"67890"


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_parcels_are_refused_before_a_byte_is_written(tmp_path: Path, fault: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "p").write_bytes(HOSTILE[fault])
    assert refusal(lambda: parcels.unpack(tmp_path / "p", inside / "out", 10)).code == "CAFE-165"
    assert list(inside.iterdir()) == [] and not (tmp_path / "outside").exists()


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 3 * 512), value=st.integers(0, 255))
def test_no_other_byte_in_a_header_is_taken(tmp_path_factory: pytest.TempPathFactory, at: int, value: int) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    blob = hash_folder(write(folder / "own", dict(GOOD)))
    parcels.pack(folder / "own", folder / "p")
    data = bytearray((folder / "p").read_bytes())
    data[at] = value
    (folder / "p").write_bytes(data)
    try:
        parcels.unpack(folder / "p", folder / "out", blob.size)
    except CafeError as error:
        assert error.code == "CAFE-165" and not (folder / "out").exists()
    else:  # a byte of a file itself, which the hash finds, or the same byte
        assert sorted(path.name for path in (folder / "out").iterdir()) == ["a", "b"]


def test_a_parcel_that_claims_terabytes_costs_nothing(tmp_path: Path) -> None:
    made = info("a", mode=0o644)
    made.size = 10**13
    (tmp_path / "p").write_bytes(made.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    assert refusal(lambda: parcels.unpack(tmp_path / "p", tmp_path / "out", 10**13)).code == "CAFE-165"


def test_files_of_more_than_eight_gigabytes_have_a_header() -> None:
    assert parcels._read(parcels._header("model.safetensors", 2**34)) == ("model.safetensors", 2**34)


# Hashes that are kept


def test_a_hash_is_noted_for_other_processes_and_forgotten_when_a_file_changes(model: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    found = hash_folder(model, notes)
    (note,) = notes.iterdir()
    ask = (
        "import sys; from pathlib import Path; from cafe_kit import hashes\n"
        "hashes._computed = lambda *_: hashes.Blob('c' * 64, 0)\n"
        "print(hashes.hash_folder(Path(sys.argv[1]), Path(sys.argv[2])).sha256)"
    )

    def elsewhere() -> str:
        return subprocess.run(
            [sys.executable, "-c", ask, str(model), str(notes)], capture_output=True, text=True, check=True
        ).stdout.strip()

    assert elsewhere() == found.sha256
    times = (model / "config.json").stat()
    (model / "config.json").write_bytes(b"[]")
    os.utime(model / "config.json", ns=(times.st_atime_ns, times.st_mtime_ns))  # set back, as a restore or a cheat would
    assert elsewhere() == 64 * "c"
    assert hash_folder(model) != found
    for damaged in (b"", b"{", b'{"marks": 1}', json.dumps([1]).encode()):
        note.write_bytes(damaged)
        hashes._known.clear()
        assert hash_folder(model, notes).size == found.size


def test_a_shelf_that_may_only_be_read_is_no_obstacle(model: Path, tmp_path: Path) -> None:
    assert hash_folder(model, Path("/proc/no/such/place")) == hash_folder(model)


# The shelf


def packed(model: Path, tmp_path: Path) -> tuple[Path, Blob]:
    parcels.pack(model, tmp_path / "parcel.tar")
    return tmp_path / "parcel.tar", hash_folder(model)


def test_a_folder_on_the_shelf_is_found_wherever_the_order_points(model: Path, tmp_path: Path) -> None:
    shelf, blob = [tmp_path / "kit", tmp_path / "own"], hash_folder(model)
    write(shelf[0] / "embedder", {"other": b"1"})
    model.rename(shelf[0] / "model")
    assert inputs.fetch_folder("base_model", "/nowhere", blob, shelf) == shelf[0] / "model"
    assert refusal(lambda: inputs.fetch_folder("base_model", "/nowhere", Blob(64 * "0", blob.size), shelf)).code == "CAFE-106"


def test_a_parcel_is_kept_on_the_last_shelf_and_stays_where_it_was(model: Path, tmp_path: Path) -> None:
    parcel, blob = packed(model, tmp_path)
    shelf = [tmp_path / "kit", tmp_path / "own"]
    found = inputs.fetch_folder("base_model", str(parcel), blob, shelf)
    assert found == shelf[1] / blob.sha256 and hash_folder(found) == blob and parcel.exists()
    parcel.unlink()
    assert inputs.fetch_folder("base_model", str(parcel), blob, shelf) == found
    assert [path.name for path in shelf[1].iterdir() if not path.name.startswith(".")] == [blob.sha256]


def test_a_parcel_with_other_files_leaves_nothing(model: Path, tmp_path: Path) -> None:
    parcel, blob = packed(model, tmp_path)
    bent = bytearray(parcel.read_bytes())
    bent[5000] ^= 1
    parcel.write_bytes(bent)
    shelf = tmp_path / "own"
    assert refusal(lambda: inputs.fetch_folder("base_model", str(parcel), blob, [shelf])).code == "CAFE-107"
    assert [path.name for path in shelf.iterdir() if not path.name.endswith(".lock")] == []


def test_a_damaged_folder_on_the_shelf_is_replaced(model: Path, tmp_path: Path) -> None:
    parcel, blob = packed(model, tmp_path)
    shelf = [tmp_path / "own"]
    found = inputs.fetch_folder("base_model", str(parcel), blob, shelf)
    (found / "config.json").write_bytes(b"[]")
    assert inputs.fetch_folder("base_model", str(parcel), blob, shelf) == found and hash_folder(found) == blob


def test_a_disk_without_room_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    told = refusal(lambda: Shelf([tmp_path]).fetch("http://127.0.0.1:1/", Blob(64 * "0", 10**16), 1.0))
    assert told.code == "CAFE-164" and "GB are wanted" in told.message


@pytest.fixture
def behind(s3_server: S3Server) -> object:
    with fault_proxy(s3_server.port) as proxy:
        place = Place(s3_server.bucket, f"p-{uuid.uuid4().hex[:8]}", endpoint_url=proxy.endpoint)
        yield ObjectStore(place, Keys(*s3_server.key)), proxy


@pytest.mark.system
def test_a_folder_comes_by_a_link(model: Path, tmp_path: Path, behind: tuple[ObjectStore, object]) -> None:
    store, _ = behind
    parcel, blob = packed(model, tmp_path)
    store.put_file("m", parcel)
    shelf = [tmp_path / "own"]
    found = inputs.fetch_folder("base_model", store.url_get("m", 60), blob, shelf)
    assert hash_folder(found) == blob and not list(shelf[0].glob(".*.part"))
    store.delete("m")
    assert inputs.fetch_folder("base_model", store.url_get("m", 60), blob, shelf) == found  # nothing is asked of the store


@pytest.mark.system
def test_what_was_cut_goes_on_in_another_process_by_another_link(
    model: Path, tmp_path: Path, behind: tuple[ObjectStore, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, proxy = behind
    parcel, blob = packed(model, tmp_path)
    store.put_file("m", parcel)
    monkeypatch.setattr(links, "PATIENCE_S", 0.0)
    shelf, url = [tmp_path / "own"], store.url_get("m", 60)
    proxy.fail("cut down", 1, 500_000)  # type: ignore[attr-defined]
    assert refusal(lambda: inputs.fetch_folder("base_model", url, blob, shelf)).code == "CAFE-162"
    (part,) = shelf[0].glob(".*.part")
    begun = part.stat().st_size
    assert 400_000 < begun < 500_000
    proxy.fail("cut down", 1, parcel.stat().st_size - begun + 2000)  # type: ignore[attr-defined]  # room for the rest, not for the whole
    assert hash_folder(inputs.fetch_folder("base_model", store.url_get("m", 60), blob, shelf)) == blob
    assert not part.exists()


@pytest.mark.system
def test_a_beginning_that_was_of_something_else_is_thrown_away(model: Path, tmp_path: Path, behind: tuple[ObjectStore, object]) -> None:
    store, _ = behind
    parcel, blob = packed(model, tmp_path)
    store.put_file("m", parcel)
    shelf = tmp_path / "own"
    shelf.mkdir()
    (shelf / f".{blob.sha256}.tar.part").write_bytes(b"x" * 100_000)
    old = shelf / f".{64 * '1'}.tar.part"
    old.write_bytes(b"given up")
    os.utime(old, (time.time() - 8 * 24 * 3600,) * 2)
    assert hash_folder(inputs.fetch_folder("base_model", store.url_get("m", 60), blob, [shelf])) == blob
    assert not list(shelf.glob(".*.part"))


@pytest.mark.system
def test_a_model_that_two_want_at_once_is_fetched_once(model: Path, tmp_path: Path, behind: tuple[ObjectStore, object]) -> None:
    store, proxy = behind
    parcel, blob = packed(model, tmp_path)
    store.put_file("m", parcel)
    urls = [store.url_get("m", 60) for _ in range(4)]
    proxy.heal()  # type: ignore[attr-defined]
    proxy.seen.clear()  # type: ignore[attr-defined]
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda url=url: found.append(inputs.fetch_folder("base_model", url, blob, [tmp_path / "own"])))
        for url in urls
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and set(found) == {tmp_path / "own" / blob.sha256}
    assert proxy.seen["connections"] == 1  # type: ignore[attr-defined]
