"""The message by which the planning rank tells all others its plan, or why there is none."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PluginError, mismatch
from ..placement import Placement
from ..plan_types import Plan

# what a plan consists of, and the type it travels in
ARRAYS = {"phy2log": "<i4", "replica_weights": "<f8", "source_weights": "<f8", "cover_weights": "<i4"}


def encode(plan: Plan) -> bytes:
    """Header line (JSON: shapes, and a digest of the body), then the plan's arrays one after the other."""
    given = {"phy2log": plan.placement.phy2log} | {name: getattr(plan, name) for name in list(ARRAYS)[1:]}
    arrays = {name: np.ascontiguousarray(array, ARRAYS[name]) for name, array in given.items() if array is not None}
    body = b"".join(array.tobytes() for array in arrays.values())
    header = {
        "digest": hashlib.sha256(body).hexdigest(),
        "dispatch": plan.dispatch,
        "shapes": {name: array.shape for name, array in arrays.items()},
    }
    return json.dumps(header).encode() + b"\n" + body


def encode_error(reason: str) -> bytes:
    """A message that makes every rank keep what it has."""
    return json.dumps({"error": reason}).encode() + b"\n"


def accept(message: bytes, in_force: Plan) -> Plan:
    """The plan in a message. Raises PluginError if it is an error, damaged, or cannot follow the plan `in_force`."""
    head, _, body = message.partition(b"\n")
    header = json.loads(head)
    if "error" in header:
        raise PluginError(header["error"])
    digest = hashlib.sha256(body).hexdigest()
    if digest != header["digest"]:
        raise mismatch("plan digest", found=digest[:16], expected=header["digest"][:16], fix="check the network")
    arrays = _arrays(body, {name: tuple(shape) for name, shape in header["shapes"].items()})
    _refuse_unfit(arrays, header["dispatch"], in_force)
    placement = Placement(arrays["phy2log"], in_force.placement.layer_ids)
    if placement.num_experts != in_force.placement.num_experts:
        expected = in_force.placement.num_experts
        raise mismatch("plan", found=f"{placement.num_experts} experts", expected=expected, fix="report this")
    source, cover = arrays.get("source_weights"), arrays.get("cover_weights")
    return Plan(placement, in_force.topology, in_force.dispatch, arrays["replica_weights"], 0.0, source, cover)


def _arrays(body: bytes, shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    arrays, begin = {}, 0
    for name, shape in shapes.items():
        kind = np.dtype(ARRAYS[name])
        end = begin + int(np.prod(shape)) * kind.itemsize
        arrays[name] = np.frombuffer(bytearray(body[begin:end]), kind).reshape(shape)  # writable, as planned ones are
        begin = end
    return arrays


def _refuse_unfit(arrays: dict[str, NDArray[Any]], dispatch: str, in_force: Plan) -> None:
    if dispatch != in_force.dispatch:
        raise mismatch("plan", found=f"dispatch {dispatch}", expected=in_force.dispatch, fix="report this")
    slots = in_force.placement.phy2log.shape
    expected = {name: slots for name in ARRAYS} | {"source_weights": (in_force.topology.num_nodes, *slots)}
    for name, array in arrays.items():
        if array.shape != expected[name]:
            raise mismatch(
                "plan", found=f"{name} {list(array.shape)}", expected=list(expected[name]), fix="report this"
            )
