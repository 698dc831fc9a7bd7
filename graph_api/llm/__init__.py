"""Llama-architecture language models in the graph API: checkpoints, the model, sampling, and ``generate``."""

from trtforge.graph_api.llm.checkpoint import Checkpoint, open_checkpoint
from trtforge.graph_api.llm.config import LlamaConfig
from trtforge.graph_api.llm.explain import Explanation
from trtforge.graph_api.llm.generate import generate, open_session
from trtforge.graph_api.llm.sampling import Sampling
from trtforge.graph_api.llm.session import GenerationResult, Session

__all__ = [
    "Checkpoint",
    "Explanation",
    "GenerationResult",
    "LlamaConfig",
    "Sampling",
    "Session",
    "generate",
    "open_checkpoint",
    "open_session",
]
