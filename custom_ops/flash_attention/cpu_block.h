// What a task of the attention loop works on, and the sizes it works with.
#pragma once

#include "cpu_loop.h"
#include "cpu_tile.h"

namespace deployml::DEPLOYML_ISA {

inline constexpr int64_t kTile = 384;  // keys of a tile

/// A block of query rows of one head and what it has accumulated.
struct Block {
  int64_t head;
  int64_t row;  // first query
  int64_t rows;
  Range keys;          // union over its rows
  float bound;         // |query . key| is never larger; infinity when not known
  float limit;         // keys with a bias below weigh exactly 0, where the bias is one row for all
  const float* query;  // (rows, head_dim) in the form of the products: a padded copy, or where the caller has it
  int64_t query_row;   // elements from a row to the next
  float factor;        // what products with the queries are multiplied by
  float* output;       // (rows, value_width)
  RowState state;
  bool fresh;  // no tile was added to `output` yet, and it holds nothing
  bool done;   // the call's output was written
};

/// A call, the task of it at hand, and what follows from both.
struct Work {
  const AttentionCall& call;
  const CpuTask& task;
  int64_t length = length_of(call, task.batch);
  int64_t group = call.heads / call.kv_heads;
  int64_t rows = task.end - task.begin;
  int64_t blocks_per_head = (rows + kRowBlock - 1) / kRowBlock;
  int64_t blocks = group * blocks_per_head;
  bool direct = call.queries <= kDirectRows;
  int64_t padded_rows = direct ? rows : smaller(kRowBlock, round_up(rows, kRowGranule));
  int64_t state_rows = round_up(padded_rows, kWidth);
  int64_t depth = round_up(call.head_dim, kWidth);
  int64_t value_width = round_up(call.value_dim, kWidth);

  template <typename T>
  const T* key_at(int64_t j) const {
    return row_of<T>(call.key, task.batch, task.kv_head, j);
  }
  template <typename T>
  const T* value_at(int64_t j) const {
    return row_of<T>(call.value, task.batch, task.kv_head, j);
  }
};

/// The relative positions of a task's heads, widened and with their ends repeated, so that any distance can be read a
/// vector at a time.
class Tables {
 public:
  explicit Tables(const Work& work)
      : work_(work),
        reach_(work.call.table_size / 2),
        width_(work.call.table != nullptr ? work.call.table_size + 2 * kWidth : 0) {}

  int64_t floats() const { return work_.group * width_; }
  int64_t reach() const { return reach_; }

  template <typename T>
  void load(float* memory) {
    memory_ = memory;
    const AttentionCall& call = work_.call;
    for (int64_t h = 0; call.table != nullptr && h < work_.group; ++h) {
      const T* source = static_cast<const T*>(call.table) + (work_.task.kv_head * work_.group + h) * call.table_head;
      float* table = memory + h * width_;
      fill(table, kWidth, widen(source[0]));
      load_scaled(source, call.table_size, 1.0f, table + kWidth);
      fill(table + kWidth + call.table_size, kWidth, widen(source[call.table_size - 1]));
    }
  }

  /// The head's table at distance 0.
  const float* of(int64_t head) const {
    return memory_ + (head - work_.task.kv_head * work_.group) * width_ + kWidth + reach_;
  }

 private:
  const Work& work_;
  int64_t reach_, width_;
  const float* memory_ = nullptr;
};

}  // namespace deployml::DEPLOYML_ISA
