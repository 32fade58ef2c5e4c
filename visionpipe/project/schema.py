"""Converts YAML into typed dataclasses. Unknown, missing and mistyped keys are errors with the key and a hint."""

import dataclasses
import types
import typing
from typing import Any, Literal

import yaml

from visionpipe.errors import YAML_EXPONENT, ConfigError, did_you_mean


class UniqueKeys(yaml.SafeLoader):
    """A YAML loader that refuses two equal keys in a section. PyYAML would ignore the first one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key} occurs twice, {str(node.start_mark).strip()}")
        return super().construct_mapping(node, deep)


def require(condition: object, key: str, message: str) -> None:
    if not condition:
        raise ConfigError(f"params.yaml: {key}: {message}")


def build(kind: type, content: Any, key: str) -> Any:
    """Makes the dataclass `kind` from a mapping.

    Raises:
        ConfigError: a key is unknown, missing or of the wrong type.
    """
    values = converted(kind, content, key)
    for f in dataclasses.fields(kind):
        if f.name not in content and not may_be_left_out(f):
            raise ConfigError(f"params.yaml: {key}{'.' if key else ''}{f.name} is missing")
    return kind(**values)


def may_be_left_out(key: "dataclasses.Field[Any]") -> bool:
    """Whether a section of params.yaml is valid without this key.

    The file is the whole experiment: only a key that may be null or empty, or that is keyword-only, may be left out.
    """
    return key.default is None or key.default_factory is not dataclasses.MISSING or bool(key.kw_only)


def converted(kind: type, content: Any, key: str) -> dict[str, Any]:
    """Returns the values of a mapping, converted to the annotated types of the fields of the dataclass `kind`."""
    if not isinstance(content, dict):
        raise ConfigError(f"params.yaml: {key or 'the file'}: expected a section, received {content!r}")
    fields, prefix = [f.name for f in dataclasses.fields(kind)], f"{key}." if key else ""
    for name in content:
        if name not in fields:
            raise ConfigError(
                f"params.yaml: unknown key {prefix}{name}{did_you_mean(str(name), fields)}; "
                f"known here: {', '.join(fields)}"
            )
    hints = typing.get_type_hints(kind)
    return {name: convert(value, hints[name], prefix + name) for name, value in content.items()}


def convert(value: Any, hint: Any, key: str) -> Any:
    """Converts `value` to the annotated type `hint`. An integer is valid as a float; a boolean is no number.

    Raises:
        ConfigError: the value has another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, key)
    if origin is types.UnionType or origin is typing.Union:
        kinds = [a for a in arguments if a is not types.NoneType]
        if value is None and len(kinds) < len(arguments):
            return None
        # Of several types, the one that matches the value; if none matches, the first, whose error is raised.
        return convert(value, next((a for a in kinds if isinstance(value, form(a))), kinds[0]), key)
    if origin is Literal:
        if value in arguments and type(value) in {type(argument) for argument in arguments}:
            return value
        words = list(map(str, arguments))
        raise ConfigError(
            f"params.yaml: {key}: expected one of {', '.join(words)}, received "
            f"{value!r}{did_you_mean(str(value), words)}"
        )
    if origin is dict and isinstance(value, dict):
        for k in value:
            if not isinstance(k, str):  # DVC would not make a stage of an entry of models: with such a name
                raise ConfigError(
                    f"params.yaml: {key}.{k}: expected a text as a name: write it in quotes, '{k}'"
                )
        return {k: convert(v, arguments[1], f"{key}.{k}") for k, v in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(convert(v, arguments[0], f"{key}[{i}]") for i, v in enumerate(value))
        if len(value) == len(arguments):
            return tuple(
                convert(v, a, f"{key}[{i}]") for i, (v, a) in enumerate(zip(value, arguments, strict=True))
            )
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is hint:
        return value
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    expected = names.get(
        hint,
        "a list of [height, width]"
        if hint == tuple[int, int]
        else f"a list of {len(arguments)}"
        if origin is tuple and arguments[-1] is not Ellipsis
        else "a list"
        if origin is tuple
        else "a section",
    )
    note = YAML_EXPONENT if hint is float and isinstance(value, str) else ""
    raise ConfigError(f"params.yaml: {key}: expected {expected}, received {value!r}{note}")


def form(hint: Any) -> Any:
    """Returns the type of YAML values for an annotated type."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return type(typing.get_args(hint)[0])
    return list | tuple if origin is tuple else origin or hint
