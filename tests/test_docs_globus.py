"""The operator's page about sites through Globus Compute and an object store, word for word: a real endpoint, broker and S3 server.

Of Globus itself our stand-in plays the service. The site is that of ``docs/site-gpu.md``; its admin types what all of them type.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import enrolling
from tests import far
from tests.doc_pages import ROOT, Block, Story, missing
from tests.doc_places import Admin, Operator, words
from tests.far import Rig
from tests.seaweedfs import S3Server

pytestmark = pytest.mark.system
OPERATOR = "docs/operator.md"


@pytest.fixture
def rig(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[Rig]:
    with far.rig(tmp_path_factory.mktemp("rig"), s3_server) as made:
        yield made


@pytest.fixture
def operator(tmp_path: Path, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operator]:
    for name, value in rig.settings.items():
        monkeypatch.setenv(name, value)
    operator = Operator(tmp_path, monkeypatch, rig.settings | {"GLOBUS_SDK_SERVICE_URL_AUTH": rig.service.url})
    operator.sets_up()
    yield operator
    assert operator.ends(60) == [], "processes were left behind"


def shows(block: Block, said: str) -> None:
    lines = missing(block.prints, said)
    assert lines == [], f"{block.page}, line {block.line}: not printed: {lines}. It was:\n{said}"


def test_a_site_through_globus_compute(operator: Operator, rig: Rig) -> None:
    story = Story(OPERATOR, "Sites through Globus Compute and an object store")
    access, secret = rig.s3.key
    block = story.next("cafe storage set")
    filled = block.filled({"BUCKET": rig.s3.bucket, "https://s3.example.org": rig.way.endpoint, "ACCESS_KEY": access})
    shows(block, operator.shell.run(filled, [("Secret: ", secret)]))
    lab = joins(operator, rig, story)
    starts(lab, rig)
    block = story.next("cafe site doctor")
    shows(block, operator.shell.run(block.text))
    operator.shell.run("cafe run ~/.cafe/federations/clinic/federation.yaml", seconds=300)
    (run,) = [one["run"] for one in json.loads(operator.shell.run("cafe status --format json"))]
    said = operator.shell.run(story.next("cafe storage show").filled({"RUN": run}))
    assert f"kept/{run}/results.json" in said and "objects were deleted" in said
    story.ends()


def joins(operator: Operator, rig: Rig, story: Story) -> Admin:
    said = operator.shell.run(story.next("cafe site add").text)
    lab = operator.hands_over("lab", re.findall(r"Join code +(\S+)", said)[0])
    lab.unzips()
    consent = '[consent]\nname = "Jane Roe"\nrole = "head of IT"\nagreed = true\n'
    data = '[data]\npath = "~/notes.csv"\ncolumns = {text = "message", label = "department"}\n[limits]\nallow_without_noise = true\n'
    (lab.folder / "answers.toml").write_text(data + consent)
    joining = lab.shell.start(f"CAFE_JOIN_CODE={lab.code} ./cafe-site join --answers ~/answers.toml --yes --wait 100")
    screen = joining.says("Waiting for the operator")
    client, secret = rig.service.service.new_client()
    kit = enrolling.find("lab")
    enrolling.store().connect(kit.serial, kit.connection | {"service": "local"})  # the stand-in, instead of Globus
    block = story.next("cafe site receive")
    filled = block.filled({"CLIENT_ID": client, "WORD-WORD-WORD-WORD": words(screen)})
    shows(block, operator.shell.run(filled, [("Secret: ", secret)]))
    assert "lab has joined clinic" in joining.done()
    return lab


def starts(lab: Admin, rig: Rig) -> None:
    """With the tests' engine, which a site would not name."""
    engine = ["env", "CAFE_KIT_ENGINE=tests.fakes:TinyEngine", f"PYTHONPATH={ROOT}", sys.executable, "-m", "cafe_kit.cli", "answer"]
    (lab.home / "endpoint.toml").write_text(f"command = {json.dumps(engine)}\n")
    around = " ".join(f"{name}='{value}'" for name, value in {**rig.settings, "CAFE_ENDPOINT_VENV": rig.environment}.items())
    lab.shell.start(f"{around} ./cafe-site start").says("through Globus Compute")
    assert far.wait_until(lambda: any(one.online for one in rig.service.service.endpoints.values()), far.SOON_S)
