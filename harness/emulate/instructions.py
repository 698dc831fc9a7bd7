"""PTX instructions that the emulation knows: a pattern of the mnemonic, and the function of ``cpp/ptx.h`` that does it.

``\\1`` … in the function's name are the pattern's groups. An instruction that no pattern matches makes the kernel one
that cannot be emulated, and the row of ``check`` names it.
"""

from __future__ import annotations

import re

_ELEMENTS = {name: f"::emulate::Element::{name}" for name in ("f16", "bf16", "e4m3", "e5m2", "s8")}
_WIDTHS = {"8": "std::uint8_t", "16": "std::uint16_t", "32": "std::uint32_t", "64": "std::uint64_t"}

_LOAD = r"cp\.async\.bulk\.tensor\.[1-5]d\.shared::cluster\.global(?:\.tile)?\.mbarrier::complete_tx::bytes"
_STORE = r"cp\.async\.bulk\.tensor\.[1-5]d\.global\.shared::cta(?:\.tile)?\.bulk_group"

_TABLE: list[tuple[str, str]] = [
    (r"(rcp|ex2|lg2|rsqrt)\.approx\.ftz\.f32", r"\1_approx_ftz_f32"),
    (r"(rcp|ex2)\.approx\.f32", r"\1_approx_f32"),
    (r"tanh\.approx\.f32", "tanh_approx_f32"),
    (r"cvt\.rn\.(f16x2|bf16x2)\.f32", r"cvt_rn_\1_f32"),
    (r"cvt\.rn\.satfinite\.(e4m3x2|e5m2x2)\.f32", r"cvt_rn_satfinite_\1_f32"),
    (r"mov\.[busf](?:16|32|64)", "mov"),
    (r"selp\.[busf](?:16|32|64)", "selp"),
    (r"setp\.(ne|eq)\.[bus](?:16|32|64)", r"setp_\1"),
    (r"st\.shared(?:::cta)?\.[bus](8|16|32|64)", r"st_shared<{width}>"),
    (r"ld\.shared(?:::cta)?\.[busf](?:8|16|32|64)", "ld_shared"),
    (r"st\.shared(?:::cta|::cluster)?\.v[24]\.[busf]32", "st_shared_vector"),
    (r"st\.async(?:\.weak)?\.shared::cluster\.mbarrier::complete_tx::bytes\.v[24]\.[busf]32", "st_async"),
    (r"ld\.shared(?:::cta|::cluster)?\.v[24]\.[busf]32", "ld_shared_vector"),
    (r"cp\.async\.c[ag]\.shared(?:::cta)?\.global(?:\.L2::\w+)?", "cp_async"),
    (r"cp\.async\.commit_group", "cp_async_commit_group"),
    (r"cp\.async\.wait_group", "cp_async_wait_group"),
    (r"cp\.async\.wait_all", "cp_async_wait_all"),
    (r"ldmatrix\.sync\.aligned\.m8n8\.x[124]\.shared(?:::cta)?\.b16", "ldmatrix<false>"),
    (r"ldmatrix\.sync\.aligned\.m8n8\.x[124]\.trans\.shared(?:::cta)?\.b16", "ldmatrix<true>"),
    (r"stmatrix\.sync\.aligned\.m8n8\.x[124]\.shared(?:::cta)?\.b16", "stmatrix<false>"),
    (r"stmatrix\.sync\.aligned\.m8n8\.x[124]\.trans\.shared(?:::cta)?\.b16", "stmatrix<true>"),
    (r"movmatrix\.sync\.aligned\.m8n8\.trans\.b16", "movmatrix_trans"),
    (r"sub\.(?:rn\.)?f16x2", "sub_f16x2"),
    (r"fma\.rn\.(f16x2|bf16x2)", r"fma_rn_\1"),
    (r"lop3\.b32", "lop3_b32"),
    (r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(f16|bf16)\.\1\.f32", "mma_sync_m16n8<{element}>"),
    (r"mma\.sync\.aligned\.m16n8k32\.row\.col\.f32\.(e4m3|e5m2)\.\1\.f32", "mma_sync_m16n8<{element}>"),
    (r"mma\.sync\.aligned\.m16n8k32\.row\.col\.s32\.(s8)\.\1\.s32", "mma_sync_m16n8<{element}>"),
    (
        r"wgmma\.mma_async\.sync\.aligned\.m64n(?P<n>\d+)k16\.f32\.(f16|bf16)\.\2",
        r"wgmma_mma_async<{element}, \g<n>>",
    ),
    (
        r"wgmma\.mma_async\.sync\.aligned\.m64n(?P<n>\d+)k32\.f32\.(e4m3|e5m2)\.\2",
        r"wgmma_mma_async<{element}, \g<n>>",
    ),
    (
        r"wgmma\.mma_async\.sync\.aligned\.m64n(?P<n>\d+)k32\.s32\.(s8)\.\2",
        r"wgmma_mma_async<{element}, \g<n>>",
    ),
    (r"wgmma\.fence\.sync\.aligned", "wgmma_fence"),
    (r"wgmma\.commit_group\.sync\.aligned", "wgmma_commit_group"),
    (r"wgmma\.wait_group\.sync\.aligned", "wgmma_wait_group"),
    (r"bar(?:rier)?\.sync(?:\.aligned)?", "bar_sync"),
    (r"bar(?:rier)?\.arrive(?:\.aligned)?", "bar_arrive"),
    (r"barrier\.cluster\.arrive(?:\.release|\.relaxed)?(?:\.aligned)?", "barrier_cluster_arrive"),
    (r"barrier\.cluster\.wait(?:\.acquire)?(?:\.aligned)?", "barrier_cluster_wait"),
    (r"elect\.sync", "elect_sync"),
    (r"setmaxnreg\.(?:inc|dec)\.sync\.aligned\.u32", "setmaxnreg"),
    (r"fence\.(?:mbarrier_init\.release\.cluster|proxy\.async(?:\.\S+)?|acq_rel\.\w+)", "fence"),
    (r"mapa\.shared::cluster\.u32", "mapa_shared_cluster"),
    (r"mbarrier\.init\.shared(?:::cta)?\.b64", "mbarrier_init"),
    (r"mbarrier\.arrive(?:\.release\.(?:cta|cluster))?\.shared(?:::cta|::cluster)?\.b64", "mbarrier_arrive"),
    (r"mbarrier\.arrive\.expect_tx(?:\.release\.(?:cta|cluster))?\.shared(?:::cta)?\.b64", "mbarrier_arrive_expect_tx"),
    (
        r"mbarrier\.try_wait\.parity(?:\.acquire\.(?:cta|cluster))?\.shared(?:::cta)?\.b64",
        "mbarrier_try_wait_parity",
    ),
    (_LOAD, "cp_async_bulk_tensor_load"),
    (_LOAD + r"\.multicast::cluster", "cp_async_bulk_tensor_load_multicast"),
    (_LOAD + r"\.L2::cache_hint", "cp_async_bulk_tensor_load_hint"),
    (_STORE, "cp_async_bulk_tensor_store"),
    (r"cp\.async\.bulk\.commit_group", "cp_async_bulk_commit_group"),
    (r"cp\.async\.bulk\.wait_group(?:\.read)?", "cp_async_bulk_wait_group"),
    (r"prefetch\.tensormap", "prefetch_tensormap"),
    (r"cp\.async\.bulk\.prefetch\.tensor\.[1-5]d\.L2\.global(?:\.tile)?", "cp_async_bulk_prefetch_tensor"),
    (r"tensormap\.replace\.tile\.(\w+)\.shared::cta\.b1024\.b(?:32|64)", r"tensormap_replace_\1"),
    (
        r"tensormap\.cp_fenceproxy\.global\.shared::cta\.tensormap::generic\.release\.\w+\.sync\.aligned",
        "tensormap_cp_fenceproxy",
    ),
    (r"fence\.proxy\.tensormap::generic\.acquire\.\w+", "fence_proxy_tensormap_acquire"),
]
_COMPILED = [(re.compile(pattern), function) for pattern, function in _TABLE]

#: Special registers, and what reads them.
SPECIAL_REGISTERS = {
    "cluster_ctarank": "sreg_cluster_ctarank()",
    "laneid": "sreg_laneid()",
    "smid": "sreg_smid()",
}


def function_of(mnemonic: str) -> str | None:
    """The function that carries out an instruction, with its template arguments, or None."""
    for pattern, function in _COMPILED:
        match = pattern.fullmatch(mnemonic)
        if match is not None:
            last = match.group(match.lastindex) if match.lastindex else ""
            name = match.expand(function)
            return name.replace("{element}", _ELEMENTS.get(last, "")).replace("{width}", _WIDTHS.get(last, ""))
    return None
