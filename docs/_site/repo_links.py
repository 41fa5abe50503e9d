"""A hook of MkDocs: what pages link to outside `docs/` – example packages, the changelog – becomes a page of the site."""

from __future__ import annotations

import json
import re
from os.path import relpath
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File

_LINK = re.compile(r"(?<=\]\()((?:\.\./)+[^)#\s]+)")  # in Markdown, `](../examples/saeval-acme)`
_SOURCES = (".py", ".toml", ".md", ".yaml", ".txt", ".jsonl")


def _outside(src_uri: str, link: str, root: Path) -> PurePosixPath | None:
    """Return a link's path in the repository, or None where it stays among the pages or leads nowhere."""
    target = (root / "docs" / src_uri).parent.joinpath(link).resolve()
    if not target.exists() or target.is_relative_to(root / "docs") or not target.is_relative_to(root):
        return None
    return PurePosixPath(target.relative_to(root))


def _shown(file: Path) -> str:
    """Return a file as Markdown: a notebook as text and code, anything else as code."""
    if file.suffix == ".ipynb":
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(file.read_text())["cells"]]
        return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells)
    return f"````{file.suffix[1:]}\n{file.read_text()}\n````"


def _page(path: PurePosixPath, root: Path) -> str:
    """Return a page with a file, or with all files of a folder."""
    place = root / path
    if place.is_file():
        return _shown(place)
    files = (file for file in sorted(place.rglob("*")) if file.suffix in _SOURCES)
    return "\n\n".join([f"# {path}", *(f"## {file.relative_to(place).as_posix()}\n\n{_shown(file)}" for file in files)])


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    root = Path(config.config_file_path).parent
    pages = files.documentation_pages()
    found = {_outside(p.src_uri, link, root) for p in pages for link in _LINK.findall(p.content_string)}
    for path in sorted(found - {None}):
        files.append(File.generated(config, f"repository/{path}.md", content=_page(path, root)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead the links there."""
    root = Path(config.config_file_path).parent

    def led(match: re.Match[str]) -> str:
        path = _outside(page.file.src_uri, match[1], root)
        return match[1] if path is None else relpath(f"repository/{path}.md", Path(page.file.src_uri).parent)

    return _LINK.sub(led, markdown)
