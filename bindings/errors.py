"""One family of exceptions for the whole kit.

Every message names the argument, what was given, what is accepted, and the way out. The command line turns any
:class:`ForgeError` into one line on standard error and exit status 2.
"""

from __future__ import annotations


class ForgeError(Exception):
    """Base of every error that TRTForge raises on purpose."""


class ContractError(ForgeError, ValueError):
    """An op was called with a dtype, rank, dimension, attribute, layout or alignment that its contract refuses."""


class DeclarationError(ForgeError, ValueError):
    """An op declaration contradicts itself, or a kernel does not match the declaration it belongs to."""


class UnknownNameError(ForgeError, LookupError):
    """No op, kernel, case, tactic, node or parameter has the name that was asked for."""


class CompileError(ForgeError, RuntimeError):
    """A kernel did not compile; the message carries the compiler's own lines."""


class MissingDependencyError(ForgeError, ImportError):
    """An optional package that this call needs is not installed."""


class DeviceError(ForgeError, RuntimeError):
    """No usable GPU or driver, or a CUDA call failed."""


class GraphError(ForgeError, ValueError):
    """A network was built wrongly: shapes, dtypes, names, or an op that the backend cannot run."""


class CheckpointError(ForgeError, ValueError):
    """A model directory, configuration, tokenizer or weight file is missing, damaged or contradictory."""


class PlanError(ForgeError, ValueError):
    """A plan file is damaged, or was built for another library version, kit version or GPU."""


class UsageError(ForgeError, ValueError):
    """The command line or a public function was given an argument that it does not accept."""


class FileError(ForgeError, OSError):
    """A file cannot be written (disk full, no permission), or cannot be read as what it should be."""


class ProfileError(ForgeError, RuntimeError):
    """A profiling tool was refused the counters, failed, hung, or left a report without the launches."""
