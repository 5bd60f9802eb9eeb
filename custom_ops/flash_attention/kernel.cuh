// The attention kernel: a block takes a set of query rows through their keys, tile by tile, with an online softmax.
//
// A `Unit` (unit_*.cuh) multiplies; four lanes share the rows it gives a lane. Keys and values come to shared memory
// a tile at a time, the next while the current one is used where the machine copies asynchronously. Tiles outside
// what lengths, causality and window leave to any row of the block are never touched. Sums are float32.
#pragma once

#include "rows.cuh"

namespace deployml {

/// Bytes of shared memory a block of `warps` warps needs.
template <typename Unit>
constexpr size_t shared_bytes(int warps) {
  return size_t(warps) * Unit::kQueryBytes + size_t(Unit::kStages) * 2 * Unit::kTile * Unit::Layout::kRowBytes;
}

template <typename Unit>
struct Attention {
  using T = typename Unit::Element;
  static constexpr int kRows = Unit::kLaneRows;
  static constexpr int kScores = Unit::kTile / 4;    // of a lane and row
  static constexpr int kColumns = Unit::kHeadDim / 4;
  static constexpr int kTileBytes = Unit::kTile * Unit::Layout::kRowBytes;

  const Params& p;
  Place at;
  Row rows[kRows];
  Keys whole;  // keys that all rows of the block see
  Unit unit;
  float top[kRows];    // largest logit so far, in units of `unit_of_logits`
  float total[kRows];  // this lane's share of the sum of weights
  float out[kRows][kColumns];
  float unit_of_logits;  // times log2(e): what a logit is multiplied with inside 2^x

  DEPLOYML_DEVICE explicit Attention(const Params& params) : p(params) {}

  DEPLOYML_DEVICE void run() {
    const int warps = gpu::threads() / Unit::kWarp, warp = gpu::thread() / Unit::kWarp;
    const int block_rows = warps * Unit::kWarpRows;
    at = place_of(p, block_rows);
    const int first_row = at.row + warp * Unit::kWarpRows;
    begin(first_row, gpu::shared() + warp * Unit::kQueryBytes);
    char* const stages = gpu::shared() + warps * Unit::kQueryBytes;
    whole = all_of(p, at, at.row, block_rows);
    attend(tiles_of_block(block_rows), first_row, stages);
    finish(first_row);
    if (p.weights.data != nullptr) write_weights(first_row, stages);
  }

 private:
  DEPLOYML_DEVICE void attend(const Keys& tiles, int first_row, char* stages) {
    if (Unit::kStages == 2 && tiles.begin < tiles.end) fetch(tiles.begin, stages);
    for (int tile = tiles.begin; tile < tiles.end; ++tile) {
      char* stage = stages;
      if constexpr (Unit::kStages == 2) {
        stage += (tile - tiles.begin) % 2 * 2 * kTileBytes;
        if (tile + 1 < tiles.end) {
          fetch(tile + 1, stages + (tile + 1 - tiles.begin) % 2 * 2 * kTileBytes);
          gpu::copy_wait<1>();
        } else {
          gpu::copy_wait<0>();
        }
      } else {
        fetch(tile, stage);
        gpu::copy_wait<0>();
      }
      gpu::sync_block();
      if (first_row < p.rows) visit(tile * Unit::kTile, stage);
      gpu::sync_block();  // before the stage is written again
    }
  }

  DEPLOYML_DEVICE void begin(int first_row, char* shared) {
    unit_of_logits = is_shaped(p) ? kLog2E : p.scale * kLog2E;
    const T* queries[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = first_row + Unit::row(r);
      rows[r] = row_at(p, at, row);
      queries[r] = row < p.rows ? row_of<T>(p.query, at.batch, rows[r].head, rows[r].query) : nullptr;
      top[r] = -infinity();
      total[r] = 0.0f;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) out[r][c] = 0.0f;
    }
    unit.load_query(shared, queries, p.head_dim, p.query.chunks);
  }

  /// The tiles of the block's share of keys.
  DEPLOYML_DEVICE Keys tiles_of_block(int block_rows) const {
    const Keys keys = any_of(p, at, at.row, block_rows);
    if (keys.begin >= keys.end) return {0, 0};
    const int first = keys.begin / Unit::kTile, end = (keys.end + Unit::kTile - 1) / Unit::kTile;
    const int share = (end - first + p.splits - 1) / p.splits;
    return {first + at.split * share, smaller(first + (at.split + 1) * share, end)};
  }

  DEPLOYML_DEVICE void fetch_keys(int tile, char* stage) const {
    copy_tile<T, Unit::kHeadDim, Unit::kTile>(stage, p.key, row_of<T>(p.key, at.batch, at.kv_head, 0),
                                              tile * Unit::kTile, at.length, p.head_dim);
  }

  DEPLOYML_DEVICE void fetch(int tile, char* stage) const {
    fetch_keys(tile, stage);
    copy_tile<T, Unit::kHeadDim, Unit::kTile>(stage + kTileBytes, p.value, row_of<T>(p.value, at.batch, at.kv_head, 0),
                                              tile * Unit::kTile, at.length, p.value_dim);
    gpu::copy_commit();
  }

  /// Logits of the tile's keys, -inf where a row does not see one, in units of `unit_of_logits`.
  DEPLOYML_DEVICE void logits(float (&s)[kRows][kScores], int first_key, const char* stage) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int e = 0; e < kScores; ++e) s[r][e] = 0.0f;
    unit.multiply_keys(s, stage);
    const bool inside = first_key >= whole.begin && first_key + Unit::kTile <= whole.end;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (is_shaped(p)) {
        shape_row<Unit>(p, at, rows[r], first_key, s[r]);
      } else if (!inside) {
        cut_row<Unit>(rows[r], first_key, s[r]);
      }
    }
  }

  DEPLOYML_DEVICE void visit(int first_key, const char* stage) {
    float s[kRows][kScores];
    logits(s, first_key, stage);
#pragma unroll
    for (int r = 0; r < kRows; ++r) weigh(r, s[r]);
    unit.multiply_values(out, s, stage + kTileBytes);
  }

  /// Logits of a row become weights; what the row has so far is scaled to the new largest logit.
  DEPLOYML_DEVICE void weigh(int r, float (&s)[kScores]) {
    float highest = top[r];
#pragma unroll
    for (int e = 0; e < kScores; ++e) highest = fmaxf(highest, s[e]);
    highest = fmaxf(highest, Unit::across(highest, 0));
    highest = fmaxf(highest, Unit::across(highest, 1));
    const float base = highest == -infinity() ? 0.0f : highest;
    const float factor = power_of(top[r], base);
    float sum = 0.0f;
#pragma unroll
    for (int e = 0; e < kScores; ++e) {
      s[e] = power_of(s[e], base);
      sum += s[e];
    }
    top[r] = highest;
    total[r] = total[r] * factor + sum;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) out[r][c] *= factor;
  }

  /// e^(logit - base). Only scores without a bias may be multiplied first: a bias of -3.4e38 would overflow.
  DEPLOYML_DEVICE float power_of(float logit, float base) const {
    if (Unit::kSubtractFirst || is_shaped(p)) return gpu::power_of_two((logit - base) * unit_of_logits);
    return gpu::power_of_two(fmaf(logit, unit_of_logits, -base * unit_of_logits));
  }

  DEPLOYML_DEVICE void finish(int first_row) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      total[r] += Unit::across(total[r], 0);
      total[r] += Unit::across(total[r], 1);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = first_row + Unit::row(r);
      if (row >= p.rows) continue;
      const float logit = is_shaped(p) ? top[r] : top[r] * p.scale;
      if (p.splits > 1) {
        write_partial(r, row, logit);
      } else {
        total[r] = share_of(p, rows[r].head, logit, total[r]);
        write(r, total[r]);
      }
    }
  }

  /// Goes through all keys once more and writes what each weighs; `total` is the row's share by now.
  DEPLOYML_DEVICE void write_weights(int first_row, char* stage) {
    for (int tile = 0; tile * Unit::kTile < p.keys; ++tile) {
      fetch_keys(tile, stage);
      gpu::copy_commit();
      gpu::copy_wait<0>();
      gpu::sync_block();
      if (first_row < p.rows) {
        float s[kRows][kScores];
        logits(s, tile * Unit::kTile, stage);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          if (first_row + Unit::row(r) < p.rows) write_weights_of(r, s[r], tile * Unit::kTile);
      }
      gpu::sync_block();
    }
  }

  DEPLOYML_DEVICE void write_weights_of(int r, const float (&s)[kScores], int first_key) {
    T* to = const_cast<T*>(row_of<T>(p.weights, at.batch, rows[r].head, rows[r].query));
    const float base = top[r] == -infinity() ? 0.0f : top[r];
#pragma unroll
    for (int e = 0; e < kScores; ++e) {
      const int key = first_key + Unit::key(e);
      if (key < p.keys) gpu::store(to + key, gpu::narrow<T>(power_of(s[e], base) * total[r]));
    }
  }

  /// What the accumulated output of a row is multiplied with: the sink takes its share of the sum.
  static DEPLOYML_DEVICE float share_of(const Params& p, int head, float logit, float sum) {
    if (p.sink == nullptr) return sum == 0.0f ? 0.0f : 1.0f / sum;
    const float sink = gpu::widen(gpu::load(static_cast<const T*>(p.sink) + head));
    const float highest = fmaxf(logit, sink);
    const float base = highest == -infinity() ? 0.0f : highest;
    const float factor = gpu::power_of_two((logit - base) * kLog2E);
    const float all = sum * factor + gpu::power_of_two((sink - base) * kLog2E);
    return all == 0.0f ? 0.0f : factor / all;
  }

  DEPLOYML_DEVICE void write(int r, float share) {
    T* to = const_cast<T*>(row_of<T>(p.output, at.batch, rows[r].head, rows[r].query));
#pragma unroll
    for (int c = 0; c < kColumns; c += Unit::kRun) {
      float values[Unit::kRun];
#pragma unroll
      for (int i = 0; i < Unit::kRun; ++i) values[i] = out[r][c + i] * share;
      store_run<Unit::kRun>(to, Unit::column(c), p.value_dim, p.output.chunks, values);
    }
  }

  DEPLOYML_DEVICE void write_partial(int r, int row, float logit) {
    float* to = partial_of(p, at.batch, at.kv_head, row) + int64_t(at.split) * (p.value_dim + 2);
    if (Unit::column(0) == 0) {
      gpu::store(to, logit);
      gpu::store(to + 1, total[r]);
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      if (Unit::column(c) < p.value_dim) gpu::store(to + 2 + Unit::column(c), out[r][c]);
  }

 public:
  /// Results of the splits of a row: each its largest logit, its sum, its output.
  static DEPLOYML_DEVICE float* partial_of(const Params& p, int batch, int kv_head, int row) {
    return p.partial +
           ((int64_t(batch) * p.kv_heads + kv_head) * p.rows + row) * int64_t(p.splits) * (p.value_dim + 2);
  }

  /// Puts the splits of one row together; a warp takes a row.
  static DEPLOYML_DEVICE void combine(const Params& p) {
    const int64_t index = gpu::block() * (gpu::threads() / Unit::kWarp) + gpu::thread() / Unit::kWarp;
    if (index >= int64_t(p.batch) * p.kv_heads * p.rows) return;
    const int row = int(index % p.rows), kv_head = int(index / p.rows % p.kv_heads);
    const int batch = int(index / p.rows / p.kv_heads), step = p.value_dim + 2;
    const float* parts = partial_of(p, batch, kv_head, row);
    float highest = -infinity();
    for (int i = 0; i < p.splits; ++i) highest = fmaxf(highest, gpu::load(parts + int64_t(i) * step));
    const float base = highest == -infinity() ? 0.0f : highest;
    float sum = 0.0f;
    for (int i = 0; i < p.splits; ++i)
      sum += gpu::load(parts + int64_t(i) * step + 1) *
             gpu::power_of_two((gpu::load(parts + int64_t(i) * step) - base) * kLog2E);
    const int query = row / p.group, head = kv_head * p.group + row % p.group;
    const float share = share_of(p, head, highest, sum);
    T* to = const_cast<T*>(row_of<T>(p.output, batch, head, query));
    for (int c = gpu::thread() % Unit::kWarp; c < p.value_dim; c += Unit::kWarp) {
      float x = 0.0f;
      for (int i = 0; i < p.splits; ++i) {
        const float* part = parts + int64_t(i) * step;
        x += gpu::load(part + 2 + c) * gpu::power_of_two((gpu::load(part) - base) * kLog2E);
      }
      gpu::store(to + c, gpu::narrow<T>(x * share));
    }
  }
};

template <typename Unit>
DEPLOYML_KERNEL(256) attend(const Params p) {
  Attention<Unit>(p).run();
}

template <typename Unit>
DEPLOYML_KERNEL(256) combine(const Params p) {
  Attention<Unit>::combine(p);
}

}  // namespace deployml
