"""Who sits before this page, signing out, and signing in with Globus from within the console by pasting a code.

Knows the session's cookie as the socket brought it. Tokens never come here: ``pipeline/globus_login.py`` puts them into the vault, and what
lies in the session is the name of a sign-in that has begun.
"""

from __future__ import annotations

import os

import streamlit as st
from cafe_kit.errors import CafeError

from app import widgets
from app.gate import PROVIDER, proxy_name
from pipeline import entrance, globus_login, globus_settings, operators, serving
from pipeline.entrance import Person
from pipeline.globus_login import Identity
from pipeline.home import home

_FLOW, _CODE = "globus-flow", "globus-code"


def person() -> Person:
    """Who acts on this page.

    Raises:
        CafeError: CAFE-191 where the session has ended since the page was opened.
    """
    if not _browser():
        return Person(operators.at_terminal(home()), "link")
    header = os.environ.get(serving.PROXY_HEADER, "")
    if header and (name := proxy_name(st.context.headers.get_all(header))):
        return Person(name, "proxy")
    found = entrance.read_cookie(home(), st.context.cookies.get(entrance.cookie_name(home()), ""))
    if found is None:
        raise CafeError("CAFE-191", "This session has ended.", "Open the console anew: sign in, or take another link (`cafe link`).")
    return Person(operators.at_terminal(home()), "link") if found.way == "link" else found


def globus_identity(who: Person) -> Identity | None:
    """As whom this person acts towards Globus; None while he has not allowed it."""
    return globus_login.signed_in(home(), who.identity or globus_settings.read(home()).account)


def still_here() -> Person:
    """The person, or a page that says that the session has ended, and nothing else."""
    try:
        return person()
    except CafeError as error:
        # words alone: what else draws a page is fetched from behind the gate, which is closed now
        st.markdown(f"**{error.message}** {error.code}\n\nOpen the console anew: [sign in](sign-in), or take another one-time link.")
        st.stop()


def foot(who: Person) -> None:
    """In the sidebar: who is signed in, and the way out."""
    label = f"Operator: {widgets.plain(who.name)}"
    if who.way == "proxy" or not _browser():  # the proxy signs people out
        st.caption(label)
        return
    with st.expander(label, icon=":material/account_circle:", key="who"):
        globus = globus_identity(who)
        if globus:
            st.markdown(f"Signed in with Globus as **{widgets.plain(globus.username)}**.")
        elif who.way == "globus":
            st.markdown("Signed in with Globus.")
        else:
            st.markdown("This browser came in by the one-time link.")
        st.caption("Signing out ends this session in every tab and browser, and takes back what Globus was allowed for you here.")
        st.button("Sign out", icon=":material/logout:", key="sign-out", on_click=_sign_out, args=(who,))


def connect(who: Person) -> None:
    """Sign in with Globus: by the way back where there is one, and by code, which also allows to act in the person's name."""
    settings = globus_settings.read(home())
    if settings.by_redirect and who.way == "link" and not operators.listed(home()):
        st.markdown("Nobody may sign in with Globus yet. Whoever does it now, from this browser, becomes the first operator.")
        if st.button("Sign in with Globus", icon=":material/login:", key="globus-redirect"):
            st.login(PROVIDER)
    if not settings.public:
        st.caption("To act in your name at Globus the console needs an application of yours: `cafe globus setup`, see *For the operator*.")
        return
    flow = st.session_state.get(_FLOW)
    if flow is None:
        if st.button("Sign in with Globus by code", icon=":material/login:", key="globus-begin"):
            st.session_state[_FLOW] = globus_login.begin(home()).id
            st.rerun()
        return
    _paste(who, flow)


def _paste(who: Person, flow: str) -> None:
    st.markdown("1. Open Globus in another tab, sign in there, and copy the code that it shows.")
    st.link_button("Open Globus", globus_login.address(home(), flow), icon=":material/open_in_new:")
    with st.form("globus-paste", clear_on_submit=True, border=False):
        code = st.text_input("2. Paste the code here", key=_CODE, autocomplete="off", type="password")
        if st.form_submit_button("Sign in", icon=":material/login:") and code.strip():
            with widgets.guard("globus sign-in"):
                signed_in(who, globus_login.finish(home(), flow, code, of=who.identity))
                del st.session_state[_FLOW]
                st.rerun()


def signed_in(who: Person, identity: Identity) -> None:
    """Somebody who came by the link is from now on known by his Globus name; where nobody may operate yet, he may."""
    if who.way == "link":
        globus_settings.remember_account(home(), identity.id)
        if not operators.listed(home()):
            operators.admit(home(), identity, claims=True)


def _browser() -> bool:
    """Whether there is one: a program, a test, draws pages without."""
    return bool(st.context.headers.to_dict())


def _sign_out(who: Person) -> None:
    globus = globus_identity(who)
    operators.end_sessions(home(), who.identity)
    if globus and not globus_login.sign_out(home(), who.identity or globus.id):
        st.toast("Globus could not be asked to forget its tokens; here they are deleted.")
    st.logout()
