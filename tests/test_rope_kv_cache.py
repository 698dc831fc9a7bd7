"""Rotary embedding and quantization into a KV cache: against the separate steps, in pages, on a CPU."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from compiler import needs_compiler
from emulated import agrees

from trtforge.bindings.errors import ContractError
from trtforge.graph_api import Network
from trtforge.graph_api import functional as F
from trtforge.harness.check import check
from trtforge.kernels import registry
from trtforge.kernels.kv_cache.rope import rope_kv_cache_update as op
from trtforge.kernels.quantize import reference as quantization

registry.load_builtin()
CODES = {"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "int8": np.int8}


def inputs(kind: Any, kept: Any, b: int = 2, h: int = 3, t: int = 4, d: int = 16, room: int = 9) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    angles = rng.uniform(-3, 3, (b, t, d // 2)).astype(np.float32)
    return {
        "k_cache": np.zeros((b, h, room, d), kept),
        "v_cache": np.zeros((b, h, room, d), kept),
        "k": rng.standard_normal((b, h, t, d)).astype(kind),
        "v": rng.standard_normal((b, h, t, d)).astype(kind),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "positions": np.array([0, 5], np.int32),
    }


def scales(h: int = 3) -> dict[str, np.ndarray]:
    return {
        "k_scale": np.linspace(0.01, 0.03, h, dtype=np.float32),
        "v_scale": np.linspace(0.02, 0.01, h, dtype=np.float32),
    }


def by_the_network(given: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What rope and kv_cache_update of a network leave in the caches."""
    names = {np.dtype(np.float16): "float16", np.dtype(ml_dtypes.bfloat16): "bfloat16"}
    with Network("separate") as net:
        made = {name: net.input(name, names.get(a.dtype, a.dtype.name), a.shape) for name, a in given.items()}
        k = F.kv_cache_update(made["k_cache"], F.rope(made["k"], made["cos"], made["sin"]), made["positions"])
        v = F.kv_cache_update(made["v_cache"], made["v"], made["positions"])
        net.mark_output(k, "keys")
        net.mark_output(v, "values")
    found = net.build("reference")(**{name: a.copy() for name, a in given.items()})
    return found["keys"], found["values"]


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_a_16_bit_cache_gets_what_the_networks_own_steps_write(kind: Any) -> None:
    given = inputs(kind, kind)
    found = op.run_reference(given)
    for name, wanted in zip(("k_updated", "v_updated"), by_the_network(given)):
        np.testing.assert_array_equal(found[name].view(np.uint16), wanted.view(np.uint16))


@pytest.mark.parametrize("to", CODES)
def test_an_8_bit_cache_gets_the_codes_of_the_turned_keys(to: str) -> None:
    given = {**inputs(np.float16, CODES[to]), **scales()}
    found = op.run_reference(given)
    first, second = np.split(given["k"].astype(np.float32), 2, axis=-1)
    cos, sin = given["cos"][:, None], given["sin"][:, None]
    turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    for name, new in (("k", turned), ("v", given["v"].astype(np.float32))):
        cache, scale = found[f"{name}_updated"].view(np.uint8), given[f"{name}_scale"]
        for b, start in enumerate(given["positions"]):
            for h in range(3):
                wanted = quantization.encode(new[b, h] / scale[h], to).view(np.uint8)
                np.testing.assert_array_equal(cache[b, h, start : start + 4], wanted)
        untouched = np.ones((2, 9), bool)
        untouched[0, :4] = untouched[1, 5:] = False
        assert not cache.swapaxes(1, 2)[untouched].any()


def test_pages_hold_what_a_contiguous_cache_holds() -> None:
    given = {**inputs(np.float16, np.int8, room=12), **scales()}
    whole = op.run_reference(given)
    table = np.array([[4, 0, 2], [1, 5, 3]], np.int32)
    paged = {
        **given,
        "k_cache": np.zeros((6, 3, 4, 16), np.int8),
        "v_cache": np.zeros((6, 3, 4, 16), np.int8),
        "block_table": table,
    }
    found = op.run_reference(paged)
    for name in ("k_updated", "v_updated"):
        joined = found[name][table].swapaxes(2, 3).reshape(2, 12, 3, 16).swapaxes(1, 2)
        np.testing.assert_array_equal(joined, whole[name])


def test_rows_beyond_the_cache_and_pages_that_do_not_exist_are_dropped() -> None:
    given = inputs(np.float16, np.float16)
    given["positions"] = np.array([-2, 7], np.int32)
    found = op.run_reference(given)["v_updated"]
    np.testing.assert_array_equal(found[0, :, :2], given["v"][0, :, 2:])
    np.testing.assert_array_equal(found[1, :, 7:], given["v"][1, :, :2])
    assert not found[0, :, 2:].any() and not found[1, :, :7].any()
    given |= {n: np.zeros((6, 3, 3, 16), np.float16) for n in ("k_cache", "v_cache")}
    given |= {"positions": np.zeros(2, np.int32), "block_table": np.array([[6, 1, 0], [-1, 3, 2]], np.int32)}
    found = op.run_reference(given)["v_updated"]
    np.testing.assert_array_equal(found[1, :, 0], given["v"][0, :, 3])
    np.testing.assert_array_equal(found[3, :, 0], given["v"][1, :, 3])
    assert not found[[0, 2, 4, 5]].any() and not found[[1, 3], :, 1:].any()


def test_scales_and_dtypes_must_fit_each_other() -> None:
    plain = inputs(np.float16, np.float16)
    for wrong, message in (
        ({**plain, **scales()}, "a 16-bit cache takes neither"),
        (inputs(np.float16, np.int8), "needs k_scale and v_scale"),
        ({**inputs(np.float16, np.int8), "k_scale": scales()["k_scale"]}, "needs k_scale and v_scale"),
        (inputs(np.float16, ml_dtypes.bfloat16), "must have the dtype of k"),
        (inputs(np.float16, np.float16, d=15), "D must be even"),
    ):
        with pytest.raises(ContractError, match=message):
            op.run_reference(wrong)


@needs_compiler
@pytest.mark.parametrize("kernel", ["cuda", "cuda_scalar"])
def test_kernels_run_on_a_cpu(kernel: str) -> None:
    for case in (c for c in op.cases if not c.tags):
        if kernel == "cuda" and case.dims["D"] % 16:
            continue
        agrees(op, op.kernel_named(kernel), case, {})


@needs_compiler
def test_the_kernel_is_clean_under_the_address_sanitizer() -> None:
    case = next(c for c in op.cases if not c.tags and "block_table" in c.optional and c.dims["D"] == 64)
    agrees(op, op.kernel_named("cuda"), case, {}, sanitize="address")


def test_the_triton_kernel_agrees_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="the interpreter is Triton's")
    rows = check(op.name, kernel="triton", device="cpu", architectures=())
    assert [r for r in rows if r.status == "passed"] and not [r for r in rows if r.status == "failed"]
