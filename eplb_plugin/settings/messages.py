"""What is wrong with a user's settings, in one line: the key, what was found, the rule, the nearest valid value."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import mismatch

Model = type[BaseModel]


def conflict(key: str, *, found: object, expected: str, fix: str) -> ValueError:
    """For a validator: a rule between keys is broken; `explain` passes the text on as it is."""
    return ValueError(str(mismatch(key, found=found, expected=expected, fix=fix)))


def explain(error: ValidationError, root: Model, sections: Mapping[str, Model]) -> str:
    """One problem as `key: found …, expected …; fix: …`; of a union's branches, the one that says most.

    root: the model that refused the data; sections: the models of its nested keys.
    """

    def informative(item: Any) -> tuple[bool, bool, int]:
        return item["type"] in ("extra_forbidden", "invalid_key"), item["type"] == "value_error", len(item["loc"])

    problem = max(error.errors(), key=informative)
    if problem["type"] == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    # pydantic puts the branch of `"auto" | TopologyConfig` into the location; it is no key of the user's
    path = [str(part) for place, part in enumerate(problem["loc"]) if (place, problem["loc"][0]) != (1, "topology")]
    unknown = not path or problem["type"] in ("extra_forbidden", "invalid_key")
    path = path or [str(problem["input"])]  # a key that is no valid text has no location
    key = ".".join(part if part.isprintable() and 0 < len(part) <= 60 else _shorten(part) for part in path)
    if unknown:
        known = sorted(sections.get(path[0], root).model_fields)
        near = closest(path[-1], known)
        fix = f"did you mean {near}?" if near else "remove it"
        return str(mismatch(key, found="unknown key", expected=f"one of {', '.join(known)}", fix=fix))
    rule, nearest = _rule(path, problem["input"], root, sections)
    fix = "see `eplb-plugin config schema`" if nearest is None else f"the nearest valid value is {nearest}"
    return str(mismatch(key, found=_shorten(problem["input"]), expected=rule, fix=fix))


def closest(name: str, known: Sequence[str]) -> str | None:
    """The one of `known` that was meant: alike in most letters, or one is part of the other; else None."""
    alike = difflib.get_close_matches(name, known, 1, 0.72)
    if alike or len(name) < 3:
        return alike[0] if alike else None
    return next((one for one in known if name in one or one in name), None)


def _rule(path: list[str], found: object, root: Model, sections: Mapping[str, Model]) -> tuple[str, object | None]:
    """What the schema says of a key, in words, and the valid value nearest to what was found (None: no such)."""
    if path == ["topology"]:
        return "'auto' or a mapping with nodes", "auto"
    if len(path) == 1 and path[0] in sections:
        return "a mapping of settings", None
    model, name = (root, path[0]) if len(path) == 1 else (sections[path[0]], path[1])
    schema = model.model_json_schema()["properties"][name]
    schema = schema.get("anyOf", [schema])[0]  # the other branch is null
    if len(path) > 2:
        schema = schema["items"]
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}", closest(str(found), schema["enum"])
    if schema["type"] == "boolean":
        words = {"1": "true", "yes": "true", "on": "true", "true": "true"}
        words |= {"0": "false", "no": "false", "off": "false", "false": "false"}
        return "true or false", words.get(str(found).lower()) if isinstance(found, (str, int)) else None
    if schema["type"] == "array":
        return "a list of at least one node number", None
    if schema["type"] == "string":
        return "a path", None
    whole = schema["type"] == "integer"
    low, high = schema["minimum"], schema.get("maximum")
    rule = f"{'an integer' if whole else 'a number'} {f'>= {low}' if high is None else f'in {low}..{high}'}"
    try:
        number = found if isinstance(found, int) else float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return rule, None
    if isinstance(found, bool) or not (isinstance(number, int) or math.isfinite(number)):
        return rule, None
    number = max(low, number if high is None else min(high, number))
    return rule, round(number) if whole else number


def _shorten(found: object) -> str:
    """repr of bounded length, also of data that is deep, cyclic or huge."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    short.maxlevel, short.maxlist, short.maxdict = 2, 4, 4
    try:
        text = short.repr(found)
    except ValueError:  # Python refuses to print integers of thousands of digits
        text = "a huge integer"
    return text if len(text) <= 60 else text[:57] + "..."
