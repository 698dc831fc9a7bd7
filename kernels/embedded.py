"""The form of a CUDA kernel that a TensorRT engine can keep, where that is not the kernel as it stands.

An engine passes pointers and int32 scalars and knows grid, block and dynamic shared memory. What a launch asks for
besides is moved into the code, from the same declaration:

- **tensor maps**: a generated entry takes the maps' extents and strides as further scalars, builds the descriptors on
  the device (common/tensor_map_device.cuh) and calls the kernel, whose source is included as it is. Its parameters
  ``const __grid_constant__ tensor_map`` become handles of those descriptors.
- **clusters**: their size becomes an attribute of the kernel (CUDA C++ Programming Guide, "Thread Block Clusters").
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from trtforge.bindings.architectures import Architecture
from trtforge.bindings.dtypes import dtype
from trtforge.bindings.errors import DeclarationError
from trtforge.kernels.binding import Binding
from trtforge.kernels.contract import Launch, TensorMap
from trtforge.kernels.dims import IntLike, constant_value
from trtforge.kernels.op import Kernel

_WARP_THREADS = 32
#: Blocks of a cluster that a kernel may have without an attribute that only a launching program can set.
_PORTABLE_CLUSTER = 8
_ELEMENTS = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "int32": "s32"}  # else by size: bytes
_SWIZZLES = {0: "none", 32: "bytes_32", 64: "bytes_64", 128: "bytes_128"}
#: What the words of an entry mean while the kernel's file is read: the entry becomes a function.
_WITHIN = {"__global__": " __device__ __forceinline__", "__launch_bounds__": "(...)", "__grid_constant__": ""}


@dataclass(frozen=True)
class Form:
    """Generated CUDA source beside the kernel's file, and its entry."""

    text: str
    entry: str


def needed(launch: Launch) -> bool:
    """Whether this launch asks for something that an engine does not pass."""
    return bool(launch.tensor_maps) or launch.cluster is not None


def obstacle(kernel: Kernel, tactic: int, launch: Launch) -> str | None:
    """Why no form of this launch can be embedded, or None."""
    if kernel.tactics[tactic].get("num_ctas", 1) > 1:
        return "it is launched in clusters by Triton, which an engine's launch parameters do not have"
    if not needed(launch):
        return None
    if kernel.language != "cuda":
        return "only CUDA C++ has a form with clusters or tensor maps of its own"
    if launch.cluster is not None:
        sizes = [constant_value(size) for size in Launch.triple(launch.cluster)]
        if None in sizes:
            return f"its clusters of {launch.cluster} depend on a dimension"
        blocks = _product(sizes)
        if blocks > _PORTABLE_CLUSTER:
            return (
                f"its clusters of {blocks} blocks need an attribute that engines do not set beyond {_PORTABLE_CLUSTER}"
            )
    if launch.tensor_maps:
        threads, *others = (constant_value(size) for size in Launch.triple(launch.block))
        if threads is None or threads % _WARP_THREADS or others != [1, 1]:
            return f"its block {launch.block} is not a constant number of whole warps, which build the tensor maps"
        for one in launch.tensor_maps:
            if any(constant_value(size) is None for size in one.box):
                return f"the box {one.box} of its tensor map of {one.tensor!r} depends on a dimension"
    return None


def launch_of(launch: Launch, target: Architecture) -> Launch:
    """The launch as an engine makes it: extents and strides of tensor maps are scalars, after the kernel's own.

    A kernel that builds tensor maps asks for more than half of a multiprocessor's shared memory, so that two of its
    blocks never run on one.
    """
    if not launch.tensor_maps:
        return replace(launch, cluster=None)
    extra = [value for one in launch.tensor_maps for value in (*one.shape, *(one.strides or ()))]
    shared = _at_least(launch.shared, target.smem_per_sm // 2)
    return replace(launch, scalars=(*launch.scalars, *extra), shared=shared, tensor_maps=(), cluster=None)


def _at_least(value: IntLike, least: int) -> IntLike:
    known = constant_value(value)
    if known is None:
        raise DeclarationError(f"dynamic shared memory of {value} depends on a dimension, in a kernel with tensor maps")
    return max(known, least)


def _product(sizes: list[int | None]) -> int:
    x, y, z = (size or 1 for size in sizes)
    return x * y * z


def form_of(kernel: Kernel, binding: Binding, launch: Launch) -> Form:
    """The generated source. Raises DeclarationError where the entry is not found in the kernel's file."""
    title = f"// {kernel} as an engine keeps it: generated from the declaration (kernels/embedded.py).\n"
    if not launch.tensor_maps:
        return Form(title + _with_cluster(kernel, launch), kernel.source.entry)
    return Form(title + _with_tensor_maps(kernel, binding, launch), f"{kernel.source.entry}_embedded")


def _cluster(launch: Launch) -> str:
    if launch.cluster is None:
        return ""
    x, y, z = map(constant_value, Launch.triple(launch.cluster))
    return f"__cluster_dims__({x}, {y}, {z}) "


def _with_cluster(kernel: Kernel, launch: Launch) -> str:
    return (
        "#undef __global__\n"
        f"#define __global__ __attribute__((global)) {_cluster(launch)}\n"
        f'#include "{kernel.source.path.name}"\n'
    )


def _attributes(kernel: Kernel) -> str:
    """The entry's launch bounds, as its source says them between ``__global__ void`` and the name."""
    text = re.sub(r"//[^\n]*", "", kernel.source.path.read_text())
    name = re.escape(kernel.source.entry)
    found = re.search(rf"__global__\s+void\b(?P<attributes>[^;{{}}]*?)\b{name}\s*\(", text)
    if found is None:
        raise DeclarationError(
            f"{kernel}: {kernel.source.path.name} has no 'extern \"C\" __global__ void {kernel.source.entry}(', around "
            "which the form for engines is made; write the entry like that"
        )
    bounds = re.search(r"__launch_bounds__\s*\((?P<values>.*)\)", found["attributes"], re.S)
    return f"__attribute__((launch_bounds({' '.join(bounds['values'].split())}))) " if bounds else ""


def _with_tensor_maps(kernel: Kernel, binding: Binding, launch: Launch) -> str:
    entry = kernel.source.entry
    maps = [_Map(i, one, one.dtype or binding.dtypes[one.tensor]) for i, one in enumerate(launch.tensor_maps)]
    warps = _product([constant_value(size) for size in Launch.triple(launch.block)]) // _WARP_THREADS
    scalars = [f"scalar_{i}" for i in range(len(launch.scalars))]
    parameters = [
        *(f"const void* {name}_data" for name in binding.inputs),
        *(f"int {name}" for name in (*scalars, *(name for one in maps for name in one.scalars))),
        *(f"void* {name}_data" for name in binding.outputs),
    ]
    arguments = [
        *(f"forge::any_pointer{{{name}_data}}" for name in binding.inputs),
        *scalars,
        *(f"forge::any_pointer{{{name}_data}}" for name in binding.outputs),
        *(f"forge::tensor_map{{&maps[{i}]}}" for i in range(len(maps))),
    ]
    body = "".join(f"    if (warp == {i % warps}) {one.built()};\n" for i, one in enumerate(maps))
    redefined = "".join(f"#undef {name}\n#define {name}{becomes}\n" for name, becomes in _WITHIN.items())
    return f"""#define TENSOR_MAPS_ON_DEVICE 1
#include "common/tensor_map_device.cuh"

{redefined}#include "{kernel.source.path.name}"

__device__ forge::tensor_map_bytes {entry}_slots[forge::TENSOR_MAP_SLOTS][{len(maps)}];

extern "C" __attribute__((global)) {_cluster(launch)}{_attributes(kernel)}void
{entry}_embedded({_lines(parameters)}) {{
    extern __shared__ __align__(128) forge::tensor_map_bytes tensor_map_scratch[];
    forge::tensor_map_bytes* const maps = forge::tensor_map_slot({entry}_slots);
    const int warp = forge::warp_index_uniform();
{body}    __syncthreads();
    {entry}({_lines(arguments)});
}}
"""


def _lines(items: list[str]) -> str:
    return ",\n        ".join(items)


@dataclass(frozen=True)
class _Map:
    """One tensor map of the generated entry. Its scalars: extents, then the strides that are declared."""

    index: int
    declared: TensorMap
    kind: str

    @property
    def extents(self) -> list[str]:
        return [f"map_{self.index}_extent_{i}" for i in range(len(self.declared.shape))]

    @property
    def strides(self) -> list[str]:
        return [f"map_{self.index}_stride_{i}" for i in range(1, len(self.declared.strides or ()) + 1)]

    @property
    def scalars(self) -> list[str]:
        return [*self.extents, *self.strides]

    def pitches(self) -> list[str]:
        """Bytes from one element to the next of the dimensions 1, 2, …, in 64 bits."""
        size = f"forge::uint64_t({dtype(self.kind).itemsize})"
        if self.declared.strides is not None:
            return [f"{size} * {stride}" for stride in self.strides]
        return [" * ".join([size, *self.extents[: i + 1]]) for i in range(len(self.extents) - 1)]

    def built(self) -> str:
        kind = _ELEMENTS.get(self.kind, "u8")
        extents = ", ".join(self.extents)
        pitches = ", ".join(self.pitches())
        box = ", ".join(str(constant_value(size)) for size in self.declared.box)
        return (
            f"forge::build_tensor_map(&maps[{self.index}], &tensor_map_scratch[{self.index}],\n"
            f"        forge::tensor_map_fields<forge::tensor_map_element::{kind}, "
            f"forge::tensor_map_swizzle::{_SWIZZLES[self.declared.swizzle]}, {len(self.declared.shape)}>{{\n"
            f"            {self.declared.tensor}_data, {{{extents}}}, {{{pitches}}}, {{{box}}}}})"
        )
