// Changing stacks. On x86-64 by hand (the callee-saved registers of the System V ABI), elsewhere with ucontext.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

#include "sanitizers.h"
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulate {

constexpr std::size_t STACK_BYTES = 256 << 10;

// A suspended flow of control; the scheduler's own has no stack here.
struct Context {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t saved;
#endif
    unsigned char* stack = nullptr;
    void* fake_stack = nullptr;  // AddressSanitizer's
};

}  // namespace emulate

#if defined(__x86_64__)
extern "C" void trtforge_emulate_switch(void** save, void* load);
asm(R"(
.text
.globl trtforge_emulate_switch
.type trtforge_emulate_switch, @function
trtforge_emulate_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size trtforge_emulate_switch, . - trtforge_emulate_switch
)");
#endif

namespace emulate {

inline unsigned char* allocate_pages(std::size_t bytes) {
    void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) {
        static const char message[] = "TRTFORGE-EMULATE memory: the system has no memory for another block\n";
        if (write(STDERR_FILENO, message, sizeof(message) - 1) < 0) _exit(71);
        _exit(70);
    }
    unpoison(pages, bytes);
    return static_cast<unsigned char*>(pages);
}

// Pages that are used for one block after the other. ThreadSanitizer gets new ones each time: to it, a stack that
// another thread used before would be memory that the two share.
class ReusedPages {
  public:
    unsigned char* take(std::size_t bytes) {
        if (thread_sanitizer() || bytes > bytes_) {
            drop();
            pages_ = allocate_pages(bytes);
            bytes_ = bytes;
            fresh_ = true;
        } else {
            fresh_ = false;
        }
        unpoison(pages_, bytes_);
        return pages_;
    }
    bool fresh() const { return fresh_; }  // were the pages handed out last new ones?

  private:
    void drop() {
        if (pages_ == nullptr) return;
        unpoison(pages_, bytes_);
        munmap(pages_, bytes_);
    }
    unsigned char* pages_ = nullptr;
    std::size_t bytes_ = 0;
    bool fresh_ = false;
};

// A context that will run `start` on a new stack, below which a page is kept out of reach.
inline void prepare(Context& context, unsigned char* stack, bool fresh, void (*start)()) {
    context.stack = stack;
    context.fake_stack = nullptr;
    if (fresh) mprotect(stack, static_cast<std::size_t>(sysconf(_SC_PAGESIZE)), PROT_NONE);
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(stack + STACK_BYTES - 64);
    *--top = nullptr;  // what `start` would return to; it never does. Keeps the stack aligned as after a call.
    *--top = reinterpret_cast<void*>(start);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context.stack_pointer = top;
#else
    getcontext(&context.saved);
    context.saved.uc_stack.ss_sp = stack;
    context.saved.uc_stack.ss_size = STACK_BYTES;
    context.saved.uc_link = nullptr;
    makecontext(&context.saved, start, 0);
#endif
}

// Where the scheduler's own stack lies; told by AddressSanitizer when it is first left.
inline const void* main_stack = nullptr;
inline std::size_t main_stack_bytes = 0;

inline void arrived(Context& context) {
    if (__sanitizer_finish_switch_fiber != nullptr) {
        const void* left = nullptr;
        std::size_t left_bytes = 0;
        __sanitizer_finish_switch_fiber(context.fake_stack, &left, &left_bytes);
        if (main_stack == nullptr) {
            main_stack = left;
            main_stack_bytes = left_bytes;
        }
    }
}

// From one context to another; returns when somebody switches back.
inline void change(Context& from, Context& to, bool for_good = false) {
    if (__sanitizer_start_switch_fiber != nullptr) {
        const void* bottom = to.stack != nullptr ? to.stack : main_stack;
        const std::size_t bytes = to.stack != nullptr ? STACK_BYTES : main_stack_bytes;
        __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, bottom, bytes);
    }
#if defined(__x86_64__)
    trtforge_emulate_switch(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.saved, &to.saved);
#endif
    arrived(from);
}

}  // namespace emulate
