"""What tests share: a home folder of their own, the real models, the external data, and a strict eye on skips in CI."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cafe_kit.errors import CafeError

from pipeline.models import ModelFolder, base_model, embedder
from tests.seaweedfs import S3Server, serve

ROOT = Path(__file__).resolve().parent.parent


class RealModels(NamedTuple):
    """The two shipped models, as folders."""

    base: ModelFolder
    embedder: ModelFolder


@pytest.fixture
def cafe_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder for this test alone."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("CAFE_HOME", str(home))
    return home


@pytest.fixture(scope="module", autouse=True)
def _float_state_ends_with_the_module() -> Iterator[None]:
    """A base model that was loaded in this process flushes denormal floats to zero, which hypothesis does not bear."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def real_models() -> RealModels:
    """SmolLM2-135M-Instruct and all-MiniLM-L6-v2 from the machine's own home folder, fetched if they are not there."""
    try:
        return RealModels(base_model("smollm2-135m-instruct"), embedder("all-minilm-l6-v2"))
    except CafeError as error:
        pytest.skip(f"the real models are not here: {error}")


@pytest.fixture
def home_with_models(real_models: RealModels, cafe_home: Path) -> Path:
    """An empty home folder whose shelf of models is the machine's own, so that names work and nothing is fetched again."""
    (cafe_home / "models").symlink_to(real_models.base.path.parent)
    return cafe_home


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server on loopback, one for the session; tests that use it are marked ``system``."""
    with serve(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Public data sets beside the repository (CLINC150, ...); ``CAFE_TEST_DATA`` says where else."""
    path = Path(os.environ.get("CAFE_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no external data sets at {path}; set CAFE_TEST_DATA")
    return path


# With CAFE_CI=1 whatever was left out turns the session red, but for the long loops and what no set-up can bring: a GPU, leave to trace.

_NOT_TO_BE_HAD = ("GPU", "ptrace is forbidden")
_left_out: list[str] = []


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail") or "soak" in getattr(report, "keywords", {}):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith(_NOT_TO_BE_HAD):
        _left_out.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    on_a_worker = hasattr(session.config, "workerinput")
    if os.environ.get("CAFE_CI") == "1" and _left_out and not on_a_worker and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("CAFE_CI") == "1" and _left_out:
        terminalreporter.section("left out although CAFE_CI=1", red=True)
        for line in _left_out:
            terminalreporter.line(line)
