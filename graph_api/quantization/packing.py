"""A linear layer in codes: packed from float, and to and from the tensors of a compressed-tensors checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trtforge.graph_api.quantization.recipes import Scheme, WeightFormat
from trtforge.kernels.quantize import reference

WORD = 4  # bytes of the int32 words of weight_packed


@dataclass(frozen=True)
class PackedLinear:
    """The codes of a weight [N, K], as the kit's ops take them.

    ``codes``: int8 or float8_e4m3fn [N, K], or uint8 [N, K / 2] with two 4-bit codes per byte. ``weight_scale``:
    float32 [1], [N] or [N, ceil(K / 128)]. ``input_scale``: float32 [1] for static activations, else None.
    """

    name: str
    scheme: Scheme
    shape: tuple[int, int]
    codes: np.ndarray
    weight_scale: np.ndarray
    input_scale: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.weight_scale.nbytes + (0 if self.input_scale is None else WORD)

    def dequantized(self) -> np.ndarray:
        """The weight that the codes stand for, float32 [N, K]."""
        weights = self.scheme.weights
        codes = reference.unpack_int4(self.codes) if weights.codes == "int4" else self.codes
        grid = self.weight_scale.reshape(_grid(weights, self.shape))
        return reference.dequantize(codes, grid, weights.group, np.dtype(np.float32))


def _grid(weights: WeightFormat, shape: tuple[int, int]) -> tuple[int, int]:
    n, k = shape
    rows, columns = weights.group[0] or n, weights.group[1] or k
    return -(-n // rows), -(-k // columns)


def rounded(weight: np.ndarray, scale: np.ndarray, weights: WeightFormat) -> np.ndarray:
    """The codes of float32 [N, K] with a grid of scales, nearest, ties to even, saturating.

    4-bit codes span -8..7, as others that write the format have them: where a scale is shrunk, the negative side has a
    code more than the -7..7 of ``trtforge::pack_int4``.
    """
    if weights.codes != "int4":
        return reference.quantize(weight, scale, weights.group, weights.codes)
    return np.clip(np.rint(weight / reference.spread(scale, weights.group, weight.shape)), -8, 7).astype(np.int8)


def pack(
    name: str,
    weight: np.ndarray,
    scheme: Scheme,
    input_scale: np.ndarray | None = None,
    largest: np.ndarray | None = None,
) -> PackedLinear:
    """The codes of ``weight`` [N, K]: rounded to nearest with scales from the largest magnitude of each group, or from
    ``largest`` (the grid of magnitudes that the largest codes stand for)."""
    weights = scheme.weights
    wide = weight.astype(np.float32)
    top = reference.absmax(wide, weights.group) if largest is None else largest
    scale = reference.scale_of(top, weights.codes)
    codes = rounded(wide, scale, weights)
    if weights.codes == "int4":
        codes = reference.pack_int4(codes)
    flat = scale if weights.strategy == "group" else scale.reshape(-1)
    shape = (int(weight.shape[0]), int(weight.shape[1]))
    return PackedLinear(name, scheme, shape, codes, np.ascontiguousarray(flat), input_scale)


def stored(linear: PackedLinear) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, under the names of compressed-tensors: ``weight`` (8-bit codes of W8A8) or
    ``weight_packed`` and ``weight_shape``, ``weight_scale``, and ``input_scale`` where activations are static.

    Packed codes are unsigned (2^(bits-1) added), the first in the lowest bits of an int32; rows are filled up with
    zero bits to whole words.
    """
    rows = linear.shape[0]
    found: dict[str, np.ndarray] = {}
    if linear.scheme.activations is None:
        flip = 0x88 if linear.scheme.weights.num_bits == 4 else 0x80
        data = linear.codes.view(np.uint8) ^ np.uint8(flip)
        padded = np.pad(data, ((0, 0), (0, -data.shape[1] % WORD)))
        found["weight_packed"] = np.ascontiguousarray(padded).view("<i4")
        found["weight_shape"] = np.array(linear.shape, np.int64)
    else:
        found["weight"] = linear.codes
    tensor = linear.scheme.weights.strategy == "tensor"
    found["weight_scale"] = linear.weight_scale if tensor else linear.weight_scale.reshape(rows, -1)
    if linear.input_scale is not None:
        found["input_scale"] = linear.input_scale
    return {f"{linear.name}.{key}": value for key, value in found.items()}


def restored(name: str, scheme: Scheme, shape: tuple[int, int], tensors: dict[str, np.ndarray]) -> PackedLinear:
    """The inverse of :func:`stored`; ``tensors`` by their names without the layer's."""
    weights = scheme.weights
    if scheme.activations is None:
        width = shape[1] * weights.num_bits // 8
        flip = 0x88 if weights.num_bits == 4 else 0x80
        data = np.ascontiguousarray(tensors["weight_packed"]).view(np.uint8)[:, :width] ^ np.uint8(flip)
        codes = np.ascontiguousarray(data)
        codes = codes if weights.num_bits == 4 else codes.view(np.int8)
    else:
        codes = np.ascontiguousarray(tensors["weight"])
    scale = tensors["weight_scale"].astype(np.float32)
    scale = np.ascontiguousarray(scale if weights.strategy == "group" else scale.reshape(-1))
    given = tensors.get("input_scale")
    static = None if given is None else given.astype(np.float32).reshape(1)
    return PackedLinear(name, scheme, shape, codes, scale, static)
