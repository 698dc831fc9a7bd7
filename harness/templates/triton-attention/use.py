import numpy as np

import trtforge

(op,) = trtforge.load("FOLDER")
q, k, v = np.random.default_rng(0).standard_normal((3, 1, 8, 100, 64)).astype(np.float16)
o = op(q, k, v, causal=True)

with trtforge.Network("try") as network:
    length = trtforge.Dim("length", min=1, max=4096)
    inputs = [network.input(name, "float16", (1, 8, length, 64)) for name in ("q", "k", "v")]
    network.mark_output(trtforge.functional.call(op.name, *inputs, causal=True), "o")
run = network.build(backend="reference")  # or "cuda"
assert np.array_equal(run(q=q, k=k, v=v)["o"], op(q, k, v, causal=True, device="cpu"))
