// Tensor maps that a kernel builds by itself, where no host does (kernels/embedded.py generates the calls).
//
//   zeroed 128 bytes of shared memory ── tensormap.replace, field by field ──▶ the descriptor
//        │
//        └─ tensormap.cp_fenceproxy (copy, release) ──▶ slots[%smid] in device memory ──▶ cp.async.bulk.tensor
//                                                        fence.proxy.tensormap (acquire)
//
// PTX ISA, "tensormap.replace", "tensormap.cp_fenceproxy", "membar/fence" (fence.proxy.tensormap); sm_90a and later
// architectures with an "a". The compiler turns tensormap.replace into a few stores to shared memory.
//
// Whose slot. A copy reads its descriptor from device memory, and a launch has none of its own here, so the module has
// one slot for each multiprocessor. Two blocks never use one at a time: these launches ask for more than half of a
// multiprocessor's shared memory. Blocks of one launch write the same bytes anyway; so do launches on the same tensors.
// Other processes and contexts load the module again and have slots of their own.
#pragma once

#include "common/tma.cuh"
#include "common/warpgroup.cuh"

namespace forge {

constexpr int TENSOR_MAP_BYTES = 128;
constexpr int TENSOR_MAP_SLOTS = 256;  // more multiprocessors than a GPU has

struct alignas(TENSOR_MAP_BYTES) tensor_map_bytes {
    uint32_t words[TENSOR_MAP_BYTES / 4];
};

// The codes of tensormap.replace (PTX ISA, table "tensormap.replace"; not those of the driver's CUtensorMapDataType).
enum class tensor_map_element { u8 = 0, u16 = 1, u32 = 2, s32 = 3, u64 = 4, s64 = 5, f16 = 6, f32 = 7, f64 = 9, bf16 = 10 };
enum class tensor_map_swizzle { none = 0, bytes_32 = 1, bytes_64 = 2, bytes_128 = 3 };

__device__ __forceinline__ int multiprocessor() {
    int index;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(index));
    return index;
}

// ---- one instruction each ------------------------------------------------------------------------------------------

__device__ __forceinline__ void tensormap_replace_global_address(uint32_t map, const void* address) {
    asm volatile("tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;" ::"r"(map),
                 "l"(__cvta_generic_to_global(address))
                 : "memory");
}

template <int RANK>
__device__ __forceinline__ void tensormap_replace_rank(uint32_t map) {  // the instruction counts from 0
    asm volatile("tensormap.replace.tile.rank.shared::cta.b1024.b32 [%0], %1;" ::"r"(map), "n"(RANK - 1) : "memory");
}

template <int DIM>
__device__ __forceinline__ void tensormap_replace_global_dim(uint32_t map, int elements) {
    asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], %1, %2;" ::"r"(map), "n"(DIM),
                 "r"(elements)
                 : "memory");
}

// Of dimension DIM + 1, in bytes (a multiple of 16). Assemblers before PTX ISA 8.6 took them divided by 16.
template <int DIM>
__device__ __forceinline__ void tensormap_replace_global_stride(uint32_t map, uint64_t bytes) {
    asm volatile("tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%0], %1, %2;" ::"r"(map), "n"(DIM),
                 "l"(bytes)
                 : "memory");
}

template <int DIM>
__device__ __forceinline__ void tensormap_replace_box_dim(uint32_t map, int elements) {
    asm volatile("tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%0], %1, %2;" ::"r"(map), "n"(DIM),
                 "r"(elements)
                 : "memory");
}

template <int DIM>
__device__ __forceinline__ void tensormap_replace_element_stride(uint32_t map, int elements) {
    asm volatile("tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%0], %1, %2;" ::"r"(map), "n"(DIM),
                 "r"(elements)
                 : "memory");
}

template <tensor_map_element TYPE>
__device__ __forceinline__ void tensormap_replace_elemtype(uint32_t map) {
    asm volatile("tensormap.replace.tile.elemtype.shared::cta.b1024.b32 [%0], %1;" ::"r"(map),
                 "n"(static_cast<int>(TYPE))
                 : "memory");
}

__device__ __forceinline__ void tensormap_replace_no_interleave(uint32_t map) {
    asm volatile("tensormap.replace.tile.interleave_layout.shared::cta.b1024.b32 [%0], 0;" ::"r"(map) : "memory");
}

template <tensor_map_swizzle MODE>
__device__ __forceinline__ void tensormap_replace_swizzle_mode(uint32_t map) {
    asm volatile("tensormap.replace.tile.swizzle_mode.shared::cta.b1024.b32 [%0], %1;" ::"r"(map),
                 "n"(static_cast<int>(MODE))
                 : "memory");
}

__device__ __forceinline__ void tensormap_replace_zero_fill(uint32_t map) {
    asm volatile("tensormap.replace.tile.fill_mode.shared::cta.b1024.b32 [%0], 0;" ::"r"(map) : "memory");
}

// All 32 lanes: copies the descriptor to device memory and releases it to the copy engines of the GPU.
__device__ __forceinline__ void tensormap_cp_fenceproxy(tensor_map_bytes* to, uint32_t map) {
    asm volatile(
        "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%0], [%1], 128;" ::"l"(
            __cvta_generic_to_global(to)),
        "r"(map)
        : "memory");
}

// What this multiprocessor's copy engine remembers of a descriptor at this address is forgotten.
__device__ __forceinline__ void fence_proxy_tensormap_acquire(const tensor_map_bytes* map) {
    asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory");
}

// ---- a whole descriptor --------------------------------------------------------------------------------------------

// A map as the declaration gives it: extents and box in elements, pitches of dimensions 1.. in bytes.
template <tensor_map_element TYPE, tensor_map_swizzle SWIZZLE, int RANK>
struct tensor_map_fields {
    const void* address;
    int shape[RANK];
    uint64_t pitches[RANK];  // of dimensions 1 .. RANK - 1; the last one is not used
    int box[RANK];
};

template <int DIM, tensor_map_element TYPE, tensor_map_swizzle SWIZZLE, int RANK>
__device__ __forceinline__ void replace_dimensions(uint32_t map, const tensor_map_fields<TYPE, SWIZZLE, RANK>& fields) {
    if constexpr (DIM < RANK) {
        tensormap_replace_global_dim<DIM>(map, fields.shape[DIM]);
        tensormap_replace_box_dim<DIM>(map, fields.box[DIM]);
        tensormap_replace_element_stride<DIM>(map, 1);
        if constexpr (DIM + 1 < RANK) {
            if (fields.pitches[DIM] % 16 != 0) __trap();  // the descriptor has no place for the other bits
            tensormap_replace_global_stride<DIM>(map, fields.pitches[DIM]);
        }
        replace_dimensions<DIM + 1>(map, fields);
    }
}

// One whole warp builds one descriptor in `to`; `scratch` is 128 bytes of shared memory, free again after the
// block's next barrier, which also makes the map usable for all of the block.
template <tensor_map_element TYPE, tensor_map_swizzle SWIZZLE, int RANK>
__device__ __forceinline__ void build_tensor_map(tensor_map_bytes* to, tensor_map_bytes* scratch,
                                                 const tensor_map_fields<TYPE, SWIZZLE, RANK>& fields) {
    const int lane = threadIdx.x % WARP_THREADS;
    const uint32_t map = shared_address(scratch);
    scratch->words[lane] = 0;
    __syncwarp();
    if (lane == 0) {
        tensormap_replace_global_address(map, fields.address);
        tensormap_replace_rank<RANK>(map);
        replace_dimensions<0>(map, fields);
        tensormap_replace_elemtype<TYPE>(map);
        tensormap_replace_no_interleave(map);
        tensormap_replace_swizzle_mode<SWIZZLE>(map);
        tensormap_replace_zero_fill(map);
    }
    __syncwarp();
    tensormap_cp_fenceproxy(to, map);
    fence_proxy_tensormap_acquire(to);
    fence_proxy_async_shared();  // copies will write where the scratch was
}

// The maps of this block's slot; MAPS of the kernel.
template <int MAPS>
__device__ __forceinline__ tensor_map_bytes* tensor_map_slot(tensor_map_bytes (&slots)[TENSOR_MAP_SLOTS][MAPS]) {
    const int slot = multiprocessor();
    if (slot >= TENSOR_MAP_SLOTS) __trap();
    return slots[slot];
}

// A pointer argument of the generated entry, which knows the kernel's parameters by number only.
struct any_pointer {
    const void* address;
    template <class T>
    __device__ __forceinline__ operator T*() const {
        return static_cast<T*>(const_cast<void*>(address));
    }
};

}  // namespace forge
