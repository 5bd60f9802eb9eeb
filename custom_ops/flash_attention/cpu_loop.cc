// The attention loop: keys outside, blocks of query rows inside, online softmax between the two products.
//
// This file is compiled once per instruction set (see CMakeLists.txt). A task walks its keys in tiles: a tile of
// keys and values is packed once and used by every block of rows of the task, each of which keeps its own running
// maximum, sum and output. Memory grows with the rows of a task and never with queries x keys. A tile that
// lengths, causality, window, mask or bias rule out for a block is skipped.
#include "cpu_loop.h"

#include "cpu_direct.h"
#include "cpu_tile.h"

namespace deployml::DEPLOYML_ISA {
namespace {

constexpr int64_t kTile = 384;      // keys of a tile
constexpr int64_t kDirectRows = 4;   // up to so many queries, keys and values are not packed
constexpr int64_t kUnpackedBlocks = 6;  // up to so many blocks of rows, values are not packed
constexpr int64_t kUnpackedWindow = 256;
constexpr int64_t kDiagonalRows = 12;  // of a product next to the diagonal
constexpr float kLowest = -3.402823466e38f;
// exp of anything below -104 is 0 in float32; the rest is room for rounding in the bound.
constexpr float kNegligible = 112.0f;

/// A block of query rows of one head and what it has accumulated.
struct Block {
  int64_t head;
  int64_t row;    // first query
  int64_t rows;
  Range keys;     // union over its rows
  float bound;    // |query . key| is never larger; infinity when not known
  float limit;    // keys with a bias below weigh exactly 0, where the bias is one row for all
  float* query;   // (rows, head_dim), scaled
  float* output;  // (rows, value_width)
  RowState state;
  bool fresh;     // no tile was added to `output` yet, and it holds nothing
};

template <typename T>
class Task {
 public:
  Task(const AttentionCall& call, const CpuTask& task) : call_(call), task_(task) {
    length_ = length_of(call, task.batch);
    group_ = call.heads / call.kv_heads;
    rows_ = task.end - task.begin;
    blocks_per_head_ = (rows_ + kRowBlock - 1) / kRowBlock;
    blocks_ = group_ * blocks_per_head_;
    direct_ = call.queries <= kDirectRows;
    padded_rows_ = direct_ ? rows_ : smaller(kRowBlock, round_up(rows_, kRowGranule));
    state_rows_ = round_up(padded_rows_, kWidth);
    depth_ = round_up(call.head_dim, kWidth);
    value_width_ = round_up(call.value_dim, kWidth);
    reach_ = call.table_size / 2;
    only_biased_ = call.bias.data != nullptr && call.bias.column != 0 && call.mask.data == nullptr &&
                   call.table == nullptr && call.slopes == nullptr && call.softcap == 0.0f;
    table_width_ = call.table != nullptr ? call.table_size + 2 * kWidth : 0;
  }

  bool run(ThreadScratch scratch) {
    if (!allocate(scratch)) return false;
    if (call_.table != nullptr) load_tables();
    Range all{call_.keys, 0};
    for (int64_t i = 0; i < blocks_; ++i) {
      Block block = make_block(i);
      load_query(block);
      trim(&block);
      list_[i] = block;
      if (block.keys.empty()) continue;
      all.begin = smaller(all.begin, block.keys.begin);
      all.end = larger(all.end, block.keys.end);
    }
    for (int64_t start = all.begin / kTile * kTile; start < all.end; start += kTile)
      visit_tile(start, smaller(kTile, all.end - start));
    for (int64_t i = 0; i < blocks_; ++i) finish(list_[i]);
    for (int64_t start = 0; call_.weights.data != nullptr && start < call_.keys; start += kTile)
      write_weights(start, smaller(kTile, call_.keys - start));
    return true;
  }

 private:
  bool allocate(ThreadScratch scratch) {
    block_size_ = padded_rows_ * (depth_ + value_width_) + 2 * state_rows_;
    const int64_t packed = direct_ ? 0 : kTile * (depth_ + value_width_);
    const int64_t rows = padded_rows_ * (kTile + kWidth) + 2 * state_rows_;
    const int64_t floats = blocks_ * block_size_ + packed + rows + group_ * table_width_ + kWidth;
    const size_t list = sizeof(Block) * size_t(blocks_);
    char* memory = static_cast<char*>(scratch(size_t(floats) * sizeof(float) + list + 64));
    if (memory == nullptr) return false;
    float* next = reinterpret_cast<float*>(memory);
    scores_ = next, next += padded_rows_ * kTile;
    packed_key_ = next, next += direct_ ? 0 : kTile * depth_;
    packed_value_ = next, next += direct_ ? 0 : kTile * value_width_;
    block_memory_ = next, next += blocks_ * block_size_;
    tables_ = next, next += group_ * table_width_;
    lanes_ = next, next += padded_rows_ * kWidth;
    top_ = next, next += state_rows_;
    factor_ = next, next += state_rows_;
    fill(top_, state_rows_, -kInfinity);
    const uintptr_t end = (reinterpret_cast<uintptr_t>(next) + 63) / 64 * 64;
    list_ = reinterpret_cast<Block*>(end);
    return true;
  }

  Block make_block(int64_t index) {
    Block block{};
    block.head = task_.kv_head * group_ + index / blocks_per_head_;
    block.row = task_.begin + index % blocks_per_head_ * kRowBlock;
    block.rows = smaller(kRowBlock, task_.end - block.row);
    float* memory = block_memory_ + index * block_size_;
    block.query = memory;
    block.output = block.query + padded_rows_ * depth_;
    block.state.highest = block.output + padded_rows_ * value_width_;
    block.state.total = block.state.highest + state_rows_;
    block.fresh = true;
    const Range low = visible(call_, length_, block.row);
    const Range high = visible(call_, length_, block.row + block.rows - 1);
    block.keys = {low.begin, high.end};
    return block;
  }

  /// Copies the block's queries, scaled, and resets what it accumulates.
  void load_query(const Block& block) {
    const T* source = row_of<T>(call_.query, task_.batch, block.head, block.row);
    for (int64_t r = 0; r < block.rows; ++r)
      load_scaled(source + r * call_.query.row, call_.head_dim, call_.scale, block.query + r * depth_);
    fill(block.state.highest, state_rows_, -kInfinity);
    fill(block.state.total, state_rows_, 0.0f);
  }

  /// Widens the tables of the task's heads and repeats their ends, so that any distance can be read a vector at a time.
  void load_tables() {
    for (int64_t h = 0; h < group_; ++h) {
      const T* source = static_cast<const T*>(call_.table) + (task_.kv_head * group_ + h) * call_.table_head;
      float* table = tables_ + h * table_width_;
      fill(table, kWidth, widen(source[0]));
      for (int64_t d = 0; d < call_.table_size; ++d) table[kWidth + d] = widen(source[d]);
      fill(table + kWidth + call_.table_size, kWidth, widen(source[call_.table_size - 1]));
    }
  }

  /// The head's table at distance 0.
  const float* table_of(int64_t head) const {
    return tables_ + (head - task_.kv_head * group_) * table_width_ + kWidth + reach_;
  }

  /// The largest |logit before the bias| the block can meet; infinity when that is not known.
  float score_bound(const Block& block) {
    // Decoding reads the keys once; a second pass for the bound would cost as much as it could save.
    if (call_.slopes != nullptr || direct_) return kInfinity;
    if (key_norm_ < 0.0f) key_norm_ = largest_key_norm();
    float query_norm = 0.0f;
    for (int64_t r = 0; r < block.rows; ++r) {
      const float norm = squared_norm(block.query + r * depth_, call_.head_dim);
      query_norm = norm <= query_norm ? query_norm : norm;
      if (norm != norm) return kInfinity;
    }
    const float bound = 1.001f * __builtin_sqrtf(query_norm) * __builtin_sqrtf(key_norm_);
    if (!(bound < kInfinity)) return kInfinity;
    const float capped = call_.softcap != 0.0f && call_.softcap < bound ? call_.softcap : bound;
    return call_.table != nullptr ? capped + largest_in_table(block.head) : capped;
  }

  float largest_in_table(int64_t head) const {
    float most = 0.0f;
    for (int64_t d = -reach_; d <= reach_; ++d) {
      const float size = __builtin_fabsf(table_of(head)[d]);
      most = size <= most ? most : size;  // NaN stays, and no bound holds
      if (size != size) return kInfinity;
    }
    return most;
  }

  float largest_key_norm() {
    float highest = 0.0f;
    for (int64_t j = 0; j < length_; ++j) {
      const float norm = squared_norm(key_at(j), call_.head_dim);
      if (norm != norm) return kInfinity;
      highest = norm > highest ? norm : highest;
    }
    return highest;
  }

  template <typename U>
  static float squared_norm(const U* row, int64_t n) {
    Vec sum = zero();
    for (int64_t k = 0; k < n; k += kWidth) {
      const Vec x = load_first(row + k, n - k);
      sum = fma(x, x, sum);
    }
    return reduce_add(sum);
  }

  const T* key_at(int64_t j) const { return row_of<T>(call_.key, task_.batch, task_.kv_head, j); }
  const T* value_at(int64_t j) const { return row_of<T>(call_.value, task_.batch, task_.kv_head, j); }

  /// Narrows the block's keys where a mask or bias that is the same for all rows rules out both ends.
  void trim(Block* block) {
    Range& keys = block->keys;
    if (call_.mask.data != nullptr && call_.mask.row == 0 && call_.mask.column != 0) {
      const uint8_t* mask = row_of<uint8_t>(call_.mask, task_.batch, block->head, 0);
      while (!keys.empty() && mask[keys.begin] == 0) ++keys.begin;
      while (!keys.empty() && mask[keys.end - 1] == 0) --keys.end;
    }
    block->bound = kInfinity;
    block->limit = kLowest;
    if (call_.bias.data == nullptr || call_.bias.column == 0 || keys.empty()) return;
    block->bound = score_bound(*block);
    if (call_.bias.row != 0) return;
    const T* bias = row_of<T>(call_.bias, task_.batch, block->head, 0);
    block->limit = exclusion_limit(*block, bias);
    while (!keys.empty() && widen(bias[keys.begin]) < block->limit) ++keys.begin;
    while (!keys.empty() && widen(bias[keys.end - 1]) < block->limit) --keys.end;
  }

  /// A key whose bias is below this weighs exactly 0 in every row of the block, where bias is one row for all.
  ///
  /// Every row sees the keys common to the block's first and last row. With b their largest bias and c the bound
  /// on |q.k|, the row's maximum is at least b - c, and a key of bias x reaches x + c at most.
  float exclusion_limit(const Block& block, const T* bias) {
    if (call_.mask.data != nullptr || !(block.bound < kInfinity)) return kLowest;
    const int64_t begin = larger(visible(call_, length_, block.row + block.rows - 1).begin, block.keys.begin);
    const int64_t end = smaller(visible(call_, length_, block.row).end, block.keys.end);
    if (begin >= end) return kLowest;
    const float limit = largest(bias + begin, end - begin) - 2.0f * block.bound - kNegligible;
    return limit > kLowest ? limit : kLowest;
  }

  void visit_tile(int64_t start, int64_t count) {
    bool packed = false;
    for (int64_t i = 0; i < blocks_; ++i) {
      Block& block = list_[i];
      const Range columns{larger(block.keys.begin - start, 0), smaller(block.keys.end - start, count)};
      if (columns.empty() || ruled_out(block, start, columns)) continue;
      if (!packed && !direct_) pack(start, count);
      packed = true;
      if (direct_) {
        visit_direct(block, start, columns);
      } else {
        visit_block(block, start, count, columns);
      }
    }
  }

  /// Whether mask or bias leave none of these keys to any row of the block.
  bool ruled_out(const Block& block, int64_t start, const Range& columns) {
    return ruled_out_by_mask(block, start, columns) || ruled_out_by_bias(block, start, columns);
  }

  bool ruled_out_by_mask(const Block& block, int64_t start, const Range& columns) const {
    if (call_.mask.data == nullptr) return false;
    const int64_t rows = call_.mask.row == 0 ? 1 : block.rows;
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* mask = row_of<uint8_t>(call_.mask, task_.batch, block.head, block.row + r);
      const int64_t n = call_.mask.column == 0 ? 1 : columns.end - columns.begin;
      mask += call_.mask.column * (start + columns.begin);
      for (int64_t j = 0; j < n; ++j)
        if (mask[j] != 0) return false;
    }
    return true;
  }

  bool ruled_out_by_bias(const Block& block, int64_t start, const Range& columns) {
    if (call_.bias.data == nullptr || call_.bias.column == 0) return false;
    const int64_t first_key = start + columns.begin, n = columns.end - columns.begin;
    if (call_.bias.row == 0) {
      const T* bias = row_of<T>(call_.bias, task_.batch, block.head, 0);
      return all_below(bias + first_key, n, block.limit);
    }
    for (int64_t r = 0; r < block.rows; ++r) {
      const T* bias = row_of<T>(call_.bias, task_.batch, block.head, block.row + r) + first_key;
      const float limit = block.state.highest[r] - block.bound - kNegligible;
      if (!all_below(bias, n, limit > kLowest ? limit : kLowest)) return false;
    }
    return true;
  }

  void pack(int64_t start, int64_t count) {
    pack_transposed(key_at(start), call_.key.row, count, call_.head_dim, packed_key_);
    if (!values_in_place()) pack_plain(value_at(start), call_.value.row, count, call_.value_dim, packed_value_);
  }

  /// Whether values are read where they lie: few blocks of rows do not pay for packing.
  bool values_in_place() const {
    const bool windowed = call_.window_left >= 0 && call_.window_right >= 0 &&
                          call_.window_left + call_.window_right < kUnpackedWindow;
    return sizeof(T) == sizeof(float) && (blocks_ <= kUnpackedBlocks || windowed) && call_.value_dim % kWidth == 0;
  }

  void visit_block(Block& block, int64_t start, int64_t count, const Range& columns) {
    const bool plain = untouched(block, start, columns);
    if (plain) fill(lanes_, block.rows * kWidth, -kInfinity);
    multiply_keys(block, start, count, columns, plain ? lanes_ : nullptr);
    if (plain) {
      for (int64_t r = 0; r < block.rows; ++r) {
        top_[r] = reduce_max(load(lanes_ + r * kWidth));
        logits_[r] = columns;
      }
    } else {
      for (int64_t r = 0; r < block.rows; ++r) top_[r] = shape(block, r, start, columns);
    }
    weigh(block, columns);
    const int64_t reach = causal_end(block.row, start) - columns.begin;
    for (int64_t c = 0; c < value_width_; c += kPanel) {
      const int vectors = int(smaller(kPanelVectors, (value_width_ - c) / kWidth));
      const float* panel = packed_value_ + c * count + columns.begin * vectors * kWidth;
      int64_t stride = vectors * kWidth;
      if constexpr (sizeof(T) == sizeof(float))
        if (values_in_place()) panel = value_at(start + columns.begin) + c, stride = call_.value.row;
      multiply({scores_ + columns.begin, kTile, panel, stride, block.output + c, value_width_, block.rows,
                columns.end - columns.begin, reach},
               vectors, {block.fresh ? nullptr : factor_, nullptr});
    }
    block.fresh = false;
  }

  /// scores_ becomes query . key for these columns, in whole vectors; `top`, where given, is raised to the largest of each lane.
  void multiply_keys(const Block& block, int64_t start, int64_t count, const Range& columns, float* top) {
    for (int64_t j = columns.begin / kPanel * kPanel; j < columns.end; j += kPanel) {
      const int64_t width = smaller(kPanel, round_up(count - j, kWidth));
      const int64_t first = larger(columns.begin / kWidth * kWidth, j);
      const int64_t last = smaller(round_up(columns.end, kWidth), j + width);
      prefetch_bias(block, start, columns, j);
      const float* panel = packed_key_ + j * call_.head_dim + (first - j);
      // Next to the diagonal each few rows end at a vector of their own; further off one product serves all.
      const int64_t share = causal_end(block.row, start) < last ? kDiagonalRows : block.rows;
      for (int64_t r = 0; r < block.rows; r += share) {
        const int64_t rows = smaller(share, block.rows - r);
        const int64_t seen = smaller(last, round_up(causal_end(block.row + r + rows - 1, start), kWidth));
        if (seen > first)
          multiply({block.query + r * depth_, depth_, panel, width, scores_ + r * kTile + first, kTile, rows,
                    call_.head_dim},
                   int((seen - first) / kWidth), {nullptr, top});
      }
    }
  }

  /// The first key that causality forbids the row, counted from `start`; far away without causality.
  int64_t causal_end(int64_t row, int64_t start) const {
    if (call_.window_right < 0) return INT64_MAX / 2;
    return position_of(call_, length_, row) + call_.window_right + 1 - start;
  }

  /// The same, reading the keys where they lie.
  void dot_row(const Block& block, int64_t r, int64_t start, const Range& columns) {
    const int64_t aligned = columns.begin / kWidth * kWidth;
    dot_keys(block.query + r * depth_, key_at(start + aligned), call_.key.row, columns.end - aligned,
             call_.head_dim, scores_ + r * kTile + aligned);
  }

  /// Asks for a share of the tile's bias, a few whole rows, while the panel at column `j` is computed.
  void prefetch_bias(const Block& block, int64_t start, const Range& columns, int64_t j) const {
    if (call_.bias.data == nullptr || call_.bias.column == 0 || call_.bias.row == 0) return;
    const int64_t panels = (columns.end - columns.begin / kPanel * kPanel + kPanel - 1) / kPanel;
    const int64_t share = (block.rows + panels - 1) / panels;
    const int64_t row = (j - columns.begin / kPanel * kPanel) / kPanel * share;
    const T* bias = row_of<T>(call_.bias, task_.batch, block.head, block.row + row);
    prefetch_rows(bias + start + columns.begin, call_.bias.row, smaller(share, block.rows - row),
                  columns.end - columns.begin);
  }

  void visit_direct(Block& block, int64_t start, const Range& columns) {
    if (block.fresh) fill(block.output, block.rows * value_width_, 0.0f);
    block.fresh = false;
    for (int64_t r = 0; r < block.rows; ++r) {
      dot_row(block, r, start, columns);
      top_[r] = shape(block, r, start, columns);
    }
    weigh(block, columns);
    for (int64_t r = 0; r < block.rows; ++r)
      accumulate_values(scores_ + r * kTile + columns.begin, value_at(start + columns.begin), call_.value.row,
                        columns.end - columns.begin, call_.value_dim, factor_[r],
                        block.output + r * value_width_);
  }

  /// Whether the scores of these columns are used as the product leaves them, in whole vectors.
  bool untouched(const Block& block, int64_t start, const Range& columns) const {
    if (shaped() || columns.begin % kWidth != 0 || columns.end % kWidth != 0) return false;
    return visible(call_, length_, block.row).end >= start + columns.end &&
           visible(call_, length_, block.row + block.rows - 1).begin <= start + columns.begin;
  }

  /// Scores of row r become logits, over the vectors that hold a key of the row: logits_[r], -inf between the keys.
  /// Returns the largest.
  float shape(const Block& block, int64_t r, int64_t start, const Range& columns) {
    const int64_t row = block.row + r;
    const Range keys = visible(call_, length_, row);
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
    at.ahead = key - position_of(call_, length_, row);
    at.distance = float(-at.ahead);
    if (call_.table != nullptr) at.table = table_of(block.head), at.reach = reach_;
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

  /// Divides by the sums, the sink's share included, and writes the block's rows. The sums become the factors.
  void finish(const Block& block) {
    const T* sinks = static_cast<const T*>(call_.sink);
    const float sink = sinks != nullptr ? widen(sinks[block.head]) : -kInfinity;
    if (block.fresh) fill(block.output, block.rows * value_width_, 0.0f);
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
      T* out = const_cast<T*>(row_of<T>(call_.output, task_.batch, block.head, block.row + r));
      store_scaled(block.output + r * value_width_, call_.value_dim, block.state.total[r], out);
    }
  }

  /// Writes the weights of these keys, after `finish`: the scores are computed once more, with the maxima known.
  void write_weights(int64_t start, int64_t count) {
    bool packed = direct_;
    for (int64_t i = 0; i < blocks_; ++i) {
      const Block& block = list_[i];
      Range columns{larger(block.keys.begin - start, 0), smaller(block.keys.end - start, count)};
      if (columns.empty()) columns = {0, 0};
      if (!columns.empty() && !packed) pack_transposed(key_at(start), call_.key.row, count, call_.head_dim, packed_key_);
      packed = packed || !columns.empty();
      if (!columns.empty() && !direct_) multiply_keys(block, start, count, columns, nullptr);
      for (int64_t r = 0; r < block.rows; ++r) write_row(block, r, start, count, columns);
    }
  }

  void write_row(const Block& block, int64_t r, int64_t start, int64_t count, const Range& columns) {
    float* s = scores_ + r * kTile;
    Range logits{0, 0};
    if (!columns.empty()) {
      if (direct_) dot_row(block, r, start, columns);
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
  int64_t length_, group_, rows_, blocks_per_head_, blocks_;
  int64_t padded_rows_, state_rows_, depth_, value_width_, block_size_, reach_, table_width_;
  bool direct_, only_biased_;
  Range logits_[kRowBlock];  // of each row of the block at hand, in whole vectors
  float key_norm_ = -1.0f;  // squared; negative until computed
  float *scores_, *packed_key_, *packed_value_, *block_memory_, *tables_, *lanes_, *top_, *factor_;
  Block* list_;
};

bool run(const AttentionCall& call, const CpuTask& task, ThreadScratch scratch) {
  switch (call.element) {
    case Element::kFloat32: return Task<float>(call, task).run(scratch);
    case Element::kFloat16: return Task<Half>(call, task).run(scratch);
    case Element::kBFloat16: return Task<BFloat>(call, task).run(scratch);
  }
  return false;
}

#define DEPLOYML_TEXT_(x) #x
#define DEPLOYML_TEXT(x) DEPLOYML_TEXT_(x)

}  // namespace

extern const CpuLoop kLoop;
const CpuLoop kLoop{DEPLOYML_TEXT(DEPLOYML_ISA), run};

}  // namespace deployml::DEPLOYML_ISA
