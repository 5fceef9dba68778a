"""Training by several processes for one order: what one process would have made, and nothing left behind. Here on a CPU, without GPUs."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cafe_kit import launched
from cafe_kit.base_model import BaseModel
from cafe_kit.endpoint_settings import Batch, EndpointSettings, training
from cafe_kit.engine import RealEngine, from_environment
from cafe_kit.errors import CafeError
from cafe_kit.launched import Machines
from cafe_kit.orders import TrainParams
from cafe_kit.train import train

from tests.test_train import OTHERS, PARAMS, RECORDS, TASK, adapter, quiet
from tests.tiny_llama import write_model

SHARDS = {"north": RECORDS, "south": OTHERS}
ONE_EACH = """#!/bin/bash
# In place of srun: one program on each of two nodes, which are both this machine.
for node in 0 1; do SLURM_NODEID=$node "$@" & started="$started $!"; done
for one in $started; do wait $one || exit $?; done
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The site's folder, which all nodes see."""
    monkeypatch.setenv("CAFE_SITE_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def alone(model: Path, params: TrainParams) -> dict[str, dict[str, np.ndarray]]:
    return train(params, TASK, BaseModel.load(model, params.dtype, 1), adapter(), SHARDS, quiet, 3)


def same(found: dict[str, dict[str, np.ndarray]], wanted: dict[str, dict[str, np.ndarray]]) -> bool:
    """Equal but for the order in which floats were added up."""
    return found.keys() == wanted.keys() and all(
        found[site].keys() == wanted[site].keys()
        and all(np.allclose(found[site][name], wanted[site][name], rtol=1e-3, atol=1e-5) for name in wanted[site])
        for site in wanted
    )


@pytest.mark.heavy
def test_two_processes_make_what_one_makes(model: Path, home: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    engine = RealEngine(1, Machines(gpus_per_node=2))
    found = engine.train(PARAMS, TASK, model, adapter(), SHARDS, 3, lambda *told: seen.append(told))
    wanted = alone(model, PARAMS)
    assert same(found, wanted) and not same(found, alone(model, replace(PARAMS, seed=4)))
    assert seen == [(site, step, 4) for site in SHARDS for step in (1, 2, 3, 4)]
    assert list(home.iterdir()) == []  # the records lay there for a while


@pytest.mark.heavy
def test_a_refusal_of_theirs_is_ours(model: Path, home: Path) -> None:
    with pytest.raises(CafeError, match="CAFE-421"):
        launched.train(Machines(gpus_per_node=2), PARAMS, TASK, home / "no model", adapter(), SHARDS, 1, quiet)


@pytest.mark.heavy
def test_two_nodes_and_a_batch_that_is_smaller_than_they_are(model: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    srun = tmp_path_factory.mktemp("bin") / "srun"
    srun.write_text(ONE_EACH)
    srun.chmod(0o755)
    params = replace(PARAMS, batch_size=1, steps=3)
    machines = Machines(gpus_per_node=1, nodes=2, launcher=[str(srun)])
    assert same(launched.train(machines, params, TASK, model, adapter(), SHARDS, 3, quiet), alone(model, params))


@pytest.mark.parametrize(
    ("does", "told"),
    [
        (
            """echo '{"code": "CAFE-403", "message": "It diverged.", "hint": "Lower it."}' >$5/error.json""",
            "CAFE-403 It diverged. Lower it.",
        ),
        ("exit 9", r"CAFE-176 .*: exit status 9\."),
        ("true", r"CAFE-176 .*: exit status 0\."),  # without a result
    ],
)
def test_how_it_ended_is_told(home: Path, does: str, told: str) -> None:
    machines = Machines(gpus_per_node=2, launcher=["bash", "-c", does, "launcher"])
    with pytest.raises(CafeError, match=told):
        launched.train(machines, PARAMS, TASK, home / "base", adapter(), SHARDS, 1, quiet)
    assert list(home.iterdir()) == []


def test_what_cannot_be_started_is_told(home: Path) -> None:
    machines = Machines(gpus_per_node=2, nodes=2, launcher=["/nowhere/srun"])
    with pytest.raises(CafeError, match=r"CAFE-176.*/nowhere/srun cannot be started"):
        launched.train(machines, PARAMS, TASK, home / "base", adapter(), SHARDS, 1, quiet)
    assert list(home.iterdir()) == []


def test_what_a_killed_process_left_is_forgotten(home: Path) -> None:
    """It holds records."""
    dead, living = (home / f"{launched._prefix()}{process}-x" for process in (999999, os.getpid()))
    other, old = home / "training-far-1-x", home / "training-far-2-x"
    for path in (dead, living, other, old):
        path.mkdir()
    os.utime(old, (time.time() - 8 * 86400,) * 2)
    with pytest.raises(CafeError, match="CAFE-176"):
        machines = Machines(gpus_per_node=1, launcher=["/nowhere"])
        launched.train(machines, PARAMS, TASK, home, adapter(), SHARDS, 1, quiet)
    assert sorted(home.iterdir()) == sorted([living, other])


def test_where_a_training_runs_is_the_sites_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training(EndpointSettings()) == training(EndpointSettings(gpus_per_node=1)) == ""
    assert Machines.model_validate_json(training(EndpointSettings(gpus_per_node=4))) == Machines(gpus_per_node=4)
    slurm = Machines.model_validate_json(training(EndpointSettings(kind="slurm", gpus_per_node=4, nodes=2)))
    assert slurm.launcher[0] == "srun" and {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1"} <= set(slurm.launcher)
    pbs = Machines.model_validate_json(training(EndpointSettings(kind="pbs", nodes=3)))
    assert pbs.launcher[0] == "mpiexec" and pbs.launcher[-2:] == ["-n", "3"] and pbs.gpus_per_node == 1
    own = EndpointSettings(kind="pbs", nodes=3, batch=Batch(launcher=["aprun", "-N1"]))
    assert Machines.model_validate_json(training(own)).launcher == ["aprun", "-N1"]
    monkeypatch.setenv(launched.VARIABLE, training(own))
    assert from_environment()._machines == Machines.model_validate_json(training(own))  # type: ignore[attr-defined]
    monkeypatch.setenv(launched.VARIABLE, '{"gpus_per_node": 0}')
    with pytest.raises(CafeError, match="CAFE-176"):
        from_environment()
