"""What the Triton attention kernels share: which keys a tile of queries sees, the main loop, and how rows end.

    q [BLOCK_M, D] ── stays ──┐
    k [BLOCK_N, D] ─ block ─▶ dot ─▶ scores ─▶ soft cap ─▶ mask ─▶ online softmax ─▶ p ─▶ dot(p, v) ─▶ o += ...
    v [BLOCK_N, D] ─ block ────────────────────────────────────────────────────────────▶─┘

The key blocks fall into three runs, [begin, full_begin) and [full_end, end) with a mask, [full_begin, full_end)
without. Probabilities are computed in base two with the scale folded into the exponent (Milakov & Gimelshein 2018,
arXiv:1805.02867; Dao 2023, arXiv:2307.08691). Head dimensions that are not powers of two are padded with zeros.

What differs between the kernels comes in as arguments:

- ``cache``: (k, v, keys, pitch, pages), where the keys of one head of one sequence lie. k and v point to the first of
  them and ``pitch`` is the elements from one key to the next; or ``pages`` is not None: (table, number of pages, keys
  of a page, heads of a page, head), and k and v point to the first page.
- ``row_scale``: None, or what scores are multiplied by before all else, a scalar or [BLOCK_M, 1].
- PROBABILITY_EXPONENT: 0, or p is e4m3, multiplied by two to this power.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
NO_MAXIMUM = tl.constexpr(-1.0e30)  # finite: a row with no visible key yet gives 2^-inf = 0 rather than NaN
MASKED_OUT = tl.constexpr(float("-inf"))
SPLIT = tl.constexpr(2.0**20 + 1.0)
NAN_CODE = tl.constexpr(480.0)  # what NaN codes of e4m3 count as: the number that their bits would be


@triton.jit
def four_bits(x):
    """x rounded to four significant bits, as e4m3 has them (Dekker 1971, "A floating-point technique for extending the
    available precision"): the conversion that follows is then exact. Triton's interpreter would not round."""
    shifted = x * SPLIT
    return shifted - (shifted - x)


@triton.jit
def operand(x, like):
    """Elements of a cache as operands of products with ``like``: themselves, or codes of 8 bits as float16, exactly."""
    if x.dtype == like.dtype:
        return x
    elif x.dtype == tl.int8:
        return x.to(tl.float16)
    else:
        return tl.minimum(x.to(tl.float16), tl.full([1, 1], NAN_CODE, tl.float16))  # of NaN and a number the number


@triton.jit
def visible_keys(rows, first, last, keys, queries, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """(first visible key and one past the last of each query of ``rows``), (begin, full_begin, full_end, end).

    ``first`` and ``last`` are the tile's first and last query; queries are aligned to the end of the keys.
    """
    diagonal = keys - queries
    end_key = tl.zeros(rows.shape, tl.int32) + keys
    end_low = keys
    end_high = keys
    if CAUSAL:
        end_key = tl.minimum(end_key, rows + diagonal + 1)
        end_low = tl.minimum(keys, first + diagonal + 1)
        end_high = tl.minimum(keys, last + diagonal + 1)
    first_key = tl.zeros(rows.shape, tl.int32)
    begin_low = 0
    begin_high = 0
    if WINDOW > 0:
        first_key = tl.maximum(rows + diagonal - (WINDOW - 1), 0)
        begin_low = tl.maximum(first + diagonal - (WINDOW - 1), 0)
        begin_high = tl.maximum(last + diagonal - (WINDOW - 1), 0)
    begin = begin_low // BLOCK_N * BLOCK_N
    end = tl.maximum(end_high, begin)
    full_begin = tl.minimum(tl.cdiv(begin_high, BLOCK_N) * BLOCK_N, tl.cdiv(end, BLOCK_N) * BLOCK_N)
    full_begin = tl.maximum(full_begin, begin)
    full_end = tl.maximum(tl.maximum(end_low, 0) // BLOCK_N * BLOCK_N, full_begin)
    return (first_key, end_key), (begin, full_begin, full_end, end)


@triton.jit
def paged_address(at, keys, pages, HEAD_DIM: tl.constexpr):
    """Where the keys ``at`` begin, in elements from the first page; wild page numbers read nothing outside."""
    table, count, page_size, heads, head = pages
    index = (at.to(tl.uint32) // page_size.to(tl.uint32)).to(tl.int32)  # fewer instructions than of signed numbers
    page = tl.load(table + index, mask=at < keys, other=0)
    slab = tl.minimum(tl.maximum(page, 0), count - 1) * heads + head
    return slab.to(tl.int64) * (page_size * HEAD_DIM) + (at - index * page_size) * HEAD_DIM


@triton.jit
def attend_run(
    state,
    q,
    cache,
    row_scale,
    limits,
    begin,
    end,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    EXPONENT_SCALE: tl.constexpr,
    PROBABILITY_EXPONENT: tl.constexpr,
):
    """Attend to keys begin..end (begin a multiple of BLOCK_N). ``state``: accumulator, maxima and sums of the rows."""
    acc, row_max, row_sum = state
    k_rows, v_rows, keys, pitch, pages = cache
    first_key, end_key = limits
    columns = tl.arange(0, BLOCK_D)
    offsets = tl.arange(0, BLOCK_N)
    if pages is not None:
        rows = paged_address(begin + offsets, keys, pages, HEAD_DIM)
    for start in range(begin, end, BLOCK_N):
        at = start + offsets
        present = (at[:, None] < keys) & (columns[None, :] < HEAD_DIM)
        base = 0
        if pages is not None:
            address = rows[:, None] + columns[None, :]
            rows = paged_address(at + BLOCK_N, keys, pages, HEAD_DIM)  # of the next block, a block ahead
        elif pitch is None:
            address = at[:, None] * HEAD_DIM + columns[None, :]
        else:
            base = pitch.to(tl.int64) * start
            address = offsets[:, None] * pitch + columns[None, :]
        k = operand(tl.load(k_rows + base + address, mask=present, other=0.0), q)
        scores = tl.dot(q, tl.trans(k))
        if row_scale is not None:
            scores = scores * row_scale
        if SOFT_CAP > 0:
            capped = 2.0 * EXPONENT_SCALE / SOFT_CAP
            scores = 1.0 - 2.0 / (tl.exp2(scores * capped) + 1.0)
            exponent_scale: tl.constexpr = SOFT_CAP * LOG2_E
        else:
            exponent_scale: tl.constexpr = EXPONENT_SCALE
        if MASKED:
            visible = at[None, :] < end_key[:, None]
            if WINDOW > 0:
                visible = visible & (at[None, :] >= first_key[:, None])
            scores = tl.where(visible, scores, MASKED_OUT)
        new_max = tl.maximum(row_max, tl.max(scores, axis=1))
        p = tl.exp2(scores * exponent_scale - (new_max * exponent_scale - PROBABILITY_EXPONENT)[:, None])
        rescale = tl.exp2((row_max - new_max) * exponent_scale)
        row_sum = row_sum * rescale + tl.sum(p, axis=1)
        v = operand(tl.load(v_rows + base + address, mask=present, other=0.0), q)
        if PROBABILITY_EXPONENT > 0:
            p = four_bits(p)
        acc = acc * rescale[:, None] + tl.dot(p.to(v.dtype), v, max_num_imprecise_acc=0)
        row_max = new_max
    return acc, row_max, row_sum


@triton.jit
def attend(
    q,
    cache,
    row_scale,
    limits,
    blocks,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    EXPONENT_SCALE: tl.constexpr,
    PROBABILITY_EXPONENT: tl.constexpr,
):
    """Sums of p v, maxima of the scores (of tanh with a soft cap) and sums of p of each row, over all its keys."""
    begin, full_begin, full_end, end = blocks
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    row_max = tl.zeros([BLOCK_M], tl.float32) + NO_MAXIMUM
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    state = acc, row_max, row_sum
    run = (q, cache, row_scale, limits)
    # fmt: off
    if WINDOW > 0:
        state = attend_run(state, *run, begin, full_begin, HEAD_DIM, BLOCK_D, BLOCK_N, True,
                           WINDOW, SOFT_CAP, EXPONENT_SCALE, PROBABILITY_EXPONENT)
    state = attend_run(state, *run, full_begin, full_end, HEAD_DIM, BLOCK_D, BLOCK_N, False,
                       WINDOW, SOFT_CAP, EXPONENT_SCALE, PROBABILITY_EXPONENT)
    state = attend_run(state, *run, full_end, end, HEAD_DIM, BLOCK_D, BLOCK_N, True,
                       WINDOW, SOFT_CAP, EXPONENT_SCALE, PROBABILITY_EXPONENT)
    # fmt: on
    return state


@triton.jit
def or_one(row_sum):
    """Sums to divide by: rows that saw no key stay zero."""
    return tl.where(row_sum == 0.0, 1.0, row_sum)
