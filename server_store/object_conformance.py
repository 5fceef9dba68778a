"""Does an S3 server keep what a run relies on? Each thing is tried on the operator's own bucket, and told in a sentence.

Knows S3 and what we use of it. Does not know who reads the findings. All it writes lies in a folder of its own, which goes again.
``failed`` means that runs cannot or must not use this store, ``warn`` that something is less good than it could be.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal
from urllib.parse import urlsplit

from server_store.errors import StoreError
from server_store.object_bench import DATA, Bench
from server_store.object_faults import FAULTS, SKEW_S, fault, in_words
from server_store.object_store import Keys, ObjectStore

_PART = 5 * 2**20  # the smallest part that S3 takes but for the last
_WRITERS = 8
_NO_SECRETS = "Links would not be what protects an object; whoever knows its name could read or write it."
_NO_HURRY = "Runs do not rely on it: names carry the hash of what they hold."
_LATE = "A damaged upload is then found by its SHA-256 when it is fetched, and sent again; it takes longer."


@dataclass(frozen=True)
class Finding:
    """One thing that was tried: ``sentence`` says what was seen, ``meaning`` what it means for a run, empty when all is well."""

    name: str
    state: Literal["ok", "warn", "failed"]
    sentence: str
    meaning: str = ""


@dataclass(frozen=True)
class _Probe:
    """``good``: what is told when it is so; ``bad`` and ``meaning`` when not, with the weight ``worse``."""

    name: str
    act: Callable[[Bench], bool]
    good: str
    bad: str
    meaning: str
    worse: Literal["warn", "failed"] = "failed"


def examine(store: ObjectStore) -> Iterator[Finding]:
    """Try everything, some seconds in all, and clean up. What cannot be tried at all ends it with one failed finding. Never raises."""
    bench = Bench(store)
    try:
        bench.begin()
        yield _address(store)
        yield _clock(bench)
        yield _session(store)
        for probe in PROBES:
            yield _tried(probe, bench)
        yield _left(bench)
    except StoreError as error:
        yield Finding("reach", "failed", error.message, error.hint)
    finally:
        bench.sweep()


def _left(bench: Bench) -> Finding:
    """Whether everything that was written is gone again: also the old versions that some buckets keep."""
    objects, versions = bench.left()
    if objects or versions:
        means = "What sites send is deleted after its round, but this bucket keeps it. Turn versioning and object lock off."
        return Finding("delete", "failed" if objects else "warn", "What was deleted is still there.", means)
    return Finding("delete", "ok", "What is deleted is gone.")


def _tried(probe: _Probe, bench: Bench) -> Finding:
    try:
        so = probe.act(bench)
    except StoreError as error:
        return Finding(probe.name, probe.worse, f"{probe.bad} ({error.code}: {error.message})", probe.meaning)
    except FAULTS as error:
        told = fault(error, bench.store.place.bucket)
        return Finding(probe.name, probe.worse, f"{probe.bad} ({told.code}: {told.message})", probe.meaning)
    return Finding(probe.name, "ok", probe.good) if so else Finding(probe.name, probe.worse, probe.bad, probe.meaning)


# What is looked at rather than tried


def _address(store: ObjectStore) -> Finding:
    if urlsplit(store.place.endpoint_url or "https:").scheme == "https":
        return Finding("reach", "ok", "The store answers, by https.")
    return Finding("reach", "warn", "The store answers, without encryption (http).", "Only sites on this very machine can use it.")


def _clock(bench: Bench) -> Finding:
    skew = bench.skew_s
    if skew is None:
        return Finding("clock", "warn", "The store does not tell its time.", "If links are refused at once, compare the clocks by hand.")
    if abs(skew) < 60:
        return Finding("clock", "ok", f"The clocks of this machine and of the store agree (to {abs(skew):.0f} s).")
    means = "What is signed here is refused when they differ by 15 minutes. Set the clock that is wrong (NTP)."
    return Finding("clock", "failed" if abs(skew) > SKEW_S else "warn", f"This machine's clock is {in_words(skew)} the store's.", means)


def _session(store: ObjectStore) -> Finding:
    if not store.keys().session_token:
        return Finding("key", "ok", "The access key is a lasting one.")
    means = "Links end with it, at the latest. Long runs need a lasting key, or a profile that renews itself."
    return Finding("key", "warn", "The access key is that of a session, which ends.", means)


# What is tried


def _comes_back(bench: Bench) -> bool:
    bench.store.put(bench.key("empty"), b"")
    return bench.store.read(bench.key("one"), 10_000) == DATA and bench.store.read(bench.key("empty"), 1) == b""


def _replaced(bench: Bench) -> bool:
    for data in (b"first", b"second"):
        bench.store.put(bench.key("replaced"), data)
    return bench.store.read(bench.key("replaced"), 100) == b"second"


def _gone(bench: Bench) -> bool:
    bench.store.put(bench.key("gone"), b"x")
    bench.store.delete(bench.key("gone"))
    return bench.store.size(bench.key("gone")) is None


def _listed(bench: Bench) -> bool:
    names = {bench.key(f"many/{number}") for number in range(5)}
    for name in names:
        bench.store.put(name, b"x")
    found = {one.key: one.size for one in bench.store.list(bench.key("many/"))}
    return found == dict.fromkeys(names, 1)


def _told(bench: Bench) -> bool:
    bench.client.put_object(**bench.at("told"), Body=DATA, Metadata={"sha256": "00ff"})
    return bench.store.holds(bench.key("told"), "00ff", len(DATA))


def _goes_on(bench: Bench) -> bool:
    return bench.status(bench.url("one"), headers={"Range": "bytes=7-"}) == 206


def _if_match(bench: Bench) -> bool:
    return bench.fails(lambda: bench.client.get_object(**bench.at("one"), IfMatch='"00000000000000000000000000000000"'), 412)


def _in_parts(bench: Bench) -> bool:
    begun = bench.client.create_multipart_upload(**bench.at("parts"))
    named = bench.at("parts") | {"UploadId": begun["UploadId"]}
    etags = [bench.client.upload_part(**named, PartNumber=number, Body=body)["ETag"] for number, body in ((1, bytes(_PART)), (2, b"end"))]
    unseen = bench.store.size(bench.key("parts")) is None
    parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
    bench.client.complete_multipart_upload(**named, MultipartUpload={"Parts": parts})
    return unseen and bench.store.size(bench.key("parts")) == _PART + 3


def _given_up(bench: Bench) -> bool:
    bench.client.create_multipart_upload(**bench.at("given-up"))
    return bench.store.abort_stale_uploads(timedelta(0), bench.folder + "/") == 1 and bench.store.size(bench.key("given-up")) is None


def _md5(bench: Bench) -> bool:
    wrong = base64.b64encode(hashlib.md5(b"other", usedforsecurity=False).digest()).decode()
    url = bench.store.url_put(bench.key("md5"), len(DATA), 60)
    return bench.refused(url, "PUT", DATA, {"Content-MD5": wrong}) and bench.store.size(bench.key("md5")) is None


def _right_md5(bench: Bench) -> bool:
    right = base64.b64encode(hashlib.md5(DATA, usedforsecurity=False).digest()).decode()
    url = bench.store.url_put(bench.key("right-md5"), len(DATA), 60)
    return bench.status(url, "PUT", DATA, {"Content-MD5": right}) == 200 and bench.store.size(bench.key("right-md5")) == len(DATA)


def _sha256(bench: Bench) -> bool:
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    return bench.fails(lambda: bench.client.put_object(**bench.at("sha256"), Body=DATA, ChecksumSHA256=wrong), 400)


def _link_of_another(bench: Bench) -> bool:
    bench.store.put(bench.key("two"), b"x")
    return bench.refused(bench.url("one").replace("/one?", "/two?"))


def _link_for_another_act(bench: Bench) -> bool:
    url = bench.url("one")
    return all(bench.refused(url, method, data) for method, data in (("PUT", b"x"), ("DELETE", None)))


def _bent_link(bench: Bench) -> bool:
    url = bench.url("one")
    bent = url[:-1] + ("0" if url[-1] != "0" else "1")
    return bench.refused(bent)


def _prolonged_link(bench: Bench) -> bool:
    return bench.refused(bench.url("one").replace("X-Amz-Expires=60", "X-Amz-Expires=600"))


def _late_link(bench: Bench) -> bool:
    url = bench.url("one", 1)
    time.sleep(2.5)
    return bench.refused(url)


def _wrong_secret(bench: Bench) -> bool:
    known = bench.store.keys()
    wrong = ObjectStore(bench.store.place, Keys(known.access_key, secrets.token_hex(20), known.session_token))
    return bench.refused(wrong.url_get(bench.key("one"), 60))


def _unknown_key(bench: Bench) -> bool:
    unknown = ObjectStore(bench.store.place, Keys(f"UNKNOWN{secrets.token_hex(4).upper()}", secrets.token_hex(20)))
    return bench.refused(unknown.url_get(bench.key("one"), 60))


def _strangers_read(bench: Bench) -> bool:
    return bench.refused(bench.plain("one")) and bench.refused(bench.listing())


def _strangers_write(bench: Bench) -> bool:
    return bench.refused(bench.plain("stranger"), "PUT", b"x") and bench.refused(bench.plain("one"), "DELETE")


def _put_by_link(bench: Bench) -> bool:
    url = bench.store.url_put(bench.key("put"), len(DATA), 60)
    twice = [bench.status(url, "PUT", DATA) for _ in range(2)]  # the same bytes again, after an answer that was lost
    return twice == [200, 200] and bench.store.read(bench.key("put"), 10_000) == DATA


def _put_of_another_size(bench: Bench) -> bool:
    url = bench.store.url_put(bench.key("size"), len(DATA), 60)
    return all(bench.refused(url, "PUT", data) for data in (DATA + b"x", DATA[:-1])) and bench.store.size(bench.key("size")) is None


def _put_is_no_get(bench: Bench) -> bool:
    return bench.refused(bench.store.url_put(bench.key("one"), len(DATA), 60))


def _old_signature(bench: Bench) -> bool:
    request = bench.signed_at("one", timedelta(minutes=-20))
    return bench.refused(request.url, headers=dict(request.headers.items()))


def _if_none_match(bench: Bench) -> bool:
    return bench.fails(lambda: bench.client.put_object(**bench.at("one"), Body=b"x", IfNoneMatch="*"), 412, 409)


def _one_winner(bench: Bench) -> bool:
    def write(number: int) -> bool:
        return not bench.fails(lambda: bench.client.put_object(**bench.at("race"), Body=b"%d" % number, IfNoneMatch="*"), 412, 409)

    with ThreadPoolExecutor(_WRITERS) as pool:
        return sum(pool.map(write, range(_WRITERS))) == 1


PROBES = (
    _Probe("object", _comes_back, "What is put comes back as it was.", "What is put does not come back as it was.", "Nothing can travel."),
    _Probe("overwrite", _replaced, "An object that is put again is replaced at once.", "An object that was replaced is still the old one.",
           "A site would fetch what is no longer meant, notice it by the hash, and ask again."),
    _Probe("deleted", _gone, "An object that was deleted is gone at once.", "An object that was deleted is still found.",
           "What sites send has to go after its round."),
    _Probe("list", _listed, "A listing shows every object at once.", "A listing is not complete.",
           "What a run left behind could not be swept."),
    _Probe("note", _told, "A note on an object is kept.", "A note on an object is lost.",
           "Models are then uploaded again by each run's worker.", "warn"),
    _Probe("range", _goes_on, "A download that broke can go on where it was.", "A download that broke begins anew.",
           "Large models may never arrive over a bad line.", "warn"),
    _Probe("if-match", _if_match, "An object that changed meanwhile is noticed.", "An object that changed meanwhile is not noticed.",
           _NO_HURRY, "warn"),
    _Probe("parts", _in_parts, "A large object in parts is seen only when it is whole.", "A large object cannot be put in parts.",
           "Models of more than 64 MB could not be handed out."),
    _Probe("parts given up", _given_up, "Parts that were given up can be dropped.", "Parts that were given up cannot be dropped.",
           "They take room for ever; give the bucket a rule that removes them.", "warn"),
    _Probe("checksum", _right_md5, "An upload by link may carry a checksum.", "An upload by link with a checksum is refused.",
           "Sites could not deliver."),
    _Probe("damaged upload", _md5, "A damaged upload by link is refused.", "A damaged upload by link is kept.", _LATE, "warn"),
    _Probe("sha-256", _sha256, "An upload with a wrong SHA-256 is refused.", "An upload with a wrong SHA-256 is kept.", _LATE, "warn"),
    _Probe("link", lambda bench: bench.status(bench.url("one")) == 200, "A link fetches its object.",
           "A link does not fetch its object.", "Sites could not fetch anything. Is the address the one by which sites reach the store?"),
    _Probe("link, other object", _link_of_another, "A link opens its own object alone.", "A link opens other objects, too.", _NO_SECRETS),
    _Probe("link, other act", _link_for_another_act, "A link to fetch cannot put or delete.", "A link to fetch can also put or delete.",
           _NO_SECRETS),
    _Probe("link to put, other act", _put_is_no_get, "A link to put cannot fetch.", "A link to put can also fetch.", _NO_SECRETS),
    _Probe("link, altered", _bent_link, "A link with an altered signature is refused.", "A link with an altered signature is taken.",
           _NO_SECRETS),
    _Probe("link, prolonged", _prolonged_link, "A link cannot be prolonged.", "A link can be prolonged by whoever has it.", _NO_SECRETS),
    _Probe("link, late", _late_link, "A link ends when it says.", "A link that has ended still works.", _NO_SECRETS),
    _Probe("wrong secret", _wrong_secret, "A signature with a wrong secret is refused.", "A signature with a wrong secret is taken.",
           _NO_SECRETS),
    _Probe("unknown key", _unknown_key, "An access key that nobody knows is refused.", "An access key that nobody knows is taken.",
           _NO_SECRETS),
    _Probe("strangers reading", _strangers_read, "Without a signature nothing is read or listed.", "The bucket can be read by anybody.",
           "Make it private: noised and sealed bodies, models and texts would be public."),
    _Probe("strangers writing", _strangers_write, "Without a signature nothing is written or deleted.",
           "The bucket can be written by anybody.", "Make it private: anybody could replace or delete what is under way."),
    _Probe("put by link", _put_by_link, "A link to put takes its object, and again.", "A link to put does not take its object.",
           "Sites could not deliver."),
    _Probe("size", _put_of_another_size, "A link to put takes exactly the size that was agreed.",
           "A link to put takes any size.", "A site, or whoever has its link, could fill the bucket.", "warn"),
    _Probe("old signature", _old_signature, "A signature that is twenty minutes old is refused.",
           "A signature that is twenty minutes old is taken.", "What somebody recorded could be sent again.", "warn"),
    _Probe("if-none-match", _if_none_match, "An object can be kept from being replaced.", "An object cannot be kept from being replaced.",
           _NO_HURRY, "warn"),
    _Probe("one winner", _one_winner, "Of several who write at once one wins.", "Of several who write at once more than one wins.",
           _NO_HURRY, "warn"),
)  # fmt: skip
