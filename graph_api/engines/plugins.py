"""Registered ops as plugins of a TensorRT engine, through :mod:`trtforge.plugins`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trtforge.bindings.errors import CompileError
from trtforge.graph_api.engines.library import errors_of
from trtforge.graph_api.engines.lowering import Lowering, Value
from trtforge.graph_api.tensor import Node
from trtforge.kernels import registry
from trtforge.kernels.dims import is_symbolic


def add_registered(lowering: Lowering, node: Node, arguments: Sequence[Value | None], mode: str) -> str:
    """Add a registered op as a plugin layer, machine code in the engine for ``mode`` "aot"; returns its plugin name.

    The plugin of an op is registered when it is first needed. Raises CompileError when TensorRT refuses it.
    """
    from trtforge import plugins

    op = registry.get(node.op)
    plugins.register(op)
    plugin = plugins.plugin_name(op, [n for n, a in zip(node.input_names, arguments) if a is not None])
    namespace, _, name = plugin.partition("::")
    given = {n: a for n, a in zip(node.input_names, arguments) if a is not None}
    attributes = plugins.complete_attributes(
        op,
        node.attributes,
        {n: [-1 if is_symbolic(d) else int(d) for d in a.shape] for n, a in given.items()},
        {n: a.dtype for n, a in given.items()},
    )
    call: Any = getattr(getattr(lowering.trt.plugin.op, namespace), name)
    layer = lowering.network.add_plugin(call(*(a.tensor for a in given.values()), **attributes), aot=mode == "aot")
    if layer is None:
        raise CompileError(f"{node.name}: TensorRT refuses the plugin {plugin}: {errors_of(lowering.trt)}")
    layer.name = node.name
    for i, output in enumerate(node.outputs):
        tensor = layer.get_output(i)
        tensor.name = output.name
        lowering.values[output] = Value(tensor, output.shape, output.dtype, layer)
    return plugin
