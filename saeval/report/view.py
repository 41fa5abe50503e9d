"""Shows a run's HTML report: from disk, as one file to share, or served on this machine."""

from __future__ import annotations

import html
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote

from saeval._util import InputError, replacing, write_atomic
from saeval.report.html.pages import policy
from saeval.report.server import HTML, SCRIPT, Answer, LocalServer

_TYPES = {".html": HTML, ".js": SCRIPT}


def page(run_dir: Path) -> Path:
    """Return the first page of a run's report.

    Raises:
        InputError: If the run has no report.
    """
    index = run_dir / "report" / "index.html"
    if index.is_symlink() or index.parent.is_symlink():
        raise InputError(f"{index}: is a symbolic link, which does not belong in a run directory; remove it")
    if not index.is_file():
        raise InputError(f"{run_dir}: has no report/index.html; `saeval report {run_dir}` writes it")
    return index


def bundle(run_dir: Path, file: Path) -> None:
    """Write a run's report as one file: a single page, or a ZIP file of the folder.

    Args:
        run_dir: The run.
        file: `.html` for a page that contains all other pages and their data; `.zip` for the packed folder.

    Raises:
        InputError: If there is no report, the suffix is another one, or the file cannot be written.
    """
    if file.suffix not in (".html", ".zip"):
        raise InputError(f"{file}: a bundle is a page or a ZIP file; give it a name that ends in .html or .zip")
    index = page(run_dir)
    files = [p for p in sorted(index.parent.rglob("*")) if p.is_file() and not p.is_symlink()]
    files = [p for p in files if not p.name.startswith(".")]
    if file.suffix == ".html":
        write_atomic(file, _single_page(_own(index, run_dir), index, files))
        return
    import zipfile

    with replacing(file) as place, zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as packed:
        for found in files:
            packed.write(found, Path(file.stem) / found.relative_to(index.parent))


def _single_page(first: str, index: Path, files: Sequence[Path]) -> str:
    """Return the first page with the other pages and their data embedded."""
    from saeval.report.html.text import packed, script_json, script_text

    held = {}
    for file in files:
        if file != index and file.suffix in _TYPES:
            text = script_text(file.read_bytes())
            held[file.relative_to(index.parent).as_posix()] = packed(
                (_body(text) if file.suffix == ".html" else text).encode()
            )
    start, script, end = first.rpartition("<script>")
    return f'{start}<script type="application/json" id="bundle">{script_json(held)}</script>\n{script}{end}'


def _body(text: str) -> str:
    """Return the body of a page, without the script that all pages share."""
    return text[text.index("<body>") + len("<body>") : text.rindex("<script>")]


def _own(index: Path, run_dir: Path) -> str:
    """Return the first page, after checking that this version wrote it: only this version's scripts may run."""
    text = index.read_text(encoding="utf-8", errors="replace")
    if policy() not in html.unescape(text):
        raise InputError(
            f"{index}: was written by another version of saeval; `saeval report {run_dir}` writes it again"
        )
    return text


class ReportServer(LocalServer):
    """Serves the pages of one report.

    Args:
        run_dir: The run.
        port: Port; 0 for a free one.

    Raises:
        InputError: If there is no report, another version of saeval wrote it, or the port cannot be used.
    """

    def __init__(self, run_dir: Path, port: int = 0):
        _own(page(run_dir), run_dir)
        self.folder = run_dir.resolve() / "report"
        super().__init__(port, "index.html")

    def content(self, place: str, query: str) -> Answer:
        """Return a page of the report, or one of its data files."""
        return report_file(self.folder, place)


def report_file(folder: Path, place: str) -> Answer:
    """Return a file of a report that browsers load.

    Args:
        folder: The report, an absolute path without links.
        place: Path in the report, percent-encoded.
    """
    file = folder / unquote(place)
    try:
        # Links, `..` and other paths that leave the folder are not served.
        inside = file.resolve() == file and file.is_relative_to(folder)
        if inside and file.suffix in _TYPES and file.is_file():
            return Answer(HTTPStatus.OK, file.read_bytes(), _TYPES[file.suffix])
    except (OSError, ValueError):  # names that no file can have
        pass
    return Answer(HTTPStatus.NOT_FOUND)
