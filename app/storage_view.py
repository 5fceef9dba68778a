"""The object store as *Settings* shows it: which one, where its key comes from, a form to change it, and the check in plain words.

Draws what ``pipeline.storage`` says. A secret is written, never read back.
"""

from __future__ import annotations

import streamlit as st
from cafe_kit.errors import CafeError

from app import forms, secret_form, widgets
from pipeline import storage
from pipeline.storage import Check, Storage

_WHAT = (
    "Sites that are reached through Globus Compute fetch and deliver what is large by an S3 bucket of yours. Sites in a folder need none."
)
_MARKS = {
    "ok": ":green-badge[:material/check_circle: ok]",
    "warn": ":orange-badge[:material/warning: look]",
    "failed": ":red-badge[:material/error: failed]",
}
_PATIENCE_S = 8.0


def draw() -> None:
    st.subheader("Object store", anchor=False)
    st.markdown(_WHAT)
    now = _configured()
    if now is not None:
        _facts(now)
    else:
        st.markdown("**No object store is set up.** The bucket must exist; then name it here.")
    with st.expander("Change it" if now else "Set it up", icon=":material/edit:", expanded=now is None, key="storage-change"):
        _place(now)
        if now is not None:
            _key()
            _forget()
    if now is not None:
        _check()


def _configured() -> Storage | None:
    """The setting; a card for one that cannot be used."""
    try:
        return storage.configured()
    except CafeError as error:
        widgets.failure_card(error, "storage setting")
        _forget()
        return None


def _facts(now: Storage) -> None:
    lines = {
        "Service": f"{now.endpoint_url or 'AWS'}, region {now.region}",
        "Bucket": "/".join(part for part in (now.bucket, now.prefix) if part),
        "Access key": storage.key_source(now),
        "Results": "of finished runs are kept there, too" if now.keep_results else "stay on this machine",
    }
    st.markdown("\n".join(f"- **{name}**: {widgets.plain(text)}" for name, text in lines.items()))


def _place(now: Storage | None) -> None:
    """Where it is. No secret is in this form, so what was typed stays when it is refused."""
    old, mark = now or Storage(bucket="none"), forms.mark(now.model_dump() if now else None)
    with st.form(f"storage {mark}", border=False):
        left, right = st.columns(2)
        fields = {
            "endpoint_url": left.text_input(
                "Address of the service", old.endpoint_url, placeholder="https://s3.example.org", help="As sites reach it, too. Empty: AWS."
            ),
            "bucket": right.text_input("Bucket", now.bucket if now else ""),
            "region": left.text_input("Region", old.region),
            "prefix": right.text_input("Folder in the bucket", old.prefix),
            "profile": left.text_input(
                "Profile of ~/.aws",
                old.profile,
                help="The access key is taken from there. Empty: a key kept here, or what this machine offers.",
            ),
        }
        right.space("small")
        keep = right.toggle("Keep results of finished runs there, too", old.keep_results)
        pressed = st.form_submit_button("Keep", icon=":material/save:")
    if pressed:
        with widgets.guard("storage place"):
            storage.set_up({name: str(text).strip() for name, text in fields.items()} | {"keep_results": keep})
            st.rerun()


def _key() -> None:
    told = "Kept in this home, encrypted; it takes the place of a profile."
    secret_form.draw("storage key", "Access key", "Its secret", "Keep this key", lambda *key: storage.set_up({}, key), told=told)


def _forget() -> None:
    with st.popover("Forget the store", icon=":material/delete:", type="tertiary", key="storage-forget"):
        st.markdown("Its setting and its key here are deleted; objects stay. Sites that fetch and deliver by it are not reached any more.")
        if st.button("Forget it", key="storage-forget-yes"):
            storage.forget()
            st.rerun()


def _check() -> None:
    if not st.button("Check storage", icon=":material/fact_check:", key="storage-check"):
        return
    st.caption("What is written for it is deleted again.")
    found: list[Check] = []
    with st.spinner("The store is tried …"):
        for one in storage.checks(storage.object_store(patience_s=_PATIENCE_S)):
            found.append(one)
            st.markdown(
                f"{_MARKS[one.state]} {widgets.plain(one.sentence)}" + (f" **{widgets.plain(one.meaning)}**" if one.meaning else "")
            )
    failed = sum(one.state == "failed" for one in found)
    if failed:
        st.error(f"Runs cannot use this store yet: {failed} of {len(found)} checks failed.", icon=":material/error:")
    else:
        warned = ", with a warning" if any(one.state == "warn" for one in found) else ""
        st.success(f"This store is fit for runs{warned}.", icon=":material/check_circle:")
