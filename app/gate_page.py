"""What somebody sees who is not let in (yet): one plain page that says what to do. No script, nothing from elsewhere.

Knows words and HTML. Does not know who may enter (``gate.py``).
"""

from __future__ import annotations

from html import escape

from starlette.responses import HTMLResponse

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 34rem; margin: 12vh auto; padding: 0 1rem; color: #1B1613; background: #FFFFFF }
h1 { font-size: 1.4rem } a:not(.button) { color: #7A4B2A }
code { background: #F6F2ED; padding: .1em .3em; border-radius: 4px }
.told { border-left: 4px solid #7A4B2A; padding: .2rem .8rem; background: #F6F2ED }
a.button, button { font: inherit; color: #FFFFFF; background: #7A4B2A; border: 0; border-radius: 6px; padding: .5rem 1rem }
a.button { text-decoration: none }
input { font: inherit; padding: .4rem; width: 100%; box-sizing: border-box; margin: .3rem 0 .8rem }
input { border: 1px solid #6b5b4e; border-radius: 6px }
@media (prefers-color-scheme: dark) {
  body { color: #EFE9E4; background: #141110 } code, .told { background: #211C1A }
  input { color: inherit; background: #211C1A } a:not(.button) { color: #E0B48C } a.button, button { background: #A5673A }
}
"""
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
}
LINK = """<p>Open it with a <b>one-time link</b>: in a terminal on the machine that runs the console, and with the account that runs it,</p>
<p><code>cafe link</code></p>
<p>prints one (in the project's folder: <code>.venv/bin/cafe link</code>). A browser that was let in stays so for thirty days.</p>"""


def page(*parts: str, told: str = "", status: int = 401) -> HTMLResponse:
    """``told``: what went wrong, as a plain sentence. ``parts``: HTML of this module."""
    said = f'<p class="told" role="alert">{escape(told)}</p>' if told else ""
    body = f"<h1>Café au Lait</h1>{said}{''.join(parts)}"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Café au Lait</title><style>{_STYLE}</style>'
    return HTMLResponse(f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>', status, headers=HEADERS)


def by_redirect(address: str) -> str:
    """The button that leads to Globus and back."""
    return f'<p>Operators sign in with Globus.</p><p><a class="button" href="{escape(address)}">Sign in with Globus</a></p>'


def by_code(globus: str, address: str) -> str:
    """The two steps of a sign-in by code."""
    return (
        f'<p>Operators sign in with Globus, in two steps:</p><ol><li><p><a href="{escape(globus)}" target="_blank" rel="noreferrer">'
        "Open Globus</a> in another tab, sign in there, and copy the code that it shows.</p></li>"
        f'<li><form method="post" action="{escape(address)}"><label for="code">Paste the code here</label>'
        '<input id="code" name="code" autocomplete="off" required maxlength="200"><button>Sign in</button></form></li></ol>'
    )


def otherwise() -> str:
    return f"<details><summary>Or with a one-time link</summary>{LINK}</details>"
