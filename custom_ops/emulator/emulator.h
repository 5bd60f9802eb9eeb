// gpu.h on the host: runs a kernel one fiber a thread, exactly and with every access checked.
//
// What a launch verifies while it runs, and reports as a fault that names the kernel's thread and block:
//   - global memory: every access lies in a region that the launcher declared, is aligned to its size, reads nothing
//     that another thread of the same launch wrote, and writes no byte twice;
//   - shared memory: every access lies in the block's allocation, is aligned, reads nothing that was never written or
//     whose asynchronous copy is not waited for, and no two threads touch a byte, one of them writing, without a
//     barrier between them (of the block, or of the warp where both are in one);
//   - warp operations and barriers: all lanes of a warp arrive at the same one, none has left or waits elsewhere.
// Threads run in an order that changes with the seed. Matrix operations are computed element by element from the
// layouts the vendors document: PTX ISA, "Matrix Fragments for mma.m16n8k16"; CDNA3 ISA, "MFMA register mapping".
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define DEPLOYML_DEVICE inline
#define DEPLOYML_KERNEL(threads) void

namespace deployml::gpu {

inline constexpr bool kHasMma = true;
inline constexpr bool kHasMfma = true;
inline constexpr bool kHasNoMatrix = true;  // there are devices to serve without a matrix unit

namespace emulator {

struct Position {
  int thread = 0, threads = 0;
  int64_t block = 0;
};
extern Position at;

enum class Op { kShuffle, kLoadMatrix, kLoadMatrixTransposed, kMma, kMfma };

[[noreturn]] __attribute__((format(printf, 1, 2))) void fault(const char* format, ...);
char* shared_memory();
void access_global(const void* p, size_t bytes, size_t alignment, bool write);
void access_shared(const char* p, size_t bytes, size_t alignment, bool write);
void barrier();
void warp_barrier();
void copy_chunk(char* to, const void* from, bool valid);
void copy_commit();
void copy_wait(int groups);

/// All lanes of the warp meet here; the last to arrive runs `run(operands of all lanes, lanes)`.
void collective(Op op, int warp, void* operands, void (*run)(void** lanes, int warp));

struct Shuffle {
  float given, taken;
  int lane;
};
struct LoadMatrix {
  const char* row;  // of 8 elements of 2 bytes
  uint32_t* r;
};
struct Mma {
  float* c[4];
  uint32_t a[4], b[2];
  float (*widen)(uint16_t);
};
struct Mfma {
  float* c[4];
  uint32_t a[2], b[2];
  float (*widen)(uint16_t);
};
void run_shuffle(void** lanes, int warp);
void run_load_matrix(void** lanes, int warp);
void run_load_matrix_transposed(void** lanes, int warp);
void run_mma(void** lanes, int warp);
void run_mfma(void** lanes, int warp);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float x);
float bfloat_to_float(uint16_t bits);
uint16_t float_to_bfloat(float x);

/// A call with its launches; others wait for its end.
struct Session {
  Session();
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
};

enum class Access { kRead, kWrite, kUpdate };  // kUpdate: holds something before it is written

/// Declares memory the launches of this session may touch.
void declare_region(const void* p, size_t bytes, Access access);

/// Runs the kernel; nullptr, or what went wrong (valid until the next launch).
const char* run(int64_t blocks, int threads, int warp, size_t shared, const std::function<void()>& kernel);

/// What DEPLOYML_EMULATED_DEVICE asks for, nvidia (default), cdna or rdna, with the number of multiprocessors that
/// DEPLOYML_EMULATED_MULTIPROCESSORS says. DEPLOYML_EMULATED_SEED sets the order in which threads run.
Device device();

}  // namespace emulator

DEPLOYML_DEVICE int thread() { return emulator::at.thread; }
DEPLOYML_DEVICE int threads() { return emulator::at.threads; }
DEPLOYML_DEVICE int64_t block() { return emulator::at.block; }
DEPLOYML_DEVICE void sync_block() { emulator::barrier(); }
DEPLOYML_DEVICE void sync_warp() { emulator::warp_barrier(); }

template <int kWarp>
DEPLOYML_DEVICE float shuffle(float x, int lane) {
  emulator::Shuffle operands{x, 0.0f, lane};
  emulator::collective(emulator::Op::kShuffle, kWarp, &operands, emulator::run_shuffle);
  return operands.taken;
}
template <int kWarp>
DEPLOYML_DEVICE float shuffle_xor(float x, int mask) {
  return shuffle<kWarp>(x, thread() % kWarp ^ mask);
}

template <typename T>
DEPLOYML_DEVICE T load(const T* p) {
  emulator::access_global(p, sizeof(T), sizeof(T), false);
  T x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
template <typename T>
DEPLOYML_DEVICE void store(T* p, T x) {
  emulator::access_global(p, sizeof(T), sizeof(T), true);
  std::memcpy(p, &x, sizeof x);
}

DEPLOYML_DEVICE char* shared() { return emulator::shared_memory(); }
template <typename T>
DEPLOYML_DEVICE T shared_load(const char* p) {
  emulator::access_shared(p, sizeof(T), sizeof(T), false);
  T x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
template <typename T>
DEPLOYML_DEVICE void shared_store(char* p, T x) {
  emulator::access_shared(p, sizeof(T), sizeof(T), true);
  std::memcpy(p, &x, sizeof x);
}

DEPLOYML_DEVICE void copy_chunk(char* to, const void* from, bool valid) { emulator::copy_chunk(to, from, valid); }
DEPLOYML_DEVICE void copy_commit() { emulator::copy_commit(); }
template <int kGroups>
DEPLOYML_DEVICE void copy_wait() {
  emulator::copy_wait(kGroups);
}

DEPLOYML_DEVICE void load_matrix(uint32_t (&r)[4], const char* p) {
  emulator::LoadMatrix operands{p, r};
  emulator::collective(emulator::Op::kLoadMatrix, 32, &operands, emulator::run_load_matrix);
}
DEPLOYML_DEVICE void load_matrix_transposed(uint32_t (&r)[4], const char* p) {
  emulator::LoadMatrix operands{p, r};
  emulator::collective(emulator::Op::kLoadMatrixTransposed, 32, &operands, emulator::run_load_matrix_transposed);
}

DEPLOYML_DEVICE float widen(float x) { return x; }
DEPLOYML_DEVICE float widen(Half x) { return emulator::half_to_float(x.bits); }
DEPLOYML_DEVICE float widen(BFloat x) { return emulator::bfloat_to_float(x.bits); }

template <typename T>
DEPLOYML_DEVICE T narrow(float x);
template <>
DEPLOYML_DEVICE float narrow<float>(float x) {
  return x;
}
template <>
DEPLOYML_DEVICE Half narrow<Half>(float x) {
  return {emulator::float_to_half(x)};
}
template <>
DEPLOYML_DEVICE BFloat narrow<BFloat>(float x) {
  return {emulator::float_to_bfloat(x)};
}

template <typename T>
DEPLOYML_DEVICE uint32_t narrow_pair(float low, float high) {
  return uint32_t(narrow<T>(low).bits) | uint32_t(narrow<T>(high).bits) << 16;
}

template <typename T>
DEPLOYML_DEVICE void mma(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::Mma operands{{&c0, &c1, &c2, &c3}, {a[0], a[1], a[2], a[3]}, {b0, b1}, [](uint16_t x) {
                           return widen(T{x});
                         }};
  emulator::collective(emulator::Op::kMma, 32, &operands, emulator::run_mma);
}
template <typename T>
DEPLOYML_DEVICE void mfma(float& c0, float& c1, float& c2, float& c3, uint32_t a0, uint32_t a1, uint32_t b0,
                          uint32_t b1) {
  emulator::Mfma operands{{&c0, &c1, &c2, &c3}, {a0, a1}, {b0, b1}, [](uint16_t x) { return widen(T{x}); }};
  emulator::collective(emulator::Op::kMfma, 64, &operands, emulator::run_mfma);
}

DEPLOYML_DEVICE float power_of_two(float x) { return std::exp2(x); }
DEPLOYML_DEVICE float hyperbolic_tangent(float x) { return std::tanh(x); }
DEPLOYML_DEVICE float error_function(float x) { return std::erf(x); }

inline const char* query_device(Device* device) {
  *device = emulator::device();
  return nullptr;
}

template <typename Params>
const char* launch(void (*kernel)(Params), int64_t blocks, int threads, size_t shared, void*, const Params& params) {
  return emulator::run(blocks, threads, emulator::device().warp, shared, [&] { kernel(params); });
}

}  // namespace deployml::gpu
