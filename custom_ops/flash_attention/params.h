// What the GPU kernels of FlashAttention are given: an AttentionCall with sizes as ints, and how it is cut up.
#pragma once

#include "attention.h"
#include "gpu.h"

namespace deployml {

/// A tensor (batch, head, row, column) with element strides; columns of query, key, value and output are adjacent.
struct Strided {
  const void* data;
  int64_t batch, head, row, column;
  bool chunks;  // every row begins at a multiple of 16 bytes and is a whole number of them
};

/// A block attends for `rows` packed rows of one key-value head: row m is query m / group of head m % group of the
/// group, so the heads that share keys read them once.
struct Params {
  Strided query, key, value, output, mask, bias;
  Strided weights;  // written too where there; then splits is 1
  const void* slopes;
  const void* table;
  const void* sink;
  const int32_t* lengths;
  float* partial;  // (batch, kv_heads, rows, splits, value_dim + 2) when splits > 1
  int batch, heads, kv_heads, group, queries, keys, head_dim, value_dim;
  int rows;        // group * queries
  int row_blocks;  // blocks of rows of a key-value head
  int splits;      // of a row's keys
  int left, right;  // window; kUnbounded for none
  int table_reach, table_head;  // largest distance of the table, elements from a head's row to the next
  float scale, softcap;
  bool lower_right;
};

inline constexpr int kUnbounded = 1 << 30;

/// Writes new rows of keys or values into the present tensor, from row `start` on, and past rows around them.
struct AppendParams {
  Strided fresh, past, present;
  const int32_t* lengths;  // of a cache, new rows included: start is length - fresh_rows; else null
  int start;               // where there are no lengths
  int kv_heads, keys, fresh_rows, dim;
  int element;    // bytes
  bool in_place;  // present is past: only new rows are written
  int64_t items;  // to copy, of the size the kernel copies at a time
};

}  // namespace deployml
