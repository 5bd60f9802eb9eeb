// FlashAttention on the CPU: chooses the instruction set, splits the work, appends new keys to past ones.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu_loop.h"
#include "isa.h"
#include "thread_scratch.h"

namespace deployml {
namespace {

constexpr int64_t kRowsPerTask = 960;  // packing a tile of keys is then a percent of the work

const CpuLoop& choose_loop() {
#if defined(DEPLOYML_X86)
  return best_loop(portable::kLoop, avx2::kLoop, avx512::kLoop);
#else
  return portable::kLoop;
#endif
}

const CpuLoop& loop() {
  static const CpuLoop& chosen = choose_loop();
  return chosen;
}

bool multiplies_bfloat16() {
#if defined(DEPLOYML_X86)
  static const bool found = instructions().avx512_bf16 && isa_allowed("avx512_bf16");
  return found;
#else
  return false;
#endif
}

/// The loop of a call: bfloat16 has one of its own where the machine multiplies it, for whole pairs and many rows.
const CpuLoop& loop_for(const AttentionCall& call) {
#if defined(DEPLOYML_X86)
  const bool pairs = call.head_dim % 2 == 0 && call.key.row % 2 == 0 && call.queries > kDirectRows;
  if (call.element == Element::kBFloat16 && pairs && multiplies_bfloat16()) return avx512_bf16::kLoop;
#endif
  return loop();
}

int64_t processors() {
  static const int64_t count = [] {
    cpu_set_t set;
    CPU_ZERO(&set);
    return sched_getaffinity(0, sizeof set, &set) == 0 ? int64_t(CPU_COUNT(&set)) : int64_t(1);
  }();
  return count;
}

/// How the rows of a call are cut into tasks.
struct Split {
  const AttentionCall* call;
  int64_t rows;    // of a task
  int64_t chunks;  // of a key-value head
  std::atomic<bool> failed{false};
};

int64_t rows_per_task(const AttentionCall& call) {
  const int64_t group = call.heads / call.kv_heads;
  const int64_t blocks = (call.queries + kRowBlock - 1) / kRowBlock;
  const int64_t most = std::max<int64_t>(1, kRowsPerTask / kRowBlock / group);
  const int64_t wanted = 4 * processors();  // tasks
  const int64_t pairs = call.batch * call.kv_heads;
  const int64_t chunks = std::max((blocks + most - 1) / most, std::min(blocks, (wanted + pairs - 1) / pairs));
  return (blocks + chunks - 1) / chunks * kRowBlock;
}

void run_task(void* user, size_t index) {
  Split& split = *static_cast<Split*>(user);
  const AttentionCall& call = *split.call;
  const int64_t pairs = call.batch * call.kv_heads;
  // Later chunks see more keys under causality: they go first, so that the threads end together.
  const int64_t chunk = split.chunks - 1 - int64_t(index) / pairs;
  const int64_t pair = int64_t(index) % pairs;
  const int64_t begin = chunk * split.rows;
  const CpuTask task{pair / call.kv_heads, pair % call.kv_heads, begin,
                     std::min(begin + split.rows, call.queries)};
  if (!loop_for(call).run(call, task, thread_scratch)) split.failed = true;
}

/// Writes past and new rows of one key-value head to the present tensors; a past that lies there already is left.
void append_head(void* user, size_t index) {
  const AttentionCall& call = *static_cast<const AttentionCall*>(user);
  const size_t size = size_t(bytes_of(call.element));
  const int64_t b = int64_t(index) / call.kv_heads, h = int64_t(index) % call.kv_heads;
  const int64_t start = call.cache ? call.lengths[b] - call.fresh : call.past;
  const int64_t skipped = start < 0 ? -start : 0;
  const auto append = [&](const View& fresh, const void* past, void* present, int64_t dim) {
    const size_t row = size_t(dim) * size;
    char* out = static_cast<char*>(present) + index * size_t(call.keys) * row;
    if (call.past > 0 && past != present)
      std::memcpy(out, static_cast<const char*>(past) + index * size_t(call.past) * row,
                  size_t(call.past) * row);
    const char* from =
        static_cast<const char*>(fresh.data) + size_t(b * fresh.batch + h * fresh.head + skipped * fresh.row) * size;
    for (int64_t i = skipped; i < call.fresh; ++i, from += size_t(fresh.row) * size)
      std::memcpy(out + size_t(start + i) * row, from, row);
  };
  append(call.key, call.past_key, call.present_key, call.head_dim);
  append(call.value, call.past_value, call.present_value, call.value_dim);
}

View contiguous(const void* data, int64_t heads, int64_t rows, int64_t dim) {
  return {data, heads * rows * dim, rows * dim, dim, 1};
}

const char* launch(const AttentionCall& given, const Runtime& runtime) {
  AttentionCall call = given;
  if (call.present_key != nullptr) {
    runtime.parallel_for(runtime.state, call.batch * call.kv_heads, append_head, &call);
    call.key = contiguous(call.present_key, call.kv_heads, call.keys, call.head_dim);
    call.value = contiguous(call.present_value, call.kv_heads, call.keys, call.value_dim);
  }
  if (call.batch == 0 || call.queries == 0) return nullptr;
  Split split{&call, rows_per_task(call), 0};
  split.chunks = (call.queries + split.rows - 1) / split.rows;
  const int64_t tasks = call.batch * call.kv_heads * split.chunks;
  runtime.parallel_for(runtime.state, tasks, run_task, &split);
  return split.failed ? "no memory for a tile of scores" : nullptr;
}

bool supports(Element, unsigned) { return true; }

}  // namespace

const Backend& cpu_backend() {
  static const Backend cpu{nullptr, supports, launch};
  return cpu;
}

}  // namespace deployml

/// Name of the loop in use for float32 ("avx512", "avx2", "portable"), for reports and tests.
extern "C" __attribute__((visibility("default"))) const char* deployml_cpu_isa() {
  return deployml::loop().name;
}

/// Whether bfloat16 is multiplied as it is and not as float32.
extern "C" __attribute__((visibility("default"))) int deployml_cpu_multiplies_bfloat16() {
  return deployml::multiplies_bfloat16() ? 1 : 0;
}
