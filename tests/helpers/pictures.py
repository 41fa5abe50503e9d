"""Writes the pictures of the documentation again: `python tests/helpers/pictures.py`. Runs quickstart-recorded for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from browsers import chromium
from root import ROOT

import saeval

PICTURES = ROOT / "docs" / "images"
LATENT = "latents/3-coder-topk.html#latent=1888"


def take(browser: Any, page: Path | str, name: str, width: int = 1180, height: int = 860, **how: Any) -> None:
    """Open a page of the report and save what the window shows.

    Args:
        browser: The browser.
        page: Address of the page, with its state.
        name: Name of the picture.
        width: Width of the window.
        height: Height of the window.
        how: `at`, an element to scroll to; `open`, the folds to open, by their text; `scheme`, the colours.
    """
    opened = browser.new_page(viewport={"width": width, "height": height}, color_scheme=how.get("scheme", "light"))
    file, _, state = str(page).partition("#")
    opened.goto(f"{Path(file).as_uri()}#{state}")
    for text in how.get("open", ()):
        opened.get_by_text(text).first.click()
        opened.wait_for_timeout(300)
    if at := how.get("at"):
        opened.locator(at).first.evaluate("(e) => scrollTo(0, e.getBoundingClientRect().top + scrollY - 12)")
    opened.wait_for_timeout(300)
    opened.screenshot(path=PICTURES / f"{name}.png")
    opened.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        saeval.run("quickstart-recorded", out=Path(folder) / "run", display="none")
        saeval.run("recorded/floors", out=Path(folder) / "floors", display="none")
        report = Path(folder) / "run" / "report"
        for arguments in (
            ("report", "run", "--plots", "figures", "--format", "svg"),
            ("leaderboard", "run", "floors", "--mixed", "--html", "joined.html"),
        ):
            subprocess.run([sys.executable, "-m", "saeval", *arguments], cwd=folder, check=True, capture_output=True)
        shutil.copy(Path(folder) / "figures" / "distributions-fuzzing.svg", PICTURES / "plot-distributions.svg")
        with chromium() as browser:
            take(browser, report / "index.html", "report-leaderboard", height=1010)
            take(browser, f"{folder}/joined.html#group=run", "report-joined", height=760, at="#joined-board")
            take(browser, report / "index.html", "report-plots", height=820, at="#distributions", scheme="dark")
            take(browser, report / LATENT, "report-latent", height=1240, at="#latent")
            prompts = "Prompts and raw replies of detection"
            take(
                browser, report / LATENT, "report-prompts", height=900, open=[prompts, "Prompt 1 of"], at=".calls .call"
            )
            take(browser, report / LATENT, "report-phone", width=390, height=800, at="#latent")
