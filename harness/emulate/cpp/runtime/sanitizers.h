// The sanitizers' own interface, called where it is linked in (weak symbols, null otherwise).
//
// ThreadSanitizer sees every CUDA thread as a thread of its own: a "fiber" of its interface, entered without
// synchronization. The only orderings it learns are the ones declared here (barriers, mbarriers, copies that were
// waited for), so that a missing barrier is reported whatever order the threads happened to run in. The runtime's own
// code runs in a context of its own (RuntimeContext), which never learns anything from the kernel's threads.
#pragma once

#include <cstddef>

extern "C" {
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void* __tsan_create_fiber(unsigned flags);
__attribute__((weak)) void __tsan_destroy_fiber(void* fiber);
__attribute__((weak)) void __tsan_switch_to_fiber(void* fiber, unsigned flags);
__attribute__((weak)) void __tsan_set_fiber_name(void* fiber, const char* name);
__attribute__((weak)) void __tsan_acquire(void* address);
__attribute__((weak)) void __tsan_release(void* address);
__attribute__((weak)) void __tsan_read_range(void* address, unsigned long size);
__attribute__((weak)) void __tsan_write_range(void* address, unsigned long size);
__attribute__((weak)) void __asan_poison_memory_region(const volatile void* address, std::size_t size);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* address, std::size_t size);
__attribute__((weak)) void __asan_loadN(unsigned long address, unsigned long size);
__attribute__((weak)) void __asan_storeN(unsigned long address, unsigned long size);
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, std::size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, std::size_t* size);
}

namespace emulate {

constexpr unsigned WITHOUT_SYNCHRONIZATION = 1;

inline bool thread_sanitizer() { return __tsan_create_fiber != nullptr; }

inline void acquire(void* object) {
    if (__tsan_acquire != nullptr) __tsan_acquire(object);
}
inline void release(void* object) {
    if (__tsan_release != nullptr) __tsan_release(object);
}
inline void enter_context(void* context) {
    if (thread_sanitizer()) __tsan_switch_to_fiber(context, WITHOUT_SYNCHRONIZATION);
}

// An emulated instruction is about to read or write memory that the kernel sees.
inline void note_read(const void* from, std::size_t bytes) {
    if (bytes == 0) return;
    if (__asan_loadN != nullptr) __asan_loadN(reinterpret_cast<unsigned long>(from), bytes);
    if (__tsan_read_range != nullptr) __tsan_read_range(const_cast<void*>(from), bytes);
}
inline void note_write(void* to, std::size_t bytes) {
    if (bytes == 0) return;
    if (__asan_storeN != nullptr) __asan_storeN(reinterpret_cast<unsigned long>(to), bytes);
    if (__tsan_write_range != nullptr) __tsan_write_range(to, bytes);
}

inline void poison(const void* from, std::size_t bytes) {
    if (__asan_poison_memory_region != nullptr) __asan_poison_memory_region(from, bytes);
}
inline void unpoison(const void* from, std::size_t bytes) {
    if (__asan_unpoison_memory_region != nullptr) __asan_unpoison_memory_region(from, bytes);
}

}  // namespace emulate
