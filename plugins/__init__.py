"""Registered ops as TensorRT plugins.

:mod:`trtforge.plugins.eligibility` tells which kernels can live inside an engine as ahead-of-time plugins.
"""
