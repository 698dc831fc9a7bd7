"""``trtforge generate``: text on standard output as it is written, everything else on standard error."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from trtforge.bindings.errors import UsageError
from trtforge.graph_api.llm import Sampling, Session, open_session


def _session(arguments: argparse.Namespace) -> Session:
    if Path(arguments.model).is_file():
        from trtforge.graph_api.engines.commands import plan_session

        if arguments.backend != "auto" or arguments.dtype != "auto":
            raise UsageError(
                f"{arguments.model} is a plan file, which has its backend and dtype; leave those options out"
            )
        return plan_session(arguments.model)
    return open_session(
        arguments.model,
        arguments.prompt,
        max_tokens=arguments.max_tokens,
        backend=arguments.backend,
        dtype=arguments.dtype,
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; raises UsageError, CheckpointError, DeviceError."""
    from trtforge.kernels import registry

    for target in arguments.load:
        registry.load(target)
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    session = _session(arguments)
    if arguments.explain and not arguments.json:
        print(session.explain(), file=sys.stderr, flush=True)

    def show(piece: str) -> None:
        print(piece, end="", flush=True)

    if not arguments.json:
        show(arguments.prompt)
    result = session.generate(
        arguments.prompt,
        max_tokens=arguments.max_tokens,
        sampling=sampling,
        on_text=None if arguments.json else show,
    )
    if arguments.json:
        report = result.to_dict()
        if arguments.explain:
            report["explain"] = session.explain().to_dict()
        print(json.dumps(report, indent=1))
        return 0
    print()
    print(
        f"[{result.backend} backend, {result.dtype}: {result.prompt_tokens} prompt tokens at "
        f"{result.prefill_tokens_per_second:.0f}/s, {len(result.token_ids)} tokens at "
        f"{result.decode_tokens_per_second:.0f}/s, ended by {result.finish_reason}]",
        file=sys.stderr,
    )
    return 0
