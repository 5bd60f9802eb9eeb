// MixtureOfExperts on the CPU: sorts tokens by expert, cuts the two products into tasks, runs the phases.
#include <algorithm>
#include <atomic>
#include <vector>

#include "experts.h"
#include "isa.h"
#include "thread_scratch.h"

namespace deployml {
namespace {

constexpr int64_t kMostFloats = int64_t{1} << 26;  // in the tables of a part, 256 MiB
constexpr int64_t kFewestTokens = 256;             // of a part, however large they are
constexpr int64_t kNumbersPerTask = 32768;         // that are moved: some ten microseconds
constexpr int64_t kProductsPerTask = 262144;       // that are summed, or weights of one row

/// The loops for a call: the first product of bfloat16 has its own where the machine multiplies it, for whole pairs.
const ExpertsLoop& loop_for([[maybe_unused]] const ExpertsCall& call) {
#if defined(DEPLOYML_X86)
  static const bool pairs = instructions().avx512_bf16 && isa_allowed("avx512_bf16");
  if (pairs && call.element == Element::kBFloat16 && call.hidden % 2 == 0) return avx512_bf16::kExperts;
  static const ExpertsLoop& chosen = best_loop(portable::kExperts, avx2::kExperts, avx512::kExperts);
#else
  static const ExpertsLoop& chosen = portable::kExperts;
#endif
  return chosen;
}

/// Floats from one row of a table to the next: whole vectors, and an odd number of cache lines, so that rows of a
/// power of two do not all fall into the same few sets of the caches.
int64_t stride_of(int64_t width) { return ((width + 15) / 16 | 1) * 16; }

/// A phase: blocks of rows by columns of a product.
struct Phase {
  const ExpertsCall& call;
  const ExpertsPart& part;
  const std::vector<ExpertsBlock>& blocks;
  decltype(ExpertsLoop::enter) run;
  int64_t width;    // columns of the product
  int64_t columns;  // of a task
  std::atomic<bool> failed{false};

  int64_t cuts() const { return (width + columns - 1) / columns; }
};

void run_product(void* user, size_t index) {
  Phase& phase = *static_cast<Phase*>(user);
  const ExpertsBlock& block = phase.blocks[index / size_t(phase.cuts())];
  const int64_t begin = int64_t(index % size_t(phase.cuts())) * phase.columns;
  const int64_t end = std::min(begin + phase.columns, phase.width);
  if (!phase.run(phase.call, phase.part, block, begin, end, thread_scratch)) phase.failed = true;
}

/// Rows that are moved, some a task.
struct Moves {
  const ExpertsCall& call;
  const ExpertsPart& part;
  decltype(ExpertsLoop::gather) run;
  int64_t rows;
  int64_t share;  // of a task
};

void run_moves(void* user, size_t index) {
  const Moves& moves = *static_cast<const Moves*>(user);
  const int64_t begin = int64_t(index) * moves.share;
  moves.run(moves.call, moves.part, begin, std::min(begin + moves.share, moves.rows));
}

class Mixture {
 public:
  Mixture(const ExpertsCall& call, const ExpertsRuntime& runtime)
      : call_(call), runtime_(runtime), loop_(loop_for(call)) {
    part_.hidden_stride = stride_of(call.hidden), part_.inner_stride = stride_of(call.inner);
    const int64_t token = (2 * part_.hidden_stride + part_.inner_stride) * std::max<int64_t>(call.each, 1);
    share_ = std::min(std::max(kFewestTokens, kMostFloats / token), call.tokens);
    allocate();
  }

  bool run() {
    for (part_.token = 0; part_.token < call_.tokens; part_.token += share_) {
      part_.tokens = std::min(share_, call_.tokens - part_.token);
      sort();
      move(loop_.gather, part_.rows, call_.hidden);
      const int64_t halves = call_.gated ? 2 : 1;
      if (!multiply(loop_.enter, call_.inner, halves * call_.hidden)) return false;
      if (!multiply(loop_.leave, call_.hidden, call_.inner)) return false;
      move(loop_.add_up, part_.tokens, call_.hidden * call_.each);
    }
    return true;
  }

 private:
  void allocate() {
    const int64_t slots = share_ * call_.each, padded = slots + kRowPadding;
    const int64_t given = padded * part_.hidden_stride, between = padded * part_.inner_stride;
    const int64_t made = slots * part_.hidden_stride;
    const size_t floats = size_t(given + between + made) * sizeof(float);
    char* memory = static_cast<char*>(runtime_.allocate(runtime_.state, floats + size_t(slots) * sizeof(int64_t) + 64));
    memory += (64 - reinterpret_cast<uintptr_t>(memory) % 64) % 64;
    part_.given = reinterpret_cast<float*>(memory);
    part_.between = part_.given + given;
    part_.made = part_.between + between;
    slots_ = reinterpret_cast<int64_t*>(part_.made + made);
    part_.slots = slots_;
    starts_.resize(size_t(call_.count) + 1);
  }

  /// Counting sort of the part's slots by expert; within an expert they keep their order.
  void sort() {
    const int64_t* chosen = call_.chosen + part_.token * call_.each;
    const int64_t slots = part_.tokens * call_.each;
    std::fill(starts_.begin(), starts_.end(), 0);
    for (int64_t s = 0; s < slots; ++s)
      if (call_.names(chosen[s])) ++starts_[size_t(chosen[s]) + 1];
    blocks_.clear();
    for (int64_t e = 0; e < call_.count; ++e) {
      const int64_t begin = starts_[size_t(e)], rows = starts_[size_t(e) + 1];
      add_blocks(e, begin, rows);
      starts_[size_t(e) + 1] = begin + rows;
    }
    part_.rows = starts_.back();
    for (int64_t s = 0; s < slots; ++s)
      if (call_.names(chosen[s])) slots_[starts_[size_t(chosen[s])]++] = s;
  }

  void add_blocks(int64_t expert, int64_t begin, int64_t rows) {
    const int64_t pieces = (rows + kMostRows - 1) / kMostRows, end = begin + rows;
    for (; begin < end; ) {
      const int64_t share = (rows + pieces - 1) / pieces;
      const int64_t next = std::min(begin + (share + kRowPadding - 1) / kRowPadding * kRowPadding, end);
      blocks_.push_back({expert, begin, next});
      begin = next;
    }
  }

  void move(decltype(ExpertsLoop::gather) run, int64_t rows, int64_t numbers) {
    if (rows == 0) return;
    Moves moves{call_, part_, run, rows, std::max<int64_t>(1, kNumbersPerTask / std::max<int64_t>(numbers, 1))};
    runtime_.parallel_for(runtime_.state, (rows + moves.share - 1) / moves.share, run_moves, &moves);
  }

  /// One of the products, `depth` weights a column.
  bool multiply(decltype(ExpertsLoop::enter) run, int64_t width, int64_t depth) {
    if (blocks_.empty() || width == 0) return true;
    const int64_t column = std::max<int64_t>(1, depth * (part_.rows / int64_t(blocks_.size())));
    const int64_t wanted = (kProductsPerTask + column - 1) / column;
    const int64_t columns = (wanted + kColumnBlock - 1) / kColumnBlock * kColumnBlock;
    Phase phase{call_, part_, blocks_, run, width, columns};
    runtime_.parallel_for(runtime_.state, int64_t(blocks_.size()) * phase.cuts(), run_product, &phase);
    return !phase.failed;
  }

  const ExpertsCall& call_;
  const ExpertsRuntime& runtime_;
  const ExpertsLoop& loop_;
  ExpertsPart part_;
  int64_t share_ = 0;  // tokens of a part
  int64_t* slots_ = nullptr;
  std::vector<int64_t> starts_;  // rows before each expert
  std::vector<ExpertsBlock> blocks_;
};

const char* run(const ExpertsCall& call, const ExpertsRuntime& runtime) {
  if (call.tokens == 0 || call.hidden == 0) return nullptr;
  return Mixture(call, runtime).run() ? nullptr : "no memory for a block of sums";
}

}  // namespace

const ExpertsBackend& experts_on_cpu() {
  static const ExpertsBackend cpu{nullptr, run};
  return cpu;
}

}  // namespace deployml
