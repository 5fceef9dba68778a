"""Handing a run's adapter to the joined sites: at its end, and again to those that were away.

Knows the order that brings it, which touches no record and costs nothing. Does not know how it travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cafe_kit.errors import CafeError
from cafe_kit.inputs import hash_folder
from cafe_kit.orders import Order, PrivacyTerms, ResultParams, Transport, sign
from cafe_kit.task import Task

from pipeline import launch
from pipeline.home import home
from pipeline.keys import ServerKeys, server_keys
from pipeline.settings import load
from pipeline.sites import Answer, Envelope
from pipeline.ways import joined_sites

WAIT_S = 60.0  # who is away then finds it in the exchange folder, or is sent it again


def envelopes(run: str, task: Task, sites: Sequence[str], folder: Path, keys: ServerKeys) -> list[Envelope]:
    """One order for each site: here is the adapter, a PEFT folder."""
    blob = hash_folder(folder)
    made = []
    for site in sites:
        order = Order(run, 1, 1, 0, site, task, PrivacyTerms("none"), {"adapter_folder": blob}, ResultParams(blob.sha256))
        transport = Transport({"adapter_folder": str(folder)}, "", WAIT_S)
        made.append(Envelope(order, sign(order, keys.signing), transport))
    return made


def deliver(run_id: str, sites: Sequence[str] = ()) -> list[Answer]:
    """Send the adapter of a finished run to its joined sites once more, or to these of them; what each answered.

    Raises:
        CafeError: CAFE-190 when there is nothing to deliver or nobody to deliver it to. StoreError: CAFE-655 for an unknown run.
    """
    run = launch.store().run(run_id)
    settings, folder = load(Path(run.folder) / "config.yaml"), Path(run.folder) / "adapters" / "final"
    wanted = tuple(sites) or settings.joined
    strangers = [site for site in wanted if site not in settings.joined]
    if not folder.is_dir() or not wanted or strangers:
        told = (
            f"{strangers[0]!r} is no joined site of it" if strangers else "it has no joined sites" if folder.is_dir() else "it is not done"
        )
        raise CafeError("CAFE-190", f"Run {run_id} has nothing to deliver: {told}.", "`cafe status` shows runs, `cafe site list` sites.")
    remote = joined_sites(home(), settings.name, run_id, {})
    try:
        return list(remote.ask(envelopes(run_id, settings.public_task(), wanted, folder, server_keys(home()))))
    finally:
        remote.close()
