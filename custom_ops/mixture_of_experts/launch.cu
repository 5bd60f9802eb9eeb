// MixtureOfExperts on a GPU: turns a call into kernel parameters, takes memory, starts the kernels.
//
// Nothing here waits for the device or reads its memory, so a call can be captured into a graph. What can be chosen is
// what is supported.
#include "../flash_attention/unit_fma.cuh"
#include "../flash_attention/unit_mfma.cuh"
#include "../flash_attention/unit_mma.cuh"
#include "kernel.cuh"

namespace deployml {
namespace {

using gpu::BFloat;
using gpu::Half;

constexpr int kStep = 64;  // of the depth
constexpr int kWarps = 4;
constexpr int kAddThreads = 256;
constexpr int64_t kMostSlots = int64_t(1) << 28;
constexpr int64_t kMostBlocks = 0x7fffffff;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Launch {
  ExpertsParams params;
  gpu::Device device;
  void* stream;
};

template <typename Kernel>
const char* start(const Launch& launch, Kernel kernel, int64_t blocks, int threads, size_t shared) {
  if (blocks == 0) return nullptr;
  if (blocks > kMostBlocks) return "tokens x columns are too many for one launch";
  if (shared > size_t(launch.device.shared_limit)) return "a block of this device has too little shared memory";
  return gpu::launch(kernel, blocks, threads, shared, launch.stream, launch.params);
}

/// The two products.
template <typename Unit>
const char* multiply(const Launch& given) {
  Launch launch = given;
  ExpertsParams& p = launch.params;
  const int64_t slots = int64_t(p.tokens) * p.each;
  p.tiles = int(divide_up(slots, kWarps * Unit::kWarpRows) + (p.count < slots ? p.count : slots));
  const int threads = kWarps * Unit::kWarp;
  const int64_t enter = p.tiles * divide_up(p.inner, Unit::kTile), leave = p.tiles * divide_up(p.hidden, Unit::kTile);
  const char* message =
      p.gated ? start(launch, enter_experts<Unit, 2>, enter, threads, experts_shared_bytes<Unit>(kWarps, 2))
              : start(launch, enter_experts<Unit, 1>, enter, threads, experts_shared_bytes<Unit>(kWarps, 1));
  if (message != nullptr) return message;
  return start(launch, leave_experts<Unit>, leave, threads, experts_shared_bytes<Unit>(kWarps, 1));
}

template <typename T>
const char* with_unit(const Launch& launch) {
  if constexpr (sizeof(T) == 2 && gpu::kHasMma)
    if (launch.device.matrix == gpu::Matrix::kMma) return multiply<MmaUnit<T, kStep>>(launch);
  if constexpr (sizeof(T) == 2 && gpu::kHasMfma)
    if (launch.device.matrix == gpu::Matrix::kMfma) return multiply<MfmaUnit<T, kStep>>(launch);
  if constexpr (sizeof(T) == 4 && gpu::kHasMfma)
    if (launch.device.warp == 64) return multiply<FmaUnit<T, kStep, 64>>(launch);
  if constexpr (sizeof(T) == 4 || gpu::kHasNoMatrix)
    if (launch.device.warp == 32) return multiply<FmaUnit<T, kStep, 32>>(launch);
  return "this device has no unit the library was built for";
}

template <typename T>
const char* run_typed(const Launch& launch) {
  const ExpertsParams& p = launch.params;
  const char* message = nullptr;
  if (p.count > 0 && int64_t(p.tokens) * p.each > 0) {
    message = start(launch, order_slots, p.count, kOrderThreads, size_t(kOrderThreads) * 8);
    if (message == nullptr) message = with_unit<T>(launch);
  }
  if (message != nullptr) return message;
  const int64_t numbers = int64_t(p.tokens) * p.hidden;
  return start(launch, add_choices<T>, divide_up(numbers, kAddThreads), kAddThreads, 0);
}

bool whole(const void* data, int64_t row, int element) {
  constexpr int64_t kChunk = int64_t(sizeof(gpu::Chunk));
  return reinterpret_cast<uintptr_t>(data) % kChunk == 0 && row * element % kChunk == 0;
}

ExpertsParams params_of(const ExpertsCall& call) {
  const int element = bytes_of(call.element);
  ExpertsParams p{};
  p.x = call.x, p.chosen = call.chosen, p.weights = call.weights, p.output = call.output;
  p.first = call.first, p.second = call.second, p.first_bias = call.first_bias, p.second_bias = call.second_bias;
  p.tokens = int(call.tokens), p.each = int(call.each), p.count = int(call.count);
  p.hidden = int(call.hidden), p.inner = int(call.inner);
  p.hidden_chunks = whole(call.x, call.hidden, element) && whole(call.first, call.hidden, element);
  p.inner_chunks = whole(call.second, call.inner, element);
  p.activation = call.activation, p.gated = call.gated;
  p.alpha = call.alpha, p.limit = call.limit, p.offset = call.offset;
  return p;
}

/// Takes the memory between the kernels; what `allocate` gives is aligned for all of it.
void take_memory(const ExpertsCall& call, const ExpertsRuntime& runtime, ExpertsParams* p) {
  const size_t slots = size_t(call.tokens * call.each);
  const auto take = [&](size_t bytes) { return bytes > 0 ? runtime.allocate(runtime.state, bytes) : nullptr; };
  p->starts = static_cast<int*>(take((size_t(call.count) + 1) * sizeof(int)));
  p->slots = static_cast<int*>(take(slots * sizeof(int)));
  p->between = take(slots * size_t(call.inner) * size_t(bytes_of(call.element)));
  p->made = static_cast<float*>(take(slots * size_t(call.hidden) * sizeof(float)));
  p->inner_chunks = p->inner_chunks && whole(p->between, call.inner, bytes_of(call.element));
}

const char* run(const ExpertsCall& call, const ExpertsRuntime& runtime) {
  if (call.tokens == 0 || call.hidden == 0) return nullptr;
  if (call.tokens > kMostSlots || call.each > kMostSlots || call.tokens * call.each > kMostSlots)
    return "more than 2^28 choices of tokens";
  if (call.hidden > kMostSlots || call.inner > kMostSlots || call.count > kMostSlots)
    return "more than 2^28 experts, features or inner numbers";
  Launch launch{params_of(call), {}, runtime.stream(runtime.state)};
  if (const char* message = gpu::query_device(&launch.device)) return message;
  take_memory(call, runtime, &launch.params);
  if (call.element == Element::kFloat16) return run_typed<Half>(launch);
  return call.element == Element::kBFloat16 ? run_typed<BFloat>(launch) : run_typed<float>(launch);
}

#if defined(DEPLOYML_EMULATED)

using gpu::emulator::Access;
constexpr const char* kProvider = nullptr;

void declare_all(const ExpertsCall& c) {
  const auto flat = [](const void* p, int64_t count, int size, Access access) {
    gpu::emulator::declare_region(p, size_t(count) * size_t(size), access);
  };
  const int element = bytes_of(c.element);
  const int64_t made = c.gated ? 2 * c.inner : c.inner, slots = c.tokens * c.each;
  flat(c.x, c.tokens * c.hidden, element, Access::kRead), flat(c.chosen, slots, 8, Access::kRead);
  flat(c.weights, slots, element, Access::kRead);
  flat(c.first, c.count * made * c.hidden, element, Access::kRead);
  flat(c.second, c.count * c.hidden * c.inner, element, Access::kRead);
  flat(c.first_bias, c.count * made, element, Access::kRead);
  flat(c.second_bias, c.count * c.hidden, element, Access::kRead);
  flat(c.output, c.tokens * c.hidden, element, Access::kWrite);
}

/// The runtime with a workspace the emulator knows.
void* allocate_declared(void* state, size_t bytes) {
  const ExpertsRuntime& runtime = *static_cast<const ExpertsRuntime*>(state);
  void* memory = runtime.allocate(runtime.state, bytes);
  gpu::emulator::declare_region(memory, bytes, Access::kWrite);
  return memory;
}

const char* run_checked(const ExpertsCall& call, const ExpertsRuntime& runtime) {
  const gpu::emulator::Session session;  // one call at a time
  declare_all(call);
  ExpertsRuntime declared = runtime;
  declared.state = const_cast<ExpertsRuntime*>(&runtime), declared.allocate = allocate_declared;
  declared.stream = [](void*) -> void* { return nullptr; };
  return run(call, declared);
}

#else

#if defined(__HIPCC__)
constexpr const char* kProvider = "ROCMExecutionProvider";
#else
constexpr const char* kProvider = "CUDAExecutionProvider";
#endif

const char* run_checked(const ExpertsCall& call, const ExpertsRuntime& runtime) { return run(call, runtime); }

#endif

}  // namespace

const ExpertsBackend& experts_on_gpu() {
  static const ExpertsBackend gpu{kProvider, run_checked};
  return gpu;
}

}  // namespace deployml
