import numpy as np

import trtforge

(op,) = trtforge.load("FOLDER")
rng = np.random.default_rng(0)
x = rng.standard_normal((4, 256)).astype(np.float16)
w = (rng.standard_normal((100, 256)) / 16).astype(np.float16)
bias = rng.standard_normal(100).astype(np.float16)
y = op(x, w, bias, slope=0.2)

with trtforge.Network("try") as network:
    rows = network.input("x", "float16", (trtforge.Dim("rows", min=1, max=4096), 256))
    weights = network.constant(w, "w"), network.constant(bias, "bias")
    network.mark_output(trtforge.functional.call(op.name, rows, *weights, slope=0.2), "y")
run = network.build(backend="reference")  # or "cuda"
assert np.array_equal(run(x=x)["y"], op(x, w, bias, slope=0.2, device="cpu"))
