"""What a kit needs of Globus before its site is let in: the application under which its endpoint runs, the member it is issued to.

Draws; ``pipeline.site_applications`` and ``pipeline.members`` do it. A pasted secret goes to the vault.
"""

from __future__ import annotations

import streamlit as st

from app import secret_form, sign_in, widgets
from pipeline import groups, members, site_applications
from pipeline.home import home
from server_store.site_kits import SiteKit


def draw(kit: SiteKit) -> bool:
    """The two, where they apply; whether nothing is missing for the approval."""
    with widgets.guard("kit member"):
        if groups.of(home(), kit.federation) is not None:
            _member(kit)
    if kit.connection.get("via") != "globus":
        return True
    with widgets.guard("kit application"):
        return _application(kit)
    return False


def _member(kit: SiteKit) -> None:
    """To whom of the federation's Globus group the site was issued: without him it is asked nothing."""
    member = kit.connection.get("member")
    if member:
        st.markdown(f":material/person: Issued to **{widgets.plain(str(member['email']))}** of the federation's Globus group.")
        return
    st.markdown(":material/person_off: This federation has a Globus group, and the site is issued to nobody of it yet.")
    with st.form(f"issue {kit.serial}", border=False):
        email = st.text_input("E-mail address of the member who answers for the site", max_chars=160)
        issue = st.form_submit_button("Issue it to this member", icon=":material/link:")
    if issue and email.strip():
        with widgets.guard("kit issued to"):
            members.bind(kit.serial, email.strip())
            st.rerun()


def _application(kit: SiteKit) -> bool:
    """The confidential client of the site: made in the operator's name, or pasted."""
    client = kit.connection.get("client_id")
    if client:
        st.markdown(f":material/key: Its Globus application: `{client}`. The secret lies in the vault, and goes to the site sealed.")
        if "sealed" not in kit.connection and st.button("Take another", key="application-drop", type="tertiary"):
            site_applications.drop(home(), kit)
            st.rerun()
        return True
    st.markdown("**The site needs a Globus application** of its own: under it its endpoint runs, and under it your server sends orders.")
    globus = sign_in.globus_identity(sign_in.person())
    if globus and st.button("Make one in my name", key="application-make", icon=":material/add:"):
        with widgets.guard("application made"):
            site_applications.make(home(), kit, globus.id)
            st.rerun()
    with st.expander("Paste one that was registered", expanded=not globus, icon=":material/content_paste:"):
        st.caption("app.globus.org, Developers: a service account. Its secret is shown there once.")
        secret_form.draw(
            f"application {kit.serial}", "Its id", "Its secret", "Take it", lambda *app: site_applications.take(home(), kit, *app)
        )
    return False
