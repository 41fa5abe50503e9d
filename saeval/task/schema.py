"""Builds the JSON Schema of task specs for editors, with the options of all installed plugins."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import GenerateJsonSchema

from saeval.llm import RoleSettings
from saeval.plugin import base as interfaces
from saeval.plugin.kinds import KINDS
from saeval.plugin.registry import BUILT_IN, Loaded, Registry
from saeval.task.spec.models import BASELINE_KEYS, OPTION_KEYS, SHUFFLED, STEP_KEYS, GroupSpec, Spec

Schema = dict[str, Any]
Options = Mapping[str, Schema]
"""Schemas of plugin options, by the plugins' names in specs."""

_FILE = {"type": "string", "pattern": r"\.py:\w+$", "description": "A class in a single file, `./file.py:Class`."}
_RANDOM = "random_explanation"
_FIXED = {"description": "Fixed explanations that do not depend on the latent."}
_SHUFFLED = {"description": "The explanations of other latents of the cell."}
_NESTED = "x-saeval-kind"  # temporary mark for options that are plugins, replaced when definitions are assembled
_SILENT = "x-saeval-silent"  # temporary mark of steps that ask no model
_BLIND = "x-saeval-blind"  # temporary mark of scorers that do not measure the explanation
_INSIDE = ("properties", "$defs", "anyOf", "allOf", "items", "additionalProperties", "then")


def task_schema(registry: Registry) -> Schema:
    """Return the JSON Schema (draft 2020-12) of task specs in this environment.

    Keys are required only in a complete spec without `include`, since an included spec may set them. Any value may be a
    `${matrix.…}`. Checks that need code, such as whether a file exists, are left to `saeval validate`.

    Args:
        registry: The plugin registry; broken and disabled packages are omitted.
    """
    options = {kind: {_name(plugin): _options(plugin) for plugin in registry.names(kind)} for kind in KINDS}
    schema = Spec.model_json_schema(by_alias=True)
    definitions, properties = schema["$defs"], schema["properties"]
    entry, role = definitions.pop("PartSpec"), definitions.pop("RoleSpec")
    part = {key: value for key, value in entry.items() if key != "required"}
    for kind, found in options.items():
        keys = _only(entry if kind == "tracker" else part, OPTION_KEYS)
        definitions[kind] = _role(role, found) if kind == "llm" else _named_or_part(keys, kind, found)
        for name, of_plugin in found.items():
            definitions |= of_plugin.pop("$defs", {})
            definitions[_definition(kind, name)] = {
                k: v for k, v in of_plugin.items() if k not in ("required", _SILENT, _BLIND)
            }
    definitions["explaining"] = _named_or_part(_only(part, STEP_KEYS["explainer"]), "explainer", options["explainer"])
    definitions["labelled"] = _part(_only(part, STEP_KEYS["scorer"]), "scorer", options["scorer"])
    definitions["baseline"] = _baseline(entry, options)
    for key, definition in (("source", "source"), ("sampler", "sampler"), ("explainer", "explaining")):
        properties[key] = _described(properties[key], {"$ref": f"#/$defs/{definition}"})
    properties["scorers"] = _described(properties["scorers"], _scorers(options["scorer"]))
    properties["baselines"]["items"] = {"$ref": "#/$defs/baseline"}
    definitions["RunOptions"]["properties"]["trackers"]["items"] = {"$ref": "#/$defs/tracker"}
    properties["llms"]["additionalProperties"] = {"$ref": "#/$defs/llm"}
    properties |= {key: of for key, of in GroupSpec.model_json_schema()["properties"].items() if key not in properties}
    required = schema.pop("required")
    schema = _with_slots(schema)
    schema["$defs"]["slot"] = {"type": "string", "pattern": r"\$\{", "description": "A value of the matrix."}
    begun = {"anyOf": [{"required": [key]} for key in ("saeval", "task", "version")]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "A task of saeval",
        "if": {"allOf": [begun, {"not": {"anyOf": [{"required": ["include"]}, {"required": ["group"]}]}}]},
        "then": {"required": required, "properties": _complete(options)},
    }


def _name(plugin: Loaded) -> str:
    return plugin.id.removeprefix("saeval/")


def _definition(kind: str, name: str) -> str:
    return f"{kind}.{name.replace('/', '.')}"


# --- The options of one plugin ------------------------------------------------------------------------------


class _Generator(GenerateJsonSchema):
    """A schema generator that marks options that are plugins, since specs write them with `use`."""

    ignored_warning_kinds = {"non-serializable-default", "skipped-choice"}
    plugin: type
    """The plugin whose options are generated."""

    def model_schema(self, schema: Any) -> Schema:
        """Return the schema of a model."""
        kind = interfaces.kind_of(schema["cls"]) if schema["cls"] is not self.plugin else None
        return {_NESTED: kind} if kind else super().model_schema(schema)


def _options(plugin: Loaded) -> Schema:
    """Return the schema of a plugin's options, with definitions prefixed by the plugin's name.

    It is marked if the plugin is a step that asks no model, or a scorer that does not measure the explanation.
    """
    prefix = _definition(plugin.kind, _name(plugin))
    generator = type("_GeneratorOfOne", (_Generator,), {"plugin": plugin.cls})
    try:
        schema = plugin.cls.model_json_schema(schema_generator=generator, ref_template=f"#/$defs/{prefix}.{{model}}")
    except PydanticInvalidForJsonSchema:  # an option has a type without JSON schema
        schema = {"type": "object", "description": plugin.cls.__doc__ or ""}
    schema["$defs"] = {f"{prefix}.{name}": found for name, found in schema.pop("$defs", {}).items()}
    plain: Schema = _plain(schema)
    silent = issubclass(plugin.cls, interfaces.Step) and plugin.cls.llm_role is None
    blind = issubclass(plugin.cls, interfaces.Scorer) and plugin.cls.reads_explanation is False
    return plain | ({_SILENT: True} if silent else {}) | ({_BLIND: True} if blind else {})


def _plain(schema: Any) -> Any:
    """Resolve marks of plugins to references; replace `oneOf` by `anyOf`, since members of tagged unions overlap."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if _NESTED in schema:
        return {"$ref": f"#/$defs/{schema[_NESTED]}"}
    return {"anyOf" if k == "oneOf" else k: _plain(v) for k, v in schema.items() if k != "discriminator"}


# --- Parts, scorers and roles -------------------------------------------------------------------------------


def _described(before: Schema, schema: Schema) -> Schema:
    return {"description": before["description"], **schema}


def _first_line(schema: Schema) -> str:
    return str(schema.get("description", "")).partition("\n")[0]


def _choice(options: Options) -> list[Schema]:
    return [{"const": name, "description": _first_line(schema)} for name, schema in options.items()]


def _full_names(options: Options) -> Schema:
    """Return the pattern of the full names of built-ins, which editors do not offer."""
    return {"type": "string", "pattern": rf"^{BUILT_IN}/({'|'.join(name for name in options if '/' not in name)})$"}


def _if_used(name: str, then: Schema) -> Schema:
    names = [name, f"{BUILT_IN}/{name}"]
    return {"if": {"properties": {"use": {"enum": names}}, "required": ["use"]}, "then": then}


def _keys_of(kind: str, name: str, options: Schema) -> Schema:
    """Return the schema of the keys of a part that depend on its plugin."""
    keys: Schema = {"with": {"$ref": f"#/$defs/{_definition(kind, name)}"}}
    keys |= {"llm": False} if _SILENT in options else {}
    keys |= {"baselines": {"maxItems": 0}} if _BLIND in options else {}
    return {"properties": keys}


def _only(part: Schema, keys: Collection[str]) -> Schema:
    """Return the schema of a part with only these keys."""
    return {**part, "properties": {key: schema for key, schema in part["properties"].items() if key in keys}}


def _part(part: Schema, kind: str, options: Options) -> Schema:
    """Return the schema of a mapping with `use` and `with`."""
    use = {**part["properties"]["use"], "anyOf": [*_choice(options), _full_names(options), _FILE]}
    del use["type"]
    return {
        **{k: v for k, v in part.items() if k != "type"},
        "properties": {**part["properties"], "use": use},
        "allOf": [
            {"type": "object"},
            *(_if_used(name, _keys_of(kind, name, schema)) for name, schema in options.items()),
        ],
    }


def _named_or_part(part: Schema, kind: str, options: Options) -> Schema:
    """Return the schema of a part; plugins without required options may be given by name only."""
    alone = {name: schema for name, schema in options.items() if not schema.get("required")}
    return {"anyOf": [*_choice(alone), _full_names(alone), _FILE, _part(part, kind, options)]}


def _baseline(part: Schema, options: Mapping[str, Options]) -> Schema:
    """Return the schema of an entry of `baselines`: fixed or shuffled explanations, an explainer, or a coder."""
    fixed, shuffled = _only(part, BASELINE_KEYS["coder"]), _only(part, BASELINE_KEYS[SHUFFLED])
    fixed["properties"] |= {
        "use": {"const": _RANDOM},
        "with": {"$ref": f"#/$defs/{_definition('explainer', 'random')}"},
    }
    shuffled["properties"]["use"] = {"const": SHUFFLED}
    explainer = _named_or_part(_only(part, BASELINE_KEYS["explainer"]), "explainer", options["explainer"])
    coder = _named_or_part(_only(part, BASELINE_KEYS["coder"]), "coder", options["coder"])
    names = _choice({_RANDOM: _FIXED, SHUFFLED: _SHUFFLED})
    return {"anyOf": [*names, fixed, shuffled, *explainer["anyOf"], *coder["anyOf"]]}


def _scorers(options: Options) -> Schema:
    """Return the schema of `scorers`, whose labels are plugin names unless there is a `use`."""
    labelled = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/labelled"}]}
    unnamed = {"not": {"required": ["use"]}}
    return {
        "type": "object",
        "properties": {
            name: {
                "description": _first_line(schema),
                **labelled,
                "if": unnamed,
                "then": _keys_of("scorer", name, schema),
            }
            for name, schema in options.items()
        },
        "additionalProperties": labelled,
    }


def _role(role: Schema, options: Options) -> Schema:
    """Return the schema of a role: settings of all roles, and options of the plugin that `model` selects."""
    settings = RoleSettings.model_json_schema()["properties"]
    claimed = {name: rf"^({BUILT_IN}/)?{name}/" for name in options if name != "litellm"}
    picked = {
        **{name: {"pattern": pattern} for name, pattern in claimed.items()},
        "litellm": {"not": {"pattern": "|".join([*claimed.values(), r"\$\{"])}},
    }
    return {
        **{k: v for k, v in role.items() if k != "required"},
        "properties": {**role["properties"], **settings},
        "allOf": [
            {
                "if": {"properties": {"model": model}, "required": ["model"]},
                "then": {
                    "properties": {**_or_null(options[name].get("properties", {})), **settings, "model": {}},
                    "additionalProperties": options[name].get("additionalProperties", True) or {"type": "null"},
                },
            }
            for name, model in picked.items()
            if name in options
        ],
    }


def _or_null(properties: Mapping[str, Schema]) -> Mapping[str, Schema]:
    """Allow null for every option; it removes the option of an included spec."""
    return {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in properties.items()}


def _complete(options: Mapping[str, Options]) -> Schema:
    """Return the requirements for a spec without includes: plugins are named, with their required options."""

    def needed(kind: str, then: Any) -> list[tuple[str, Schema]]:
        return [(name, then(s["required"])) for name, s in options[kind].items() if s.get("required")]

    def inside_with(required: Iterable[str]) -> Schema:
        return {"required": ["with"], "properties": {"with": {"required": list(required)}}}

    def used(kind: str) -> Schema:
        return {"allOf": [{"required": ["use"]}, *(_if_used(*found) for found in needed(kind, inside_with))]}

    scorers = dict(needed("scorer", lambda required: {"type": "object", **inside_with(required)}))
    unnamed = {"if": {"not": {"required": ["use"]}}}
    models = [  # never empty: every role needs a `model`
        {
            "if": {"properties": {"model": {"pattern": rf"^({BUILT_IN}/)?{name}/"}}, "required": ["model"]},
            "then": {"required": required},
        }
        for name, required in needed("llm", list)
    ]
    return {
        **{kind: used(kind) for kind in ("source", "sampler", "explainer")},
        "scorers": {
            "minProperties": 1,
            "properties": {name: {**unnamed, "then": scorers.get(name, {})} for name in options["scorer"]},
            "patternProperties": {f"^{BUILT_IN}/": True},
            "additionalProperties": {"type": "object", "required": ["use"]},
            "allOf": [{"additionalProperties": {"if": {"required": ["use"]}, "then": used("scorer")}}],
        },
        "llms": {"additionalProperties": {"required": ["model"], "allOf": models}},
    }


def _with_slots(schema: Any, *, value: bool = False) -> Any:
    """Allow `${matrix.…}` for every value that does not allow arbitrary text already."""
    if isinstance(schema, list):
        return [_with_slots(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inside = {}
    for key, found in schema.items():
        if key in ("properties", "$defs"):
            found = {k: _with_slots(v, value=key == "properties") for k, v in found.items()}
        elif key in _INSIDE:
            found = _with_slots(found, value=key in ("items", "additionalProperties"))
        inside[key] = found
    if not value or _takes_any_text(schema):
        return inside
    outer = {k: inside.pop(k) for k in ("title", "description", "default") if k in inside}
    return {**outer, "anyOf": [inside, {"$ref": "#/$defs/slot"}]}


def _takes_any_text(schema: Schema) -> bool:
    if "anyOf" in schema:
        return any(map(_takes_any_text, schema["anyOf"]))
    return (
        not schema.keys() & {"$ref", "const", "enum", "pattern", "allOf"} and schema.get("type", "string") == "string"
    )
