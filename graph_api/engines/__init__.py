"""Networks as TensorRT engines: lowering, partitioning, building, running, plan files."""
