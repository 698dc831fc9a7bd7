"""Lists the packages, so that a new folder under kernels/ needs no line anywhere else."""

from setuptools import find_packages, setup

MAPPED = ("bindings", "kernels", "plugins", "harness", "graph_api")

setup(
    packages=["trtforge"]
    + [f"trtforge.{top}" for top in MAPPED]
    + [f"trtforge.{top}.{package}" for top in MAPPED for package in find_packages(top)]
)
