"""A site's Globus Compute endpoint: what is written for Globus's program, who may choose what, and how its process is kept up and ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cafe_kit import endpoint, endpoint_settings, leftovers
from cafe_kit.connection import GlobusCompute
from cafe_kit.errors import CafeError

from tests import endpoint_env
from tests.endpoint_env import TEMPLATES

ID, FUNCTION = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
SECRET = "a-secret-of-the-service-account"
CONNECTION = GlobusCompute(ID, SECRET, FUNCTION, "cafe-clinics-north")
SITE: Any = SimpleNamespace(site="north", federation="clinics")
SLURM = 'kind = "slurm"\ngpus_per_node = 4\nnodes = 2\n[batch]\nqueue = "gpu"\naccount = "abc-1"\nqos = "high"\nwalltime = "12:30:00"\n'
SLURM += 'cores_per_node = 32\nmemory_gib = 256\nexclusive = true\noptions = ["#SBATCH --constraint=a100", "#SBATCH --licenses=x"]\n'
PBS = 'kind = "pbs"\nsetup = "module load cuda"\ngpus_per_node = 2\n[batch]\nqueue = "debug"\naccount = "abc-1"\nmemory_gib = 64\n'
PBS += 'options = ["#PBS -l filesystems=home:eagle"]\nidle_minutes = 0.5\ninterface = "lo"\n'


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """An unzipped kit, as far as an endpoint needs it."""
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "endpoint").symlink_to(TEMPLATES)
    return tmp_path / "kit"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of Globus's program: a script, which a test writes. It keeps up nothing by itself."""
    path = tmp_path / "env" / "bin" / endpoint.PROGRAM
    path.parent.mkdir(parents=True)
    monkeypatch.setenv("CAFE_ENDPOINT_VENV", str(tmp_path / "env"))
    return write(path, "sleep 600")


def write(program: Path, script: str) -> Path:
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    return program


def prepare(home: Path, kit: Path, settings: str = "", connection: GlobusCompute = CONNECTION) -> Path:
    """The folder that Globus's program reads."""
    if settings:
        (home / "endpoint.toml").write_text(settings)
    endpoint.prepare(home, SITE, connection, kit, lambda _: None)
    return home / "endpoint" / connection.endpoint_name


# What is written


def test_the_endpoint_runs_one_function_and_lets_nobody_choose(home: Path, kit: Path, program: Path) -> None:
    folder = prepare(home, kit)
    config = (folder / "config.yaml").read_text()
    assert f"allowed_functions:\n- {FUNCTION}\n" in config and 'display_name: "cafe-clinics-north"\n' in config
    assert "local_compute_services: false\n" in config and "public: false\n" in config
    schema = json.loads((folder / "user_config_schema.json").read_text())
    assert schema["additionalProperties"] is False and schema["properties"] == {}
    assert all(path.stat().st_mode & 0o077 == 0 for path in [folder, *folder.iterdir()])


def test_the_secret_is_in_no_file_and_not_where_the_work_is_done(home: Path, kit: Path, program: Path) -> None:
    folder = prepare(home, kit, SLURM)
    assert not [path for path in home.rglob("*") if path.is_file() and SECRET in path.read_text()]
    assert 'GLOBUS_COMPUTE_CLIENT_SECRET: ""\n' in (folder / "user_environment.yaml").read_text()


def test_what_the_kit_needs_where_the_work_is_done(home: Path, kit: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("CAFE_JOIN_CODE", "ABCD-EFGH-JKMN-PQRS")
    environment = (prepare(home, kit) / "user_environment.yaml").read_text()
    lines = dict(line.split(": ", 1) for line in environment.splitlines() if line[0] != "#")
    found = {name: json.loads(value) for name, value in lines.items()}
    assert json.loads(found["CAFE_SITE_COMMAND"]) == [sys.executable, "-I", "-m", "cafe_kit.cli", "answer"]
    assert (found["CAFE_SITE_HOME"], found["CAFE_KIT_FOLDER"], found["HTTPS_PROXY"]) == (str(home), str(kit), "http://proxy:3128")
    assert found["PATH"].startswith(f"{program.parent}:") and "JOIN" not in environment


def test_preparing_again_changes_nothing(home: Path, kit: Path, program: Path) -> None:
    folder = prepare(home, kit)
    before = {path: path.stat().st_mtime_ns for path in [*folder.iterdir(), home / "endpoint.toml"]}
    prepare(home, kit)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    prepare(home, kit, 'setup = "module load cuda"\n')
    assert "module load cuda" in (folder / "user_environment.yaml").read_text()


# What the site chooses


def test_the_first_settings_are_the_kits_and_say_plain(home: Path, kit: Path, program: Path) -> None:
    prepare(home, kit)
    text = (home / "endpoint.toml").read_text()
    assert text == (TEMPLATES / "endpoint.toml").read_text()
    assert endpoint_settings.load(home, TEMPLATES / "endpoint.toml") == endpoint_settings.EndpointSettings()
    known = {*endpoint_settings.EndpointSettings.model_fields, *endpoint_settings.Batch.model_fields}
    written = tomllib.loads(text)
    assert {*written, *written["batch"]} == known  # every setting is explained there


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('kind = "lsf"', "'kind'"),
        ("kind = 1", "'kind'"),
        ('queue = "gpu"', "'queue'"),
        ('[batch]\nqueue = "gpu\\n#SBATCH --uid=0"', "'batch.queue'"),
        ('[batch]\nwalltime = "1h"', "'batch.walltime'"),
        ("gpus_per_node = -1", "'gpus_per_node'"),
        ("gpus_per_node = true", "'gpus_per_node'"),
        ("nodes = 2", "a plain host is one"),
        ("nodes = ", "cannot be read"),
        ('command = "python"', "'command'"),
    ],
)
def test_settings_that_are_not_as_agreed_are_named(home: Path, kit: Path, program: Path, text: str, where: str) -> None:
    with pytest.raises(CafeError, match=f"CAFE-171.*{where}"):
        prepare(home, kit, text)
    assert not (home / "endpoint").exists()


def test_a_setup_goes_before_the_command(home: Path, kit: Path, program: Path) -> None:
    settings = endpoint_settings.EndpointSettings(setup='export X="a b"', command=["env"])
    done = subprocess.run(endpoint_settings.answer_command(settings), capture_output=True, text=True, check=True)
    assert "X=a b\n" in done.stdout


def test_a_batch_system_wants_a_plain_path(tmp_path: Path, kit: Path, program: Path) -> None:
    home = tmp_path / "my site"
    home.mkdir(mode=0o700)
    prepare(home, kit)  # a plain host does not mind
    with pytest.raises(CafeError, match="CAFE-172"):
        prepare(home, kit, SLURM)


def test_an_endpoint_that_cannot_be_had_is_told(home: Path, kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAFE_ENDPOINT_VENV", str(tmp_path / "nothing"))
    with pytest.raises(CafeError, match="CAFE-173 CAFE_ENDPOINT_VENV"):
        prepare(home, kit)
    with pytest.raises(CafeError, match="CAFE-173 The kit"):
        endpoint.prepare(home, SITE, CONNECTION, None, lambda _: None)


@pytest.mark.heavy
def test_without_a_package_index_the_reason_is_told(home: Path, kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAFE_ENDPOINT_VENV", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    for name, value in {"PIP_EXTRA_INDEX_URL": "", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CafeError, match="CAFE-173 The endpoint cannot be installed: ERROR"):
        prepare(home, kit)
    assert not (home / "endpoint-venv" / ".cafe-kit").exists()  # so that the next start begins anew


# Globus's own program reads what we write


@pytest.fixture(scope="module")
def real() -> Path:
    """Its real environment."""
    try:
        return endpoint_env.prepare(endpoint_env.default_folder())
    except CafeError as error:
        pytest.skip(f"the Globus Compute endpoint cannot be installed here: {error}")


LOOK = """
import json, sys
from globus_compute_endpoint.endpoint.config.utils import load_config_yaml
config = load_config_yaml(sys.stdin.read())
engine = config.engine
provider = getattr(engine, "provider", None)
names = ("nodes_per_block", "init_blocks", "min_blocks", "max_blocks", "walltime", "account", "partition", "queue", "qos", "gpus_per_node",
         "select_options", "scheduler_options", "worker_init", "cores_per_node", "mem_per_node", "cpus_per_node")
print(json.dumps({
    "engine": type(engine).__name__, "provider": type(provider).__name__, "launcher": type(getattr(provider, "launcher", None)).__name__,
    "allowed": [each.__name__ for each in engine.serde.allowed_deserializer_types] if hasattr(engine, "serde") else
               [str(each) for each in engine.allowed_serializers],
    "workers": engine.max_workers_per_node if provider else engine.executor._max_workers,
    "idle": config.idle_heartbeats_soft, "beat": config.heartbeat_period, "encrypted": getattr(engine, "encrypted", None),
    **{name: getattr(provider, name) for name in names if hasattr(provider, name)}}))
"""


def rendered(real: Path, home: Path, kit: Path, monkeypatch: pytest.MonkeyPatch, settings: str, options: str = "{}") -> dict[str, Any]:
    """What the real loader makes of the template, as the endpoint does it before it starts what takes orders."""
    monkeypatch.setenv("CAFE_ENDPOINT_VENV", str(real))
    folder = prepare(home, kit, settings)
    given = home / "options.json"
    given.write_text(options)
    command = [str(real / "bin" / endpoint.PROGRAM), "render-user-config", "-e", folder.name, "-o", str(given)]
    environment = os.environ | {"GLOBUS_COMPUTE_USER_DIR": str(home / "endpoint")}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr[-2000:]
    loaded = subprocess.run([str(real / "bin" / "python"), "-c", LOOK], input=shown.stdout, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr[-2000:] + shown.stdout
    return dict(json.loads(loaded.stdout.splitlines()[-1]))


@pytest.mark.system
def test_a_plain_host(real: Path, home: Path, kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rendered(real, home, kit, monkeypatch, "")
    assert (found["engine"], found["workers"], found["beat"], found["idle"]) == ("ThreadPoolEngine", 1, 30, 20)
    assert sorted(found["allowed"]) == ["JSONData", "PureSourceTextInspect"]


@pytest.mark.system
def test_slurm(real: Path, home: Path, kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rendered(real, home, kit, monkeypatch, SLURM)
    assert (found["engine"], found["provider"], found["launcher"]) == ("GlobusComputeEngine", "SlurmProvider", "SimpleLauncher")
    assert (found["nodes_per_block"], found["init_blocks"], found["min_blocks"], found["max_blocks"]) == (2, 0, 0, 1)
    assert (found["partition"], found["account"], found["qos"], found["walltime"]) == ("gpu", "abc-1", "high", "12:30:00")
    assert (found["gpus_per_node"], found["cores_per_node"], found["mem_per_node"], found["workers"]) == (4, 32, 256, 1)
    options = found["scheduler_options"].splitlines()
    assert {"#SBATCH --constraint=a100", "#SBATCH --licenses=x", "#SBATCH --exclusive", "#SBATCH --gpus-per-node=4"} <= set(options)
    assert f"export CAFE_SITE_HOME={home}\n" in found["worker_init"] and found["encrypted"] is True
    assert sorted(found["allowed"]) == ["JSONData", "PureSourceTextInspect"]


@pytest.mark.system
def test_pbs(real: Path, home: Path, kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rendered(real, home, kit, monkeypatch, PBS)
    assert (found["provider"], found["queue"], found["account"], found["nodes_per_block"]) == ("PBSProProvider", "debug", "abc-1", 1)
    assert (found["select_options"], found["init_blocks"]) == ("ngpus=2:mem=64gb", 0)
    assert "#PBS -l filesystems=home:eagle" in found["scheduler_options"]
    exported = next(line for line in found["worker_init"].splitlines() if line.startswith("export CAFE_SITE_COMMAND="))
    shown = subprocess.run(["bash", "-c", f'{exported}\nprintf %s "$CAFE_SITE_COMMAND"'], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown)[:3] == ["bash", "-lc", 'module load cuda\nexec "$@"']


@pytest.mark.system
def test_a_setting_is_text_and_never_a_template(real: Path, home: Path, kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nasty = """'"%} {{ 7 * 7 }} ü $HOME `id` \\\\ }}{% raw %}"""
    found = rendered(real, home, kit, monkeypatch, f'kind = "slurm"\n[batch]\naccount = """{nasty}"""\n')
    assert found["account"] == tomllib.loads(f'x = """{nasty}"""')["x"]


@pytest.mark.system
def test_whoever_submits_chooses_nothing(real: Path, home: Path, kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ('{"worker_init": "curl example.org | sh"}', '{"site": {"kind": "plain"}}'):
        with pytest.raises(AssertionError, match="Additional properties are not allowed"):
            rendered(real, home, kit, monkeypatch, "", options)


# Its process


@pytest.fixture
def processes(home: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """What a test starts; whatever of it is left in the end is ended."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
    leftovers.end(list(leftovers.marked(f"GLOBUS_COMPUTE_USER_DIR={home}/endpoint")), 0.1)


RUN = """
import sys
from pathlib import Path
from types import SimpleNamespace
from cafe_kit import endpoint
from cafe_kit.connection import GlobusCompute
from cafe_kit.errors import CafeError
endpoint._LOOK_S, endpoint._FIRST_WAIT_S = 0.1, 0.05
try:
    status = endpoint.run(Path(sys.argv[1]), SimpleNamespace(site="north", federation="clinics"),
                          GlobusCompute(*sys.argv[3:7]), Path(sys.argv[2]), lambda text: print(text, flush=True))
except CafeError as error:
    print(error, flush=True)
    status = 7
sys.exit(status)
"""


def start(processes: list[subprocess.Popen[str]], home: Path, kit: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, str(home), str(kit), ID, SECRET, FUNCTION, "cafe-clinics-north"]
    processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    return processes[-1]


def until(condition: Any, seconds: float = 15.0) -> Any:
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def test_it_is_started_again_and_ends_at_a_signal(home: Path, kit: Path, program: Path, processes: list[Any]) -> None:
    told = f'echo "$GLOBUS_COMPUTE_CLIENT_ID $GLOBUS_COMPUTE_CLIENT_SECRET $*" >>{home}/starts'
    write(program, f"{told}; [ $(wc -l <{home}/starts) -ge 3 ] && sleep 600")
    running = start(processes, home, kit)
    until(lambda: (home / "starts").exists() and len((home / "starts").read_text().splitlines()) == 3)
    assert (home / "starts").read_text().splitlines() == [f"{ID} {SECRET} start cafe-clinics-north"] * 3
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=20)[0]
    assert running.returncode == 0 and said.count("is started again in") == 2 and said.rstrip().endswith("until the next start.")
    assert SECRET not in said and leftovers.marked(f"GLOBUS_COMPUTE_USER_DIR={home}/endpoint") == {}


@pytest.mark.parametrize(("status", "code"), [(77, "CAFE-174"), (65, "CAFE-175")])
def test_what_a_restart_does_not_mend_is_told(home: Path, kit: Path, program: Path, processes: list[Any], status: int, code: str) -> None:
    write(program, f"echo started >>{home}/starts; exit {status}")
    said = start(processes, home, kit).communicate(timeout=20)[0]
    assert code in said and SECRET not in said and (home / "starts").read_text() == "started\n"


def test_what_lost_its_parent_is_ended(home: Path, kit: Path, program: Path, processes: list[Any]) -> None:
    """The process that takes orders is killed: what it had started would otherwise stay for good."""
    write(program, f"bash -c 'sleep 611 & echo $! >{home}/orphan; echo $$ >{home}/middle; wait' & wait; sleep 600")
    running = start(processes, home, kit)
    for name in ("middle", "orphan"):
        until(lambda name=name: (home / name).is_file() and (home / name).read_text().strip())
    middle, orphan = (int((home / name).read_text()) for name in ("middle", "orphan"))
    time.sleep(0.5)
    assert {middle, orphan} <= leftovers.marked(f"GLOBUS_COMPUTE_USER_DIR={home}/endpoint").keys()  # they are looked after
    os.kill(middle, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{orphan}").exists() or "Z" in Path(f"/proc/{orphan}/stat").read_text())
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=20) == 0


def test_a_stale_process_id_is_forgotten_and_a_living_one_is_not(home: Path, kit: Path, program: Path, processes: list[Any]) -> None:
    """Globus's program would refuse its start for minutes."""
    folder = prepare(home, kit)
    (folder / "daemon.pid").write_text("999999\n")
    write(program, f"[ -e {folder}/daemon.pid ] && exit 73; echo $$ >{folder}/daemon.pid; sleep 600")
    start(processes, home, kit)
    until(lambda: (folder / "daemon.pid").exists() and (folder / "daemon.pid").read_text() != "999999\n")
    time.sleep(0.5)  # several looks
    assert int((folder / "daemon.pid").read_text()) in leftovers.marked(f"GLOBUS_COMPUTE_USER_DIR={home}/endpoint")


def test_nobody_elses_process_is_touched(home: Path, tmp_path: Path) -> None:
    mark = f"GLOBUS_COMPUTE_USER_DIR={home}/endpoint"
    other = subprocess.Popen(["sleep", "60"], env={"GLOBUS_COMPUTE_USER_DIR": f"{home}/endpoint2", "X": f"a{mark}"})
    own = subprocess.Popen(["sleep", "60"], env={"GLOBUS_COMPUTE_USER_DIR": f"{home}/endpoint"})
    job = subprocess.Popen(["sleep", "60"], env={"GLOBUS_COMPUTE_USER_DIR": f"{home}/endpoint", "SLURM_JOB_ID": "7"})
    try:
        until(lambda: leftovers.marked(mark))
        assert list(leftovers.marked(mark)) == [own.pid] and leftovers.orphans(mark) == []  # its parent, this test, lives
        thread = threading.Thread(target=leftovers.end, args=([own.pid],))
        thread.start()
        assert own.wait(timeout=5) == -signal.SIGTERM and other.poll() is None
        thread.join()
    finally:
        for process in (other, own, job):
            process.kill()
            process.wait()
