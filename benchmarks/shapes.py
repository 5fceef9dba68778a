"""Ways of asking for a synthetic text that were tried beside the one in use (``pipeline/prompts.py``).

Knows: the public task, invented examples and survivors of votes. Does not know how a shape is measured (``prompt_shapes.py``).
The chat shapes are in ChatML, which SmolLM2 and Qwen were tuned on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from cafe_kit.task import Record, Task

from pipeline import prompts
from pipeline.prompts import Ask

OPENINGS = (
    "i",
    "can you",
    "please",
    "how",
    "what",
    "my",
    "is",
    "when",
    "i want to",
    "could you",
    "hey,",
    "i need",
    "do",
    "tell me",
    "why",
    "where",
    "help me",
    "hi, i",
    "we",
    "are",
)
STYLES = ("short and plain", "polite", "in a hurry", "with a detail such as a name, a date or an amount", "annoyed", "chatty", "unsure")
PERSONAS = (
    "a student",
    "a retired teacher",
    "the owner of a small shop",
    "a nurse on night shift",
    "a father of three",
    "a farmer",
    "somebody who is new in the country",
    "a truck driver",
)


def _line(task: Task) -> str:
    return f"{task.description[:1].upper()}{task.description[1:]}."


def _name(label: str) -> str:
    return label.replace("_", " ")


def _chat(request: str, answer: str = "") -> str:
    """The request in ChatML, which SmolLM2 and Qwen were tuned on."""
    return f"<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n{answer}"


def _own(label: str, examples: Sequence[Record], rng: random.Random, count: int = 3) -> list[str]:
    own = [record.text for record in examples if record.answer == label]
    return rng.sample(own, min(count, len(own)))


def chat_plain(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
    return Ask(_chat(f'{_line(task)} Write one message about "{_name(label)}". Write only the message.'), label, "propose")


def chat_persona(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
    request = f'{_line(task)} You are {rng.choice(PERSONAS)}. Write one message about "{_name(label)}", {rng.choice(STYLES)}.'
    request += " Write only the message."
    return Ask(_chat(request), label, "propose")


def chat_examples(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
    shown = "\n".join(f"- {text}" for text in _own(label, examples, rng))
    request = f'{_line(task)} Here are messages about "{_name(label)}".\n{shown}\nWrite one more, different one. Write only the message.'
    return Ask(_chat(request), label, "propose")


def list_bare(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
    return Ask(f'{_line(task)}\n\nDifferent examples of "{_name(label)}":\n-', label, "propose")


def list_three(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
    shown = "".join(f"- {text}\n" for text in _own(label, examples, rng))
    return Ask(f'{_line(task)}\n\nDifferent examples of "{_name(label)}":\n{shown}-', label, "propose")


def list_headless(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
    return Ask(f"{_name(label)}:\n" + "".join(f"- {text}\n" for text in _own(label, examples, rng)) + "-", label, "propose")


def list_quoted(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
    shown = "".join(f'- "{text}"\n' for text in _own(label, examples, rng))
    return Ask(f'{_line(task)}\n\nDifferent examples of "{_name(label)}":\n{shown}- "', label, "propose")


def list_six(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
    shown = "".join(f"- {text}\n" for text in _own(label, examples, rng, 6))
    return Ask(f'{_line(task)}\n\nDifferent examples of "{_name(label)}":\n{shown}-', label, "propose")


def list_two(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
    shown = "".join(f"- {text}\n" for text in _own(label, examples, rng, 2))
    return Ask(f'{_line(task)}\n\nDifferent examples of "{_name(label)}":\n{shown}-', label, "propose")


def list_ways(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
    shown = "".join(f"- {text}\n" for text in _own(label, examples, rng, 2))
    return Ask(f'{_line(task)}\n\n"{_name(label)}", said in different ways:\n{shown}-', label, "propose")


def list_pairs(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
    """Two other classes first, two texts each, label after label: the form of the whole, then the wanted class."""
    blocks = []
    for other in [*rng.sample([name for name in task.labels if name != label], 2), label]:
        blocks.append(f"{_name(other)}:\n" + "".join(f"- {text}\n" for text in _own(other, examples, rng, 2)))
    return Ask(f"{_line(task)}\n\n" + "\n".join(blocks) + "-", label, "propose")


def list_numbers(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
    own = _own(label, examples, rng)
    shown = "".join(f"{number}. {text}\n" for number, text in enumerate(own, 1))
    return Ask(f'{_line(task)}\n\n20 different examples of "{_name(label)}":\n{shown}{len(own) + 1}.', label, "propose")


def list_persona(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
    shown = "".join(f"- {text}\n" for text in _own(label, examples, rng))
    tail = f'What {rng.choice(PERSONAS)} says about "{_name(label)}", {rng.choice(STYLES)}:\n-'
    return Ask(f'{_line(task)}\n\nDifferent examples of "{_name(label)}":\n{shown}\n{tail}', label, "propose")


def list_contrast(task: Task, label: str, examples: Sequence[Record], rng: random.Random, others: int = 3) -> Ask:
    blocks = []
    for other in [*rng.sample([name for name in task.labels if name != label], others), label]:
        blocks.append(f'Different examples of "{_name(other)}":\n' + "".join(f"- {text}\n" for text in _own(other, examples, rng)))
    return Ask(f"{_line(task)}\n\n" + "\n".join(blocks) + "-", label, "propose")


def records(task: Task, label: str, examples: Sequence[Record], rng: random.Random, others: int = 4, own: int = 3) -> Ask:
    """Label first, then the text; classes mixed, the wanted one last."""
    shown = [record for record in examples if record.answer == label]
    shown = rng.sample(shown, min(own, len(shown)))
    shown += rng.sample([record for record in examples if record.answer != label], others)
    rng.shuffle(shown)
    body = "".join(f"{task.answer_name}: {_name(record.answer)}\n{task.text_name}: {record.text}\n\n" for record in shown)
    return Ask(f"{_line(task)}\n\n{body}{task.answer_name}: {_name(label)}\n{task.text_name}:", label, "propose")


def _begun(ask: Ask, words: str) -> Ask:
    return Ask(f"{ask.prompt} {words}", ask.label, ask.source, begin=words)


def opened(shape: Callable[..., Ask]) -> Callable[..., Ask]:
    """The same shape with the first word or words of the text given, drawn from a public list."""

    def shape_opened(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
        return _begun(shape(task, label, examples, rng), rng.choice(OPENINGS))

    return shape_opened


def of_examples(shape: Callable[..., Ask]) -> Callable[..., Ask]:
    """The same shape, opened with the first words of a random example of any class."""

    def shape_opened(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
        return _begun(shape(task, label, examples, rng), " ".join(rng.choice(examples).text.split()[: rng.randint(1, 2)]))

    return shape_opened


PROPOSE: dict[str, Callable[..., Ask]] = {
    "default": prompts.propose, "chat_plain": chat_plain, "chat_persona": chat_persona, "chat_examples": chat_examples,
    "list_bare": list_bare,
    "list_three": list_three, "list_numbers": list_numbers, "list_persona": list_persona, "list_contrast": list_contrast,
    "records": records, "three_open": opened(list_three), "contrast_open": opened(list_contrast), "records_open": opened(records),
    "list_headless": list_headless, "list_quoted": list_quoted, "list_two": list_two, 
    "list_ways": list_ways, "list_pairs": list_pairs, "list_six": list_six,
    "numbers_open": opened(list_numbers), "contrast_exopen": of_examples(list_contrast),
}  # fmt: skip


def vary_list(task: Task, survivor: Record, others: Sequence[Record], rng: random.Random) -> Ask:
    shown = [text for text in _own(survivor.answer, others, rng) if text != survivor.text][:2]
    items = "".join(f"- {text}\n" for text in [*shown, survivor.text])
    return Ask(f'{_line(task)}\n\nDifferent examples of "{_name(survivor.answer)}":\n{items}-', survivor.answer, "vary:0")


def vary_alone(task: Task, survivor: Record, others: Sequence[Record], rng: random.Random) -> Ask:
    return Ask(
        f'{_line(task)}\n\nThe same wish "{_name(survivor.answer)}" said in different ways:\n- {survivor.text}\n-',
        survivor.answer,
        "vary:0",
    )


def vary_prefix(task: Task, survivor: Record, others: Sequence[Record], rng: random.Random) -> Ask:
    words = survivor.text.split()
    kept = " ".join(words[: min(rng.randint(2, 4), max(1, len(words) - 2))])
    ask = vary_list(task, survivor, others, rng)
    return _begun(ask, kept)


def vary_prefix_hidden(task: Task, survivor: Record, others: Sequence[Record], rng: random.Random) -> Ask:
    """The beginning of the survivor is kept, the survivor itself is not shown."""
    words = survivor.text.split()
    kept = " ".join(words[: rng.randint(max(1, len(words) // 3), max(1, 2 * len(words) // 3))])
    ask = list_contrast(task, survivor.answer, others, rng)
    return _begun(ask, kept)


def vary_contrast(task: Task, survivor: Record, others: Sequence[Record], rng: random.Random) -> Ask:
    ask = list_contrast(task, survivor.answer, others, rng)
    return Ask(f"{ask.prompt} {survivor.text}\n-", survivor.answer, "vary:0")


def vary_contrast_open(task: Task, survivor: Record, others: Sequence[Record], rng: random.Random) -> Ask:
    return _begun(vary_contrast(task, survivor, others, rng), rng.choice(OPENINGS))


def vary_pairs(task: Task, survivor: Record, others: Sequence[Record], rng: random.Random) -> Ask:
    """Paraphrase by example: pairs of texts of one class stand for "the same, said differently"."""
    body = ""
    for label in rng.sample([name for name in task.labels if name != survivor.answer], 3):
        first, second = _own(label, others, rng, 2)
        body += f"{_name(label)}: {first}\nIn other words: {second}\n\n"
    return Ask(f"{_line(task)}\n\n{body}{_name(survivor.answer)}: {survivor.text}\nIn other words:", survivor.answer, "vary:0")


def vary_chat(task: Task, survivor: Record, others: Sequence[Record], rng: random.Random) -> Ask:
    request = f"Say this in other words, in a style that is {rng.choice(STYLES)}. Write only the new sentence.\n{survivor.text}"
    return Ask(_chat(request), survivor.answer, "vary:0")


VARY: dict[str, Callable[..., Ask]] = {
    "v_default": prompts.vary, "v_list": vary_list, "v_alone": vary_alone, "v_prefix": vary_prefix, "v_prefix_hidden": vary_prefix_hidden,
    "v_contrast": vary_contrast, "v_contrast_open": vary_contrast_open, "v_pairs": vary_pairs, "v_chat": vary_chat,
}  # fmt: skip
