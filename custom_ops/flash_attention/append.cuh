// Puts new keys or values behind the past ones, or into a cache: present (batch, kv_heads, keys, dim).
#pragma once

#include "tile.cuh"

namespace deployml {

/// Which row goes where: `to` is -1 for one that is dropped.
struct Move {
  int to, from;
  bool fresh;
};

DEPLOYML_DEVICE Move move_of(const AppendParams& p, int batch, int row) {
  int start = p.start;
  if (p.lengths != nullptr) {
    const int length = gpu::load(p.lengths + batch);
    start = (length < 0 ? 0 : length > p.keys ? p.keys : length) - p.fresh_rows;
  }
  if (p.in_place) return {start + row < 0 ? -1 : start + row, row, true};
  const bool fresh = row >= start && row < start + p.fresh_rows;
  return {row, fresh ? row - start : row, fresh};
}

/// A thread copies a chunk (or an element, where chunks do not fit) of a row.
template <typename Item>
DEPLOYML_KERNEL(256) append(const AppendParams p) {
  const int per_row = p.dim * p.element / int(sizeof(Item)), rows = p.in_place ? p.fresh_rows : p.keys;
  const auto item_of = [&](const Strided& x, int batch, int head, int row) {
    return reinterpret_cast<const Item*>(static_cast<const char*>(x.data) +
                                         (x.batch * batch + x.head * head + x.row * row) * p.element);
  };
  const int64_t index = gpu::block() * gpu::threads() + gpu::thread();
  if (index >= p.items) return;
  const int column = int(index % per_row);
  const int64_t pair = index / per_row / rows;
  const int head = int(pair % p.kv_heads), batch = int(pair / p.kv_heads);
  const Move move = move_of(p, batch, int(index / per_row % rows));
  if (move.to < 0) return;
  const Item* from = item_of(move.fresh ? p.fresh : p.past, batch, head, move.from);
  Item* to = const_cast<Item*>(item_of(p.present, batch, head, move.to));
  gpu::store(to + column, gpu::load(from + column));
}

}  // namespace deployml
