// What a kernel's translation unit asks of the emulation's runtime. The runtime is compiled on its own, without a
// sanitizer's instrumentation: its own bookkeeping is no access of the kernel.
//
//   kernel (instrumented) --> emulate.h, ptx.h: thin, one function per construct --> this interface --> runtime/*.h
#pragma once

#include <cstddef>
#include <cstdint>

struct uint3 {
    unsigned int x, y, z;
};

// Set by the scheduler whenever it gives the processor to another thread of the grid.
extern uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulate {

// Where in the kernel's source a construct stands; filled in by default arguments.
struct Location {
    const char* file;
    unsigned line;

    static constexpr Location current(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
        return {file, line};
    }
};
#define EMULATE_HERE ::emulate::Location::current()

// ---- the kernel, as the runtime calls it ----------------------------------------------------------------------------

struct Entry {
    const char* name;
    const char* kinds;               // of the parameters: p pointer, i 32-bit integer, m tensor map, ? anything else
    void (*call)(void** arguments);  // as cuLaunchKernel takes them: the address of each argument
};
int serve(const Entry& entry, int argc, char** argv);

[[noreturn]] void fail(const char* kind, const char* format, ...) __attribute__((format(printf, 2, 3)));

// ---- shared memory --------------------------------------------------------------------------------------------------

void* dynamic_shared();
void* static_shared(const void* key, std::size_t bytes, std::size_t alignment, const char* name);
std::uint32_t shared_address(const void* pointer);
bool is_shared(const void* pointer);
void load_shared(std::uint32_t address, void* to, unsigned bytes, Location where);
void store_shared(std::uint32_t address, const void* from, unsigned bytes, Location where);
std::uint32_t map_to_cta(std::uint32_t address, std::uint32_t cta);

// ---- threads --------------------------------------------------------------------------------------------------------

enum class Vote { sum, all, any };
int block_barrier(Vote vote, int predicate, Location where);
void named_barrier(int id, int threads, bool wait, Location where);
void warp_barrier(unsigned mask, Location where);
void cluster_arrive(Location where);
void cluster_wait(Location where);
unsigned cluster_rank();
bool elect(unsigned mask, Location where);
unsigned lane_index();
unsigned multiprocessor();

enum class Shuffle { index, up, down, exclusive_or };
std::uint64_t shuffle(Shuffle kind, unsigned mask, std::uint64_t value, int operand, int width, Location where);
enum class Reduction { add, smallest, largest, bits_and, bits_or, bits_xor, smallest_signed, largest_signed };
unsigned reduce(Reduction kind, unsigned mask, unsigned value, Location where);
unsigned ballot(unsigned mask, int predicate, Location where);
unsigned match_any(unsigned mask, std::uint64_t value, Location where);

void note_atomic(const void* address);

// ---- asynchronous copies and matrix instructions --------------------------------------------------------------------

void copy_async(std::uint32_t to, const void* from, unsigned bytes, unsigned valid_bytes, Location where);
void copy_async_commit();
void copy_async_wait(unsigned pending);

void matrix_load(std::uint32_t* const* registers, int matrices, bool transposed, std::uint32_t row, Location where);
void matrix_store(const std::uint32_t* const* registers, int matrices, bool transposed, std::uint32_t row,
                  Location where);

enum class Element { f16, bf16, e4m3, e5m2, s8 };  // e4m3 and after: one byte
void mma_m16n8(Element type, float* const* d, const std::uint32_t* const* a, const std::uint32_t* const* b,
               const float* const* c, Location where);

void wgmma(Element type, int n, float* const* d, const std::uint32_t* const* a, std::uint64_t a_descriptor,
           std::uint64_t b_descriptor, bool accumulate, int a_transposed, int b_transposed, Location where);
void wgmma_commit(Location where);
void wgmma_wait(unsigned pending, Location where);
void wgmma_fence(Location where);

void mbarrier_init(std::uint32_t barrier, std::uint32_t arrivals, Location where);
void mbarrier_arrive(std::uint32_t barrier, std::uint32_t expected_bytes, Location where);
void mbarrier_complete(std::uint32_t barrier, std::uint32_t bytes, Location where);
bool mbarrier_wait(std::uint32_t barrier, std::uint32_t parity, Location where);

void tensor_load(std::uint32_t to, const void* map, std::uint32_t barrier, const int* coordinates, int rank,
                 unsigned ctas, Location where);
void tensor_store(const void* map, std::uint32_t from, const int* coordinates, int rank, Location where);
// Fields of tensormap.replace; those from global_dim on have one value for each dimension.
enum class MapField {
    global_address, rank, elemtype, interleave_layout, swizzle_mode, fill_mode,
    global_dim, global_stride, box_dim, element_stride
};
void map_replace(std::uint32_t map, MapField field, int dimension, std::uint64_t value, Location where);
void map_publish(void* to, std::uint32_t map, Location where);

void tensor_store_commit();
void tensor_store_wait(unsigned pending);

}  // namespace emulate
