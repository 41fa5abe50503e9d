"""Phrases and constructions that readers stumble over become fewer, never more.

`python tests/project/test_wording.py` prints every place; with `--lower` it also writes counts that have fallen.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from root import ROOT

COUNTS = Path(__file__).with_name("wording.json")

UNITS = "latent|cell|call|window|prompt|run|scorer|token|context|example|worker|judge|model|explanation|text|question"
COUNTED = (
    "latents|cells|calls|windows|prompts|tokens|contexts|examples|words|characters|dollars|texts|questions|seconds|minutes|"
    "explanations|scores|requests|documents|times|workers|samples|passages|tries|draws|once|twice|GPUs|GiB|MiB|MB|kB|bytes"
)
PHRASES = {
    "a latent, a cell … (per)": rf"\b(?:{COUNTED}) an? (?:{UNITS})\b",
    "mend (fix)": r"\bmend(?:s|ed|ing)?\b",
    "anew (again)": r"\banew\b",
    "lone file (single file)": r"\blone[ -]files?\b",
    "told of (reported)": r"\b(?:told|tells?|telling) of\b",
    "go on with (resume)": r"\b(?:go|goes|going|went|gone) on with\b",
    "leave out (drop, omit)": r"\b(?:leaves?|leaving|left) out\b",
    "throw away (discard)": r"\bthr(?:ow|ows|own|ew|owing) away\b",
    "call off (cancel)": r"\bcall(?:s|ed|ing)? off\b",
    "dear (expensive)": r"\bdear(?:er|est|ly)?\b",
    "takes its time (slow)": r"\btak(?:e|es|ing) (?:its|their) time\b",
    "stand (be, appear)": r"\b(?:stands?|stood)\b(?! (?:in )?for\b)",
    "has to be given (requires)": r"\bha(?:s|ve) to be given\b",
    "of use (useful)": r"\bof (?:no |any )?use\b",
    "comes to no end": r"\bcom(?:e|es|ing) to no end\b",
    "for that there (because)": r"\bfor that\b",
    "otherwise than": r"\botherwise than\b",
    "knows nothing of (uninformed)": r"\bknows? nothing of\b",
    "nothing is lost": r"\bnothing is lost\b",
    "own up to (declare)": r"\bown(?:s|ed|ing)? up to\b",
    "give back (return)": r"\bg(?:ive|ives|iven|ave|iving) back\b",
    "hold against (compare)": r"\bh(?:old|olds|eld|olding) against\b",
    "look at and say": r"\blook(?:s|ed)? at\b",
    "archaisms": r"\b(?:whoever|whomever|whatsoever|therein|thereof|wherein|whence|hitherto|lest|nought|naught|whichever way)\b",
    "differences that intervals could show": r"\bintervals could show\b|\bsmallest difference\b",
    "what is missing of it": r"\bmissing of\b",
    "made-up (placeholder)": r"\bmade-up\b",
    "passive, against (non-activating)": r"\bpassive\b",
    "silent in a heading (non-activating)": r"(?m)^#+ .*\bsilent\b",
    "a row a latent (per)": rf"\b(?:one|rows?|lines?|mapping|nats|vector|strength) an? (?:{UNITS})\b",
    "wherever it lies (independent of location)": r"\bwherever (?:it|they) lies?\b",
    "having looked (after checking)": r"\bhaving (?:looked|seen|read)\b",
    "carry a mark (is marked)": r"\bcarry a mark\b",
    "is there already (already exists)": r"\b(?:is|are) there already\b",
}  # fmt: skip
HEADINGS = {"silent in a heading (non-activating)": ".md"}

Place = tuple[str, int]
BRANCHES = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.IfExp)


class Code:
    """What one file of Python code has to be read: its strings and comments, and how much each statement asks."""

    def __init__(self, source: str) -> None:
        self.lines = source.splitlines()
        self.texts = list(comments(self.lines))
        self.branches: Counter[ast.stmt] = Counter()
        self.tables: set[int] = set()
        tree = ast.parse(source)
        self._visit(tree, tree)

    def _visit(self, node: ast.AST, statement: ast.AST) -> None:
        """Take a node in; `statement` is the innermost one that it is part of."""
        if isinstance(node, ast.stmt):
            statement = node
            if is_table(node):
                self.tables.add(node.end_lineno)
        if isinstance(node, BRANCHES):
            self.branches[statement] += 1
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            self.texts.append((node.lineno, node.value))
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
            self.texts.append((node.lineno, "".join(parts)))
            node = ast.Tuple([part for part in node.values if not isinstance(part, ast.Constant)])
        for child in ast.iter_child_nodes(node):
            self._visit(child, statement)


def comments(lines: list[str]) -> Iterator[tuple[int, str]]:
    """First lines and texts of comments; those on neighbouring lines are one text."""
    first, last, text = 0, -1, ""
    for line, code in enumerate(lines, 1):
        found = re.search(r"(?:^|\s)# (.*)", code)
        if found and line != last + 1:
            yield first, text
            first, text = line, ""
        if found:
            text, last = f"{text} {found[1]}", line
    yield first, text


def is_table(statement: ast.stmt) -> bool:
    value = getattr(statement, "value", None)
    return isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(
        value, ast.List | ast.Tuple | ast.Dict | ast.Set
    )


def phrases(name: str, first: int, text: str) -> Iterator[tuple[str, Place]]:
    """The phrases of a text that begins at line `first` of a file; a phrase may run over the end of a line."""
    flat = re.sub(r"(?<=\S)[ \t]*\n[ \t]*(?=[\w`(])", " ", text)
    for phrase, pattern in PHRASES.items():
        if not name.endswith(HEADINGS.get(phrase, "")):
            continue
        for match in re.finditer(pattern, flat, re.IGNORECASE):
            found = re.search(r"\s+".join(map(re.escape, match[0].split())), text)
            yield phrase, (name, first + (text[: found.start()].count("\n") if found else 0))


def dense(name: str, code: Code) -> Iterator[tuple[str, Place]]:
    for line, text in enumerate(code.lines, 1):
        if len(text) > 120:
            yield "lines over 120 characters", (name, line)
        if text.endswith("# fmt: skip") and line not in code.tables:
            yield "fmt: skip outside tables", (name, line)
    for statement, count in code.branches.items():
        if count > 2:
            yield "statements with more than two comprehensions or conditionals", (name, statement.lineno)


def places() -> Iterator[tuple[str, Place]]:
    """Everything that is to become fewer, in all that people read: code, pages, tasks and templates."""
    for file in files("saeval/**/*.py", "plugins/**/*.py", "benchmarks/**/*.py"):
        name, code = str(file.relative_to(ROOT)), Code(file.read_text())
        for line, text in code.texts:
            yield from phrases(name, line, text)
        yield from dense(name, code)
    for file in files(
        "*.md", "docs/**/*.md", "tasks/**/*.yaml", "examples/**/*.md", "saeval/**/*.j2", "saeval/**/*.js"
    ):
        if file.name != "CHANGELOG.md":
            yield from phrases(str(file.relative_to(ROOT)), 1, file.read_text())


def files(*patterns: str) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(ROOT.glob(pattern))


@pytest.fixture(scope="module")
def found():
    return list(places())


def test_phrases_and_constructions_become_fewer_and_never_more(found):
    allowed = json.loads(COUNTS.read_text())
    counts = Counter(name for name, _ in found)
    risen = {name: f"{allowed.get(name, 0)} -> {n}" for name, n in counts.items() if n > allowed.get(name, 0)}
    assert not risen, f"say it in plain words: {risen}; places: python tests/project/test_wording.py"
    fallen = {name: f"{n} -> {counts[name]}" for name, n in allowed.items() if counts[name] < n}
    assert not fallen, f"well done; lower the counts: python tests/project/test_wording.py --lower {fallen}"


def test_phrases_are_found_across_lines_in_strings_comments_and_f_strings():
    source = 'x = f"{n} calls a " "latent"  # goes\n# on with it\n"""Is\n    called off."""\n'
    found = [place for line, text in Code(source).texts for place in phrases("x.py", line, text)]
    assert sorted(found) == [
        ("a latent, a cell … (per)", ("x.py", 1)),
        ("call off (cancel)", ("x.py", 4)),
        ("go on with (resume)", ("x.py", 1)),
    ]


def test_statements_are_weighed_without_their_bodies():
    code = Code("for x in (a if b else c):\n    y = [z for z in f'{x if x else 1}']")
    assert {statement.lineno: count for statement, count in code.branches.items()} == {1: 1, 2: 2}


if __name__ == "__main__":
    everything = list(places())
    for name, (file, line) in sorted(everything, key=lambda place: place[1]):
        print(f"{file}:{line}: {name}")  # noqa: T201
    now = Counter(name for name, _ in everything)
    print(*(f"{n:5} {name}" for name, n in now.most_common()), f"{now.total():5} in all", sep="\n")  # noqa: T201
    if "--lower" in sys.argv:
        before = json.loads(COUNTS.read_text()) if COUNTS.exists() else now
        lowered = {name: min(n, before.get(name, 0)) for name, n in sorted(now.items())}
        COUNTS.write_text(json.dumps(lowered, indent=2, ensure_ascii=False) + "\n")
