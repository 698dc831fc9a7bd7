// ldmatrix, stmatrix, mma.sync and wgmma (PTX ISA, "Warp-level matrix instructions", "Asynchronous warpgroup level
// matrix instructions"). Products are exact in float32 for 16-bit operands; sums are float32, k ascending.
#pragma once

#include "../conversions.h"
#include "threads.h"

namespace emulate {

constexpr int bytes_of(Element type) {
    return type == Element::f16 || type == Element::bf16 ? 2 : 1;
}

inline float float_of(Element type, std::uint32_t bits) {
    if (type == Element::s8) return static_cast<float>(static_cast<std::int8_t>(bits));
    if (type == Element::e4m3) return decode(bits & 0xffu, E4M3_FORMAT);
    if (type == Element::e5m2) return decode(bits & 0xffu, E5M2_FORMAT);
    bits &= 0xffffu;
    if (type == Element::bf16) {
        bits <<= 16;
    } else {
        const std::uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 0x1fu, fraction = bits & 0x3ffu;
        if (exponent == 0) {
            const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
            return sign != 0 ? -magnitude : magnitude;
        }
        bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    }
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

// ---- between shared memory and fragments ----------------------------------------------------------------------------

struct LaneMatrix {
    std::uint32_t row;
    std::uint32_t* const* to;
    const std::uint32_t* const* from;
    unsigned char* rows[4][8];
};

// The 16-byte rows that lanes 0 .. 8 * matrices - 1 name; every lane learns of all of them.
inline void gather_rows(const char* name, LaneMatrix& mine, int matrices, Location where) {
    together(name, WARP, 0xffffffffu, &mine, where, [&](const std::vector<void*>& lanes) {
        for (int i = 0; i < matrices * 8; ++i) {
            if (lanes[i] == nullptr) fail("warp", "%s needs a whole warp%s", name, at(where).c_str());
            const std::uint32_t address = static_cast<LaneMatrix*>(lanes[i])->row;
            unsigned char* row = shared_at(*state.current->cta, address, 16, 16, name, where);
            for (void* lane : lanes) static_cast<LaneMatrix*>(lane)->rows[i / 8][i % 8] = row;
        }
    });
}

// A lane's register of a matrix: two elements, rows of the first and second, columns of the first and second.
struct Place {
    int row[2], column[2];
};
inline Place place_of(bool transposed) {
    const int lane = static_cast<int>(lane_index());
    const int major = lane / 4, minor = 2 * (lane % 4);
    if (transposed) return {{minor, minor + 1}, {major, major}};
    return {{major, major}, {minor, minor + 1}};
}

void matrix_load(std::uint32_t* const* registers, int matrices, bool transposed, std::uint32_t row, Location where) {
    LaneMatrix mine{row, registers, nullptr, {}};
    gather_rows("ldmatrix", mine, matrices, where);
    const Place place = place_of(transposed);
    for (int i = 0; i < matrices; ++i) {
        std::uint32_t packed = 0;
        for (int e = 0; e < 2; ++e) {
            const unsigned char* element = mine.rows[i][place.row[e]] + 2 * place.column[e];
            note_read(element, 2);
            packed |= static_cast<std::uint32_t>(element[0] | element[1] << 8) << (16 * e);
        }
        *registers[i] = packed;
    }
}

void matrix_store(const std::uint32_t* const* registers, int matrices, bool transposed, std::uint32_t row,
                  Location where) {
    LaneMatrix mine{row, nullptr, registers, {}};
    gather_rows("stmatrix", mine, matrices, where);
    const Place place = place_of(transposed);
    for (int i = 0; i < matrices; ++i) {
        for (int e = 0; e < 2; ++e) {
            unsigned char* element = mine.rows[i][place.row[e]] + 2 * place.column[e];
            note_write(element, 2);
            element[0] = static_cast<unsigned char>(*registers[i] >> (16 * e));
            element[1] = static_cast<unsigned char>(*registers[i] >> (16 * e + 8));
        }
    }
}

// ---- mma.sync -------------------------------------------------------------------------------------------------------

struct LaneProduct {
    float* const* d;
    const std::uint32_t* const* a;
    const std::uint32_t* const* b;
    const float* const* c;
};

// m16n8k16, or m16n8k32 of 8-bit elements: a register has two or four of them.
void mma_m16n8(Element type, float* const* d, const std::uint32_t* const* a, const std::uint32_t* const* b,
               const float* const* c, Location where) {
    LaneProduct mine{d, a, b, c};
    together("mma.sync", WARP, 0xffffffffu, &mine, where, [=](const std::vector<void*>& lanes) {
        const int held = 4 / bytes_of(type), shift = 32 / held;
        float left[16][32], right[32][8];
        for (int lane = 0; lane < static_cast<int>(WARP); ++lane) {
            if (lanes[lane] == nullptr) fail("warp", "mma.sync needs a whole warp%s", at(where).c_str());
            const auto& part = *static_cast<LaneProduct*>(lanes[lane]);
            const int group = lane / 4, first = held * (lane % 4);
            for (int e = 0; e < held; ++e) {
                const auto element = [&](std::uint32_t word) { return float_of(type, word >> (shift * e)); };
                for (int i = 0; i < 4; ++i) {
                    left[group + 8 * (i & 1)][first + 4 * held * (i >> 1) + e] = element(*part.a[i]);
                }
                for (int i = 0; i < 2; ++i) right[first + 4 * held * i + e][group] = element(*part.b[i]);
            }
        }
        for (int lane = 0; lane < static_cast<int>(WARP); ++lane) {
            const auto& part = *static_cast<LaneProduct*>(lanes[lane]);
            float sums[4];
            for (int i = 0; i < 4; ++i) {
                const int row = lane / 4 + 8 * (i >> 1), column = 2 * (lane % 4) + (i & 1);
                sums[i] = 0.0f;
                for (int k = 0; k < 8 * held; ++k) sums[i] += left[row][k] * right[k][column];
                if (type == Element::s8) {  // places for integers; the sum of 32 products is exact in float32
                    std::int32_t sum;
                    std::memcpy(&sum, part.c[i], sizeof(sum));
                    sum += static_cast<std::int32_t>(sums[i]);
                    std::memcpy(&sums[i], &sum, sizeof(sum));
                } else {
                    sums[i] += *part.c[i];
                }
            }
            for (int i = 0; i < 4; ++i) *part.d[i] = sums[i];
        }
    });
}

// ---- wgmma ----------------------------------------------------------------------------------------------------------
// Issued products are carried out as late as allowed: when a thread of the warpgroup's wait asks for them.

// Shared offset of element (mn, k) of an operand: the canonical layouts of the PTX ISA, swizzled; only 2-byte elements
// can be transposed. Bits 0-13 start, 16-29 leading offset, 32-45 stride offset (each / 16), 62-63 swizzle (1: 128 bytes).
inline std::uint32_t operand_offset(std::uint64_t descriptor, int mn, int k, int bytes, bool transposed,
                                    Location where) {
    const auto field = [&](int shift) { return static_cast<std::uint32_t>(descriptor >> shift & 0x3fff) << 4; };
    const unsigned swizzle = static_cast<unsigned>(descriptor >> 62);
    if (swizzle != 1) fail("not emulated", "a wgmma operand that is not in 128-byte swizzle%s", at(where).c_str());
    const auto m = static_cast<std::uint32_t>(mn), n = static_cast<std::uint32_t>(k);
    const std::uint32_t inside = transposed ? m / 64 * field(16) + n / 8 * field(32) + n % 8 * 128 + m % 64 * 2
                                            : m / 8 * field(32) + m % 8 * 128 + n * bytes;
    const std::uint32_t address = field(0) + inside;
    return address ^ (address >> 7 & 7) << 4;
}

inline float operand(Cta& cta, Element type, std::uint64_t descriptor, int mn, int k, bool transposed, Location where) {
    const int size = bytes_of(type);
    const unsigned char* bytes =
        shared_at(cta, operand_offset(descriptor, mn, k, size, transposed, where), size, size, "wgmma", where);
    return float_of(type, static_cast<std::uint32_t>(size == 2 ? bytes[0] | bytes[1] << 8 : bytes[0]));
}

// ThreadSanitizer is told of the reads in runs of 16 bytes, the swizzle's unit.
inline void note_operand(Cta& cta, std::uint64_t descriptor, int rows, bool transposed, Location where) {
    for (int mn = 0; mn < rows; mn += transposed ? 8 : 1) {
        for (int k = 0; k < 16; k += transposed ? 1 : 8) {
            note_read(shared_at(cta, operand_offset(descriptor, mn, k, 2, transposed, where), 16, 16, "wgmma", where), 16);
        }
    }
}

// Work of the asynchronous proxy: for ThreadSanitizer a thread of its own, which begins after what its issuer, the
// current thread, has done. Only inside a RuntimeContext.
class ProxyContext {
  public:
    ProxyContext() {
        if (!thread_sanitizer()) return;
        enter_context(state.current->sanitizer);
        context_ = __tsan_create_fiber(0);
        enter_context(state.runtime_context);
    }
    template <class Work>
    void run(const Work& work) const {
        enter_context(context_);
        work();
        enter_context(state.runtime_context);
    }
    void end() const {
        if (context_ != nullptr) __tsan_destroy_fiber(context_);
    }

  private:
    void* context_ = nullptr;
};

struct WarpgroupPart {
    float* const* d;
    const std::uint32_t* const* a;
    std::uint64_t a_descriptor, b_descriptor;
    bool accumulate;
};

struct WarpgroupProduct {
    std::vector<float*> d;
    std::vector<std::uint32_t> a;
    std::vector<bool> accumulate;
};

inline void multiply(Cta& cta, Element type, int n, const WarpgroupProduct& product, std::uint64_t a_descriptor,
                     std::uint64_t b_descriptor, int a_transposed, int b_transposed, Location where) {
    const int depth = 32 / bytes_of(type);
    std::vector<float> left(64 * depth), right(depth * static_cast<std::size_t>(n)), sums(static_cast<std::size_t>(n));
    for (int k = 0; k < depth; ++k) {
        for (int j = 0; j < n; ++j) right[k * n + j] = operand(cta, type, b_descriptor, j, k, b_transposed != 0, where);
    }
    if (product.a.empty()) {
        for (int row = 0; row < 64; ++row) {
            for (int k = 0; k < depth; ++k) {
                left[row * depth + k] = operand(cta, type, a_descriptor, row, k, a_transposed != 0, where);
            }
        }
    } else {
        const int held = depth / 8;  // elements of a register: two, or four of 8 bits
        for (int thread = 0; thread < 128; ++thread) {
            for (int i = 0; i < 4 * held; ++i) {
                const int part = i / held, e = i % held;
                const int row = thread / 32 * 16 + thread % 32 / 4 + 8 * (part & 1);
                const int k = held * (thread % 4) + 4 * held * (part / 2) + e;
                left[row * depth + k] = float_of(type, product.a[thread * 4 + part] >> (32 / held * e));
            }
        }
    }
    const int held = n / 2;
    for (int row = 0; row < 64; ++row) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int k = 0; k < depth; ++k) {
            const float factor = left[row * depth + k];
            const float* other = &right[k * n];
            for (int j = 0; j < n; ++j) sums[j] += factor * other[j];
        }
        const int first_thread = row / 16 * 32 + row % 8 * 4;
        const int half = row % 16 / 8;
        for (int j = 0; j < n; ++j) {
            const int thread = first_thread + j % 8 / 2;
            float& d = *product.d[static_cast<std::size_t>(thread) * held + 4 * (j / 8) + 2 * half + j % 2];
            if (type == Element::s8) {  // a place for an integer; the sum of 32 products is exact in float32
                auto& integer = *reinterpret_cast<std::int32_t*>(&d);
                integer = (product.accumulate[thread] ? integer : 0) + static_cast<std::int32_t>(sums[j]);
            } else {
                d = product.accumulate[thread] ? d + sums[j] : sums[j];
            }
        }
    }
}

void wgmma(Element type, int n, float* const* d, const std::uint32_t* const* a, std::uint64_t a_descriptor,
           std::uint64_t b_descriptor, bool accumulate, int a_transposed, int b_transposed, Location where) {
    WarpgroupPart mine{d, a, a_descriptor, b_descriptor, accumulate};
    const bool from_registers = a != nullptr;
    Cta& cta = *state.current->cta;
    together("wgmma.mma_async", WARPGROUP, 0, &mine, where, [&](const std::vector<void*>& threads) {
        auto product = std::make_shared<WarpgroupProduct>();
        for (void* thread : threads) {
            const auto& part = *static_cast<WarpgroupPart*>(thread);
            if (part.a_descriptor != a_descriptor || part.b_descriptor != b_descriptor) {
                fail("warpgroup", "the threads of a warpgroup give wgmma different descriptors%s", at(where).c_str());
            }
            for (int i = 0; i < n / 2; ++i) product->d.push_back(part.d[i]);
            product->accumulate.push_back(part.accumulate);
            for (int i = 0; from_registers && i < 4; ++i) product->a.push_back(*part.a[i]);
        }
        auto& warpgroup = cta.warpgroups[state.current->number / WARPGROUP];
        Cta* const owner = &cta;
        const ProxyContext proxy;
        warpgroup.products.push_back({warpgroup.group, [=, &warpgroup] {
            proxy.run([&] {
                note_operand(*owner, b_descriptor, n, b_transposed != 0, where);
                if (!from_registers) note_operand(*owner, a_descriptor, 64, a_transposed != 0, where);
                release(&warpgroup.order);
            });
            proxy.end();
            multiply(*owner, type, n, *product, a_descriptor, b_descriptor, a_transposed, b_transposed, where);
        }});
    });
}

void wgmma_fence(Location where) {
    int here = 0;
    together("wgmma.fence", WARPGROUP, 0, &here, where, [](const std::vector<void*>&) {});
}

void wgmma_commit(Location where) {
    int here = 0;
    together("wgmma.commit_group", WARPGROUP, 0, &here, where, [](const std::vector<void*>&) {
        ++state.current->cta->warpgroups[state.current->number / WARPGROUP].group;
    });
}

void wgmma_wait(unsigned pending, Location where) {
    int here = 0;
    auto& warpgroup = [&]() -> Cta::Warpgroup& {
        const RuntimeContext context;
        return state.current->cta->warpgroups[state.current->number / WARPGROUP];
    }();
    together("wgmma.wait_group", WARPGROUP, 0, &here, where, [&](const std::vector<void*>&) {
        while (!warpgroup.products.empty() && warpgroup.products.front().group + pending < warpgroup.group) {
            warpgroup.products.front().compute();
            warpgroup.products.pop_front();
        }
    });
    acquire(&warpgroup.order);
}

}  // namespace emulate
