"""A kit's zip: the same bytes every time, signed so that OpenSSH says so, with nothing secret in it, and it starts where it is unzipped."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from cafe_kit import enrolment, kit_folder, ssh_signature
from cafe_kit.enrolment import KitInfo, Limits, Server
from cafe_kit.errors import CafeError
from cafe_kit.task import Task
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client_kits import builder
from tests.test_house import ROOT, imports

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
HOSTILE = "<script>alert(1)</script> & {{serial}} messages"
NO_INDEX = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_EXTRA_INDEX_URL": "", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
VERIFY = "ssh-keygen -Y verify -f allowed_signers -I federation -n cafe-kit -s SHA256SUMS.sig < SHA256SUMS"  # as README.txt says


def info(kind: str = "cpu", **changes: object) -> KitInfo:
    verify = KEY.public_key().public_bytes_raw().hex()
    task = Task("classification", HOSTILE, ("billing", "front_desk"))
    made = KitInfo("clinics", "ward-3", "cpu", "ab" * 16, 1.7e9, 1.7e9 + 7e5, Server(verify, "cd" * 32), task, "00")
    return replace(made, kind=kind, **changes)


@pytest.fixture
def embedder(tmp_path: Path) -> Path:
    folder = tmp_path / "embedder"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(os.urandom(3_000_000))
    (folder / "tokenizer.json").write_text("{}")
    (folder / ".lock").touch()
    return folder


def build(target: Path, kit: KitInfo, embedder: Path | None = None) -> Path:
    return builder.build(kit, target, sign=lambda sums: ssh_signature.sign(sums, KEY), embedder=embedder)


def unzipped(zip_file: Path, folder: Path) -> Path:
    """As ``unzip`` does it: with the modes that the zip names."""
    with zipfile.ZipFile(zip_file) as kit:
        kit.extractall(folder)
        for entry in kit.infolist():
            (folder / entry.filename).chmod(entry.external_attr >> 16 & 0o777)
    (kit_in_it,) = folder.iterdir()
    return kit_in_it


@pytest.fixture
def kit(tmp_path: Path, embedder: Path) -> Path:
    """An unzipped kit, in a place with a name that careless shells stumble over."""
    folder = tmp_path / "Übung in Köln's $HOME (1)"
    folder.mkdir()
    return unzipped(build(tmp_path / "kit.zip", info(), embedder), folder)


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", "-c", command], cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False)


# The bytes


def test_two_builds_are_the_same_and_another_serial_is_another_zip(tmp_path: Path, embedder: Path) -> None:
    first, second, other = (tmp_path / name for name in ("a.zip", "b.zip", "c.zip"))
    build(first, info(), embedder)
    os.utime(embedder / "model.onnx", (1, 1))
    build(second, info(), embedder)
    build(other, info(serial="cd" * 16), embedder)
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.zip*")) == ["a.zip", "b.zip", "c.zip"]


def test_what_is_in_it(kit: Path, tmp_path: Path) -> None:
    assert kit.name == "cafe-site-clinics-ward-3"
    assert {path.relative_to(kit).as_posix() for path in kit.rglob("*") if path.is_file()} >= {
        "README.txt", "README.html", "SECURITY.html", "VERSION", "allowed_signers", "cafe-site", "examples/sample.csv",
        "federation.json", "models/embedder/model.onnx", "policy.default.toml", "requirements.txt", "LICENSES/Apache-2.0.txt",
        "endpoint/endpoint.toml", "endpoint/config.yaml", "endpoint/user_config_template.yaml.j2", "endpoint/requirements.txt",
    }  # fmt: skip
    assert not (kit / "models/embedder/.lock").exists()
    executable = [path.name for path in kit.rglob("*") if path.is_file() and path.stat().st_mode & 0o111]
    assert executable == ["cafe-site"]
    light = (kit / "requirements.txt").read_text()
    assert "onnxruntime" in light and "torch" not in light
    with zipfile.ZipFile(build(tmp_path / "gpu.zip", info("gpu"))) as gpu:
        assert b"torch==" in gpu.read("cafe-site-clinics-ward-3/requirements.txt")
        assert not [name for name in gpu.namelist() if "models" in name]


def test_the_sample_fits_the_task(kit: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((kit / "examples/sample.csv").read_text())))
    assert {row["label"] for row in rows} == {"billing", "front_desk"} and all(row["text"] for row in rows)
    with zipfile.ZipFile(build(tmp_path / "i.zip", info("gpu", task=Task("instruction", "answers")))) as other:
        assert other.read("cafe-site-clinics-ward-3/examples/sample.csv").startswith(b"instruction,output\n")


def test_the_limits_that_are_proposed_are_a_policy(kit: Path, tmp_path: Path) -> None:
    from cafe_kit.policy import load_policy

    for number, limits in enumerate((Limits(max_epsilon=3.5, max_epsilon_per_run=1.25, delta=2e-6), Limits(max_epsilon=None))):
        folder = tmp_path / str(number)
        policy = load_policy(unzipped(build(tmp_path / "p.zip", info("gpu", limits=limits)), folder) / "policy.default.toml")
        assert (policy.max_epsilon, policy.max_epsilon_per_run) == (limits.max_epsilon, limits.max_epsilon_per_run)
        assert (policy.delta, tuple(policy.kinds)) == (limits.delta, limits.kinds)


def test_pages_are_filled_and_show_texts_as_they_were_typed(kit: Path) -> None:
    for name in ("README.html", "SECURITY.html"):
        page = (kit / name).read_text()
        assert "<script>" not in page and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; {{serial}} messages" in page
        assert "http://" not in page and "https://" not in page
        assert ssh_signature.fingerprint(info().server.verify_key) in page
    assert HOSTILE in (kit / "README.txt").read_text()
    assert all(path.read_text().count("{{") <= 1 for path in (kit / "README.html", kit / "SECURITY.html"))
    assert "{{" not in (kit / "cafe-site").read_text() + (kit / "policy.default.toml").read_text()


def test_a_site_that_has_left_is_told_so_and_nothing_is_set_up_again(kit: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "leave.json").write_text("{}")
    done = shell("./cafe-site status", kit, CAFE_SITE_HOME=str(home))
    assert done.returncode != 0 and "CAFE-156" in done.stderr and str(home) in done.stderr
    assert [path.name for path in home.iterdir()] == ["leave.json"]
    for verb, mended in (("join", False), ("status", True)):  # these go on to set up, which this Python cannot
        if mended:
            (home / "site.toml").touch()
        tried = shell(f"./cafe-site {verb}", kit, CAFE_SITE_HOME=str(home), CAFE_PYTHON="/nowhere", PATH="/nowhere")
        assert "CAFE-156" not in tried.stderr and "Python" in tried.stderr


def test_the_wheel_is_one_and_holds_the_installed_kit(kit: Path) -> None:
    (wheel,) = (kit / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as inside:
        records = list(csv.reader(io.StringIO(inside.read(f"cafe_kit-{wheel.name.split('-')[1]}.dist-info/RECORD").decode())))
        assert {name for name, _, _ in records} == set(inside.namelist())
        for name, digest, _ in records:
            wanted = base64.urlsafe_b64encode(hashlib.sha256(inside.read(name)).digest()).rstrip(b"=").decode()
            assert not digest or digest == f"sha256={wanted}"
        assert inside.read("cafe_kit/errors.py") == (ROOT / "client_kits/cafe_kit/errors.py").read_bytes()
        assert not [name for name in inside.namelist() if "pycache" in name]
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); import cafe_kit.enrolment as e; print(e.__file__)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert str(wheel) in done.stdout


# The signature


def test_openssh_verifies_the_kit_with_the_commands_of_its_readme(kit: Path) -> None:
    assert VERIFY in (kit / "README.txt").read_text()
    done = shell(VERIFY, kit)
    assert done.returncode == 0 and ssh_signature.fingerprint(info().server.verify_key) in done.stdout
    assert shell("sha256sum -c SHA256SUMS", kit).returncode == 0
    assert kit_folder.open_kit(kit).unlisted == ()


def test_an_altered_file_is_caught(kit: Path) -> None:
    with (kit / "federation.json").open("a") as file:
        file.write(" ")
    assert "federation.json: FAILED" in shell("sha256sum -c SHA256SUMS", kit).stdout
    assert shell("./cafe-site status", kit, CAFE_SITE_HOME=str(kit.parent / "home")).returncode == 1
    with pytest.raises(CafeError, match="CAFE-150"):
        kit_folder.open_kit(kit)


def test_an_altered_list_is_caught(kit: Path) -> None:
    sums = (kit / "SHA256SUMS").read_text()
    (kit / "SHA256SUMS").write_text(sums.replace(sums[0], "0" if sums[0] != "0" else "1", 1))
    assert shell(VERIFY, kit).returncode != 0
    with pytest.raises(CafeError, match="CAFE-150"):
        kit_folder.open_kit(kit)


def test_a_signature_is_for_one_message_one_key_and_one_purpose(tmp_path: Path) -> None:
    verify, other = (key.public_key().public_bytes_raw().hex() for key in (KEY, Ed25519PrivateKey.generate()))
    text = ssh_signature.sign(b"message", KEY)
    assert ssh_signature.fits(b"message", text, verify)
    assert not ssh_signature.fits(b"messages", text, verify) and not ssh_signature.fits(b"message", text, other)
    assert not any(ssh_signature.fits(b"message", bad, verify) for bad in ("", "x", text[:-60], text.replace("-----BEGIN", "----BEGIN")))
    (tmp_path / "m").write_bytes(b"message")
    (tmp_path / "s").write_text(text)
    (tmp_path / "a").write_text(ssh_signature.allowed_signers(verify))
    command = "ssh-keygen -Y verify -f a -I federation -n {} -s s < m"
    assert shell(command.format("cafe-kit"), tmp_path).returncode == 0 != shell(command.format("git"), tmp_path).returncode


# What starts it


def test_the_launcher_refuses_in_words(kit: Path, tmp_path: Path) -> None:
    assert shell("sh -n cafe-site", kit).returncode == 0
    shelf = tmp_path / "bin"  # a machine with a shell and without Python
    shelf.mkdir()
    for tool in ("dirname", "cat", "sha256sum", "mkdir", "rm"):
        (shelf / tool).symlink_to(f"/usr/bin/{tool}" if Path(f"/usr/bin/{tool}").exists() else f"/bin/{tool}")
    done = shell("./cafe-site join", kit, PATH=str(shelf), CAFE_SITE_HOME=str(tmp_path / "site home"))
    assert done.returncode == 1 and done.stderr.startswith("Python 3.11 or newer was not found.")
    assert not (tmp_path / "site home").exists()


@pytest.mark.heavy
def test_the_launcher_sets_up_once_and_then_starts_at_once(kit: Path, tmp_path: Path) -> None:
    home = {"CAFE_SITE_HOME": str(tmp_path / "site home")}
    before = {path: path.stat().st_mtime_ns for path in kit.rglob("*")}
    first = shell("../*/cafe-site --help", kit, CAFE_PYTHON=sys.executable, **home)
    assert first.returncode == 0, first.stderr
    assert "join" in first.stdout and "Setting up" in first.stderr
    again = shell("./cafe-site --help", kit, **NO_INDEX, **home)
    assert (again.returncode, again.stderr) == (0, "")
    (tmp_path / "site home/venv/.cafe-kit").unlink()  # a set-up that was interrupted begins anew
    assert "Setting up" in shell("./cafe-site --help", kit, **NO_INDEX, **home).stderr
    assert {path: path.stat().st_mtime_ns for path in kit.rglob("*")} == before


@pytest.mark.heavy
def test_a_kit_with_wheels_needs_no_package_index(tmp_path: Path) -> None:
    made = builder.build(info("cpu"), tmp_path / "kit.zip", sign=lambda sums: ssh_signature.sign(sums, KEY), wheels=True)
    home = {"CAFE_SITE_HOME": str(tmp_path / "home"), "CAFE_PYTHON": sys.executable}
    kit, offline = unzipped(made, tmp_path / "kit"), NO_INDEX | {"PIP_FIND_LINKS": ""}
    done = shell("./cafe-site --help", kit, **offline, **home)
    assert done.returncode == 0, done.stderr
    code = "import sys; from pathlib import Path; from cafe_kit.endpoint import install; install(*map(Path, sys.argv[1:]), print)"
    done = shell(f'"{tmp_path}/home/venv/bin/python" -I -c "{code}" "{tmp_path}/home" "{kit}/endpoint"', kit, **offline)
    assert done.returncode == 0, done.stderr  # the endpoint for Globus Compute, in an environment of its own
    assert (tmp_path / "home/endpoint-venv/bin/globus-compute-endpoint").is_file()


def test_wheels_that_cannot_be_had_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NO_INDEX.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(CafeError, match="CAFE-138"):
        builder.build(info("cpu"), tmp_path / "kit.zip", sign=lambda sums: "", wheels=True)
    assert list(tmp_path.iterdir()) == []


def test_the_builder_knows_the_kit_alone() -> None:
    rooms = {name.partition(".")[0] for name in imports(ROOT / "client_kits/builder.py", "client_kits.builder")}
    assert rooms & {"app", "pipeline", "server_store", "cafe_kit", "client_kits"} == {"cafe_kit"}


def test_the_address_opens_with_the_code_alone() -> None:
    code, serial = enrolment.new_code(), "ab" * 16
    sealed = enrolment.seal_address({"exchange": "/mnt/shared"}, code, serial)
    assert enrolment.open_address(sealed, code.lower().replace("-", " "), serial) == {"exchange": "/mnt/shared"}
    for wrong_code, wrong_serial in ((enrolment.new_code(), serial), (code, "cd" * 16)):
        with pytest.raises(CafeError, match="CAFE-140"):
            enrolment.open_address(sealed, wrong_code, wrong_serial)
