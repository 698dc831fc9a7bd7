import numpy as np

import trtforge

(op,) = trtforge.load("FOLDER")
x = np.random.default_rng(0).standard_normal((4, 1000)).astype(np.float16)
y = op(x, beta=1.5)

with trtforge.Network("try") as network:
    rows = network.input("x", "float16", (trtforge.Dim("rows", min=1, max=4096), 1000))
    network.mark_output(trtforge.functional.call(op.name, rows, beta=1.5), "y")
run = network.build(backend="reference")  # or "cuda"
assert np.array_equal(run(x=x)["y"], op(x, beta=1.5, device="cpu"))
