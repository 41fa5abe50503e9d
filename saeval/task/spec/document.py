"""Reads specs as data with file and line of every value, merges includes, and overrides keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any

from saeval._util import Located, SpecError, clean, clean_text, did_you_mean, plain_values
from saeval.task.spec.models import PART_KEYS, as_part

KeyPath = tuple[str | int, ...]
_NO_PATHS = {"task", "version", "description", "tags", "claim"}
_CELL_NAMES = {"exclude", "controls"}  # keys whose texts are axis values by name
_CELL_FILTERS = {"cells", "than_cells"}  # the same, for keys of a finding
MOST_NODES, MOST_DEPTH = 100_000, 40  # limits on a spec; larger ones are a mistake or an attack


class SpecDocument:
    """A spec as data, with file and line of each value.

    Attributes:
        data: Mappings, lists and scalars; strings are `Located`.
        places: File (None for the command line) and line of each value, by its path of keys.
        unfilled: Paths of values with a `${…}` that could not be filled in; other mistakes there are not reported.
    """

    def __init__(
        self,
        data: dict[str, Any],
        places: dict[KeyPath, tuple[Path | None, int]],
        unfilled: Collection[KeyPath] = (),
    ):
        self.data = data
        self.places = places
        self.unfilled = frozenset(unfilled)

    def is_unfilled(self, path: KeyPath) -> bool:
        """Return whether a value is, or belongs to, a `${…}` that could not be filled in."""
        return any(path[:end] in self.unfilled for end in range(len(path) + 1))

    def holds_unfilled(self, path: KeyPath) -> bool:
        """Return whether a value contains a `${…}` that could not be filled in."""
        return any(known[: len(path)] == path for known in self.unfilled)

    def where(self, path: KeyPath) -> str:
        """Return `file:line: a.b.c` for a value, or for its nearest ancestor with a place."""
        dotted = _dotted(path)
        place = self._nearest(path)
        if place is None:
            return dotted
        file, line = place
        if file is None:
            return f"--set {dotted}" if path in self.places else f"command line: {dotted}"
        return f"{file.name}:{line}: {dotted}"

    def remedy(self, path: KeyPath) -> str:
        """Return how to give a missing value on the command line; empty if it belongs to a file."""
        return "" if self.folder(path) else f", so add --set {_dotted(path)}=VALUE"

    def folder(self, path: KeyPath) -> Path | None:
        """Return the folder of the file that contains a value; None for values from elsewhere."""
        file, _ = self._nearest(path) or (None, 0)
        return file.parent if file else None

    def _nearest(self, path: KeyPath) -> tuple[Path | None, int] | None:
        """Return the place of a value, or of its nearest ancestor that has one."""
        ends = (path[:end] for end in range(len(path), -1, -1))
        return next((self.places[end] for end in ends if end in self.places), None)

    def merged_over(self, base: SpecDocument) -> SpecDocument:
        """Return `base` with this document's values merged over it.

        Mappings are merged, also with parts in short form; other values are replaced. If the `use` of a part changes,
        its old options are dropped.
        """
        data, places = deepcopy(base.data), dict(base.places)

        def merge(into: dict[str, Any], over: Mapping[str, Any], path: KeyPath) -> None:
            if "use" in over and "use" in into and over["use"] != into["use"]:
                into.clear()
            for key, value in over.items():
                if isinstance(value, Mapping) and value.keys() & PART_KEYS:
                    into[key] = as_part(into.get(key))
                if isinstance(value, Mapping) and isinstance(into.get(key), dict):
                    merge(into[key], value, (*path, key))
                else:
                    into[key] = deepcopy(value)

        merge(data, self.data, ())
        places.update(self.places)
        return SpecDocument(data, places)


def read_document(path: Path, locate: Callable[[str, Path], Path], _seen: tuple[Path, ...] = ()) -> SpecDocument:
    """Read a spec file and everything it includes.

    Args:
        path: The file.
        locate: Returns the file of an include, from the reference and the including file.

    Raises:
        SpecError: If a file is missing, is not YAML, has a key twice, or includes itself.
    """
    if path in _seen:
        raise SpecError([f"{path.name}: includes itself through {' > '.join(p.name for p in _seen)}; remove one"])
    document = _read_one(path)
    includes = document.data.get("include", [])
    if not isinstance(includes, list) or not all(isinstance(i, str) for i in includes):
        raise SpecError([f"{document.where(('include',))}: should be a list of file names"])
    base = SpecDocument({}, {})
    for reference in includes:
        base = read_document(locate(str(reference), path), locate, (*_seen, path)).merged_over(base)
    merged = document.merged_over(base)
    merged.data.pop("include", None)
    return merged


def _read_one(path: Path) -> SpecDocument:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([f"{path}: cannot be read ({error})"]) from None
    if len(text) > 2_000_000:
        raise SpecError([f"{path}: {len(text):,} characters is too long for a spec"])
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path.name}:{mark.line + 1}" if mark else path.name
        raise SpecError([f"{place}: not YAML: {getattr(error, 'problem', None) or 'nested too deeply'}"]) from None
    if not isinstance(node, yaml.MappingNode):
        raise SpecError([f"{path.name}:1: a spec should be a mapping that begins with `saeval: 1`"])
    return _convert(node, path)


def _convert(root: Any, file: Path) -> SpecDocument:
    """Convert YAML nodes to data with places; reject duplicate keys, tags, and excessive size or depth."""
    import yaml

    places: dict[KeyPath, tuple[Path | None, int]] = {}
    problems: list[str] = []
    constructor = yaml.SafeLoader("")
    count = 0

    def walk(node: Any, path: KeyPath) -> Any:
        nonlocal count
        count += 1
        line = node.start_mark.line + 1
        if count > MOST_NODES or len(path) > MOST_DEPTH:
            raise SpecError(
                [f"{file.name}:{line}: more than {MOST_NODES:,} values or {MOST_DEPTH} levels; is an alias repeated?"]
            )
        places.setdefault(path, (file, line))
        if isinstance(node, yaml.CollectionNode) and node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            problems.append(f"{file.name}:{line}: {node.tag}: tags are not allowed; a spec is plain data")
            return None
        if isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            first: dict[str, int] = {}
            for key_node, value_node in node.value:
                key, key_line = clean_text(str(key_node.value)), key_node.start_mark.line + 1
                if key in first:
                    problems.append(f"{file.name}:{key_line}: key {key!r} is given twice (first on line {first[key]})")
                    continue
                first[key] = key_line
                places[(*path, key)] = (file, key_line)
                mapping[key] = walk(value_node, (*path, key))
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [walk(item, (*path, i)) for i, item in enumerate(node.value)]
        try:
            value = constructor.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            problems.append(f"{file.name}:{line}: {getattr(error, 'problem', None) or error}")
            return None
        return Located(clean_text(value), file, line) if isinstance(value, str) else value

    data = walk(root, ())
    if problems:
        raise SpecError(problems)
    return SpecDocument(data, places)


def from_python(value: Any, path: KeyPath = (), where: str = "") -> Any:
    """Return a value that Python code put into a spec as data of a document.

    Args:
        value: The value; numbers and arrays of numpy and torch, paths and parts of a `Spec` become plain data.
        path: The keys that lead to it.
        where: Its place, for errors; default: its keys.

    Raises:
        SpecError: If something in it is not data, such as a set.
    """
    data = clean(plain_values(value))
    if problems := list(_foreign(data, path, where)):
        raise SpecError(problems)
    return data


def _foreign(value: Any, path: KeyPath, where: str = "") -> Iterator[str]:
    """Yield a problem for each value that is not data."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _foreign(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _foreign(inner, (*path, i))
    elif value is not None and not isinstance(value, str | int | float | date):
        yield f"{where or _dotted(path)}: should be a number, text, list or mapping (got {value!r:.80})"


def override(document: SpecDocument, assignments: Mapping[str, Any]) -> SpecDocument:
    """Return the document with dotted keys set, as with `--set a.b=c`; parts in short form on the way are expanded.

    Raises:
        SpecError: If a parent of a key is not a mapping or list, or a list is too short.
    """
    data, places = deepcopy(document.data), dict(document.places)
    for dotted, value in assignments.items():
        keys = _keys(dotted)
        at: Any = data
        for i, key in enumerate(keys[:-1]):
            if problem := _not_in(at, keys[:i], key):
                raise SpecError([f"--set {dotted}: {problem}"])
            place: Any = key if isinstance(at, list) else str(key)
            inner = at[place] if isinstance(at, list) else at.get(place)
            inner = as_part(inner) if keys[i + 1] in PART_KEYS else inner
            at[place] = {} if inner is None else inner
            at = at[place]
        if problem := _not_in(at, keys[:-1], keys[-1]):
            raise SpecError([f"--set {dotted}: {problem}"])
        at[keys[-1] if isinstance(at, list) else str(keys[-1])] = from_python(value, keys, f"--set {dotted}")
        for known in [p for p in places if p[: len(keys)] == keys]:
            del places[known]
        places[keys] = (None, 0)
    return SpecDocument(data, places)


def _not_in(value: Any, path: KeyPath, key: str | int) -> str:
    """Return why a value cannot have a key; empty if it can. Names no values, which may be credentials."""
    name = _dotted(path)
    if isinstance(value, dict):
        return ""
    if not isinstance(value, list):
        return f"{name} is a single value, which has no {key!r}{did_you_mean(str(key), PART_KEYS)}"
    if isinstance(key, int) and key < len(value):
        return ""
    if not value:
        return f"{name} is a list with no entries; set the whole list"
    return f"{name} is a list with entries 0 to {len(value) - 1}, not {key!r}"


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _keys(dotted: str) -> KeyPath:
    return tuple(int(k) if k.isdigit() else k for k in dotted.split("."))


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split `a.b=VALUE`, reading the value as YAML.

    Raises:
        SpecError: If there is no `=`, or the value is not YAML.
    """
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SpecError(["--set: write KEY=VALUE, such as run.seed=1"])  # not quoted, since it may be an API key
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError):
        raise SpecError([f"--set {key}: the value is not YAML"]) from None
    return key, Located(parsed, None, 0) if isinstance(parsed, str) else parsed


def plain(value: Any, *, absolute: bool = False, place: tuple[str, ...] = ()) -> Any:
    """Return spec data as plain values for YAML.

    Args:
        value: Data of a document.
        absolute: Whether paths relative to the spec file become absolute, so that the result can be run from any
            folder.
        place: The keys that lead to the value.
    """
    if isinstance(value, dict):
        value = value if place or not absolute else _with_named_paths(value)
        return {str(k): plain(v, absolute=absolute, place=(*place, str(k))) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v, absolute=absolute, place=place) for v in value]
    if isinstance(value, Located):
        return _absolute(value, place) if absolute else str(value)
    return value


def _absolute(text: Located, place: tuple[str, ...]) -> str:
    """Return a path as an absolute one, with what follows its colon; other texts unchanged.

    A text is a path if an option has read it as one; in specs whose plugins are not loaded, a path beside the spec
    file. Such texts without a slash are paths under the key `path` or if they name a file there; but not under keys
    whose texts are no paths, and in a matrix only classes in files (`mine.py:Class`). The texts that name the cells of
    a matrix stay as they are.
    """
    key = place[-1] if place else ""
    names_cell = _names_cells(place) or (place[:1] == ("matrix",) and (len(place) == 2 or key == "id"))
    if names_cell and "/" not in text:
        return str(text)
    if text.path is not None and not names_cell:
        return str(text.path)
    if text.file is None:
        return str(text)
    path, colon, rest = text.partition(":")
    beside = text.file.parent / path
    try:
        bare = key == "path" or (key not in _NO_PATHS and beside.suffix and beside.is_file())
        named = "/" in text or (path and bare and (place[0] != "matrix" or path.endswith(".py")))
        return f"{beside.resolve()}{colon}{rest}" if named and beside.exists() else str(text)
    except OSError:  # too long for a name, such as a description
        return str(text)


def _names_cells(place: tuple[str, ...]) -> bool:
    """Return whether the texts at a place outside the matrix are axis values by name."""
    if place[:1] == ("findings",):
        return bool({*place[1:2]} & _CELL_FILTERS)
    return bool({*place[:1]} & _CELL_NAMES)


def _with_named_paths(data: dict[str, Any]) -> dict[str, Any]:
    """Return a spec whose axis values that are paths are `{id: NAME, path: PATH}`, so that the cells keep their names.

    Only axes are changed that have nothing but texts, and that the spec fills in as a whole value, `${matrix.AXIS}`.
    """
    matrix = data.get("matrix")
    for axis, values in matrix.items() if isinstance(matrix, dict) else ():
        if not isinstance(values, list) or not all(isinstance(value, Located) for value in values):
            continue
        paths = {str(value): _absolute(value, ("axis",)) for value in values}
        slot, texts = f"${{matrix.{axis}}}", [text for text in _texts(data) if f"${{matrix.{axis}}}" in text]
        if texts and {*texts} == {slot} and any(name != path for name, path in paths.items()):
            named = {**data["matrix"], axis: [{"id": name, "path": path} for name, path in paths.items()]}
            data = {**_replaced(data, {slot: f"${{matrix.{axis}.path}}"}), "matrix": named}
            data = _with_plain_names(data, paths)
    return data


def _with_plain_names(value: Any, names: Collection[str], place: tuple[str, ...] = ()) -> Any:
    """Return a spec in which axis values by name are plain texts, which are not paths, if they are among `names`."""
    if isinstance(value, dict):
        return {key: _with_plain_names(inner, names, (*place, str(key))) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_plain_names(inner, names, place) for inner in value]
    return str(value) if isinstance(value, str) and value in names and _names_cells(place) else value


def _texts(value: Any) -> list[str]:
    """Return all texts in a value."""
    if isinstance(value, dict | list):
        return [text for inner in (value.values() if isinstance(value, dict) else value) for text in _texts(inner)]
    return [value] if isinstance(value, str) else []


def _replaced(value: Any, texts: Mapping[str, str]) -> Any:
    """Return a value with some of its texts replaced."""
    if isinstance(value, dict):
        return {key: _replaced(inner, texts) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, texts) for inner in value]
    return texts.get(value, value) if isinstance(value, str) else value
