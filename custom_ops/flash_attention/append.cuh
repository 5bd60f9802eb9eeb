// Appends new keys or values to the past ones: present (batch, kv_heads, past + new, dim), written whole.
#pragma once

#include "tile.cuh"

namespace deployml {

/// A thread copies a chunk (or an element, where chunks do not fit) of a row; blocks run through all of them.
template <typename Item>
DEPLOYML_DEVICE void append_items(const AppendParams& p, int64_t items) {
  const int per_row = p.dim * p.element / int(sizeof(Item));
  const auto item_of = [&](const Strided& x, int batch, int head, int row) {
    return reinterpret_cast<const Item*>(static_cast<const char*>(x.data) +
                                         (x.batch * batch + x.head * head + x.row * row) * p.element);
  };
  const int64_t index = gpu::block() * gpu::threads() + gpu::thread();
  if (index >= items) return;
  const int column = int(index % per_row), row = int(index / per_row % p.keys);
  const int64_t pair = index / per_row / p.keys;
  const int head = int(pair % p.kv_heads), batch = int(pair / p.kv_heads);
  const Item* from = row < p.past_rows ? item_of(p.past, batch, head, row)
                                       : item_of(p.fresh, batch, head, row - p.past_rows);
  Item* to = const_cast<Item*>(item_of(p.present, batch, head, row));
  gpu::store(to + column, gpu::load(from + column));
}

struct AppendCall : AppendParams {
  int64_t items;
};

template <typename Item>
DEPLOYML_KERNEL(256) append(const AppendCall p) {
  append_items<Item>(p, p.items);
}

}  // namespace deployml
