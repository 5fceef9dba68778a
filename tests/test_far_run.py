"""One run through all of it: kits, joining by links, real endpoints and broker, tensors through a real object store; then faults."""

from __future__ import annotations

import base64
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cafe_kit import leftovers

from tests.conftest import RealModels
from tests.far import Far, Rig, rig
from tests.joined import KINDS, wait_until
from tests.seaweedfs import S3Server
from tests.test_joined_run import told

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("rig"), s3_server) as made:
        yield made


@pytest.fixture(scope="module")
def far(around: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    """Its sites are joined once; every test is a run of its own. What is lost is sent again after seconds instead of minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAFE_GLOBUS_AGAIN_S", "8")
        made = Far(tmp_path_factory.mktemp("far"), patch, around, stage1={"rounds": 2}, stage2={"rounds": 2})
        made.start()
        yield made
        around.way.heal()
        made.stop()
        assert made.wait_for_no_processes(60), "a process was left behind"


def check_adapters(federation: Far, run: str) -> None:
    """Every site has the run's adapter, whole, signed by the server."""
    final = federation.adapter(run)
    for name in KINDS:
        assert run in {got["run"] for got in federation.sites[name].json("adapter")}
        to = federation.folder / f"{run} for {name}"
        assert federation.sites[name].command("adapter", "--run", run, "--to", str(to)).returncode == 0
        assert next(to.rglob("adapter_model.safetensors")).read_bytes() == final


def check_nothing_left(federation: Far, run: str) -> None:
    """Neither in the store nor in the inbox: bodies are deleted after their round, inputs after the run."""
    assert federation.left_in_store() == []
    assert [path.name for path in (Path(federation.store.run(run).folder) / "inbox").glob("*")] == []


def while_running(federation: Far, *acts: tuple[Callable[[str], Any], Callable[[str], None]]) -> str:
    """A run, during which each act is done as soon as its condition holds; its id."""
    run = federation.create()
    worker = threading.Thread(target=federation.work, args=(run,))
    worker.start()
    for condition, act in acts:
        assert wait_until(lambda condition=condition: condition(run), 120), told(federation, run)
        act(run)
    worker.join(timeout=400)
    assert federation.store.run(run).state == "Done", told(federation, run)
    return run


def sent(federation: Far, kind: str, round: int) -> Callable[[str], bool]:
    """Whether an order of this kind and round is under way to a site."""

    def condition(run: str) -> bool:
        return any((row.kind, row.round, row.state) == (kind, round, "sent") and row.site in KINDS for row in federation.store.orders(run))

    return condition


@pytest.fixture(scope="module")
def undisturbed(far: Far) -> str:
    run = far.create()
    assert far.work(run) == 0, told(far, run)
    return run


def test_a_run_to_the_adapter_at_every_site(far: Far, undisturbed: str) -> None:
    check_adapters(far, undisturbed)
    check_nothing_left(far, undisturbed)


def test_an_endpoint_killed_in_the_middle_and_a_store_that_is_down(far: Far, undisturbed: str) -> None:
    def store_down(_: str) -> None:
        far.rig.way.fail("refuse", times=10**6)
        threading.Timer(10.0, far.rig.way.heal).start()

    def kill(_: str) -> None:
        for process in leftovers.marked(f"GLOBUS_COMPUTE_USER_DIR={far.sites['lab'].home}/endpoint"):
            os.kill(process, signal.SIGKILL)

    run = while_running(far, (sent(far, "vote", 1), store_down), (sent(far, "train", 1), kill))
    assert far.rig.way.seen["refuse"] > 0
    assert far.adapter(run) == far.adapter(undisturbed)
    assert len({item["release_id"] for item in far.sites["lab"].json("outbox") if item["release_id"].startswith(run)}) == 2
    check_adapters(far, run)
    check_nothing_left(far, run)


def test_lost_doubled_and_hostile_results(far: Far, undisturbed: str, tmp_path: Path) -> None:
    marker, knobs = tmp_path / "was run", far.rig.service.knobs

    def lose(_: str) -> None:
        knobs.drop_results, knobs.duplicate_results = 1, 3

    def attack(_: str) -> None:
        hostile = f"cos\nmkdir\n(V{marker}\ntR.".encode()  # a pickle that makes a folder when it is opened
        knobs.replace_result = "00\n" + base64.b64encode(hostile).decode()

    run = while_running(far, (sent(far, "vote", 1), lose), (sent(far, "train", 2), attack))
    assert (knobs.drop_results, knobs.duplicate_results, knobs.replace_result) == (0, 0, "")
    assert not marker.exists()
    assert far.adapter(run) == far.adapter(undisturbed)
    check_nothing_left(far, run)


def test_a_site_that_refuses(far: Far, undisturbed: str) -> None:
    assert far.sites["south"].command("limits", "set", "allow_without_noise=false").returncode == 0
    before = len(far.sites["south"].json("outbox"))
    run = while_running(far)
    assert "south: vote of round 1: CAFE-311" in told(far, run)
    assert len(far.sites["south"].json("outbox")) == before
    assert far.results(run)["federated"]


@pytest.mark.heavy
def test_with_the_real_models(around: Rig, real_models: RealModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sites without a GPU vote with the real embedder, one trains the real model, on tiny settings and under privacy in stage 1."""
    made = Far(
        tmp_path, monkeypatch, around, models=real_models,
        privacy={"stage1": {"epsilon": 20, "delta": 1e-5}, "stage2": "off", "accept_noise": True},
        stage1={"rounds": 1, "candidates_per_label": 2, "survivors_per_label": 1, "synthetic_per_label": 2, "drop_off_label": False},
        stage2={"rounds": 1, "steps": 2, "warm_start_steps": 2, "batch_size": 2},
    )  # fmt: skip
    made.start()
    try:
        run = made.create()
        assert made.work(run) == 0, told(made, run)
        check_adapters(made, run)
        check_nothing_left(made, run)
    finally:
        made.stop()
