// Which query rows a block and a lane have, which keys those rows see, and what is added to their scores.
#pragma once

#include "tile.cuh"

namespace deployml {

inline constexpr float kLog2E = 1.44269504088896340736f;

DEPLOYML_DEVICE float infinity() { return __builtin_inff(); }
DEPLOYML_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
DEPLOYML_DEVICE int larger(int a, int b) { return a > b ? a : b; }

/// Keys [begin, end).
struct Keys {
  int begin, end;
};

/// A block's work: packed rows from `row` on of one key-value head, and a share of their keys.
struct Place {
  int batch, kv_head, split, row;
  int length;    // keys of the batch row
  int position;  // of query 0
};

/// Blocks run through the rows of a head from the last on: under causality those see most keys.
DEPLOYML_DEVICE Place place_of(const Params& p, int block_rows) {
  int64_t index = gpu::block();
  Place at;
  at.row = (p.row_blocks - 1 - int(index % p.row_blocks)) * block_rows;
  index /= p.row_blocks;
  at.split = int(index % p.splits);
  index /= p.splits;
  at.kv_head = int(index % p.kv_heads);
  at.batch = int(index / p.kv_heads);
  // The lengths are device memory: nobody could refuse a wrong one, so it is bounded here.
  at.length = p.lengths == nullptr ? p.keys : larger(0, smaller(gpu::load(p.lengths + at.batch), p.keys));
  at.position = p.lower_right ? at.length - p.queries : 0;
  return at;
}

DEPLOYML_DEVICE Keys visible(const Params& p, const Place& at, int query) {
  const int position = at.position + query;
  return {p.left == kUnbounded ? 0 : larger(0, position - p.left),
          p.right == kUnbounded ? at.length : larger(0, smaller(at.length, position + p.right + 1))};
}

/// A query row of a lane. A row past the end sees no key and has no query.
struct Row {
  int query, head;
  Keys keys;
};

DEPLOYML_DEVICE Row row_at(const Params& p, const Place& at, int row) {
  if (row >= p.rows) return {0, 0, {0, 0}};
  const int query = row / p.group;
  return {query, at.kv_head * p.group + (row - query * p.group), visible(p, at, query)};
}

/// Keys that any row, and keys that all rows of [row, row + count) see.
DEPLOYML_DEVICE Keys any_of(const Params& p, const Place& at, int row, int count) {
  const int last = smaller(row + count, p.rows) - 1;
  return {visible(p, at, row / p.group).begin, visible(p, at, last / p.group).end};
}
DEPLOYML_DEVICE Keys all_of(const Params& p, const Place& at, int row, int count) {
  const int last = smaller(row + count, p.rows) - 1;
  return {visible(p, at, last / p.group).begin, visible(p, at, row / p.group).end};
}

DEPLOYML_DEVICE bool is_shaped(const Params& p) {
  return p.softcap != 0.0f || p.slopes != nullptr || p.table != nullptr || p.bias.data != nullptr ||
         p.mask.data != nullptr;
}

/// Turns a row's score products of one tile into logits, -inf where a key takes no part.
template <typename Unit>
DEPLOYML_DEVICE void shape_row(const Params& p, const Place& at, const Row& row, int tile,
                               float (&s)[Unit::kTile / 4]) {
  using T = typename Unit::Element;
  const float slope =
      p.slopes == nullptr ? 0.0f : gpu::widen(gpu::load(static_cast<const T*>(p.slopes) + row.head));
  const T* bias = row_of<T>(p.bias, at.batch, row.head, row.query);
  const uint8_t* mask = row_of<uint8_t>(p.mask, at.batch, row.head, row.query);
  const T* table = static_cast<const T*>(p.table) + row.head * p.table_head;
  const int position = at.position + row.query;
#pragma unroll
  for (int e = 0; e < Unit::kTile / 4; ++e) {
    const int key = tile + Unit::key(e);
    const bool seen = key >= row.keys.begin && key < row.keys.end;
    float x = s[e] * p.scale;
    if (p.softcap != 0.0f) x = p.softcap * gpu::hyperbolic_tangent(x / p.softcap);
    if (p.slopes != nullptr) x -= slope * float(key < position ? position - key : key - position);
    if (p.table != nullptr) {
      const int ahead = larger(-p.table_reach, smaller(key - position, p.table_reach));
      x += gpu::widen(gpu::load(table + p.table_reach + ahead));
    }
    if (p.bias.data != nullptr && seen) x += gpu::widen(gpu::load(bias + p.bias.column * key));
    const bool kept = seen && (p.mask.data == nullptr || gpu::load(mask + p.mask.column * key) != 0);
    s[e] = kept ? x : -infinity();
  }
}

/// Only sets to -inf what the row does not see.
template <typename Unit>
DEPLOYML_DEVICE void cut_row(const Row& row, int tile, float (&s)[Unit::kTile / 4]) {
#pragma unroll
  for (int e = 0; e < Unit::kTile / 4; ++e) {
    const int key = tile + Unit::key(e);
    if (key < row.keys.begin || key >= row.keys.end) s[e] = -infinity();
  }
}

}  // namespace deployml
