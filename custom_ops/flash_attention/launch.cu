// FlashAttention on a GPU: turns a call into kernel parameters, appends new keys to past ones, starts the kernels.
//
// Nothing here waits for the device or reads its memory, so a call can be captured into a graph.
#include "append.cuh"
#include "launch.h"

namespace deployml {
namespace {

constexpr int64_t kMostLength = int64_t(1) << 29;
constexpr int kAppendThreads = 256;

Strided strided(const View& x, int64_t dim, int element) {
  const auto whole = [element](int64_t n) { return n * element % int64_t(sizeof(gpu::Chunk)) == 0; };
  const bool aligned = reinterpret_cast<uintptr_t>(x.data) % sizeof(gpu::Chunk) == 0;
  return {x.data, x.batch, x.head, x.row, x.column,
          aligned && whole(x.batch) && whole(x.head) && whole(x.row) && whole(dim)};
}

View contiguous(const void* data, int64_t heads, int64_t rows, int64_t dim) {
  return {data, heads * rows * dim, rows * dim, dim, 1};
}

int bound_of(int64_t window) { return window < 0 || window >= kUnbounded ? kUnbounded : int(window); }

Params params_of(const AttentionCall& call) {
  const int element = bytes_of(call.element);
  Params p{};
  p.query = strided(call.query, call.head_dim, element);
  p.key = strided(call.key, call.head_dim, element);
  p.value = strided(call.value, call.value_dim, element);
  p.output = strided(call.output, call.value_dim, element);
  p.mask = strided(call.mask, 1, 1);
  p.bias = strided(call.bias, 1, element);
  p.weights = strided(call.weights, 1, element);
  p.slopes = call.slopes, p.sink = call.sink, p.lengths = call.lengths;
  p.table = call.table, p.table_reach = int(call.table_size / 2), p.table_head = int(call.table_head);
  p.batch = int(call.batch), p.heads = int(call.heads), p.kv_heads = int(call.kv_heads);
  p.group = p.heads / p.kv_heads;
  p.queries = int(call.queries), p.keys = int(call.keys);
  p.head_dim = int(call.head_dim), p.value_dim = int(call.value_dim);
  p.rows = p.group * p.queries;
  p.row_blocks = p.splits = 1;
  p.left = bound_of(call.window_left), p.right = bound_of(call.window_right);
  p.scale = call.scale, p.softcap = call.softcap, p.lower_right = call.lower_right;
  return p;
}

const char* append_rows(const AttentionCall& call, const View& fresh, const void* past, const void* present,
                        int64_t dim, void* stream) {
  const int element = bytes_of(call.element);
  AppendParams p{};
  p.fresh = strided(fresh, dim, element);
  p.past = strided(contiguous(past, call.kv_heads, call.past, dim), dim, element);
  p.present = strided(contiguous(present, call.kv_heads, call.keys, dim), dim, element);
  p.lengths = call.cache ? call.lengths : nullptr, p.start = int(call.past);
  p.kv_heads = int(call.kv_heads), p.keys = int(call.keys), p.fresh_rows = int(call.fresh), p.dim = int(dim);
  p.element = element, p.in_place = past == present;
  const bool chunks = p.fresh.chunks && p.present.chunks && (call.past == 0 || p.past.chunks);
  const int item = chunks ? int(sizeof(gpu::Chunk)) : element;
  p.items = call.batch * call.kv_heads * (p.in_place ? call.fresh : call.keys) * dim * element / item;
  if (p.items == 0) return nullptr;
  const int64_t blocks = (p.items + kAppendThreads - 1) / kAppendThreads;
  if (blocks > 0x7fffffff) return "the present keys are too many for one launch";
  const auto kernel = chunks ? append<gpu::Chunk> : element == 4 ? append<uint32_t> : append<uint16_t>;
  return gpu::launch(kernel, blocks, kAppendThreads, 0, stream, p);
}

const char* append_all(AttentionCall* call, void* stream) {
  const char* message =
      append_rows(*call, call->key, call->past_key, call->present_key, call->head_dim, stream);
  if (message == nullptr)
    message = append_rows(*call, call->value, call->past_value, call->present_value, call->value_dim, stream);
  call->key = contiguous(call->present_key, call->kv_heads, call->keys, call->head_dim);
  call->value = contiguous(call->present_value, call->kv_heads, call->keys, call->value_dim);
  return message;
}

const char* start(const AttentionCall& given, const Runtime& runtime) {
  AttentionCall call = given;
  Launch launch{};
  launch.runtime = &runtime;
  launch.stream = runtime.stream(runtime.state);
  if (call.queries > kMostLength || call.keys > kMostLength) return "more than 2^29 queries or keys";
  if (call.heads / call.kv_heads * call.queries > kMostLength) return "more than 2^29 rows of a key-value head";
  if (const char* message = gpu::query_device(&launch.device)) return message;
  if (call.present_key != nullptr)
    if (const char* message = append_all(&call, launch.stream)) return message;
  if (call.batch == 0 || call.queries == 0) return nullptr;
  launch.params = params_of(call);
  if (call.element == Element::kFloat16) return attend_Half(launch);
  return call.element == Element::kBFloat16 ? attend_BFloat(launch) : attend_float(launch);
}

bool supports(Element, unsigned) { return true; }

#if defined(DEPLOYML_EMULATED)
constexpr const char* kProvider = nullptr;
#elif defined(__HIPCC__)
constexpr const char* kProvider = "ROCMExecutionProvider";
#else
constexpr const char* kProvider = "CUDAExecutionProvider";
#endif

#if defined(DEPLOYML_EMULATED)

using gpu::emulator::Access;

int64_t table_elements(const AttentionCall& c) { return c.table_size + (c.heads - 1) * c.table_head; }

/// Declares a tensor of (batch, heads, rows, columns) elements to the emulator.
void declare(const View& x, int64_t batch, int64_t heads, int64_t rows, int64_t columns, int element,
             Access access) {
  if (x.data == nullptr || batch * heads * rows * columns == 0) return;
  const int64_t last =
      (batch - 1) * x.batch + (heads - 1) * x.head + (rows - 1) * x.row + (columns - 1) * x.column;
  gpu::emulator::declare_region(x.data, size_t(last + 1) * size_t(element), access);
}

void declare_all(const AttentionCall& c) {
  const int element = bytes_of(c.element);
  const int64_t fresh = c.present_key != nullptr ? c.fresh : c.keys;
  declare(c.query, c.batch, c.heads, c.queries, c.head_dim, element, Access::kRead);
  declare(c.key, c.batch, c.kv_heads, fresh, c.head_dim, element, Access::kRead);
  declare(c.value, c.batch, c.kv_heads, fresh, c.value_dim, element, Access::kRead);
  declare(c.output, c.batch, c.heads, c.queries, c.value_dim, element, Access::kWrite);
  declare(c.weights, c.batch, c.heads, c.queries, c.keys, element, Access::kWrite);
  declare(c.mask, c.batch, c.heads, c.queries, c.keys, 1, Access::kRead);
  declare(c.bias, c.batch, c.heads, c.queries, c.keys, element, Access::kRead);
  const auto flat = [](const void* p, int64_t count, int size, Access access) {
    gpu::emulator::declare_region(p, size_t(count) * size_t(size), access);
  };
  flat(c.slopes, c.heads, element, Access::kRead), flat(c.sink, c.heads, element, Access::kRead);
  flat(c.lengths, c.batch, 4, Access::kRead), flat(c.table, table_elements(c), element, Access::kRead);
  const int64_t pairs = c.batch * c.kv_heads;
  const auto grown = [&](const void* past, const void* present, int64_t dim) {
    if (past != present) flat(past, pairs * c.past * dim, element, Access::kRead);
    flat(present, pairs * c.keys * dim, element, past == present ? Access::kUpdate : Access::kWrite);
  };
  grown(c.past_key, c.present_key, c.head_dim), grown(c.past_value, c.present_value, c.value_dim);
}

/// The runtime with a workspace the emulator knows.
void* allocate_declared(void* state, size_t bytes) {
  const Runtime& runtime = *static_cast<const Runtime*>(state);
  void* memory = runtime.allocate(runtime.state, bytes);
  gpu::emulator::declare_region(memory, bytes, Access::kWrite);
  return memory;
}

const char* launch(const AttentionCall& call, const Runtime& runtime) {
  const gpu::emulator::Session session;  // one call at a time
  declare_all(call);
  Runtime declared = runtime;
  declared.state = const_cast<Runtime*>(&runtime), declared.allocate = allocate_declared;
  declared.stream = [](void*) -> void* { return nullptr; };
  return start(call, declared);
}

#else

const char* launch(const AttentionCall& call, const Runtime& runtime) { return start(call, runtime); }

#endif

}  // namespace

const Backend& gpu_backend() {
  static const Backend gpu{kProvider, supports, launch, true};
  return gpu;
}

}  // namespace deployml
