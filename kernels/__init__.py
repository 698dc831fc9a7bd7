"""The shared kernel registry: one folder per op family, one declaration per op."""

from trtforge.kernels.contract import (
    FLOATS,
    HALF,
    Attr,
    Case,
    Cost,
    Launch,
    Tensor,
    TensorMap,
    Tolerance,
    attr,
    grid,
)
from trtforge.kernels.dims import cdiv, maximum, minimum, next_power_of_2, product, sym
from trtforge.kernels.op import Kernel, Op, cuda, triton

__all__ = [
    "FLOATS",
    "HALF",
    "Attr",
    "Case",
    "Cost",
    "Kernel",
    "Launch",
    "Op",
    "Tensor",
    "TensorMap",
    "Tolerance",
    "attr",
    "cdiv",
    "cuda",
    "grid",
    "maximum",
    "minimum",
    "next_power_of_2",
    "product",
    "sym",
    "triton",
]
