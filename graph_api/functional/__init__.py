"""Free functions that add ops to the network that is being built.

Arguments named as tensors may also be Python numbers where noted (they take the dtype of the tensor beside them),
NumPy arrays (they become constants), :class:`~trtforge.graph_api.modules.Parameter` objects and dimension
expressions. Nothing is promoted silently between dtypes: a mixture raises GraphError and names the cast.
"""

from trtforge.graph_api.functional.attending import *  # noqa: F403
from trtforge.graph_api.functional.basic import *  # noqa: F403
from trtforge.graph_api.functional.layout import *  # noqa: F403
from trtforge.graph_api.functional.quantizing import *  # noqa: F403
