// The memory functions of the C library under other names, for this translation unit: the sanitizers replace the
// library's own and would take what the runtime does on a thread's stack for accesses of the wrong thread. Comes before
// every other header, so that the standard library's templates use these too. The loops must stay loops
// (-fno-tree-loop-distribute-patterns).
#pragma once

#include <stddef.h>

extern "C" {
void* memcpy(void* to, const void* from, size_t bytes) noexcept __asm__("trtforge_emulate_memcpy");
void* memmove(void* to, const void* from, size_t bytes) noexcept __asm__("trtforge_emulate_memmove");
void* memset(void* to, int value, size_t bytes) noexcept __asm__("trtforge_emulate_memset");
int memcmp(const void* first, const void* second, size_t bytes) noexcept __asm__("trtforge_emulate_memcmp");

void* trtforge_memcpy(void* to, const void* from, size_t bytes) noexcept __asm__("trtforge_emulate_memcpy");
void* trtforge_memmove(void* to, const void* from, size_t bytes) noexcept __asm__("trtforge_emulate_memmove");
void* trtforge_memset(void* to, int value, size_t bytes) noexcept __asm__("trtforge_emulate_memset");
int trtforge_memcmp(const void* first, const void* second, size_t bytes) noexcept __asm__("trtforge_emulate_memcmp");

void* trtforge_memcpy(void* to, const void* from, size_t bytes) noexcept { return trtforge_memmove(to, from, bytes); }

void* trtforge_memmove(void* to, const void* from, size_t bytes) noexcept {
    auto* target = static_cast<unsigned char*>(to);
    const auto* source = static_cast<const unsigned char*>(from);
    if (target < source) {
        for (size_t i = 0; i < bytes; ++i) target[i] = source[i];
    } else {
        for (size_t i = bytes; i-- > 0;) target[i] = source[i];
    }
    return to;
}

void* trtforge_memset(void* to, int value, size_t bytes) noexcept {
    auto* target = static_cast<unsigned char*>(to);
    for (size_t i = 0; i < bytes; ++i) target[i] = static_cast<unsigned char>(value);
    return to;
}

int trtforge_memcmp(const void* first, const void* second, size_t bytes) noexcept {
    const auto* a = static_cast<const unsigned char*>(first);
    const auto* b = static_cast<const unsigned char*>(second);
    for (size_t i = 0; i < bytes; ++i) {
        if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
    }
    return 0;
}
}
