"""Orders through Globus Compute, for real: our server, a real RabbitMQ, real endpoints with their engines; only the web service is ours.

What this does not show: Globus's own rights, quotas and timings (``tests/globus_smoke.py``).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cafe_kit import leftovers
from cafe_kit.errors import CafeError
from cafe_kit.orders import Transport, sign
from cafe_kit.site_folder import to_toml

from pipeline import enrolling, federations, globus_compute, storage
from pipeline.globus_compute import GlobusMessenger
from pipeline.globus_service import Account, account
from pipeline.keys import server_keys
from pipeline.site_doctor import broken, diagnose
from pipeline.sites import Envelope
from pipeline.vault import Vault
from pipeline.ways import joined_sites
from server_store.site_kits import SiteKit, SiteKits
from tests import endpoint_env, rabbitmq
from tests.endpoint_env import TEMPLATES
from tests.fakes import TASK, TinyServer
from tests.globus_stand_in import Service, StandIn, stand_in
from tests.seaweedfs import S3Server
from tests.test_endpoint import RUN
from tests.test_house import ROOT

pytestmark = pytest.mark.system
SOON_S = 45.0


@dataclass
class Rig:
    """Broker, service and the endpoint's environment. ``home``: the server's."""

    service: StandIn
    environment: Path
    home: Path
    folder: Path

    @property
    def state(self) -> Service:
        return self.service.service

    def online(self, site: str) -> bool:
        """Whether the service hears of its endpoint."""
        return any(one.online and one.data.get("endpoint_name") == f"cafe-clinics-{site}" for one in self.state.endpoints.values())


@dataclass
class Reached:
    """A site of the rig whose command is a small script of the test; it runs as ``cafe-site start`` runs it."""

    rig: Rig
    name: str
    client_id: str
    secret: str
    function_id: str
    process: subprocess.Popen[str] | None = None
    settings: str = ""
    path: str = ""
    messenger: GlobusMessenger = field(init=False)

    def __post_init__(self) -> None:
        self.messenger = GlobusMessenger(self.rig.home, poll_s=0.5, again_s=3.0)
        self.folder = self.rig.folder / f"Klinik_{self.name}"
        self.home = self.folder / "home"
        self.home.mkdir(parents=True, mode=0o700)
        (self.folder / "endpoint").symlink_to(TEMPLATES)

    @property
    def mark(self) -> str:
        return f"GLOBUS_COMPUTE_USER_DIR={self.home}/endpoint"

    @property
    def kit(self) -> SiteKit:
        with contextlib.closing(SiteKits(self.rig.home / "store.db")) as kits:
            return next(kit for kit in kits.kits() if kit.site == self.name)

    def start(self, script: str) -> None:
        """``script``: Python that answers one message, ``message``, by setting ``answer``."""
        head, tail = "import json, os, sys, time\nmessage = json.load(sys.stdin)\n", "\nprint(json.dumps(answer))\n"
        (self.folder / "answer.py").write_text(head + script + tail)
        command = json.dumps([sys.executable, str(self.folder / "answer.py")])
        (self.home / "endpoint.toml").write_text(f"command = {command}\n{self.settings}")
        arguments = [str(self.home), str(self.folder), self.client_id, self.secret, self.function_id, f"cafe-clinics-{self.name}"]
        path = {"PATH": f"{self.path}:{os.environ['PATH']}"} if self.path else {}
        code = RUN.replace("sys.argv[3:7])", "sys.argv[3:7], service='local')")
        with (self.folder / "start.log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments], stdout=log, stderr=log, env=os.environ | path, text=True
            )
        soon(lambda: self.rig.online(self.name), "the endpoint is not online")

    def stop(self) -> int:
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def message(self, word: str = "hello", deadline_s: float = 30.0) -> dict[str, Any]:
        return {"order": {"word": word}, "signature": "", "transport": {"deadline_s": deadline_s}}

    def arrived(self, ticket: str) -> Any:
        return soon(lambda: self.messenger.collect([ticket]).get(ticket), "no answer came")


def soon(condition: Callable[[], Any], otherwise: str) -> Any:
    stop = time.monotonic() + SOON_S
    while time.monotonic() < stop:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(otherwise)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    if not rabbitmq.is_here():
        pytest.skip("no RabbitMQ on this machine; `make system` installs it where it may")
    try:
        real = endpoint_env.prepare(endpoint_env.default_folder())
    except CafeError as error:
        pytest.skip(f"the Globus Compute endpoint cannot be installed here: {error}")
    folder = tmp_path_factory.mktemp("globus")
    home = folder / "server"
    home.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch, rabbitmq.running(folder / "broker") as amqp, stand_in(amqp) as service:
        patch.setenv("CAFE_HOME", str(home))
        patch.setenv("CAFE_GLOBUS_LOCAL_URL", service.url)
        patch.setenv("CAFE_ENDPOINT_VENV", str(endpoint_env.pointed_at(service.url, real, folder / "environment")))
        yield Rig(service, real, home, folder)


def site_of(rig: Rig, name: str, settings: str = "", path: str = "") -> Reached:
    """A kit with a connection, as an approval leaves it."""
    client_id, secret = rig.state.new_client()
    Vault(rig.home).put(f"globus.{client_id}", {"client_secret": secret})
    function = globus_compute.function_id(rig.home, client_id, "local")
    told = {"via": "globus", "client_id": client_id, "function_id": function, "endpoint_name": f"cafe-clinics-{name}", "service": "local"}
    with contextlib.closing(SiteKits(rig.home / "store.db")) as kits:
        serial = os.urandom(16).hex()
        kits.issue(SiteKit(serial, "clinics", name, "cpu", time.time(), time.time() + 1e5, "issued", "", "", "00"))
        kits.connect(serial, told)
    return Reached(rig, name, client_id, secret, function, settings=settings, path=path)


@pytest.fixture(scope="module")
def north(rig: Rig) -> Iterator[Reached]:
    """A plain host. Its command answers with what it was sent, what it finds in its environment, and how often it ran."""
    site = site_of(rig, "north")
    site.start(
        "with open(os.environ['CAFE_SITE_HOME'] + '/runs', 'a') as runs: print(message['order']['word'], file=runs)\n"
        "time.sleep(float(message['order']['word'].partition(' ')[2] or 0))\n"
        "answer = {'word': message['order']['word'], 'environment': dict(os.environ)}"
    )
    yield site
    assert site.stop() == 0, (site.folder / "start.log").read_text()
    assert leftovers.marked(site.mark) == {}
    soon(lambda: not rig.online(site.name), "its last words did not come")


def runs(site: Reached) -> list[str]:
    return (site.home / "runs").read_text().splitlines()


# There and back


def test_an_order_and_its_answer(rig: Rig, north: Reached) -> None:
    ticket = north.messenger.send(north.kit, north.message("grüezi"))
    answer = GlobusMessenger(rig.home, poll_s=0.5)  # another process of the server, after a restart
    told = soon(lambda: answer.collect([ticket]).get(ticket), "no answer came")
    assert told["word"] == "grüezi" and told["environment"]["CAFE_SITE_HOME"] == str(north.home)
    secrets = [name for name, value in told["environment"].items() if north.secret in value or north.client_id in value]
    assert secrets == []  # known to the endpoint's own process alone
    assert not [path for path in north.home.rglob("*") if path.is_file() and north.secret.encode() in path.read_bytes()]
    assert north.kit.connection["endpoint_id"] and answer.heard(north.kit) is not None


def test_several_messages_are_answered_one_after_the_other(north: Reached) -> None:
    tickets = [north.messenger.send(north.kit, north.message(f"number{n}")) for n in range(3)]
    assert [north.arrived(ticket)["word"] for ticket in tickets] == ["number0", "number1", "number2"]


# Who may have what run


def test_another_function_is_refused_by_the_service_and_by_the_endpoint(rig: Rig, north: Reached) -> None:
    other = account(rig.home, north.client_id, "local").register("other", "def other(message):\n    return {'ran': True}\n", "")
    with contextlib.closing(SiteKits(rig.home / "store.db")) as kits:
        before = north.kit.connection
        kits.connect(north.kit.serial, before | {"function_id": other})
        try:
            with pytest.raises(CafeError, match="CAFE-181"):
                north.messenger.send(north.kit, north.message())
            rig.service.knobs.check_allowed = False
            refused = north.arrived(north.messenger.send(north.kit, north.message()))
            assert isinstance(refused, CafeError) and refused.code == "CAFE-181"
        finally:
            rig.service.knobs.check_allowed = True
            kits.connect(north.kit.serial, before)


def test_another_account_is_refused_by_the_service_and_by_the_endpoint(rig: Rig, north: Reached) -> None:
    stranger_id, secret = rig.state.new_client()
    stranger = Account(stranger_id, secret, "local")
    own = stranger.register("cafe_answer", globus_compute.FUNCTION, "")
    target, packed = str(north.kit.connection["endpoint_id"]), globus_compute.pack(north.message("stranger"))
    with pytest.raises(CafeError, match="CAFE-179"):
        stranger.submit(target, own, packed)
    rig.service.knobs.check_owner = rig.service.knobs.check_allowed = False
    try:
        with pytest.raises(CafeError, match="CAFE-183"):
            stranger.submit(target, own, packed)
    finally:
        rig.service.knobs.check_owner = rig.service.knobs.check_allowed = True
    assert "stranger" not in runs(north)


# What is lost, late, doubled or hostile


def test_a_result_that_comes_twice_or_not_at_all(rig: Rig, north: Reached) -> None:
    rig.service.knobs.duplicate_results = 1
    assert north.arrived(north.messenger.send(north.kit, north.message("twice")))["word"] == "twice"
    rig.service.knobs.drop_results = 1
    assert north.arrived(north.messenger.send(north.kit, north.message("lost")))["word"] == "lost"
    assert rig.service.knobs.drop_results == 0 and (runs(north).count("twice"), runs(north).count("lost")) == (1, 2)


def test_a_hostile_result_is_not_opened(rig: Rig, north: Reached, tmp_path: Path) -> None:
    """Globus's own client would run it with its defaults: the test shows that first."""
    marker = tmp_path / "it ran"
    program = f"cos\nsystem\n(S'touch \"{marker}\"'\ntR.".encode()
    hostile = "00\n" + base64.b64encode(program).decode()
    code = "import sys; from globus_compute_sdk.serialize import ComputeSerializer as C; C().deserialize(sys.stdin.read())"
    subprocess.run([str(rig.environment / "bin" / "python"), "-c", code], input=hostile, text=True, check=False, capture_output=True)
    assert marker.exists()
    marker.unlink()
    for result in (hostile, f"12\n{len(hostile)}\n{hostile}"):
        rig.service.knobs.replace_result = result
        refused = north.arrived(north.messenger.send(north.kit, north.message()))
        assert isinstance(refused, CafeError) and refused.code == "CAFE-184"
    assert not marker.exists()


def test_an_endpoint_that_is_killed_in_the_middle_comes_back(rig: Rig, north: Reached) -> None:
    ticket = north.messenger.send(north.kit, north.message("slow 3"))
    soon(lambda: "slow 3" in runs(north), "it did not begin")
    killed = list(leftovers.marked(north.mark))
    assert len(killed) >= 3  # the endpoint, the process that takes orders, the command
    for process in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    assert north.arrived(ticket)["word"] == "slow 3" and runs(north).count("slow 3") >= 2
    assert "The endpoint ended (exit status -9)" in (north.folder / "start.log").read_text()


def test_what_the_service_refuses_is_told(rig: Rig, north: Reached) -> None:
    rig.service.knobs.not_online = 1
    with pytest.raises(CafeError, match="CAFE-180"):
        north.messenger.send(north.kit, north.message())
    with pytest.raises(CafeError, match="CAFE-182"):
        north.messenger.send(north.kit, north.message("x" * 10_000_000))
    for status, code in ((422, "CAFE-183"), (429, "CAFE-178"), (503, "CAFE-177")):
        rig.service.knobs.fail_submits, rig.service.knobs.fail_status, rig.service.knobs.fail_code = 1, status, "TOLD"
        with pytest.raises(CafeError, match=code):
            north.messenger.send(north.kit, north.message())


# Jobs of a batch system

SBATCH = """#!/bin/bash
# As Slurm's: the job runs with an environment of its own, and its number is told.
here=$(dirname "$0"); id=$(( $(ls "$here"/jobs | wc -l) + 101 ))
env -i HOME="$HOME" PATH=/usr/bin:/bin SLURM_JOB_ID=$id setsid bash "${@: -1}" >"$here/$id.out" 2>&1 </dev/null &
echo $! >"$here/jobs/$id"
echo "Submitted batch job $id"
"""
SQUEUE = """#!/bin/bash
here=$(dirname "$0")
for id in $(ls "$here/jobs"); do kill -0 "$(cat "$here/jobs/$id")" 2>/dev/null && echo "$id R"; done; true
"""
SCANCEL = """#!/bin/bash
here=$(dirname "$0")
for id in "$@"; do kill -- -"$(cat "$here/jobs/$id")"; done
"""


def test_a_job_stands_in_the_queue_only_while_an_order_waits(rig: Rig, tmp_path: Path) -> None:
    """Slurm's template with the real engine. Of Slurm there are three commands, which run a job at once."""
    (tmp_path / "jobs").mkdir()
    for name, script in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    site = site_of(rig, "lab", 'kind = "slurm"\n[batch]\nqueue = "gpu"\nidle_minutes = 0.05\ninterface = "lo"\n', str(tmp_path))
    site.start("answer = {'word': message['order']['word'], 'job': os.environ['SLURM_JOB_ID'], 'home': os.environ['CAFE_SITE_HOME']}")
    try:
        assert list((tmp_path / "jobs").iterdir()) == []
        ticket = site.messenger.send(site.kit, site.message("from a job"))
        assert site.arrived(ticket) == {"word": "from a job", "job": "101", "home": str(site.home)}
        soon(lambda: subprocess.run([tmp_path / "squeue"], capture_output=True, text=True).stdout == "", "the job stays")
        assert [job.name for job in (tmp_path / "jobs").iterdir()] == ["101"]
    finally:
        assert site.stop() == 0
    assert leftovers.marked(site.mark) == {}


# A site that joined


@dataclass
class Joined:
    """A kit that was unzipped and joined with through the object store; ``cafe-site start`` keeps its endpoint up."""

    kit: SiteKit
    server: TinyServer  # signs with this home's key
    home: Path  # the site's

    def order(self, kind: str) -> Envelope:
        order = self.server.order("joined", kind, task=federations.public_task(federations.get("clinics")))
        inputs = {name: str(self.server.folder / name) for name in order.inputs}
        return Envelope(order, sign(order, self.server.signing), Transport(inputs, str(self.server.output(order)), 60.0))


@pytest.fixture
def joined(rig: Rig, s3_server: S3Server, tmp_path: Path) -> Iterator[Joined]:
    storage.set_up({"bucket": s3_server.bucket, "endpoint_url": s3_server.endpoint}, s3_server.key)
    made = federations.create("clinics", "classification", TASK.description)
    federations.save("clinics", made.data | {"task": made.data["task"] | {"labels": list(TASK.labels)}, "privacy": "off"})
    issued = enrolling.issue("clinics", "joined", "gpu", via="globus")
    client_id, secret = rig.state.new_client()
    Vault(rig.home).put(f"globus.{client_id}", {"client_secret": secret})
    with contextlib.closing(SiteKits(rig.home / "store.db")) as kits:
        kits.connect(issued.serial, kits.kit(issued.serial).connection | {"client_id": client_id, "service": "local"})
    zipfile.ZipFile(issued.zip).extractall(tmp_path / "Gerät 1")
    (kit,) = (tmp_path / "Gerät 1").iterdir()
    server = TinyServer(tmp_path / "inputs", server_keys(rig.home).signing, server_keys(rig.home).sealing)
    answers = {"data": {"path": server.seat_config("joined")["data"]["path"], "columns": {"text": "text", "label": "label"}}}
    answers |= {"limits": {"max_epsilon": 50.0, "share_rows": "no", "allow_without_noise": True}}
    answers |= {"consent": {"name": "Dr. Ärmel", "role": "head of IT", "reference": "IRB-7", "agreed": True}}
    (tmp_path / "answers.toml").write_text(to_toml(answers))
    home = tmp_path / "home"
    own = {name: value for name, value in os.environ.items() if name != "CAFE_HOME"}
    own |= {"CAFE_SITE_HOME": str(home), "CAFE_KIT_FOLDER": str(kit), "CAFE_JOIN_CODE": issued.code}
    cafe_site = [sys.executable, "-m", "cafe_kit.cli"]

    def run(*words: str) -> str:
        done = subprocess.run([*cafe_site, *words], env=own, capture_output=True, text=True, timeout=120)
        assert done.returncode in (0, 3), done.stdout + done.stderr
        return done.stdout

    run("join", "--answers", str(tmp_path / "answers.toml"), "--yes", "--wait", "0")
    found, wrong = enrolling.received("clinics")
    assert [one.kit.site for one in found] == ["joined"], wrong
    enrolling.approve(issued.serial, json.loads(run("status", "--format", "json"))["words"], "the test")
    run("join", "--wait", "10")
    tiny = ["env", f"PYTHONPATH={ROOT}", "CAFE_KIT_ENGINE=tests.fakes:TinyEngine", *cafe_site, "answer"]
    closed = f"[ -e '{home}/closed' ] && exec unshare -rn \"$@\"\ntrue"  # without any network, as behind a firewall
    (home / "endpoint.toml").write_text(f"command = {json.dumps(tiny)}\nsetup = {json.dumps(closed)}\n")
    with (tmp_path / "start.log").open("w") as log:
        process = subprocess.Popen([*cafe_site, "start"], env=own, stdout=log, stderr=log)
    try:
        yield Joined(enrolling.find(issued.serial), server, home)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
    assert status == 0 and leftovers.marked(f"GLOBUS_COMPUTE_USER_DIR={home}/endpoint") == {}, (tmp_path / "start.log").read_text()


def test_a_joined_site_answers_signed_and_its_bytes_go_through_the_store(rig: Rig, joined: Joined) -> None:
    soon(lambda: rig.online("joined"), "the endpoint is not online")
    links = diagnose(enrolling.find(joined.kit.serial), rig.home, 30.0)
    assert broken(links) is None, links
    assert [link.name for link in links][-3:] == ["version", "ledger", "object store at the site"]
    remote = joined_sites(rig.home, "clinics", "run", {})
    try:
        found = {answer.order.kind: answer for answer in remote.ask([joined.order("hello"), joined.order("train")])}
    finally:
        remote.close()
    assert {kind: answer.reply and answer.reply.status for kind, answer in found.items()} == {"hello": "ok", "train": "ok"}, found
    assert len(joined.server.open(found["train"].order)) > 100
    assert enrolling.find(joined.kit.serial).seen["charges"] is not None  # what the site says of its ledger
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode:
        return  # this machine does not let us
    (joined.home / "closed").touch()
    found_broken = broken(diagnose(enrolling.find(joined.kit.serial), rig.home, 6.0))
    assert found_broken and found_broken.name == "object store at the site"
