// The program's main part: reads job.txt of the working folder, runs the rounds, writes the outputs.
//
//   grid X Y Z | block X Y Z | cluster X Y Z | shared BYTES ALIGNMENT     geometry
//   round ORDER TIMING POISON SEED                                        one run of the whole grid; may be repeated
//   input FILE | output FILE BYTES                                        a pointer parameter
//   update FILE POINTER                                                   the POINTER-th pointer again, as an output
//   integer VALUE                                                         a 32-bit parameter
//   map POINTER ELEMENT_BYTES SWIZZLE RANK shape... strides... box...     a tensor map of the POINTER-th pointer
//
// Parameters in the kernel's order. Every tensor lies alone between guard bytes; FILE.R holds an output after round R.
#pragma once

#include <fstream>
#include <iostream>
#include <sstream>

#include "grid.h"

namespace emulate {

constexpr std::size_t TENSOR_GUARD = 4096;
constexpr int FAILED = 70;

void fail(const char* kind, const char* format, ...) {
    enter_context(state.runtime_context);
    std::fflush(stdout);
    std::fprintf(stderr, "\nTRTFORGE-EMULATE %s: ", kind);
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    if (state.current != nullptr) {
        std::fprintf(stderr, " [thread %s of block %s]", triple(state.current->index).c_str(),
                     triple(state.current->cta->index).c_str());
    }
    std::fprintf(stderr, "\n");
    std::fflush(stderr);
    _exit(FAILED);
}

struct Tensor {
    std::string file;
    std::size_t bytes = 0;
    bool output = false;
    bool updated = false;       // an input that the kernel changes in place
    std::size_t source = 0;     // of an output: 1 + the index of the input whose memory it is; 0: memory of its own
    std::vector<char> content;  // of an input
    unsigned char* memory = nullptr;

    unsigned char* data() const { return memory + TENSOR_GUARD; }

    void allocate() {
        memory = static_cast<unsigned char*>(std::aligned_alloc(4096, (bytes + 2 * TENSOR_GUARD + 4095) / 4096 * 4096));
        if (memory == nullptr) fail("memory", "no memory for a tensor of %zu bytes", bytes);
    }

    void fill() {
        unpoison(memory, bytes + 2 * TENSOR_GUARD);
        std::memset(memory, GUARD_PATTERN, bytes + 2 * TENSOR_GUARD);
        if (output) {
            std::memset(data(), 0xFF, bytes);
        } else {
            std::memcpy(data(), content.data(), bytes);
        }
        poison(memory, TENSOR_GUARD);
        poison(data() + bytes, TENSOR_GUARD);
    }

    void check(int number) const {
        unpoison(memory, bytes + 2 * TENSOR_GUARD);
        for (std::size_t i = 0; i < TENSOR_GUARD; ++i) {
            if (memory[i] != GUARD_PATTERN || data()[bytes + i] != GUARD_PATTERN) {
                fail("out of bounds", "the kernel wrote outside of the tensor of pointer parameter %d", number);
            }
        }
        if (!output && !updated && std::memcmp(data(), content.data(), bytes) != 0) {
            fail("input changed", "the kernel changed the input of pointer parameter %d", number);
        }
    }
};

struct Job {
    std::vector<Tensor> tensors;
    std::vector<int> integers;
    struct alignas(128) MapBytes {
        unsigned char bytes[128];
    };
    std::vector<MapBytes> maps;
    std::vector<std::pair<char, std::size_t>> parameters;  // kind and index among its kind
    struct Described {
        std::size_t pointer;
        Map map;
    };
    std::vector<Described> described;
    std::vector<Round> rounds;
};

inline void read_update(std::istream& line, Job& job) {
    Tensor tensor;
    std::size_t pointer = 0;
    tensor.output = true;
    line >> tensor.file >> pointer;
    tensor.source = pointer + 1;
    tensor.bytes = job.tensors.at(pointer).bytes;
    job.tensors.at(pointer).updated = true;
    job.parameters.emplace_back('p', job.tensors.size());
    job.tensors.push_back(std::move(tensor));
}

inline uint3 read_triple(std::istream& line) {
    uint3 value{};
    line >> value.x >> value.y >> value.z;
    return value;
}

inline void read_map(std::istream& line, Job& job) {
    Job::Described described{};
    Map& map = described.map;
    line >> described.pointer >> map.element_bytes >> map.swizzle >> map.rank;
    for (int i = 0; i < map.rank; ++i) line >> map.shape[i];
    map.strides[0] = 1;
    for (int i = 1; i < map.rank; ++i) line >> map.strides[i];
    for (int i = 0; i < map.rank; ++i) line >> map.box[i];
    map.magic = MAP_MAGIC;
    job.parameters.emplace_back('m', job.described.size());
    job.described.push_back(described);
}

inline void read_tensor(std::istream& line, Job& job, bool output) {
    Tensor tensor;
    tensor.output = output;
    line >> tensor.file;
    if (output) {
        line >> tensor.bytes;
    } else {
        std::ifstream file(tensor.file, std::ios::binary);
        tensor.content.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
        tensor.bytes = tensor.content.size();
    }
    job.parameters.emplace_back('p', job.tensors.size());
    job.tensors.push_back(std::move(tensor));
}

inline Job read_job() {
    Job job;
    Grid& grid = state.grid;
    std::ifstream file("job.txt");
    for (std::string text; std::getline(file, text);) {
        std::istringstream line(text);
        std::string word;
        line >> word;
        if (word == "grid") grid.blocks = read_triple(line);
        if (word == "block") grid.threads = read_triple(line);
        if (word == "cluster") grid.cluster = read_triple(line);
        if (word == "shared") line >> grid.dynamic_bytes >> grid.dynamic_alignment;
        if (word == "input" || word == "output") read_tensor(line, job, word == "output");
        if (word == "update") read_update(line, job);
        if (word == "map") read_map(line, job);
        if (word == "integer") {
            job.parameters.emplace_back('i', job.integers.size());
            line >> job.integers.emplace_back();
        }
        if (word == "round") {
            std::string order, timing;
            int poison = 0;
            Round round{};
            line >> order >> timing >> poison >> round.seed;
            round.order = order == "ranked" ? Order::ranked : Order::shuffled;
            round.timing = timing == "early" ? Timing::early : Timing::late;
            round.poison = static_cast<unsigned char>(poison);
            job.rounds.push_back(round);
        }
    }
    return job;
}

inline void check_parameters(const Entry& entry, const Job& job) {
    std::string given;
    for (const auto& [kind, index] : job.parameters) given += kind;
    if (given != entry.kinds) {
        fail("parameters", "%s takes (%s), the declaration gives (%s); p pointer, i 32-bit integer, m tensor map",
             entry.name, entry.kinds, given.c_str());
    }
}

int serve(const Entry& entry, int, char**) {
    if (thread_sanitizer()) state.runtime_context = __tsan_get_current_fiber();
    Job job = read_job();
    check_parameters(entry, job);
    if (dynamic_offset() + state.grid.dynamic_bytes + 2 * GUARD_BYTES > MEMORY_BYTES) {
        fail("shared memory", "%u bytes of dynamic shared memory", state.grid.dynamic_bytes);
    }
    std::vector<void*> pointers;
    for (Tensor& tensor : job.tensors) {
        if (tensor.source == 0) {
            tensor.allocate();
        } else {
            tensor.memory = job.tensors[tensor.source - 1].memory;
        }
        pointers.push_back(tensor.data());
    }
    job.maps.resize(job.described.size());
    for (std::size_t i = 0; i < job.maps.size(); ++i) {
        Map& map = job.described[i].map;
        map.base = job.tensors.at(job.described[i].pointer).data();
        std::memcpy(job.maps[i].bytes, &map, sizeof(map));
    }
    state.grid.entry = &entry;
    for (const auto& [kind, index] : job.parameters) {
        if (kind == 'p') state.grid.arguments.push_back(&pointers[index]);
        if (kind == 'i') state.grid.arguments.push_back(&job.integers[index]);
        if (kind == 'm') state.grid.arguments.push_back(job.maps[index].bytes);
    }
    for (std::size_t round = 0; round < job.rounds.size(); ++round) {
        state.round = job.rounds[round];
        state.random.seed(state.round.seed);
        for (Tensor& tensor : job.tensors) {
            if (tensor.source == 0) tensor.fill();
        }
        run_grid();
        for (std::size_t i = 0; i < job.tensors.size(); ++i) {
            const Tensor& tensor = job.tensors[i];
            tensor.check(static_cast<int>(i));
            if (!tensor.output) continue;
            std::ofstream file(tensor.file + "." + std::to_string(round), std::ios::binary);
            file.write(reinterpret_cast<const char*>(tensor.data()), static_cast<std::streamsize>(tensor.bytes));
        }
    }
    std::cout << (state.grid.atomics ? "atomics\n" : "done\n");
    return 0;
}

}  // namespace emulate
