"""What the operator hands to a site: the zip through the console's own address, the words that go with it, the answer as a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cafe_kit.errors import CafeError
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app import downloads
from pipeline import enrolling, federations, handover
from pipeline.enrolling import Issued
from tests.test_enrolling import Site

SAFE = "http://127.0.0.1:8501"


@pytest.fixture
def issued(cafe_home: Path) -> Issued:
    made = federations.create("clinics", "classification", "messages to a clinic")
    federations.save("clinics", {**made.data, "task": {**made.data["task"], "labels": ["billing", "records"]}})
    return enrolling.issue("clinics", "hpc", "gpu")


@pytest.fixture
def client(issued: Issued) -> TestClient:
    return TestClient(Starlette(routes=downloads.routes("")), base_url=SAFE)


def _get(client: TestClient, serial: str, what: str) -> tuple[int, bytes]:
    answer = client.get("/" + downloads.kit_url(serial, what))
    return answer.status_code, answer.content


def test_the_zip_comes_whole_and_is_counted_when_it_was_sent(issued: Issued, client: TestClient) -> None:
    address = "/" + downloads.kit_url(issued.serial, "kit.zip")
    answer = client.get(address)
    assert answer.status_code == 200 and hashlib.sha256(answer.content).hexdigest() == issued.sha256
    assert answer.headers["content-disposition"] == 'attachment; filename="cafe-site-clinics-hpc.zip"'
    assert client.head(address).status_code == 200
    assert enrolling.listed()[0].downloads == 1


def test_a_zip_that_was_altered_or_is_gone_is_not_sent(issued: Issued, client: TestClient) -> None:
    with issued.zip.open("ab") as file:
        file.write(b" ")
    status, said = _get(client, issued.serial, "kit.zip")
    assert status == 409 and said.startswith(b"CAFE-696 ")
    issued.zip.unlink()
    status, said = _get(client, issued.serial, "kit.zip")
    assert status == 404 and said.startswith(b"CAFE-660 ") and enrolling.listed()[0].downloads == 0


@pytest.mark.parametrize("serial", ["0" * 32, "..", "%2e%2e%2f%2e%2e%2fstore.db", "hpc", "x' OR '1'='1"])
def test_a_serial_that_is_none_never_becomes_a_path(client: TestClient, serial: str) -> None:
    for what in ("kit.zip", "answer.json"):
        answer = client.get(f"/files/kits/{serial}/{what}")
        assert answer.status_code == 404 and (answer.text == "Not Found" or answer.text.startswith("CAFE-147 "))


def test_the_answer_is_of_this_kit_and_of_no_earlier_one(issued: Issued, client: TestClient, tmp_path: Path) -> None:
    assert _get(client, issued.serial, "answer.json")[0] == 404
    site = Site(issued)
    enrolling.receive(site.ask(tmp_path / "request.json"))
    enrolling.refuse(issued.serial, "The words differ.")
    status, data = _get(client, issued.serial, "answer.json")
    (tmp_path / "answer").write_bytes(data)
    assert status == 200 and site.read(tmp_path / "answer").reason == "The words differ."
    second = enrolling.issue("clinics", "hpc", "gpu")
    assert _get(client, second.serial, "answer.json")[0] == 404
    with pytest.raises(CafeError, match="CAFE-660"):
        handover.answer_of(enrolling.find(second.serial))


def test_the_letter_says_three_actions_and_no_secret(issued: Issued, tmp_path: Path) -> None:
    text = handover.letter(enrolling.find("hpc"))
    assert [line[:2] for line in text.splitlines() if line[:1].isdigit()] == ["1.", "2.", "3."]
    assert issued.sha256 in text and issued.zip.name in text and "./cafe-site join" in text and "--approval FILE" in text
    assert issued.code not in text and issued.code.replace("-", "") not in text and max(map(len, text.splitlines())) <= 110
    shared = enrolling.issue("clinics", "ward", "gpu", exchange=tmp_path)
    assert "--approval" not in handover.letter(enrolling.find(shared.serial))
