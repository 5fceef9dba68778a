"""Forms out of the schema: every field has a widget with its bounds and words; what was not changed stays unwritten."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel
from streamlit.testing.v1 import AppTest

from app import forms
from pipeline.settings import GeneratorSettings, MachineSettings, Stage1Settings, Stage2Settings, StagePrivacy, TaskSettings

SECTIONS = [TaskSettings, StagePrivacy, GeneratorSettings, Stage1Settings, Stage2Settings, MachineSettings]


def _form(model: type[BaseModel], values: Any, fields: list[str] | None = None) -> AppTest:
    script = f"""
import json
import streamlit as st
from app import forms
from pipeline import settings
model = settings.{model.__name__}
edited = forms.section(model, json.loads({json.dumps(values)!r}), {fields!r} or forms.others(model, ()), "f")
st.code(json.dumps(edited))
"""
    page = AppTest.from_string(script).run()
    assert not page.exception, page.exception
    return page


def _edited(page: AppTest) -> dict[str, Any]:
    return json.loads(page.code[0].value)


@pytest.mark.parametrize("model", SECTIONS)
def test_every_field_has_a_widget_and_nothing_changes_by_looking(model: type[BaseModel]) -> None:
    page = _form(model, {})
    kinds = ("number_input", "text_input", "toggle", "multiselect", "button_group")
    drawn = sum(len(page.get(kind)) for kind in kinds)
    assert drawn == len(forms.others(model, ())) and _edited(page) == ({"kind": "classification"} if model is TaskSettings else {})


def test_bounds_help_and_default_come_from_the_schema() -> None:
    page = _form(Stage2Settings, {}, ["lora_rank", "learning_rate", "quorum"])
    rank, rate, quorum = page.number_input
    assert (rank.min, rank.max, rank.value) == (1, 256, 8) and "rank of the adapter" in rank.help and "Default\\: 8" in rank.help
    assert rate.value == 0.001 and rate.step == pytest.approx(1e-4)
    assert quorum.value is None and "half of them when left out" in quorum.help


def test_what_is_changed_is_written_and_the_rest_stays() -> None:
    page = _form(Stage1Settings, {"rounds": 3, "clip_norm": 2}, ["rounds", "clip_norm", "temperature", "drop_off_label", "select"])
    page.number_input[2].set_value(1.0)
    page.toggle[0].set_value(False)
    page.button_group[0].set_value("sample").run()
    assert _edited(page) == {"rounds": 3, "clip_norm": 2, "temperature": 1.0, "drop_off_label": False, "select": "sample"}


def test_a_written_value_set_to_its_default_stays_written_and_an_emptied_one_is_left_out() -> None:
    page = _form(Stage1Settings, {"rounds": 3, "quorum": 2}, ["rounds", "quorum"])
    page.number_input[0].set_value(2)
    page.number_input[1].set_value(None).run()
    assert _edited(page) == {"rounds": 2}


@pytest.mark.parametrize("wrong", ["many", -3, 1e400, True, [1], {"a": 1}])
def test_what_a_widget_cannot_hold_is_told_and_does_not_end_the_page(wrong: Any) -> None:
    page = _form(Stage1Settings, {"rounds": wrong} if wrong != 1e400 else {"clip_norm": "inf"}, ["rounds", "clip_norm"])
    assert "cannot stand here" in page.caption[0].value


def test_a_section_that_is_no_section_is_drawn_empty() -> None:
    assert _edited(_form(Stage1Settings, "off", ["rounds"])) == {}


def test_words_and_left_out_choices() -> None:
    page = _form(Stage2Settings, {}, ["target_modules", "aggregation"])
    assert page.multiselect[0].value == ["q_proj", "v_proj"] and page.button_group[0].value == "left out"
    page.multiselect[0].set_value(["q_proj"])
    page.button_group[0].set_value("ffa").run()
    assert _edited(page) == {"target_modules": ["q_proj"], "aggregation": "ffa"}


def test_the_key_changes_with_the_stored_value_only() -> None:
    assert forms.mark({"a": 1}) == forms.mark({"a": 1}) != forms.mark({"a": 2})
