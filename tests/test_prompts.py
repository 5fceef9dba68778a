"""What the generator is asked, and which of its answers are kept: golden cases and properties, no model."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from cafe_kit.task import Record, Task
from hypothesis import given
from hypothesis import strategies as st

from pipeline import prompts
from pipeline.prompts import Ask, Filter

BANK = Task("classification", "what customers say to their bank", ("lost_card", "balance", "pin"), "Message", "Wish")
HELP = Task("instruction", "Questions about cooking.", (), "Question", "Answer")
EXAMPLES = [
    Record("my card is gone", "lost_card"),
    Record("i cannot find my credit card", "lost_card"),
    Record("somebody took my wallet with the card", "lost_card"),
    Record("how much money do i have", "balance"),
    Record("tell me what is in my account", "balance"),
]
RECIPES = [
    Record("How long does rice take?", "About fifteen minutes."),
    Record("Shorten this.\n\nAdd the salt and then the pepper.", "Add salt and pepper."),
    Record("What goes with basil?", "Tomatoes.\nMozzarella too."),
]
ASK = Ask("…\n-", "lost_card", "propose")


def rng(seed: int = 0) -> random.Random:
    return random.Random(seed)


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        (" where did my card go", "where did my card go"),
        (" where did my card go\n- and my purse\n- help", "where did my card go"),
        ("\n\n where did my card go", "where did my card go"),
        (' "Where did my card go?"', "Where did my card go?"),
        ("“Where did my card go?”\n", "Where did my card go?"),
        ("- where did my card go", "where did my card go"),
        (" 4. where did my card go", "where did my card go"),
        (" 12) **where did my card go**", "where did my card go"),
        (" Message: where did my card go", "where did my card go"),
        (" where did my card go Wish: lost card", "where did my card go"),
        (" where did my card go wish: balance Message: what is left", "where did my card go"),
        (" where  did\tmy   card go ", "where did my card go"),
        (" 4 cards of mine are gone", "4 cards of mine are gone"),
        ("", None),
        (" \n \n", None),
        ("-", None),
        (' ""', None),
        (" Wish: balance", None),
    ],
)
def test_one_text_comes_out_of_a_completion(completion: str, text: str | None) -> None:
    assert prompts.parse(BANK, ASK, completion) == (Record(text, "lost_card") if text else None)


def test_first_words_given_in_the_prompt_are_part_of_the_text() -> None:
    ask = Ask("…\n- i", "lost_card", "propose", begin="i")
    assert prompts.parse(BANK, ask, " lost my card\n- x") == Record("i lost my card", "lost_card")
    assert prompts.parse(BANK, ask, "'m without a card") == Record("i'm without a card", "lost_card")
    assert prompts.parse(BANK, ask, "\n- another line") is None


@pytest.mark.parametrize(
    ("completion", "text", "answer"),
    [
        (" How long do eggs take?\nAnswer: Nine minutes.", "How long do eggs take?", "Nine minutes."),
        (" How long do eggs take?\nAnswer: Nine minutes.\n\n### Question: And", "How long do eggs take?", "Nine minutes."),
        (" Eggs?\nAnswer: Nine minutes.\nQuestion: Tea?\nAnswer: Three.", "Eggs?", "Nine minutes."),
        (" Shorten this.\n\nBoil the eggs.\nAnswer: Boil.\nThen peel.\n", "Shorten this.\n\nBoil the eggs.", "Boil.\nThen peel."),
        ("Question: Eggs?\nanswer : Nine.", "Eggs?", "Nine."),
        (" How long do eggs take?", None, None),
        (" How long do eggs take?\nAnswer:", None, None),
        ("\nAnswer: Nine minutes.", None, None),
        ("", None, None),
    ],
)
def test_instruction_and_output_come_out_of_one_completion(completion: str, text: str | None, answer: str | None) -> None:
    expected = Record(text, answer) if text and answer else None
    assert prompts.parse(HELP, Ask("…", "", "propose"), completion) == expected


def test_a_run_on_after_a_blank_line_is_cut_where_the_answers_shown_are_one_paragraph() -> None:
    completion = " Eggs?\nAnswer: Nine minutes.\n\nI made these changes to the text."
    ask = prompts.propose(HELP, "", RECIPES, rng())
    assert ask.one_paragraph and prompts.parse(HELP, ask, completion) == Record("Eggs?", "Nine minutes.")
    longer = [Record("Tea?", "Three minutes.\n\nThen take the leaves out."), *RECIPES[:2]]
    ask = prompts.propose(HELP, "", longer, rng())
    assert not ask.one_paragraph and prompts.parse(HELP, ask, completion) == Record("Eggs?", completion.split("Answer: ")[1])
    assert not prompts.propose(HELP, "", [], rng()).one_paragraph


@given(st.text(), st.text(max_size=20), st.sampled_from([BANK, HELP]))
def test_parse_never_raises_and_gives_clean_records(completion: str, begin: str, task: Task) -> None:
    record = prompts.parse(task, Ask("p", task.classes[0], "propose", begin=begin, one_paragraph=bool(begin)), completion)
    if record is not None:
        assert record.text == record.text.strip() != "" and record.answer.strip()
        if task.labels:
            assert len(record.text.splitlines()) == 1 and record.answer == "lost_card"


@given(st.lists(st.text(max_size=400), max_size=12), st.sampled_from([BANK, HELP]))
def test_what_is_kept_is_within_the_bounds_and_new(completions: list[str], task: Task) -> None:
    known = EXAMPLES if task.labels else RECIPES
    sieve = Filter(task, known, max_words=20)
    parsed = [prompts.parse(task, Ask("p", task.classes[0], "propose"), text) for text in [*completions, known[0].text]]
    kept = [record for record in parsed if record and sieve.keep(record)]
    assert sieve.counts["kept"] == len(kept) == len({record.text if task.labels else record for record in kept})
    assert sum(sieve.counts.values()) == sum(record is not None for record in parsed)
    for record in kept:
        assert record not in known and len(record.text.split()) <= 20 and len(record.text) <= 240


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("can you block the card that i lost", "kept"),
        ("ok", "too short"),
        ("lost card", "too short"),
        ("Lost Card", "too short"),
        ("my wallet fell into the river, " * 6, "too long"),
        ("x" * 400, "too long"),
        ("my card is gone", "echo"),
        ("My card is GONE!", "echo"),
        ("somebody took my wallet with my card", "echo"),
        ("what customers say to their bank", "chatter"),
        ("I'm sorry, but I can't help with that", "chatter"),
        ("As an AI I have no card", "chatter"),
        ("Sure! Here is one more message", "chatter"),
        ("Here are some messages:", "chatter"),
        ("i'm sorry i lost my card", "kept"),
        ("here is the thing: my card is lost", "kept"),
        ("hello [your name] i lost my card", "markup"),
        ("<|im_start|>user i lost it", "markup"),
        ("see https://bank.example for cards", "markup"),
        ("- - - ---- =====", "markup"),
        ("card card card card card card", "repetitive"),
    ],
)
def test_the_filter_says_why(text: str, reason: str) -> None:
    sieve = Filter(BANK, EXAMPLES)
    assert sieve.keep(Record(text, "lost_card")) is (reason == "kept")
    assert sieve.counts == {reason: 1}


def test_duplicates_are_counted_within_a_class() -> None:
    sieve = Filter(BANK, EXAMPLES)
    assert sieve.keep(Record("please block the card i lost today", "lost_card"))
    assert not sieve.keep(Record("Please, block the card I lost today!", "lost_card"))
    assert not sieve.keep(Record("today please block the card i lost", "lost_card"))
    assert sieve.keep(Record("please block the phone i lost yesterday", "lost_card"))
    assert sieve.keep(Record("please block the card i lost today", "pin"))
    assert sieve.counts == {"kept": 3, "duplicate": 2}


def test_length_is_measured_by_what_is_known() -> None:
    long = Record(" ".join(f"word{number}" for number in range(30)), "pin")
    assert not Filter(BANK, EXAMPLES).keep(long)
    assert Filter(BANK, [Record(" ".join(f"other{number}" for number in range(12)), "pin")]).keep(long)
    assert Filter(BANK).keep(long)


def by_subject(texts: Sequence[str]) -> np.ndarray:
    """A toy embedder: one axis for texts about money, one for texts about cards."""
    vectors = np.array([[1e-3 + text.count("money") + text.count("account"), 1e-3 + text.count("card")] for text in texts])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_text_nearer_to_another_class_is_dropped() -> None:
    sieve = Filter(BANK, EXAMPLES, embed=by_subject)
    assert sieve.keep(Record("please block the card now", "lost_card"))
    assert not sieve.keep(Record("where did all of the money go", "lost_card"))
    assert sieve.keep(Record("where did all of the money go", "balance"))
    assert sieve.keep(Record("where did all of the money go", "pin")), "a class without known texts is not judged"
    assert sieve.counts == {"kept": 3, "off label": 1}
    assert Filter(BANK, embed=by_subject).keep(Record("where did all of the money go", "lost_card"))
    assert Filter(HELP, RECIPES, embed=by_subject).keep(Record("Where is the money?", "In the jar, as ever."))


def test_scripts_without_spaces_are_texts_too() -> None:
    assert Filter(BANK).keep(Record("我的银行卡丢了请帮我挂失", "lost_card"))
    assert not Filter(BANK).keep(Record("丢了", "lost_card"))


def test_instruction_filter_reads_both_parts() -> None:
    sieve = Filter(HELP, RECIPES)
    assert sieve.keep(Record("How long do eggs take?", "Nine minutes."))
    assert sieve.keep(Record("How long do eggs take?", "That depends on whether you like them soft."))
    assert not sieve.keep(RECIPES[1])
    assert not sieve.keep(Record("How long do eggs take, then?", ""))
    assert sieve.counts == {"kept": 2, "echo": 1, "empty": 1}


def test_propose_shows_examples_of_the_label_only() -> None:
    ask = prompts.propose(BANK, "lost_card", EXAMPLES, rng())
    assert ask.label == "lost_card" and ask.source == "propose" and ask.stop == prompts.STOP
    assert ask.prompt.startswith("What customers say to their bank.") and ask.prompt.endswith("\n-")
    assert '"lost card"' in ask.prompt and "balance" not in ask.prompt
    assert any(record.text in ask.prompt for record in EXAMPLES[:3])


def test_choice_is_drawn_per_text_and_repeatable() -> None:
    draw = rng(3)
    many = [prompts.propose(BANK, "lost_card", EXAMPLES, draw).prompt for _ in range(30)]
    assert len(set(many)) > 3
    assert many[0] == prompts.propose(BANK, "lost_card", EXAMPLES, rng(3)).prompt
    assert prompts.vary(BANK, EXAMPLES[0], EXAMPLES, rng(5)) == prompts.vary(BANK, EXAMPLES[0], EXAMPLES, rng(5))
    assert prompts.expand(BANK, "balance", EXAMPLES, rng(5)) == prompts.expand(BANK, "balance", EXAMPLES, rng(5))


def test_a_label_without_examples_borrows_the_form_of_others() -> None:
    ask = prompts.propose(BANK, "pin", EXAMPLES, rng())
    assert ask.prompt.endswith('Different examples of "pin":\n-') and "card" in ask.prompt and "much money" in ask.prompt + "much money"
    bare = prompts.propose(BANK, "pin", [], rng())
    assert bare.prompt == 'What customers say to their bank.\n\nDifferent examples of "pin":\n-'


def test_vary_ends_with_the_survivor_and_names_it() -> None:
    survivor = EXAMPLES[1]
    for seed in range(20):
        ask = prompts.vary(BANK, survivor, EXAMPLES, rng(seed))
        assert ask.source == "vary:1" and ask.label == "lost_card"
        assert ask.prompt.endswith(f"- {survivor.text}\n-") and ask.prompt.count(survivor.text) == 1


def test_instruction_prompts_show_whole_records() -> None:
    for ask in (
        prompts.propose(HELP, "", RECIPES, rng()),
        prompts.expand(HELP, "", RECIPES, rng()),
        prompts.vary(HELP, RECIPES[0], RECIPES, rng()),
    ):
        assert ask.prompt.startswith("Questions about cooking.\n\n### Question: ") and ask.prompt.endswith("### Question:")
        assert "\nAnswer: " in ask.prompt and ask.stop == prompts.RECORD_STOP and ask.label == ""
    assert prompts.propose(HELP, "", [], rng()).prompt.endswith("### Question:")


@given(st.integers(0, 2**31), st.sampled_from(["lost_card", "balance"]))
def test_a_copied_prompt_never_passes(seed: int, label: str) -> None:
    ask = prompts.propose(BANK, label, EXAMPLES, rng(seed))
    sieve = Filter(BANK, EXAMPLES)
    for line in ask.prompt.splitlines():
        record = prompts.parse(BANK, ask, line)
        assert record is None or not sieve.keep(record)
