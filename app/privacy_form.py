"""How strongly a stage is protected: the switch, epsilon by slider and by number, delta, and who adds the noise.

Knows the draft's ``privacy`` as it is written out per stage. Epsilon has no colours and no good or bad: it is a bound.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import forms
from app.forms import Values
from pipeline.accounting import NO_GUARANTEE
from pipeline.settings import PrivacySettings, StagePrivacy, privacy_in_full

_STEPS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 30.0, 50.0)
_START = {"epsilon": 8.0, "delta": 1e-5}
_TRUST = {"server": "the server, once", "local": "every site, to its own message"}


def draw(written: Any, stage: int, key: str) -> Any:
    """The privacy of one stage, and who adds the noise; returns what belongs under ``privacy`` now."""
    full = in_full(written)
    asked = full.get(f"stage{stage}")
    key = f"{key}.stage{stage}"
    guarded = st.toggle(
        f"Stage {stage} under differential privacy", isinstance(asked, dict), key=f"{key}.on.{forms.mark(asked)}", persist_state="session"
    )
    edited = dict(full)
    if guarded:
        edited[f"stage{stage}"] = _terms(dict(asked) if isinstance(asked, dict) else dict(_START), key)
        trust = full.get("trust", "server") if full.get("trust") in _TRUST else "server"
        edited["trust"] = st.segmented_control(
            "Who adds the noise",
            list(_TRUST),
            default=trust,
            required=True,
            format_func=_TRUST.__getitem__,
            help=f"For both stages: {PrivacySettings.model_fields['trust'].description}.",
            key=f"{key}.trust.{forms.mark(full.get('trust'))}",
            persist_state="session",
        )
    else:
        edited[f"stage{stage}"] = None
        st.badge(NO_GUARANTEE, icon=":material/info:", color="gray")
        st.caption("What the sites send in this stage is summed without noise: nothing hides what one site contributed.")
    return written if in_full(edited) == full else {name: "off" if value is None else value for name, value in edited.items()}


def in_full(written: Any) -> Values:
    """Per stage, defaults left out; a draft that says something else says nothing."""
    try:
        full = privacy_in_full(written)
    except ValueError:
        return {}
    return {
        name: value
        for name, value in full.items()
        if value is not None and (name, value) not in (("trust", "server"), ("accept_noise", False))
    }


def _terms(asked: Values, key: str) -> Values:
    """Epsilon on a logarithmic slider with its exact number beside it, and delta."""
    mark = forms.mark(asked)
    slider, number = f"{key}.slider.{mark}", f"{key}.epsilon.{mark}"
    stored = asked.get("epsilon")
    usable = float(stored) if isinstance(stored, int | float) and not isinstance(stored, bool) and stored > 0 else None
    st.session_state.setdefault(number, usable or _START["epsilon"])
    st.session_state[slider] = min(_STEPS, key=lambda step: abs(step - (st.session_state[number] or step)))

    def slid() -> None:
        st.session_state[number] = st.session_state[slider]

    st.select_slider("Privacy limit ε per site", _STEPS, key=slider, on_change=slid, format_func=lambda step: f"{step:g}")
    with st.container(horizontal=True, horizontal_alignment="distribute"):
        st.caption("← stronger privacy", width="content")
        st.caption("closer to the sites' data →", width="content")
    left, right = st.columns(2)
    epsilon = left.number_input(
        "Exactly ε",
        min_value=0.0,
        step=0.5,
        format="%g",
        key=number,
        persist_state="session",
        help=f"{StagePrivacy.model_fields['epsilon'].description}.",
    )
    with right:
        rest = forms.section(StagePrivacy, asked, ["delta"], f"{key}.terms", columns=1)
    return {**rest, "epsilon": stored if usable == epsilon else epsilon}
