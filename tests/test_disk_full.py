"""A disk that runs full in the middle of a run: it stops with a sentence, nothing is lost, and it goes on when there is room."""

import os
import shutil
import subprocess
from collections import Counter

import pytest

from tests.federation import Federation

pytestmark = pytest.mark.system


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own; its size in kB can be changed."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1400k", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine does not let a test mount a tmpfs")

    def resize(kb):
        subprocess.run(["mount", "-o", f"remount,size={kb}k", disk], check=True)

    yield disk, resize
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(small_disk):
    disk, resize = small_disk
    federation = Federation(disk / "f", privacy={"epsilon": 8, "delta": 1e-5, "accept_noise": True}, stage2={"rounds": 6})
    run = federation.create()
    filler = disk / "filler"
    with filler.open("wb") as file:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        file.write(b"x" * max(0, free - 150_000))
    assert federation.work(run) != 0
    assert federation.wait_for_no_processes()
    state = federation.store.run(run)
    assert state.shown_state in ("Failed", "Lost contact")
    if state.error:
        assert state.error["code"] in ("CAFE-652", "CAFE-121", "CAFE-123", "CAFE-327", "CAFE-664", "CAFE-135"), state.error
    resize(60_000)
    federation.store.queue(run)
    assert federation.work(run) == 0, federation.store.run(run).error
    federation.ledger.verify()
    assert Counter(row.stage for row in federation.ledger.releases(run)) == {1: 3, 2: 6}
    charges = Counter((charge.site, charge.stage) for charge in federation.ledger.charges(run=run))
    assert set(charges.values()) == {3, 6}
