"""People: who belongs to a federation as members of its Globus group, and who may operate this server.

Draws what ``pipeline.groups``, ``pipeline.members`` and ``pipeline.operators`` say; other pages place it. The group is asked when somebody
looks and then for a minute not again; what it said is kept for this tab alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import streamlit as st
from cafe_kit.errors import CafeError

from app import sign_in, widgets
from pipeline import globus_settings, groups, members, operators
from pipeline.federations import Federation
from pipeline.groups import Group, Member
from pipeline.home import home

WHAT = """
A federation may have a **Globus group**: the people who answer for its sites. They are invited by e-mail and accept with their own
institution's login. Once there is a group, only sites that were issued to *active* members take part; it is asked again in each
round. Removing somebody stops his sites at their next round; what they sent before stays counted.
"""
STATUS = {
    "active": "Active",
    "invited": "Invited, has not accepted yet",
    "pending": "Asks to join",
    "removed": "Removed",
    "left": "Has left",
    "declined": "Has declined",
    "rejected": "Was rejected",
}
_FRESH_S = 60.0


@dataclass(frozen=True)
class _Seen:
    """What the group said, or why it did not."""

    time: float
    people: list[Member]
    problem: CafeError | None = None


def draw(federation: Federation) -> None:
    """The people of a federation: a part of a page that draws itself again by itself."""
    st.fragment(_people)(federation.name)


def _people(name: str) -> None:
    widgets.what_is_this(WHAT, key="what people")
    with widgets.guard("people"):
        group = groups.of(home(), name)
        if group is None:
            _without_group(name)
        else:
            _with_group(name, group)


# -- no group yet ------------------------------------------------------------------------------------------------------


def _without_group(name: str) -> None:
    st.markdown("This federation has no Globus group: every site that was approved may take part.")
    who = sign_in.person()
    globus, settings = sign_in.globus_identity(who), globus_settings.read(home())
    if not globus and not settings.confidential:
        sign_in.connect(who)
        return
    me = globus.id if globus else who.identity
    if st.button("Make a group", icon=":material/group_add:", key="group-make"):
        groups.create(home(), name, me)
        _anew(name)
    if globus is None:
        return
    with st.popover("Choose a group that exists", icon=":material/groups:", key="group-choose"):
        if st.toggle("Show the groups that I manage", key="group-mine"):
            found = {one.name: one for one in groups.mine(home(), me)}
            chosen = st.selectbox("Group", list(found), index=None, placeholder="None is chosen", key="group-name")
            if st.button("Choose", key="group-chosen", disabled=chosen is None) and chosen:
                groups.choose(home(), name, found[chosen].id, me)
                _anew(name)


# -- with a group ------------------------------------------------------------------------------------------------------


def _with_group(name: str, group: Group) -> None:
    seen = _look(name)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"Globus group **{widgets.plain(group.name)}**, asked at {time.strftime('%H:%M:%S', time.localtime(seen.time))}.")
        if st.button("Look again", icon=":material/refresh:", key="people-again"):
            _anew(name)
    if said := members.silence(name):
        st.warning(widgets.plain(said), icon=":material/cloud_off:")
    if seen.problem:
        widgets.failure_card(seen.problem, "people look")
        sign_in.connect(sign_in.person())
        return
    rows = [
        {
            "Person": one.email or one.username,
            "Status": STATUS.get(one.status, one.status),
            "Role": one.role,
            "Sites": ", ".join(members.sites_of(name, one)),
        }
        for one in seen.people
    ]
    st.dataframe(rows, hide_index=True, alt="The people of the federation's Globus group")
    here = {one.email or one.username: one for one in seen.people if one.status in (groups.ACTIVE, groups.INVITED)}
    _invite(name)
    with st.container(horizontal=True):
        _tie(name, list(here))
        _remove(name, here)


def _invite(name: str) -> None:
    with st.form("people-invite", clear_on_submit=True, border=False):
        left, right = st.columns([3, 1], vertical_alignment="bottom")
        email = left.text_input("E-mail address under which the person signs in with Globus", key="people-email", max_chars=160)
        if right.form_submit_button("Invite", icon=":material/mail:") and email.strip():
            with widgets.guard("people invite"):
                made = groups.invite(home(), name, email)
                st.toast(f"{widgets.plain(made.email or made.username)} is invited.")
                _anew(name)


def _tie(name: str, people: list[str]) -> None:
    free = members.untied(name)
    if not (free and people):
        return
    with st.popover(f"Tie a site ({len(free)} tied to nobody)", icon=":material/link:", key="people-tie"):
        site = st.selectbox("Site", list(free), key="tie-site")
        person = st.selectbox("Issued to", people, key="tie-person")
        if st.button("Tie", key="tie-yes") and site and person:
            with widgets.guard("people tie"):
                members.bind(free[site], person)
                _anew(name)


def _remove(name: str, people: dict[str, Member]) -> None:
    if not people:
        return
    with st.popover("Remove somebody", icon=":material/person_remove:", key="people-remove"):
        person = st.selectbox("Person", list(people), index=None, placeholder="Nobody is chosen", key="remove-person")
        if person is None:
            return
        sites = ", ".join(members.sites_of(name, people[person]))
        st.markdown(f"{widgets.plain(sites)}: no further round." if sites else "No site was issued to this person.")
        if st.button("Remove", icon=":material/person_remove:", key="remove-yes"):
            with widgets.guard("people remove"):
                members.remove(name, people[person].identity)
                _anew(name)


def _look(name: str) -> _Seen:
    """What the group says; asked at most once a minute, also where it does not answer."""
    seen: _Seen | None = st.session_state.get(_slot(name))
    if seen is None or time.time() - seen.time > _FRESH_S:
        with st.spinner("Globus is asked …"):
            try:
                seen = _Seen(time.time(), groups.members(home(), name))
            except CafeError as error:
                seen = _Seen(time.time(), [], error)
        st.session_state[_slot(name)] = seen
    return seen


def _anew(name: str) -> None:
    st.session_state.pop(_slot(name), None)
    members.forget(name)
    st.rerun()


def _slot(name: str) -> str:
    return f"people {name}"


# -- operators ---------------------------------------------------------------------------------------------------------


def draw_operators() -> None:
    """Who may operate this server by signing in with Globus; and the sign-in of who looks."""
    with widgets.guard("operators"):
        who = sign_in.person()
        found = operators.listed(home())
        rows = [{"Operator": one.username, "Has signed in": "yes" if one.identity else "not yet", "Added by": one.by} for one in found]
        if rows:
            st.dataframe(rows, hide_index=True, alt="Who may operate this server")
        else:
            st.markdown("Nobody may sign in with Globus yet: this console opens with a one-time link.")
        if not sign_in.globus_identity(who):
            sign_in.connect(who)
        with st.container(horizontal=True):
            _add_operator(who.name)
            _remove_operator([one.username for one in found if one.username != who.name])


def _add_operator(by: str) -> None:
    with st.popover("Add an operator", icon=":material/person_add:", key="operator-add"):
        name = st.text_input("Globus username, such as ada@uni.example", key="operator-name", max_chars=160)
        if st.button("Add", key="operator-add-yes", disabled=not name.strip()):
            with widgets.guard("operator add"):
                operators.add(home(), name, by)
                st.rerun()


def _remove_operator(names: list[str]) -> None:
    if not names:
        return
    with st.popover("Remove an operator", icon=":material/person_remove:", key="operator-remove"):
        name = st.selectbox("Operator", names, index=None, placeholder="Nobody is chosen", key="operator-gone")
        if st.button("Remove", key="operator-remove-yes", disabled=name is None) and name:
            operators.remove(home(), name)
            st.rerun()
