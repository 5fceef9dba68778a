"""The documents of joining: their bytes stand still, what was altered is refused, and the code proves what it should."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from cafe_kit import enrolment, words
from cafe_kit.enrolment import Approval, Consent, Embedder, Host, JoinRequest, KitInfo, Leaving, Limits, Server
from cafe_kit.errors import CafeError
from cafe_kit.task import Task
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

SERVER, SITE, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))
SERIAL, CODE = "00112233445566778899aabbccddeeff", "ABCD-EFGH-JKMN-PQRS"


def public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


CODE_KEY = enrolment.proof_key(CODE, SERIAL)
KIT = KitInfo(
    federation="clinic",
    site="north",
    kind="cpu",
    serial=SERIAL,
    issued=1_790_000_000.0,
    expires=1_790_604_800.0,
    server=Server(public(SERVER), "5" * 64),
    task=Task("classification", "which desk a message belongs to", ("billing", "card")),
    sealed="00",
    embedder=Embedder("e" * 64, 91_000_000),
)
REQUEST = enrolment.prove(
    JoinRequest(
        federation="clinic",
        serial=SERIAL,
        site="north",
        site_key=public(SITE),
        made=1_790_000_100.0,
        host=Host("Linux 6.1", "3.11.9", 8, 31.2),
        limits=Limits(max_epsilon=2.0, max_epsilon_per_run=1.0, kinds=("hello", "vote"), allow_without_noise=False),
        consent=Consent("Dr. Ärmel", "head of IT", "IRB-7"),
        seal_key=64 * "a",
        records=1200,
    ),
    CODE_KEY,
)
APPROVAL = Approval("clinic", SERIAL, "north", public(SITE), True, 1_790_000_200.0)
LEAVING = Leaving("clinic", SERIAL, "north", public(SITE), 1_790_000_300.0)
SIGNED_REQUEST = enrolment.sign_request(REQUEST, SITE)
SIGNED_LEAVING = enrolment.sign_leaving(LEAVING, SITE)
SIGNED_APPROVAL = enrolment.sign_approval(APPROVAL, SERVER)


GOLDEN = {
    "kit": "415816199bdae7e0",
    "request": "18d4fdb4eb14cd85",
    "approval": "81b1964d16127aa7",
    "signed request": "c5fa0dd0c7f2a3b3",
    "signed approval": "cf6372b3aeaf0c8b",
    "leaving": "2467695441e8e43c",
    "signed leaving": "d75e9b301493d15d",
    "code key": "1be60585710a3c71",
    "words": "1c947aab59fcf4b2",
}
GOLDEN_WORDS = "vacuum-vacuum-lava-cushion"


def code_of(act: Any, *arguments: Any) -> str:
    with pytest.raises(CafeError) as caught:
        act(*arguments)
    return caught.value.code


# Bytes that stand still


def test_golden_vectors() -> None:
    digests = {
        name: hashlib.sha256(data).hexdigest()[:16]
        for name, data in {
            "kit": enrolment.canonical(KIT),
            "request": enrolment.canonical(REQUEST),
            "approval": enrolment.canonical(APPROVAL),
            "signed request": SIGNED_REQUEST,
            "signed approval": SIGNED_APPROVAL,
            "leaving": enrolment.canonical(LEAVING),
            "signed leaving": SIGNED_LEAVING,
            "code key": CODE_KEY,
            "words": words._TEXT.encode(),
        }.items()
    }
    assert digests == GOLDEN
    assert "-".join(enrolment.words(public(SERVER), public(SITE), SERIAL)) == GOLDEN_WORDS


@pytest.mark.parametrize("document", [KIT, REQUEST, APPROVAL, LEAVING], ids=lambda document: type(document).__name__)
def test_a_document_comes_back_from_its_bytes(document: Any) -> None:
    assert enrolment.parse(type(document), enrolment.canonical(document)) == document


def test_request_and_answer_come_back_from_their_files() -> None:
    assert enrolment.read_request(SIGNED_REQUEST) == REQUEST
    enrolment.check_request(enrolment.read_request(SIGNED_REQUEST), CODE_KEY)
    assert enrolment.check_approval(SIGNED_APPROVAL, public(SERVER), SERIAL, public(SITE)) == APPROVAL
    assert enrolment.read_leaving(SIGNED_LEAVING) == LEAVING


# What was altered is refused


def _places(tree: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(tree, dict):
        return [place for name, value in tree.items() for place in _places(value, (*above, name))]
    return [above]


def _altered(data: bytes, place: tuple[Any, ...], value: Any) -> bytes:
    tree = json.loads(data)
    *path, last = place
    at = tree
    for name in path:
        at = at[name]
    at[last] = value
    return json.dumps(tree).encode()


VALUES = st.none() | st.booleans() | st.integers(-2, 2**40) | st.floats() | st.text(max_size=70) | st.lists(st.text(max_size=4), max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(_places(json.loads(SIGNED_LEAVING))), VALUES)
def test_an_altered_leaving_is_refused(place: tuple[Any, ...], value: Any) -> None:
    try:
        assert enrolment.read_leaving(_altered(SIGNED_LEAVING, place, value)) == LEAVING
    except CafeError as error:
        assert error.code in ("CAFE-101", "CAFE-102", "CAFE-103")


def test_one_document_is_not_taken_for_another() -> None:
    for data in (SIGNED_REQUEST, SIGNED_APPROVAL):
        assert code_of(enrolment.read_leaving, data) == "CAFE-101"
    assert code_of(enrolment.read_request, SIGNED_LEAVING) == "CAFE-101"


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(_places(json.loads(SIGNED_REQUEST))), VALUES)
def test_an_altered_request_is_refused(place: tuple[Any, ...], value: Any) -> None:
    data = _altered(SIGNED_REQUEST, place, value)
    try:
        assert enrolment.read_request(data) == REQUEST  # the same, written otherwise: 2 for 2.0
    except CafeError as error:
        assert error.code in ("CAFE-101", "CAFE-102", "CAFE-103")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(_places(json.loads(SIGNED_APPROVAL))), VALUES)
def test_an_altered_answer_is_refused(place: tuple[Any, ...], value: Any) -> None:
    data = _altered(SIGNED_APPROVAL, place, value)
    try:
        assert enrolment.check_approval(data, public(SERVER), SERIAL, public(SITE)) == APPROVAL
    except CafeError as error:
        assert error.code in ("CAFE-101", "CAFE-102", "CAFE-103")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.recursive(VALUES, lambda inner: st.dictionaries(st.text(max_size=8), inner, max_size=4)))
def test_anything_else_is_refused_with_a_code(data: Any) -> None:
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    for act in (enrolment.read_request, lambda data: enrolment.parse(KitInfo, data)):
        assert code_of(act, data) in ("CAFE-101", "CAFE-103")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(SIGNED_APPROVAL) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_refused(at: int, by: int) -> None:
    data = SIGNED_APPROVAL[:at] + bytes([SIGNED_APPROVAL[at] ^ by]) + SIGNED_APPROVAL[at + 1 :]
    try:
        assert enrolment.check_approval(data, public(SERVER), SERIAL, public(SITE)) == APPROVAL  # a blank for a blank
    except CafeError as error:
        assert error.code in ("CAFE-101", "CAFE-102", "CAFE-103")


def test_a_field_more_another_protocol_and_a_large_file_are_refused() -> None:
    assert code_of(enrolment.parse, KitInfo, json.dumps({**asdict(KIT), "url": "x"}).encode()) == "CAFE-101"
    assert code_of(enrolment.parse, KitInfo, json.dumps({**asdict(KIT), "protocol": 2}).encode()) == "CAFE-103"
    assert code_of(enrolment.read_request, b" " * 65_537) == "CAFE-101"
    assert code_of(enrolment.read_request, b"[" * 60_000) == "CAFE-101"


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "x\u202ey", "\ufeff", "a" * 201])
def test_texts_from_people_are_one_harmless_line(text: str) -> None:
    document = json.loads(SIGNED_REQUEST)["document"]
    document["consent"]["name"] = text
    assert code_of(enrolment.parse, JoinRequest, json.dumps(document).encode()) == "CAFE-101"


# Who may say what


def test_somebody_elses_signature_is_refused() -> None:
    assert code_of(enrolment.read_request, enrolment.sign_request(REQUEST, OTHER)) == "CAFE-102"
    forged = enrolment.sign_approval(APPROVAL, OTHER)
    assert code_of(enrolment.check_approval, forged, public(SERVER), SERIAL, public(SITE)) == "CAFE-102"


def test_a_request_is_no_answer() -> None:
    assert code_of(enrolment.check_approval, SIGNED_REQUEST, public(SITE), SERIAL, public(SITE)) == "CAFE-101"


def test_an_answer_to_another_kit_or_site_is_refused() -> None:
    assert code_of(enrolment.check_approval, SIGNED_APPROVAL, public(SERVER), "f" * 32, public(SITE)) == "CAFE-148"
    assert code_of(enrolment.check_approval, SIGNED_APPROVAL, public(SERVER), SERIAL, public(OTHER)) == "CAFE-148"


# The code


def test_another_code_neither_opens_the_address_nor_proves_anything() -> None:
    sealed = enrolment.seal_address({"exchange": "/shared/ü"}, CODE, SERIAL)
    assert enrolment.open_address(sealed, CODE.lower().replace("-", " "), SERIAL) == {"exchange": "/shared/ü"}
    assert "shared" not in sealed and sealed != enrolment.seal_address({"exchange": "/shared/ü"}, CODE, SERIAL)
    for code, serial in (("ABCD-EFGH-JKMN-PQRT", SERIAL), (CODE, "f" * 32), ("", SERIAL)):
        assert code_of(enrolment.open_address, sealed, code, serial) == "CAFE-140"
        assert code_of(enrolment.check_request, REQUEST, enrolment.proof_key(code, serial)) == "CAFE-140"


def test_what_the_server_keeps_of_the_code_does_not_open_the_address() -> None:
    sealed = enrolment.seal_address({"exchange": "/shared"}, CODE, SERIAL)
    assert code_of(enrolment.open_address, sealed, CODE_KEY.hex(), SERIAL) == "CAFE-140"


@pytest.mark.parametrize("change", [{"site": "south"}, {"records": None}, {"site_key": public(OTHER)}, {"code_proof": ""}])
def test_the_proof_covers_the_whole_request(change: dict[str, Any]) -> None:
    assert code_of(enrolment.check_request, replace(REQUEST, **change), CODE_KEY) == "CAFE-140"


def test_codes_are_easy_to_read_and_never_the_same() -> None:
    codes = {enrolment.new_code() for _ in range(200)}
    assert len(codes) == 200
    assert all(len(code) == 19 and not set(code.replace("-", "")) & set("ILOU01") for code in codes)


# The words


def _distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for at, letter in enumerate(a, start=1):
        before, row = row, [at]
        for place, other in enumerate(b, start=1):
            row.append(min(before[place] + 1, row[-1] + 1, before[place - 1] + (letter != other)))
    return row[-1]


def test_the_words_are_short_and_unlike() -> None:
    assert len(words.WORDS) == len(set(words.WORDS)) == 256
    assert all(word.isascii() and word.islower() and 3 <= len(word) <= 9 for word in words.WORDS)
    assert len({word[:4] for word in words.WORDS}) == 256
    assert all(_distance(a, b) > 2 for a, b in itertools.combinations(words.WORDS, 2))


def test_each_key_and_the_serial_change_the_words() -> None:
    own = enrolment.words(public(SERVER), public(SITE), SERIAL)
    assert own == enrolment.words(public(SERVER), public(SITE), SERIAL)
    others = [
        enrolment.words(public(OTHER), public(SITE), SERIAL),
        enrolment.words(public(SERVER), public(OTHER), SERIAL),
        enrolment.words(public(SERVER), public(SITE), "f" * 32),
    ]
    assert own not in others and len(set(others)) == 3
