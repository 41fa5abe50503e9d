"""Creates the plugins of a spec and checks their options, collecting all mistakes with their places."""

from __future__ import annotations

import typing
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from saeval._util import InputError, Located, PluginError, did_you_mean, without_secrets
from saeval.llm import RoleSettings
from saeval.plugin.base import Need, Plugin, Scorer, Step, Tracker, kind_of
from saeval.plugin.registry import BUILT_IN, MISSING, Loaded, Registry, options_error
from saeval.records import metrics_mistake
from saeval.task.parts import Part, RolePart, StepPart
from saeval.task.spec.document import KeyPath, SpecDocument
from saeval.task.spec.models import OPTION_KEYS, STEP_KEYS, PartSpec, RoleSpec, Spec, as_part
from saeval.task.spec.validation import explain_error


class PartMaker:
    """Creates the parts of a task; continues after mistakes so that all are reported together.

    Args:
        document: The spec; later that of each cell in turn.
        registry: The plugin registry.
        check: Whether each plugin checks that the files and models in its options exist.
    """

    def __init__(self, document: SpecDocument, registry: Registry, check: bool):
        self.document = document
        self.registry = registry
        self.check = check
        self.problems: list[str] = []

    def fail(self, path: KeyPath, message: str) -> None:
        if not self.document.is_unfilled(path):
            self.problems.append(f"{self.document.where(path)}: {message}")

    def plugin(self, kind: str, spec: PartSpec, path: KeyPath, keys: Collection[str] | None = None) -> Part[Any] | None:
        """Find a plugin, create it with its options, and let it check them.

        Args:
            kind: The plugin's kind.
            spec: Its part of the spec.
            path: Place of the part.
            keys: Keys that have an effect on it; default: those of its kind.
        """
        self.check_keys(spec, path, keys or STEP_KEYS.get(kind, OPTION_KEYS), f"this {kind}")
        try:
            loaded = self.registry.get(kind, spec.use, base=self.document.folder((*path, "use")))
        except PluginError as error:
            self.fail((*path, "use"), str(error))
            return None
        return self.instance(loaded, spec.with_, (*path, "with"))

    def check_keys(self, spec: PartSpec, path: KeyPath, keys: Collection[str], owner: str) -> None:
        """Report the keys of a part that would have no effect on it."""
        for name, field in PartSpec.model_fields.items():
            key = field.alias or name
            if key not in keys and getattr(spec, name) not in (None, {}):
                self.fail((*path, key), f"has no effect on {owner}; omit it")

    def instance(
        self, loaded: Loaded, options: Mapping[str, Any], path: KeyPath, settings: Collection[str] = ()
    ) -> Part[Any] | None:
        """Create a plugin with its options, and let it check them.

        Args:
            loaded: The plugin.
            options: Its options.
            path: Place of the options.
            settings: Names of the settings beside them, of a language model's role.
        """
        made: dict[str, Part[Any] | None] = {}
        for key, value in options.items():
            kind = _kind_of_option(loaded.cls, key)
            if kind is not None and not isinstance(value, Plugin):
                made[key] = self.nested(kind, value, (*path, key))
        nested = {key: part for key, part in made.items() if part is not None}
        if len(nested) < len(made):
            return None
        check = self.check and not self.document.holds_unfilled(path)
        values = {k: nested[k].plugin if k in nested else v for k, v in options.items()}
        try:
            plugin = loaded.cls(**values)
            if check:
                plugin.check()
            mistake = _mistake(plugin, fingerprint=check and loaded.distribution != BUILT_IN)
        except ValidationError as error:
            for loc, message in options_error(loaded.cls, error, settings):
                place = (*path, *loc)
                if message == MISSING and (remedy := self.document.remedy(place)):
                    message += f"; {loaded.cls.name} requires it{remedy}"
                self.fail(place, message)
            return None
        except InputError as error:
            self.fail(path[:-1], str(error))
            return None
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may raise anything
            mistake = f"raised {type(error).__name__}: {error}"
        if mistake is not None:
            self.fail(path[:-1], without_secrets(f"the plugin {loaded.id} {mistake}"))
            return None
        return Part(plugin, loaded, tuple(nested.values()))

    def nested(self, kind: str, value: Any, path: KeyPath) -> Part[Any] | None:
        """Create the part in an option that is itself a plugin, such as a source's `coder`."""
        try:
            spec = PartSpec.model_validate(as_part(value))
        except ValidationError:
            self.fail(path, f"write `{{use: NAME, with: {{…}}}}` for a {kind}")
            return None
        return self.plugin(kind, spec, path, OPTION_KEYS)

    def roles(self, specs: Mapping[str, RoleSpec]) -> dict[str, RolePart]:
        roles = {}
        for role, role_spec in specs.items():
            path: KeyPath = ("llms", role)
            options = dict(role_spec.model_extra or {})
            known = RoleSettings.model_fields
            try:
                settings = RoleSettings.model_validate({k: v for k, v in options.items() if k in known})
            except ValidationError as error:
                mistakes = [e for e in error.errors() if not self.document.is_unfilled((*path, *e["loc"]))]
                self.problems += [explain_error(e, self.document.where, RoleSettings, path) for e in mistakes]
                continue
            given = self.document.data["llms"][role]["model"]
            loaded, rest = self.llm(given, (*path, "model"))
            if loaded is None:
                continue
            if isinstance(given, Located):
                rest = Located(rest, given.file, given.line)
            # null removes an option of an included spec, for models of another plugin
            others = {k: v for k, v in options.items() if k not in known and v is not None}
            part = self.instance(loaded, {"model": rest, **others}, path, known)
            if isinstance(rest, Located) and rest.path is not None:
                given.path = f"{given.removesuffix(rest)}{rest.path}"
            if part is not None and settings.structured and not part.plugin.follows_schemas:
                self.fail(
                    (*path, "structured"),
                    f"{role_spec.model} does not support JSON schemas; omit `structured`, or serve the model with a "
                    "server that does (vLLM, llama.cpp, SGLang, Ollama: openai_compatible/…)",
                )
            elif part is not None:
                roles[role] = RolePart(role, str(role_spec.model), part, settings)
        return roles

    def llm(self, model: str, path: KeyPath) -> tuple[Loaded | None, str]:
        """Select the LLM plugin by the model's prefix; other names are litellm names.

        A package's namespace counts as prefix only if the package has LLM plugins: installing `saeval-openai` without
        any does not change the meaning of `openai/gpt-4o-mini`.
        """
        first, _, rest = model.partition("/")
        if rest and (loaded := self.registry.find("llm", first)):
            return loaded, rest
        if rest and first in self.registry.namespaces:
            second, _, others = rest.partition("/")
            try:
                if any(kind == "llm" for kind, _ in self.registry.load(first)):
                    return self.registry.get("llm", f"{first}/{second}"), others
            except PluginError as error:
                self.fail(path, str(error))
                return None, ""
        return self.registry.get("llm", "litellm"), model

    def step(self, kind: str, spec: PartSpec, path: KeyPath, roles: Mapping[str, RolePart]) -> StepPart[Any] | None:
        part = self.plugin(kind, spec, path)
        if part is None:
            return None
        step: Step = part.plugin
        role = spec.llm or step.llm_role
        if spec.llm and step.llm_role is None:
            self.fail((*path, "llm"), f"{part.loaded.id} does not use a language model; omit `llm`")
        llms = self.document.data.get("llms", {})
        if role is not None and role not in llms:
            self.fail(
                path,
                f"{part.loaded.id} uses the role {role!r}, which is not under llms{did_you_mean(role, llms)} (it has: "
                f"{', '.join(llms) or 'none'}); to add the role, give its model, as with --set llms.{role}.model=MODEL",
            )
            return None
        asked = roles.get(role) if role else None
        if asked and "logprobs" in step.needs() and not asked.part.plugin.can_score:
            self.fail(
                path,
                f"{part.loaded.id} needs a model that scores continuations, but {asked.model} cannot; use an hf/… "
                f"model for the role {role!r}",
            )
        baselines = None if spec.baselines is None else frozenset(spec.baselines)
        return StepPart(part, role, spec.when.latents if spec.when else None, baselines)

    def trackers(self, spec: Spec) -> tuple[Part[Tracker], ...]:
        parts = [self.plugin("tracker", t, ("run", "trackers", i)) for i, t in enumerate(spec.run.trackers)]
        return tuple(part for part in parts if part is not None)


def _mistake(plugin: Plugin, *, fingerprint: bool) -> str | None:
    """Return what is wrong with what a plugin declares, which would end a run after calls were paid; None if nothing.

    Args:
        plugin: The plugin.
        fingerprint: Whether to check its fingerprint, which may read large files.
    """
    needs = plugin.needs()
    if not isinstance(needs, frozenset | set) or not needs <= set(typing.get_args(Need)):
        return f"needs {needs!r}, but needs() has to return a frozenset of {', '.join(typing.get_args(Need))}"
    if isinstance(plugin, Step):
        role: object = plugin.llm_role
        if role is not None and not isinstance(role, str):
            return f"has the llm_role {role!r}, but `llm_role` has to be the name of a role, or None"
    if isinstance(plugin, Scorer) and (mistake := metrics_mistake(plugin.metrics)):
        return mistake
    if fingerprint:
        try:
            TypeAdapter(JsonValue).validate_python(plugin.fingerprint())
        except ValidationError:
            return f"has the fingerprint {plugin.fingerprint()!r}, but fingerprint() has to return JSON values"
    return None


def _kind_of_option(cls: type[Plugin], key: str) -> str | None:
    """Return the kind of plugin in an option; None if the option is not a plugin."""
    field = cls.model_fields.get(key)
    if field is None:
        return None
    candidates = [field.annotation, *typing.get_args(field.annotation)]
    return next((kind for candidate in candidates if (kind := kind_of(candidate))), None)
