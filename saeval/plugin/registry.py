"""Finds plugin packages by metadata, imports one only when it is named, and isolates broken ones."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal, get_args

import pluggy

from saeval._util import (
    SINGLE_FILE,
    InputError,
    PluginError,
    did_you_mean,
    os_reason,
    plugin_place,
    refuse_pipe,
)
from saeval.plugin import hookspecs
from saeval.plugin.neighbours import importable_neighbours, neighbours_hash
from saeval.plugin.source_code import code_hash, installed_from_folder

if TYPE_CHECKING:
    from pydantic import ValidationError

    from saeval.plugin.base import Plugin

GROUP = "saeval"
BUILT_IN = "saeval"
LOCAL = "local"
MISSING = "is missing"
"""What `options_error` says of a required option."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_METHODS = (FunctionType, classmethod, property)


@dataclass(frozen=True)
class Loaded:
    """A plugin class, and where it comes from.

    Attributes:
        id: Full name, `acme/purity`.
        kind: One of `saeval.plugin.kinds.KINDS`.
        cls: The class.
        distribution: The package it comes from; the file's name for a single file.
        version: The package's version.
        sha: SHA-256 of a single file; None for plugins of packages.
        code: Hash of the source files of a package that is installed from a folder, where they change under one
            version.
    """

    id: str
    kind: str
    cls: type[Plugin]
    distribution: str
    version: str
    sha: str | None = None
    code: str | None = None


@dataclass(frozen=True)
class PluginInfo:
    """A plugin package as `saeval plugins` lists it."""

    namespace: str
    distribution: str
    version: str
    status: Literal["ok", "broken", "disabled"]
    reason: str
    provides: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Package:
    """One distribution with plugins.

    Attributes:
        namespace: What its plugins' names begin with.
        distribution: Its name.
        version: Its version.
        requires: Its requirements, as its metadata states them.
        from_folder: Whether it was installed from a local folder, editable or copied.
        entries: Its entry points.
    """

    namespace: str
    distribution: str
    version: str
    requires: tuple[str, ...]
    from_folder: bool
    entries: tuple[EntryPoint, ...]


class _Broken(Exception):
    """Why a package cannot be used."""


class Registry:
    """The plugins of this environment, for as long as this object lives; there is no global one.

    Args:
        disabled: Namespaces (or distributions) to omit, in addition to those in `SAEVAL_DISABLED_PLUGINS`; `*` for
            all third parties.
    """

    def __init__(self, disabled: Collection[str] = ()):
        named = os.environ.get("SAEVAL_DISABLED_PLUGINS", "").split(",")
        self._disabled = {_namespace(n.strip()) for n in (*disabled, *named) if n.strip()}
        self._loaded: dict[str, dict[tuple[str, str], Loaded] | _Broken] = {}
        self._task_dirs: dict[str, list[Path]] = {}

    # --- what is installed ---

    @cached_property
    def _packages(self) -> Mapping[str, list[_Package]]:
        """Distributions by namespace; more than one for a namespace is a conflict."""
        return _installed(tuple((folder, _changed(folder)) for folder in sys.path))

    @property
    def namespaces(self) -> list[str]:
        """Namespaces of installed plugin packages."""
        return list(self._packages)

    def _is_disabled(self, namespace: str) -> bool:
        return namespace in self._disabled or ("*" in self._disabled and namespace != BUILT_IN)

    # --- loading ---

    def load(self, namespace: str) -> dict[tuple[str, str], Loaded]:
        """Import a package and return what it provides, by kind and name.

        Raises:
            PluginError: If it is not installed, disabled, or broken; a broken built-in raises what broke it.
        """
        if namespace not in self._packages:
            raise PluginError(f"no plugin package {namespace!r} is installed (`saeval plugins` lists them)")
        if self._is_disabled(namespace):
            raise PluginError(f"plugin package {namespace!r} is disabled")
        if namespace not in self._loaded:
            try:
                self._loaded[namespace] = self._import(namespace)
            except _Broken as broken:
                self._loaded[namespace] = broken
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a module may also exit, or panic in Rust
                if namespace == BUILT_IN:
                    raise
                unusable = _Broken(_sentence(error))
                unusable.__cause__ = error
                self._loaded[namespace] = unusable
        found = self._loaded[namespace]
        if isinstance(found, _Broken):
            package = self._packages[namespace][0]
            raise PluginError(
                f"{package.distribution} {package.version} is installed but could not be used: {found}"
            ) from found
        return found

    def _import(self, namespace: str) -> dict[tuple[str, str], Loaded]:
        packages = self._packages[namespace]
        if len(packages) > 1:
            names = " and ".join(f"{p.distribution} {p.version}" for p in packages)
            raise _Broken(f"{names} both claim the namespace {namespace!r}; uninstall one")
        (package,) = packages
        if namespace != BUILT_IN:
            _check_version(package)
        provided: dict[tuple[str, str], Loaded] = {}
        folders: list[Path] = []
        for entry in package.entries:
            hooks = _hooks(entry.load())
            for loaded in _classes(hooks, package):
                key = (loaded.kind, loaded.id.rpartition("/")[2])
                if key in provided:
                    raise _Broken(f"{loaded.kind} {loaded.id!r} is defined twice")
                provided[key] = loaded
            folders += _folders(hooks)
        if not provided and not folders:
            raise _Broken("it provides nothing; is @hookimpl missing?")
        self._task_dirs[namespace] = folders
        return provided

    def load_all(self) -> None:
        """Import every package that is not disabled; broken ones are remembered, not raised."""
        for namespace in self._packages:
            try:
                self.load(namespace)
            except PluginError:
                continue

    # --- asking ---

    def find(self, kind: str, name: str) -> Loaded | None:
        """Return a built-in plugin by its bare name, or None; imports no third party."""
        return self.load(BUILT_IN).get((kind, name))

    def get(self, kind: str, name: str, *, base: Path | None = None) -> Loaded:
        """Return the plugin that a spec names.

        Args:
            kind: One of `saeval.plugin.kinds.KINDS`.
            name: `name` of a built-in, `namespace/name`, or `./file.py:Class`.
            base: Folder that a single file's relative path begins at.

        Raises:
            PluginError: If there is none, or its package is disabled or broken.
        """
        if ".py:" in name:
            return _from_file(kind, name, base or Path.cwd())
        if name.endswith(".py"):
            raise PluginError(f"{kind} {name!r}: name the class too, as in '{name}:MyClass'")
        namespace, slash, short = name.rpartition("/")
        namespace = namespace if slash else BUILT_IN
        if namespace in self._packages:
            try:
                if found := self.load(namespace).get((kind, short)):
                    return found
            except PluginError as error:
                raise PluginError(f"{kind} {name!r}: {error}") from error
        known = [_shown(loaded.id) for loaded in self.names(kind)]
        similar = did_you_mean(name, known) or did_you_mean(short, [k.rpartition("/")[2] for k in known])
        same = [k for k in known if k.rpartition("/")[2] == short]
        hint = f", did you mean {same[0]!r}?" if same else similar
        others = [k for k, n in self._loaded_in(namespace) if n == short]
        hint = f"; it is {_with_article(others[0])}" if others else hint
        raise PluginError(f"unknown {kind} {name!r}{hint} (`saeval list {kind}s` shows all)")

    def _loaded_in(self, namespace: str) -> Collection[tuple[str, str]]:
        """Return kind and name of each plugin of a package that is imported."""
        found = self._loaded.get(namespace)
        return found if isinstance(found, dict) else ()

    def built_in(self, kind: str) -> list[Loaded]:
        """Return the built-in plugins of a kind; imports no third party."""
        return [found for (of_kind, _), found in self.load(BUILT_IN).items() if of_kind == kind]

    def names(self, kind: str) -> list[Loaded]:
        """Return all plugins of a kind, built-ins first. Imports every package."""
        self.load_all()
        found = [
            p
            for loaded in self._loaded.values()
            if isinstance(loaded, dict)
            for (k, _), p in loaded.items()
            if k == kind
        ]
        return sorted(found, key=lambda p: (not p.id.startswith(f"{BUILT_IN}/"), p.id))

    def task_dirs(self) -> list[tuple[str, Path]]:
        """Return (namespace, folder) of all task specs that packages ship, built-ins first.

        A package with an entry point named `tasks` is asked through that one alone, which keeps `saeval list` quick;
        others are imported whole. Broken packages are passed over.
        """
        found = []
        for namespace, packages in sorted(self._packages.items(), key=lambda item: item[0] != BUILT_IN):
            if self._is_disabled(namespace):
                continue
            quick = [entry for package in packages for entry in package.entries if entry.name == "tasks"]
            try:
                if len(packages) == len(quick) == 1:
                    folders = _folders(_hooks(quick[0].load()))
                else:
                    self.load(namespace)
                    folders = self._task_dirs[namespace]
            except KeyboardInterrupt:
                raise
            except BaseException:
                if namespace == BUILT_IN:
                    raise
                continue
            found += [(namespace, folder) for folder in folders]
        return found

    def plugins(self) -> list[PluginInfo]:
        """Return a row for every installed package; never raises for a broken one."""
        rows = []
        for namespace, packages in self._packages.items():
            status: Literal["ok", "broken", "disabled"] = "ok"
            reason, provides = "", dict[str, list[str]]()
            if self._is_disabled(namespace):
                status = "disabled"
            else:
                try:
                    for kind, name in sorted(self.load(namespace)):
                        provides.setdefault(kind, []).append(name)
                except PluginError:
                    status, reason = "broken", str(self._loaded[namespace])
            rows += [PluginInfo(namespace, p.distribution, p.version, status, reason, provides) for p in packages]
        return rows


@lru_cache(maxsize=1)
def _installed(folders: tuple[tuple[str, int], ...]) -> Mapping[str, list[_Package]]:
    """Return the installed distributions with plugins, by namespace.

    Args:
        folders: The folders of `sys.path`, each with the time of its last change; while none changes, the metadata of
            all installed packages is read once.
    """
    by_distribution: dict[str, list[EntryPoint]] = {}
    distributions: dict[str, Distribution] = {}
    names: dict[Distribution | None, str | None] = {}  # since a distribution reads its metadata each time
    for entry in entry_points(group=GROUP):
        if entry.dist not in names:
            names[entry.dist] = _distribution(entry)
        name = names[entry.dist]
        if entry.dist is not None and name:
            distributions.setdefault(name, entry.dist)
            if entry not in by_distribution.setdefault(name, []):
                by_distribution[name].append(entry)
    packages: dict[str, list[_Package]] = {}
    for name, entries in sorted(by_distribution.items()):
        package = _Package(
            _namespace(name),
            name,
            distributions[name].version or "unknown",
            tuple(distributions[name].requires or ()),
            any(installed_from_folder(entry.dist) for entry in entries if entry.dist is not None),
            tuple(entries),
        )
        packages.setdefault(package.namespace, []).append(package)
    return packages


def _changed(folder: str) -> int:
    """Return when a package was last added to a folder or removed from it."""
    try:
        return Path(folder).stat().st_mtime_ns
    except OSError:
        return 0


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _namespace(distribution: str) -> str:
    """Namespace of a distribution: its normalised name without a leading `saeval-`, unless saeval itself uses that."""
    name = _normalise(distribution)
    short = name.removeprefix("saeval-")
    return name if short in (BUILT_IN, LOCAL) else short


def _distribution(entry: EntryPoint) -> str | None:
    """Name of the distribution of an entry point; None for the remains of an interrupted uninstall."""
    try:
        return entry.dist.name if entry.dist is not None else None
    except (OSError, KeyError, TypeError, AttributeError):  # as importlib.metadata or its backport puts it
        return None


def _sentence(error: BaseException) -> str:
    """Name and text of an exception on one line, and the file and line of the plugin that raised it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = text.partition(" For further information visit")[0]  # pydantic's link
    place = plugin_place(error)
    return f"{text} ({place})" if place else text


def _shown(plugin_id: str) -> str:
    return plugin_id.removeprefix(f"{BUILT_IN}/")


def _check_version(package: _Package) -> None:
    """Compare this saeval with what the package says it needs; pip only warns when saeval alone is upgraded."""
    from packaging.requirements import InvalidRequirement, Requirement

    from saeval import __version__

    for line in package.requires:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        fits = requirement.specifier.contains(__version__, prereleases=True)
        if _normalise(requirement.name) == "saeval" and applies and not fits:
            raise _Broken(
                f"{package.namespace} {package.version} needs saeval{requirement.specifier}, this is saeval "
                f"{__version__}"
            )


def _hooks(module: Any) -> pluggy.HookRelay:
    """Return the hooks of one module, in a plugin manager of its own: nobody else is run or blamed.

    Raises:
        _Broken: If a hook is malformed.
    """
    manager = pluggy.PluginManager("saeval")
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        text = str(error)
        if "unknown hook" in text:
            name = re.search(r"unknown hook '(\w+)'", text)
            raise _Broken(
                f"it implements a hook {name[1] if name else '?'} that saeval does not have; it may need a newer saeval"
            ) from error
        raise _Broken(f"a hook takes no arguments: {' '.join(text.split())}") from error
    return manager.hook


def _returned(hooks: pluggy.HookRelay, hook: str) -> list[Any]:
    """Ask a module for one hook.

    Raises:
        _Broken: If the hook raises, or does not return a list.
    """
    gathered: list[Any] = []
    try:
        caller = getattr(hooks, hook)
        answers = caller()
        if len(answers) < len(caller.get_hookimpls()):  # pluggy drops None
            raise _Broken(f"{hook} returned None; return a list")
        for returned in answers:
            if isinstance(returned, type) or not isinstance(returned, Iterable) or isinstance(returned, str | Mapping):
                raise _Broken(f"{hook} returned {returned!r}; return a list")
            gathered += returned
    except _Broken:
        raise
    except (Exception, SystemExit) as error:
        raise _Broken(f"{hook} raised {_sentence(error)}") from error
    return gathered


def _folders(hooks: pluggy.HookRelay) -> list[Path]:
    folders = _returned(hooks, "saeval_task_dirs")
    for folder in folders:
        if not isinstance(folder, str | os.PathLike) or not Path(folder).is_dir():
            raise _Broken(
                f"saeval_task_dirs returned {str(folder)!r}, which is not a folder; is it missing from the wheel?"
            )
    return [Path(folder) for folder in folders]


def _classes(hooks: pluggy.HookRelay, package: _Package) -> Iterator[Loaded]:
    from saeval.plugin import base as interfaces

    for kind, base in interfaces.BASE_CLASSES.items():
        for cls in _returned(hooks, f"saeval_{kind}s"):
            _check_class(cls, kind, base)
            code = code_hash(cls, whole=package.namespace != BUILT_IN) if package.from_folder else None
            yield Loaded(f"{package.namespace}/{cls.name}", kind, cls, package.distribution, package.version, code=code)


def _check_class(cls: Any, kind: str, base: Any) -> None:
    """Refuse what is not a finished plugin class of the kind, in words that help its author."""
    from saeval.plugin.signatures import unfit_method

    if not isinstance(cls, type):
        raise _Broken(f"saeval_{kind}s returned an object {cls!r}; return classes, not instances")
    if not issubclass(cls, base):
        raise _Broken(f"{cls.__name__} is not {_with_article(kind)}: it does not derive from saeval.{base.__name__}")
    fields: dict[str, Any] = getattr(cls, "model_fields", {})
    if "name" in fields:
        raise _Broken(
            f"{cls.__name__}: `name` has an annotation, which makes it an option; write `name = "
            f"{cls.__name__.lower()!r}`"
        )
    name = getattr(cls, "name", None)
    if not isinstance(name, str):
        raise _Broken(f"{cls.__name__} has no name; write `name = {cls.__name__.lower()!r}`")
    if not _NAME.fullmatch(name):
        raise _Broken(f"{cls.__name__}: {name!r} is not a valid name; use lower-case letters, digits and underscores")
    if taken := sorted(_attributes(base) & set(fields)):
        raise _Broken(
            f"{cls.__name__}: `{taken[0]}` has an annotation, which makes it an option; write `{taken[0]} = …` to set "
            f"what saeval.{base.__name__} declares, or rename the option"
        )
    if taken := sorted(_methods(base) & set(fields)):
        raise _Broken(f"{cls.__name__}: `{taken[0]}` is a method of saeval.{base.__name__}; rename the option")
    if inspect.isabstract(cls):
        raise _Broken(f"{cls.__name__} does not implement {', '.join(sorted(getattr(cls, '__abstractmethods__', ())))}")
    for method in _plain_methods(base):
        if inspect.iscoroutinefunction(getattr(cls, method)):
            raise _Broken(f"{cls.__name__}: `{method}` is async, but nothing awaits it; write `def {method}`")
    if unfit := unfit_method(cls, base):
        raise _Broken(f"{cls.__name__}: {unfit}")


def _with_article(kind: str) -> str:
    begins_with_vowel = kind[0] in "aeio" or kind == "llm"  # as it is said
    return f"{'an' if begins_with_vowel else 'a'} {kind}"


def _attributes(base: type) -> set[str]:
    """Return the class attributes of an interface that a plugin sets without an annotation."""
    return {attribute for above in base.__mro__ for attribute in getattr(above, "__class_vars__", ())}


def _methods(base: type) -> set[str]:
    """Return the methods and properties of an interface, without pydantic's."""
    own = [vars(above) for above in base.__mro__ if above.__module__.startswith("saeval.")]
    return {name for members in own for name, member in members.items() if isinstance(member, _METHODS)}


@cache
def _plain_methods(base: type) -> list[str]:
    """Return the methods of an interface that are not async, without pydantic's, such as `copy`."""
    methods = inspect.getmembers(base, inspect.isfunction)
    own = [(name, method) for name, method in methods if method.__module__.startswith("saeval.")]
    return [name for name, method in own if not inspect.iscoroutinefunction(method)]


def _from_file(kind: str, reference: str, base: Path) -> Loaded:
    """Import a class from a single file; its content's hash goes into the results."""
    from saeval.plugin import base as interfaces

    file_name, _, class_name = reference.rpartition(":")
    path = (base / Path(file_name).expanduser()).resolve()
    try:
        refuse_pipe(path)
        content = path.read_bytes()
    except InputError as error:
        raise PluginError(f"{kind} {reference!r}: {error}") from None
    except OSError as error:
        raise PluginError(f"{kind} {reference!r}: {path} cannot be read ({os_reason(error)})") from None
    sha = hashlib.sha256(content).hexdigest()
    spec = importlib.util.spec_from_file_location(f"{SINGLE_FILE}{sha[:12]}", path)
    assert spec is not None  # a .py path always has one
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic looks up annotations there
    try:
        # Exactly what was hashed; the loader might take bytecode of an earlier version that is as long.
        with importable_neighbours(path):
            exec(compile(content, path, "exec"), vars(module))  # noqa: S102
        classes = [name for name, value in vars(module).items() if isinstance(value, type)]
        if not hasattr(module, class_name):
            raise _Broken(f"{path.name} has no class {class_name!r}{did_you_mean(class_name, classes)}")
        cls = getattr(module, class_name)
        base_class = {"source": interfaces.ActivationSource, "llm": interfaces.LLM}.get(kind) or getattr(
            interfaces, kind.capitalize()
        )
        _check_class(cls, kind, base_class)
    except _Broken as error:
        raise PluginError(f"{kind} {reference!r}: {error}") from error
    except (Exception, SystemExit) as error:
        raise PluginError(f"{kind} {reference!r}: {_sentence(error)}") from error
    return Loaded(f"{LOCAL}/{cls.name}", kind, cls, path.name, sha[:12], sha, neighbours_hash(path))


def options_error(
    cls: type[Plugin], error: ValidationError, settings: Collection[str] = ()
) -> list[tuple[tuple[str | int, ...], str]]:
    """Turn pydantic's complaints about a plugin's options into (place, sentence) pairs.

    Args:
        cls: The plugin.
        error: The complaints.
        settings: Names of the settings that a spec writes among the options, as for the role of a language model.
    """
    from saeval._util import complaint, model_in  # with pydantic, which listing plugins does not need

    found = []
    for item in error.errors():
        loc, fields = _place(cls, tuple(item["loc"]))
        if item["type"] == "extra_forbidden":
            owner, beside = (cls.name, settings) if len(loc) == 1 else (".".join(map(str, loc[:-1])), ())
            hint = did_you_mean(str(loc[-1]), [*fields, *beside])
            message = f"no such option{hint}; {owner} has: {', '.join(fields) or 'no options'}"
            message += f"; every role has: {', '.join(beside)}" if beside else ""
        elif item["type"] == "union_tag_invalid":
            loc = (*loc, item["ctx"]["discriminator"].strip("'"))
            message = f"should be one of {item['ctx']['expected_tags']} (got {item['ctx']['tag']!r})"
        elif item["type"] == "missing":
            message = MISSING
        elif item["type"] == "frozen_instance":
            message = "is assigned by the plugin's own __init__; declare options as fields, such as `k: int = 3`"
        else:
            option = fields.get(str(loc[-1])) if loc else None
            message = complaint(item, model_in(option.annotation) if option is not None else None)
        found.append((loc, message))
    return found


def _place(cls: type[Plugin], loc: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], Mapping[str, Any]]:
    """Return where a complaint belongs in a spec, and the options that there are around that place.

    Where an option is one of several models, pydantic names its tag (the value of its `use`) as a step of its own.
    """
    place: list[str | int] = []
    inside: Any = cls
    fields: Mapping[str, Any] = {}
    for step in loc:
        tagged = [
            member
            for member in get_args(inside)
            if any(step in get_args(field.annotation) for field in getattr(member, "model_fields", {}).values())
        ]
        if tagged:
            inside = tagged[0]
            continue
        fields = getattr(inside, "model_fields", {})
        inside = getattr(fields.get(str(step)), "annotation", None)
        place.append(step)
    return tuple(place), fields
