// The attention loop: keys outside, blocks of query rows inside, online softmax between the two products.
//
// This file is compiled once per instruction set (see CMakeLists.txt). A task walks its keys in tiles: a tile of
// keys and values is packed once and used by every block of rows of the task, each of which keeps its own running
// maximum, sum and output. Memory grows with the rows of a task and never with queries x keys. A tile that
// lengths, causality, window, mask or bias rule out for a block is skipped.
#include "cpu_loop.h"

#include "cpu_exclusion.h"

namespace deployml::DEPLOYML_ISA {
namespace {

template <typename T>
class Task {
  using Sum = typename Products<T>::Sum;

 public:
  Task(const AttentionCall& call, const CpuTask& task)
      : call_(call), task_(task), work_{call, task}, tables_(work_), products_(work_), exclusion_(work_, products_, tables_) {
    only_biased_ = call.bias.data != nullptr && call.bias.column != 0 && call.mask.data == nullptr &&
                   call.table == nullptr && call.slopes == nullptr && call.softcap == 0.0f;
  }

  bool run(ThreadScratch scratch) {
    if (!allocate(scratch)) return false;
    Range all{call_.keys, 0};
    for (int64_t i = 0; i < work_.blocks; ++i) {
      Block block = make_block(i);
      start(&block, i);
      exclusion_.trim(&block);
      list_[i] = block;
      if (block.keys.empty()) continue;
      all.begin = smaller(all.begin, block.keys.begin);
      all.end = larger(all.end, block.keys.end);
    }
    for (int64_t start = all.begin / kTile * kTile; start < all.end; start += kTile)
      visit_tile(start, smaller(kTile, all.end - start));
    for (int64_t i = 0; i < work_.blocks; ++i) finish(list_[i]);
    for (int64_t start = 0; call_.weights.data != nullptr && start < call_.keys; start += kTile)
      write_weights(start, smaller(kTile, call_.keys - start));
    return true;
  }

 private:
  bool allocate(ThreadScratch scratch) {
    block_size_ = work_.padded_rows * (work_.depth + work_.value_width) + 2 * work_.state_rows;
    const int64_t rows = work_.padded_rows * (kTile + kWidth) + 2 * work_.state_rows;
    const int64_t floats = work_.blocks * block_size_ + products_.floats() + rows + tables_.floats() + kWidth;
    const size_t list = sizeof(Block) * size_t(work_.blocks);
    char* memory = static_cast<char*>(scratch(size_t(floats) * sizeof(float) + list + 64));
    if (memory == nullptr) return false;
    float* next = reinterpret_cast<float*>(memory);
    scores_ = next, next += work_.padded_rows * kTile;
    products_.use(next), next += products_.floats();
    block_memory_ = next, next += work_.blocks * block_size_;
    tables_.template load<T>(next), next += tables_.floats();
    lanes_ = next, next += work_.padded_rows * kWidth;
    top_ = next, next += work_.state_rows;
    factor_ = next, next += work_.state_rows;
    fill(top_, work_.state_rows, -kInfinity);
    const uintptr_t end = (reinterpret_cast<uintptr_t>(next) + 63) / 64 * 64;
    list_ = reinterpret_cast<Block*>(end);
    return true;
  }

  Block make_block(int64_t index) {
    Block block{};
    block.head = task_.kv_head * work_.group + index / work_.blocks_per_head;
    block.row = task_.begin + index % work_.blocks_per_head * kRowBlock;
    block.rows = smaller(kRowBlock, task_.end - block.row);
    block.output = block_memory_ + index * block_size_ + work_.padded_rows * work_.depth;
    block.state.highest = block.output + work_.padded_rows * work_.value_width;
    block.state.total = block.state.highest + work_.state_rows;
    block.fresh = true;
    block.done = false;
    const Range low = visible(call_, work_.length, block.row);
    const Range high = visible(call_, work_.length, block.row + block.rows - 1);
    block.keys = {low.begin, high.end};
    return block;
  }

  /// Loads the block's queries and resets what it accumulates.
  void start(Block* block, int64_t index) {
    products_.load_query(block, block_memory_ + index * block_size_);
    fill(block->state.highest, work_.state_rows, -kInfinity);
    fill(block->state.total, work_.state_rows, 0.0f);
  }

  void visit_tile(int64_t start, int64_t count) {
    bool packed = work_.direct;
    for (int64_t i = 0; i < work_.blocks; ++i) {
      Block& block = list_[i];
      const Range columns{larger(block.keys.begin - start, 0), smaller(block.keys.end - start, count)};
      if (columns.empty() || exclusion_.excludes(block, start, columns)) continue;
      if (!packed) products_.pack(start, count);
      packed = true;
      if (work_.direct) {
        visit_direct(block, start, columns);
      } else {
        visit_block(block, start, count, columns);
      }
    }
  }

  void visit_block(Block& block, int64_t start, int64_t count, const Range& columns) {
    const bool plain = untouched(block, start, columns);
    if (plain) fill(lanes_, block.rows * kWidth, -kInfinity);
    products_.score(block, start, count, columns, scores_, plain ? lanes_ : nullptr);
    if (plain) {
      for (int64_t r = 0; r < block.rows; ++r) {
        top_[r] = reduce_max(load(lanes_ + r * kWidth));
        logits_[r] = columns;
      }
    } else {
      for (int64_t r = 0; r < block.rows; ++r) top_[r] = shape(block, r, start, columns);
    }
    weigh(block, columns);
    Sum sum{block.output, work_.value_width, {}};
    if (!block.fresh) sum.also.scale = factor_;
    if constexpr (sizeof(T) == sizeof(float))
      if (products_.writes_in_place(block)) {
        take_shares(block);
        sum.output = output_row(block, 0), sum.row = call_.output.row, sum.also.share = block.state.total;
        block.done = true;
      }
    products_.add_values(block, start, count, columns, scores_, sum);
    block.fresh = false;
  }

  void visit_direct(Block& block, int64_t start, const Range& columns) {
    if (block.fresh) fill(block.output, block.rows * work_.value_width, 0.0f);
    block.fresh = false;
    for (int64_t r = 0; r < block.rows; ++r) {
      products_.score_row(block, r, start, columns, scores_ + r * kTile);
      top_[r] = shape(block, r, start, columns);
    }
    weigh(block, columns);
    for (int64_t r = 0; r < block.rows; ++r)
      products_.add_values_of_row(block, r, start, columns, scores_ + r * kTile, factor_[r]);
  }

  /// Whether these columns need nothing besides the product and a bias that it can add: whole vectors, no row apart.
  bool untouched(const Block& block, int64_t start, const Range& columns) const {
    const bool biased = sizeof(T) == sizeof(float) && only_biased_ && block.rows % kExactRows == 0;
    if ((shaped() && !biased) || columns.begin % kWidth != 0 || columns.end % kWidth != 0) return false;
    return visible(call_, work_.length, block.row).end >= start + columns.end &&
           visible(call_, work_.length, block.row + block.rows - 1).begin <= start + columns.begin;
  }

  /// Scores of row r become logits, over the vectors that hold a key of the row: logits_[r], -inf between the keys.
  /// Returns the largest.
  float shape(const Block& block, int64_t r, int64_t start, const Range& columns) {
    const int64_t row = block.row + r;
    const Range keys = visible(call_, work_.length, row);
    const int64_t low = larger(keys.begin - start, columns.begin);
    const int64_t high = smaller(keys.end - start, columns.end);
    if (low >= high) {
      logits_[r] = {columns.begin, columns.begin};
      return -kInfinity;
    }
    const int64_t begin = low / kWidth * kWidth, end = round_up(high, kWidth);
    logits_[r] = {begin, end};
    float* s = scores_ + r * kTile;
    if (only_biased_ && low == begin && high == end) {
      const T* bias = row_of<T>(call_.bias, task_.batch, block.head, row) + start;
      return add_bias(s + begin, end - begin, bias + begin);
    }
    if (!shaped()) return cut_row(s, begin, low, high, end);
    shape_row(s + begin, high - begin, context(block, row, start + begin));
    fill(s + begin, low - begin, -kInfinity);
    fill(s + high, end - high, -kInfinity);
    return row_top(s + begin, end - begin);
  }

  /// Logits become weights, with `top_` the maxima of the tile's rows; sets `factor_`. Columns without a logit get 0.
  void weigh(const Block& block, const Range& columns) {
    raise_maxima(block.state, block.rows, top_, factor_);
    for (int64_t r = 0; r < block.rows; ++r) {
      const Range& logits = logits_[r];
      float* s = scores_ + r * kTile;
      fill(s + columns.begin, logits.begin - columns.begin, 0.0f);
      fill(s + logits.end, columns.end - logits.end, 0.0f);
      const float sum = logits.empty() ? 0.0f : exponentials(s + logits.begin, logits.end - logits.begin, top_[r]);
      block.state.total[r] = block.state.total[r] * factor_[r] + sum;
    }
  }

  bool shaped() const {
    return call_.softcap != 0.0f || call_.slopes != nullptr || call_.table != nullptr || call_.bias.data != nullptr ||
           call_.mask.data != nullptr;
  }

  RowContext<T> context(const Block& block, int64_t row, int64_t key) const {
    RowContext<T> at{};
    at.softcap = call_.softcap;
    if (call_.slopes != nullptr) at.slope = widen(static_cast<const T*>(call_.slopes)[block.head]);
    at.ahead = key - position_of(call_, work_.length, row);
    at.distance = float(-at.ahead);
    if (call_.table != nullptr) at.table = tables_.of(block.head), at.reach = tables_.reach();
    if (call_.bias.data != nullptr) {
      at.bias_column = call_.bias.column;
      at.bias = row_of<T>(call_.bias, task_.batch, block.head, row) + at.bias_column * key;
    }
    if (call_.mask.data != nullptr) {
      at.mask_column = call_.mask.column;
      at.mask = row_of<uint8_t>(call_.mask, task_.batch, block.head, row) + at.mask_column * key;
    }
    return at;
  }

  /// Divides by the sums and writes the block's rows.
  void finish(const Block& block) {
    if (block.done) return;
    take_shares(block);
    if (block.fresh) fill(block.output, block.rows * work_.value_width, 0.0f);
    for (int64_t r = 0; r < block.rows; ++r)
      store_scaled(block.output + r * work_.value_width, call_.value_dim, block.state.total[r], output_row(block, r));
  }

  T* output_row(const Block& block, int64_t r) const {
    return const_cast<T*>(row_of<T>(call_.output, task_.batch, block.head, block.row + r));
  }

  /// The sums of rows become what rows are multiplied by, the sink's share included.
  void take_shares(const Block& block) {
    const T* sinks = static_cast<const T*>(call_.sink);
    const float sink = sinks != nullptr ? widen(sinks[block.head]) : -kInfinity;
    for (int64_t r = 0; r < block.rows; ++r) {
      float total = block.state.total[r], factor = 1.0f;
      if (sinks != nullptr) {
        const float highest = block.state.highest[r];
        const float top = sink > highest ? sink : highest;
        const float base = top == -kInfinity ? 0.0f : top;
        factor = reduce_max(exponential(set1(highest - base)));
        total = total * factor + reduce_max(exponential(set1(sink - base)));
      }
      block.state.total[r] = total == 0.0f ? 0.0f : factor / total;
    }
  }

  /// Writes the weights of these keys, after `finish`: the scores are computed once more, with the maxima known.
  void write_weights(int64_t start, int64_t count) {
    bool packed = work_.direct;
    for (int64_t i = 0; i < work_.blocks; ++i) {
      const Block& block = list_[i];
      Range columns{larger(block.keys.begin - start, 0), smaller(block.keys.end - start, count)};
      if (columns.empty()) columns = {0, 0};
      if (!columns.empty() && !packed) products_.pack_keys(start, count);
      packed = packed || !columns.empty();
      if (!columns.empty() && !work_.direct) products_.score(block, start, count, columns, scores_, nullptr);
      for (int64_t r = 0; r < block.rows; ++r) write_row(block, r, start, count, columns);
    }
  }

  void write_row(const Block& block, int64_t r, int64_t start, int64_t count, const Range& columns) {
    float* s = scores_ + r * kTile;
    Range logits{0, 0};
    if (!columns.empty()) {
      if (work_.direct) products_.score_row(block, r, start, columns, s);
      shape(block, r, start, columns);
      logits = logits_[r];
    }
    const float highest = block.state.highest[r];
    if (!logits.empty())
      exponentials(s + logits.begin, logits.end - logits.begin, highest == -kInfinity ? 0.0f : highest);
    fill(s, logits.begin, 0.0f);
    fill(s + logits.end, larger(count - logits.end, 0), 0.0f);
    const Vec share = set1(block.state.total[r]);
    T* out = const_cast<T*>(row_of<T>(call_.weights, task_.batch, block.head, block.row + r)) + start;
    for (int64_t j = 0; j < count; j += kWidth) store_first(out + j, mul(share, load(s + j)), count - j);
  }

  const AttentionCall& call_;
  const CpuTask& task_;
  const Work work_;
  Tables tables_;
  Products<T> products_;
  Exclusion<T> exclusion_;
  int64_t block_size_;
  bool only_biased_;
  Range logits_[kRowBlock];  // of each row of the block at hand, in whole vectors
  float *scores_, *block_memory_, *lanes_, *top_, *factor_;
  Block* list_;
};

bool run(const AttentionCall& call, const CpuTask& task, ThreadScratch scratch) {
#if defined(__AVX512BF16__)
  return Task<BFloat>(call, task).run(scratch);  // the other types are not given to this loop
#else
  switch (call.element) {
    case Element::kFloat32: return Task<float>(call, task).run(scratch);
    case Element::kFloat16: return Task<Half>(call, task).run(scratch);
    case Element::kBFloat16: return Task<BFloat>(call, task).run(scratch);
  }
  return false;
#endif
}

#define DEPLOYML_TEXT_(x) #x
#define DEPLOYML_TEXT(x) DEPLOYML_TEXT_(x)

}  // namespace

extern const CpuLoop kLoop;
const CpuLoop kLoop{DEPLOYML_TEXT(DEPLOYML_ISA), run};

}  // namespace deployml::DEPLOYML_ISA
