"""Pictures of every page in every state, wide and narrow, light and dark: ``python -m tests.screenshots OUT [SCENE ...]``.

The states are the scenes of ``tests.scenes``, made by tiny runs. ``--home HOME`` adds a home with real runs, as it is;
``--readme FILE`` takes the README's picture from there, too. Sheets of many pictures, to look at them at once, lie in OUT/sheets.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser

from tests.browser import ADDRESSES, Console, Operator, chromium
from tests.scenes import SCENES

WIDTHS = {1440: 1000, 390: 844}
TALLEST = 5000
ALL = tuple(ADDRESSES)
PAGES: Mapping[str, tuple[str, ...]] = {
    "draft": ("Home", "Sites", "Generate", "Train", "Privacy ledger"),
    "running": ("Home", "Sites", "Generate", "Train", "Datasets", "Adapters", "Try it", "Runs", "Privacy ledger"),
    "waiting": ("Home", "Generate", "Datasets", "Train", "Runs"),
    "failed": ("Home", "Sites", "Generate", "Train", "Runs"),
    "lost": ("Home", "Generate", "Train", "Runs"),
    "stopped": ("Home", "Train", "Adapters", "Runs"),
    "joining": ("Home", "Sites", "Privacy ledger", "Settings"),
}
OF_A_RUN = {"Runs"}  # pages that show a run in full only when the address names it


@dataclass(frozen=True)
class Walk:
    """A picture that needs clicks: where, and which."""

    scene: str
    name: str
    page: str
    clicks: Callable[[Operator], object]
    dark: bool = False  # also in the dark theme


def _make_a_kit(ada: Operator) -> None:
    """One for each look, so that each has a name of its own."""
    home = Path(ada.console.environment["CAFE_HOME"])
    name = f"new-{ada.page.viewport_size['width']}-{time.time_ns() % 1000}"  # type: ignore[index]
    ada.clicks("Add a site").fills("Name", name, ada.dialog).picks("GPU", ada.dialog)
    ada.fills("Exchange folder", str(home.parent / "exchange"), ada.dialog).clicks("Make the kit", ada.dialog).sees("The kit is made")


def _request(ada: Operator) -> Operator:
    return ada.clicks("Look at its request").sees("Call the admin")


def _checked(ada: Operator) -> Operator:
    ada.opens("Sites", site="north").clicks("Check the connection")
    return ada.sees("The way holds", within_s=90)


def _text(ada: Operator, words: str) -> None:
    """What opens when its words are clicked, and is no button."""
    ada.page.get_by_text(words).first.click()


def _tab(name: str) -> Callable[[Operator], object]:
    return lambda ada: ada.page.get_by_role("tab", name=name).click()


def _wrong_words(ada: Operator) -> None:
    _request(ada).fills("Four words that the admin reads to you", "acorn agent album amber", ada.dialog).clicks("Let it in", ada.dialog)


WALKS = (
    Walk("empty", "Set up", "Home", lambda ada: ada.clicks("Set up a real federation")),
    Walk("draft", "Start", "Generate", lambda ada: ada.clicks("Start and spend privacy…")),
    Walk("draft", "Add a site", "Sites", lambda ada: ada.clicks("Add a site")),
    Walk("waiting", "Reject", "Datasets", lambda ada: ada.clicks("Reject…")),
    Walk("running", "Stop now", "Train", lambda ada: ada.clicks("Stop now…")),
    Walk("failed", "Details", "Runs", lambda ada: ada.clicks("Copy details")),
    Walk("joining", "Add a kit", "Sites", lambda ada: ada.clicks("Add a site"), dark=True),
    Walk("joining", "A kit is made", "Sites", _make_a_kit, dark=True),
    Walk("joining", "Request", "Sites", _request, dark=True),
    Walk("joining", "Wrong words", "Sites", _wrong_words),
    Walk("joining", "Online", "Sites", lambda ada: ada.opens("Sites", site="north"), dark=True),
    Walk("joining", "Away", "Sites", lambda ada: ada.opens("Sites", site="lab")),
    Walk("joining", "Kit", "Sites", lambda ada: ada.opens("Sites", site="by-hand"), dark=True),
    Walk("joining", "Revoke", "Sites", lambda ada: ada.opens("Sites", site="lab").clicks("Revoke…")),
    Walk("joining", "Checked", "Sites", _checked, dark=True),
    Walk("joining", "Words shown", "Sites", lambda ada: _text(_request(ada), "Show the words of this side")),
    Walk("joining", "Letter", "Sites", lambda ada: _text(ada.opens("Sites", site="ward-7"), "What to write to the site's admin")),
    Walk("joining", "What the code means", "Sites", lambda ada: (_wrong_words(ada), ada.clicks("About CAFE-144", ada.dialog))),
    *(Walk("joining", tab, "Settings", _tab(tab), dark=True) for tab in ("Storage", "Globus", "Operators")),
    Walk("joining", "By hand", "Sites", lambda ada: ada.clicks("Take in a request file")),
)


class Album:
    """Where the pictures go."""

    def __init__(self, folder: Path, browser: Browser) -> None:
        self._folder, self._browser = folder, browser

    def scene(self, name: str, console: Console, run: str = "", pages: tuple[str, ...] = ALL) -> None:
        """All pages of one home, in both widths and both themes."""
        for width, height in WIDTHS.items():
            for dark in (False, True):
                with self._operator(console, width, height, dark) as ada:
                    for page in pages:
                        _open(ada, page, run)
                        self._shoot(ada, name, page, width, dark)
                    for walk in WALKS:
                        if walk.scene == name and (walk.dark or not dark):
                            _open(ada, walk.page, run)
                            walk.clicks(ada)
                            self._shoot(ada, name, f"{walk.page}, {walk.name}", width, dark)

    def readme(self, console: Console, to: Path) -> None:
        """Home of a finished demo, as many colours as a small file allows."""
        with self._operator(console, 1440, 900, False) as ada:
            ada.opens("Home")
            ada.page.wait_for_timeout(1000)
            ada.page.screenshot(path=to)
        with Image.open(to) as taken:
            taken.convert("RGB").quantize(128).save(to, optimize=True)

    def sheets(self) -> None:
        """Pictures of one scene and look, side by side, six on a sheet."""
        for folder in sorted(one for one in self._folder.iterdir() if one.is_dir() and one.name != "sheets"):
            for look in ("1440-light", "1440-dark", "390-light", "390-dark"):
                files = sorted(folder.glob(f"*.{look}.png"))
                each = 4 if look.startswith("1440") else 8
                for number in range(0, len(files), each):
                    _sheet(files[number : number + each], self._folder / "sheets" / f"{folder.name}.{look}.{number // each + 1}.png")

    @contextmanager
    def _operator(self, console: Console, width: int, height: int, dark: bool) -> Iterator[Operator]:
        ada = Operator(self._browser, console, width=width, height=height, dark=dark)
        try:
            yield ada
        finally:
            ada.context.close()

    def _shoot(self, ada: Operator, scene: str, page: str, width: int, dark: bool) -> None:
        """The whole page, not only what a window of usual height shows."""
        ada.page.wait_for_timeout(700)  # charts and tables grow into their places
        tall = int(ada.page.get_by_test_id("stMain").evaluate("one => one.scrollHeight"))
        ada.page.set_viewport_size({"width": width, "height": max(WIDTHS[width], min(TALLEST, tall))})
        ada.page.wait_for_timeout(300)
        file = self._folder / scene / f"{page}.{width}-{'dark' if dark else 'light'}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        ada.page.screenshot(path=file)
        ada.page.set_viewport_size({"width": width, "height": WIDTHS[width]})


def _open(ada: Operator, page: str, run: str) -> None:
    if run and page in OF_A_RUN:
        ada.opens(page, run=run)
    else:
        ada.opens(page)


def _sheet(files: list[Path], to: Path) -> None:
    to.parent.mkdir(exist_ok=True)
    wide = 900 if len(files) and ".1440-" in files[0].name else 390
    pictures = []
    for file in files:
        with Image.open(file) as picture:
            pictures.append(picture.convert("RGB").resize((wide, picture.height * wide // picture.width)))
    columns = 2 if wide == 900 else 4
    rows = [pictures[n : n + columns] for n in range(0, len(pictures), columns)]
    sheet = Image.new("RGB", (columns * (wide + 8), sum(max(one.height for one in row) + 8 for row in rows)), "#888")
    top = 0
    for row in rows:
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * (wide + 8), top))
        top += max(one.height for one in row) + 8
    sheet.save(to)


def main() -> None:
    asked = argparse.ArgumentParser(description="Pictures of the console's pages in all their states.")
    asked.add_argument("out", type=Path)
    asked.add_argument("scenes", nargs="*", choices=[*SCENES, []], help="only these; all when left out")
    asked.add_argument("--home", type=Path, help="a home with real runs, to be shown as well")
    asked.add_argument("--readme", type=Path, help="write the README's picture here; needs --home")
    words = asked.parse_args()
    with chromium() as browser, tempfile.TemporaryDirectory() as scratch:
        album = Album(words.out, browser)
        for name in words.scenes or ([] if words.readme else SCENES):
            lasts = {"seconds": "2"} if name == "running" else {}  # until all pictures are taken
            scene = SCENES[name](Path(scratch) / name, **lasts)
            try:
                with Console(scene.environment) as console:
                    album.scene(name, console, scene.run, PAGES.get(name, ALL))
            finally:
                scene.ends()
            print(name, flush=True)
        if words.home:
            with Console(os.environ | {"CAFE_HOME": str(words.home.absolute())}) as console:
                if words.readme:
                    album.readme(console, words.readme)
                else:
                    album.scene("real", console)
        if not words.readme:
            album.sheets()


if __name__ == "__main__":
    main()
