"""One printed page of HTML: a title, short sections, tables. Self-contained; made to be printed on A4 and kept.

Knows HTML. Every text that comes in is escaped here, so that whoever writes a page cannot forget it. No script, no picture,
nothing that is fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
@page { size: A4; margin: 13mm 14mm }
* { box-sizing: border-box }
body { font: 9.3pt/1.34 "Source Sans 3", "Source Sans Pro", "Helvetica Neue", Arial, sans-serif; color: #111; background: #fff;
  max-width: 182mm; margin: 8mm auto; padding: 0 4mm }
h1 { font-size: 17pt; margin: 0 0 1mm } h2 { font-size: 10.5pt; margin: 3.2mm 0 1mm; border-bottom: .3mm solid #999; padding-bottom: .5mm }
p { margin: 0 0 1.2mm } p.sub { color: #444 }
p.sum { font-size: 10.5pt; border-left: 1mm solid #6b4a2b; padding: 1mm 0 1mm 3mm; margin: 2mm 0 }
table { border-collapse: collapse; width: 100%; font-size: 8.6pt; margin-bottom: 1mm }
th, td { text-align: left; vertical-align: top; padding: .7mm 2mm .7mm 0; border-bottom: .2mm solid #ccc }
td { overflow-wrap: anywhere }
th { white-space: nowrap; font-weight: 600; border-bottom-color: #555 }
ul { margin: 0; padding-left: 4.5mm } li { margin: 0 }
.hash { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 8pt; overflow-wrap: anywhere }
@media print { body { margin: 0 auto; padding: 0; max-width: none } h2, tr, p.sum { break-inside: avoid } }
@media (max-width: 600px) { table { display: block; overflow-x: auto } }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document; ``parts`` are what the functions below return."""
    body = "\n".join(part for part in parts if part)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def title(text: str, below: str) -> str:
    return f'<h1>{escape(text)}</h1>\n<p class="sub">{escape(below)}</p>'


def summary(text: str) -> str:
    """The one sentence that a reader in a hurry takes away."""
    return f'<p class="sum">{escape(text)}</p>'


def section(heading: str, *inside: str) -> str:
    return f"<h2>{escape(heading)}</h2>\n" + "\n".join(part for part in inside if part)


def text(*sentences: str) -> str:
    return f"<p>{escape(' '.join(sentence for sentence in sentences if sentence))}</p>"


def points(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences if sentence)
    return f"<ul>{items}</ul>" if items else ""


def hash_line(what: str, sha256: str) -> str:
    return f'<p>{escape(what)} <span class="hash">{escape(sha256)}</span></p>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain texts."""
    first = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{first}</tr></thead><tbody>{lines}</tbody></table>"
