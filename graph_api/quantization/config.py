"""``quantization_config`` of a checkpoint's config.json, under the field names of compressed-tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trtforge.bindings.errors import CheckpointError
from trtforge.graph_api.quantization.recipes import (
    CACHES,
    GROUP,
    ActivationFormat,
    Scheme,
    WeightFormat,
)

METHOD = "compressed-tensors"
CACHE_TYPES = dict(zip(("float", "int"), CACHES))
#: Safetensors codes that a scale may have; it is read as float32.
SCALE_CODES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class QuantizationConfig:
    """Which linear layers of a checkpoint are in codes, and in which; ``kv_cache``: the code format of the cache."""

    scheme: Scheme
    ignore: tuple[str, ...] = ()
    kv_cache: str | None = None

    @property
    def format(self) -> str:
        """The name that compressed-tensors has for how the codes lie in the file."""
        if self.scheme.activations is None:
            return "pack-quantized"
        return "int-quantized" if self.scheme.weights.type == "int" else "float-quantized"

    def covers(self, parameter: str, shape: Sequence[int]) -> bool:
        """Whether that float parameter is the weight of a layer in codes."""
        name = parameter.removesuffix(".weight")
        if len(shape) != 2 or name == parameter or name.endswith("embed_tokens"):
            return False
        return not any(_matches(name, pattern) for pattern in self.ignore)

    def expected(self, parameter: str, shape: Sequence[int]) -> dict[str, tuple[tuple[tuple[int, ...], ...], str]]:
        """The tensors in place of a float weight [N, K]: accepted shapes and safetensors code by name."""
        n, k = shape
        weights, activations = self.scheme.weights, self.scheme.activations
        name = parameter.removesuffix(".weight")
        found: dict[str, tuple[tuple[tuple[int, ...], ...], str]] = {}
        if activations is None:
            per_word = 32 // weights.num_bits
            found[f"{name}.weight_packed"] = ((n, -(-k // per_word)),), "I32"
            found[f"{name}.weight_shape"] = ((2,),), "I64"
        else:
            found[f"{name}.weight"] = ((n, k),), "I8" if weights.type == "int" else "F8_E4M3"
        groups = -(-k // (weights.group_size or k))
        scales = {"tensor": ((1,), ()), "channel": ((n, 1), (n,)), "group": ((n, groups),)}
        found[f"{name}.weight_scale"] = scales[weights.strategy], "scale"
        if self.scheme.static:
            found[f"{name}.input_scale"] = ((1,), ()), "scale"
        return found

    def cache_scales(self, layers: int) -> list[str]:
        """The names of the cache's scales, each float [1]."""
        if self.kv_cache is None:
            return []
        return [f"model.layers.{i}.self_attn.{kind}_scale" for i in range(layers) for kind in "kv"]

    def to_dict(self) -> dict[str, Any]:
        """The object that config.json holds."""
        scheme = self.scheme
        cache = None
        if self.kv_cache is not None:
            kind = next(t for t, codes in CACHE_TYPES.items() if codes == self.kv_cache)
            cache = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "tensor", "dynamic": False}
        group = {
            "targets": ["Linear"],
            "weights": {**asdict(scheme.weights), "symmetric": True, "dynamic": False, "actorder": None},
            "input_activations": None
            if scheme.activations is None
            else {**asdict(scheme.activations), "symmetric": True, "group_size": None, "actorder": None},
            "output_activations": None,
        }
        return {
            "quant_method": METHOD,
            "format": self.format,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": list(self.ignore),
            "kv_cache_scheme": cache,
            "global_compression_ratio": None,
        }


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return name == pattern


def parse(value: Any, where: str) -> QuantizationConfig:
    """The configuration in an object of config.json. ``where`` begins every message.

    Raises CheckpointError for another method, several groups, or a scheme that no op of the kit computes.
    """
    if not isinstance(value, Mapping):
        raise _error(where, "", value, "an object")
    if value.get("quant_method") != METHOD:
        raise _error(
            where,
            "quant_method",
            value.get("quant_method"),
            f'"{METHOD}"; or use the checkpoint in float16, bfloat16 or float32 from which it was quantized',
        )
    groups = value.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise _error(where, "config_groups", groups, "an object with one group")
    ((name, group),) = groups.items()
    inside = f"config_groups.{name}."
    if not isinstance(group, Mapping) or group.get("targets") != ["Linear"]:
        targets = group.get("targets") if isinstance(group, Mapping) else group
        raise _error(where, inside + "targets", targets, '["Linear"]')
    if group.get("output_activations") is not None:
        raise _error(where, inside + "output_activations", group["output_activations"], "null")
    scheme = Scheme(
        _weights(where, inside + "weights", group.get("weights")),
        _activations(where, inside + "input_activations", group.get("input_activations")),
    )
    kinds = (scheme.weights.type, scheme.activations.type if scheme.activations else "int")
    if scheme.activations is not None and (kinds[0] != kinds[1] or scheme.weights.num_bits != 8):
        raise _error(where, inside + "input_activations", group["input_activations"], "the format of the weights")
    if scheme.activations is None and scheme.weights.type != "int":
        raise _error(where, inside + "weights", group["weights"], "integers, where activations stay in float")
    ignore = value.get("ignore") or []
    if not isinstance(ignore, list) or not all(isinstance(entry, str) for entry in ignore):
        raise _error(where, "ignore", ignore, "a list of layer names")
    for entry in ignore:
        try:
            re.compile(entry.removeprefix("re:"))
        except re.error as error:
            raise _error(where, "ignore", entry, f"layer names or re: and a regular expression ({error})") from None
    found = QuantizationConfig(scheme, tuple(ignore), _cache(where, value.get("kv_cache_scheme")))
    if value.get("format", found.format) != found.format:
        raise _error(where, "format", value["format"], f'"{found.format}" for these weights and activations')
    return found


def _weights(where: str, key: str, value: Any) -> WeightFormat:
    fields = _fields(where, key, value)
    given = (fields.get("num_bits"), fields.get("type"), fields.get("strategy"))
    width = fields.get("group_size")
    if given == (4, "int", "group") and width == GROUP and fields.get("actorder") in (None, False):
        return WeightFormat(4, "int", "group", GROUP)
    if given in ((8, "int", "channel"), (8, "int", "tensor"), (8, "float", "channel"), (8, "float", "tensor")):
        return WeightFormat(8, str(given[1]), str(given[2]))
    raise _error(
        where, key, value, f"int or float of 8 bits per channel or tensor, or int of 4 bits in groups of {GROUP}"
    )


def _activations(where: str, key: str, value: Any) -> ActivationFormat | None:
    if value is None:
        return None
    fields = _fields(where, key, value)
    given = (fields.get("num_bits"), fields.get("strategy"), fields.get("dynamic"))
    if fields.get("type") in ("int", "float") and given in ((8, "token", True), (8, "tensor", False)):
        return ActivationFormat(8, fields["type"], str(given[1]), bool(given[2]))
    raise _error(where, key, value, "null, or int or float of 8 bits, dynamic per token or static per tensor")


def _cache(where: str, value: Any) -> str | None:
    if value is None:
        return None
    fields = _fields(where, "kv_cache_scheme", value)
    given = (fields.get("num_bits"), fields.get("strategy"), fields.get("dynamic"))
    if fields.get("type") not in CACHE_TYPES or given != (8, "tensor", False):
        raise _error(where, "kv_cache_scheme", value, "null, or int or float of 8 bits, static per tensor")
    return CACHE_TYPES[fields["type"]]


def _fields(where: str, key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _error(where, key, value, "an object")
    if value.get("symmetric", True) is not True:
        raise _error(where, key + ".symmetric", value["symmetric"], "true: codes without a zero point")
    return value


def _error(where: str, key: str, value: Any, accepted: str) -> CheckpointError:
    shown = json.dumps(value, default=str)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    name = f"quantization_config.{key}" if key else "quantization_config"
    return CheckpointError(f"{where}: {name} is {shown}; accepted is {accepted}")
