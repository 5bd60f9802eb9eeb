// Which keys a block need not look at: a mask forbids them, or a bias provably makes their weight 0.
#pragma once

#include "cpu_products.h"

namespace deployml::DEPLOYML_ISA {

inline constexpr float kLowest = -3.402823466e38f;
// exp of anything below -104 is 0 in float32; the rest is room for rounding in the bound.
inline constexpr float kNegligible = 112.0f;

template <typename T>
class Exclusion {
 public:
  Exclusion(const Work& work, const Products<T>& products, const Tables& tables)
      : work_(work), call_(work.call), products_(products), tables_(tables) {}

  /// Narrows the block's keys where a mask or bias that is the same for all rows rules out both ends; sets the
  /// block's bound and limit. Its queries are loaded.
  void trim(Block* block) {
    Range& keys = block->keys;
    if (call_.mask.data != nullptr && call_.mask.row == 0 && call_.mask.column != 0) {
      const uint8_t* mask = row_of<uint8_t>(call_.mask, work_.task.batch, block->head, 0);
      while (!keys.empty() && mask[keys.begin] == 0) ++keys.begin;
      while (!keys.empty() && mask[keys.end - 1] == 0) --keys.end;
    }
    block->bound = kInfinity;
    block->limit = kLowest;
    if (call_.bias.data == nullptr || call_.bias.column == 0 || keys.empty()) return;
    block->bound = score_bound(*block);
    if (call_.bias.row != 0) return;
    const T* bias = row_of<T>(call_.bias, work_.task.batch, block->head, 0);
    block->limit = exclusion_limit(*block, bias);
    while (!keys.empty() && widen(bias[keys.begin]) < block->limit) ++keys.begin;
    while (!keys.empty() && widen(bias[keys.end - 1]) < block->limit) --keys.end;
  }

  /// Whether mask or bias leave none of these keys to any row of the block.
  bool excludes(const Block& block, int64_t start, const Range& columns) const {
    return masked(block, start, columns) || biased_away(block, start, columns);
  }

 private:
  /// The largest |logit before the bias| the block can meet; infinity when that is not known.
  float score_bound(const Block& block) {
    // Decoding reads the keys once; a second pass for the bound would cost as much as it could save.
    if (call_.slopes != nullptr || work_.direct) return kInfinity;
    if (key_norm_ < 0.0f) key_norm_ = largest_key_norm();
    float query_norm = 0.0f;
    for (int64_t r = 0; r < block.rows; ++r) {
      const float norm = products_.query_norm(block, r);
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
    for (int64_t d = -tables_.reach(); d <= tables_.reach(); ++d) {
      const float size = __builtin_fabsf(tables_.of(head)[d]);
      most = size <= most ? most : size;  // NaN stays, and no bound holds
      if (size != size) return kInfinity;
    }
    return most;
  }

  float largest_key_norm() const {
    float highest = 0.0f;
    for (int64_t j = 0; j < work_.length; ++j) {
      const float norm = squared_norm(work_.key_at<T>(j), call_.head_dim);
      if (norm != norm) return kInfinity;
      highest = norm > highest ? norm : highest;
    }
    return highest;
  }

  /// A key whose bias is below this weighs exactly 0 in every row of the block, where bias is one row for all.
  ///
  /// Every row sees the keys common to the block's first and last row. With b their largest bias and c the bound
  /// on |q.k|, the row's maximum is at least b - c, and a key of bias x reaches x + c at most.
  float exclusion_limit(const Block& block, const T* bias) const {
    if (call_.mask.data != nullptr || !(block.bound < kInfinity)) return kLowest;
    const int64_t last = block.row + block.rows - 1;
    const int64_t begin = larger(visible(call_, work_.length, last).begin, block.keys.begin);
    const int64_t end = smaller(visible(call_, work_.length, block.row).end, block.keys.end);
    if (begin >= end) return kLowest;
    const float limit = largest(bias + begin, end - begin) - 2.0f * block.bound - kNegligible;
    return limit > kLowest ? limit : kLowest;
  }

  bool masked(const Block& block, int64_t start, const Range& columns) const {
    if (call_.mask.data == nullptr) return false;
    const int64_t rows = call_.mask.row == 0 ? 1 : block.rows;
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* mask = row_of<uint8_t>(call_.mask, work_.task.batch, block.head, block.row + r);
      const int64_t n = call_.mask.column == 0 ? 1 : columns.end - columns.begin;
      mask += call_.mask.column * (start + columns.begin);
      for (int64_t j = 0; j < n; ++j)
        if (mask[j] != 0) return false;
    }
    return true;
  }

  bool biased_away(const Block& block, int64_t start, const Range& columns) const {
    if (call_.bias.data == nullptr || call_.bias.column == 0) return false;
    const int64_t first_key = start + columns.begin, n = columns.end - columns.begin;
    if (call_.bias.row == 0) {
      const T* bias = row_of<T>(call_.bias, work_.task.batch, block.head, 0);
      return all_below(bias + first_key, n, block.limit);
    }
    for (int64_t r = 0; r < block.rows; ++r) {
      const T* bias = row_of<T>(call_.bias, work_.task.batch, block.head, block.row + r) + first_key;
      const float limit = block.state.highest[r] - block.bound - kNegligible;
      if (!all_below(bias, n, limit > kLowest ? limit : kLowest)) return false;
    }
    return true;
  }

  const Work& work_;
  const AttentionCall& call_;
  const Products<T>& products_;
  const Tables& tables_;
  float key_norm_ = -1.0f;  // squared; negative until computed
};

}  // namespace deployml::DEPLOYML_ISA
