// The two products of a block of rows with a tile: scores = query . key, output += weights . value.
//
// Keys and values are packed once a tile; for a handful of rows they are read where they lie.
#pragma once

#include <bit>

#include "cpu_direct.h"
#include "cpu_forms.h"

namespace deployml::DEPLOYML_ISA {

inline constexpr int64_t kUnpackedBlocks = 6;  // up to so many blocks of rows, values are not packed
inline constexpr int64_t kUnpackedWindow = 256;
inline constexpr int64_t kPanelsInPlace = 8;  // up to so many panels of keys, queries are not copied
inline constexpr int64_t kDiagonalRows = 12;  // of a product next to the diagonal

template <typename T>
class Products {
  using Unit = typename Form<T>::Unit;
  using Element = typename Unit::Element;
  static constexpr int64_t kSteps = Form<T>::kSteps;
  static_assert(sizeof(Element) == sizeof(float));

 public:
  explicit Products(const Work& work) : work_(work), call_(work.call) {}

  /// Memory for a packed tile.
  int64_t floats() const { return work_.direct ? 0 : kTile * (work_.depth + work_.value_width); }
  void use(float* memory) {
    packed_key_ = reinterpret_cast<Element*>(memory);
    packed_value_ = packed_key_ + kTile * work_.depth;
  }

  /// Copies the block's queries to `memory`, or takes them from where they lie.
  void load_query(Block* block, float* memory) const {
    const T* source = row_of<T>(call_.query, work_.task.batch, block->head, block->row);
    if constexpr (sizeof(T) == sizeof(float))
      if (queries_in_place(*block)) {
        block->query = source, block->query_row = call_.query.row, block->factor = call_.scale;
        return;
      }
    block->query = memory, block->query_row = work_.depth, block->factor = Form<T>::factor(call_.scale);
    for (int64_t r = 0; r < block->rows; ++r)
      Form<T>::load_query(source + r * call_.query.row, call_.head_dim, call_.scale, memory + r * work_.depth);
  }

  /// The squared length of a query of the block, scale included.
  float query_norm(const Block& block, int64_t r) const {
    return block.factor * block.factor * Form<T>::query_norm(block.query + r * block.query_row, call_.head_dim);
  }

  void pack(int64_t start, int64_t count) {
    pack_keys(start, count);
    if (!values_in_place())
      Form<T>::pack_values(work_.value_at<T>(start), call_.value.row, count, call_.value_dim, packed_value_);
  }

  void pack_keys(int64_t start, int64_t count) {
    Form<T>::pack_keys(work_.key_at<T>(start), call_.key.row, count, call_.head_dim, packed_key_);
  }

  /// Scores become query . key for these columns, in whole vectors; `top`, where given, is raised to the largest of
  /// each lane, and then a bias of float32 is added to the scores first.
  void score(const Block& block, int64_t start, int64_t count, const Range& columns, float* scores, float* top) const {
    const float* bias = nullptr;
    if constexpr (sizeof(T) == sizeof(float))
      if (top != nullptr && call_.bias.data != nullptr)
        bias = row_of<T>(call_.bias, work_.task.batch, block.head, block.row) + start;
    const Element* queries = reinterpret_cast<const Element*>(block.query);
    Operands<Unit> of{queries, block.query_row, nullptr, 0, nullptr, kTile, 0, call_.head_dim / kSteps};
    Epilogue also{};
    also.factor = block.factor, also.bias_row = call_.bias.row;
    for (int64_t j = columns.begin / kPanel * kPanel; j < columns.end; j += kPanel) {
      const int64_t width = smaller(kPanel, round_up(count - j, kWidth));
      const int64_t first = larger(columns.begin / kWidth * kWidth, j);
      const int64_t last = smaller(round_up(columns.end, kWidth), j + width);
      if (bias == nullptr) prefetch_bias(block, start, columns, j);
      of.b = packed_key_ + j * of.depth + (first - j), of.ldb = width;
      // Next to the diagonal each few rows end at a vector of their own; further off one product serves all.
      const int64_t share = causal_end(block.row, start) < last ? kDiagonalRows : block.rows;
      for (int64_t r = 0; r < block.rows; r += share) {
        of.rows = smaller(share, block.rows - r);
        of.a = queries + r * of.lda, of.c = scores + r * kTile + first;
        also.top = top == nullptr ? nullptr : top + r * kWidth;
        also.bias = bias == nullptr ? nullptr : bias + r * call_.bias.row + first;
        const int64_t seen = smaller(last, round_up(causal_end(block.row + r + of.rows - 1, start), kWidth));
        if (seen > first) multiply(of, int((seen - first) / kWidth), also);
      }
    }
  }

  /// The same for one row, reading the keys where they lie.
  void score_row(const Block& block, int64_t r, int64_t start, const Range& columns, float* scores) const {
    const int64_t aligned = columns.begin / kWidth * kWidth;
    dot_keys(block.query + r * work_.depth, work_.key_at<T>(start + aligned), call_.key.row, columns.end - aligned,
             call_.head_dim, scores + aligned);
  }

  /// Whether the output of a block goes straight to where the caller wants it: there is one tile, and whole vectors.
  bool writes_in_place(const Block& block) const {
    return call_.keys <= kTile && block.rows % kExactRows == 0 && call_.value_dim % kWidth == 0;
  }

  /// Where weights . value goes, and what happens to it and to what lies there.
  struct Sum {
    float* output;
    int64_t row;  // floats from a row to the next
    Epilogue also;
  };

  /// Adds weights . value to `sum`. Spoils the weights.
  void add_values(const Block& block, int64_t start, int64_t count, const Range& columns, float* weights,
                  const Sum& sum) const {
    for (int64_t r = 0; r < block.rows; ++r) Form<T>::narrow(weights + r * kTile, columns);
    const int64_t begin = columns.begin / kSteps, end = steps(columns.end);
    const int64_t reach = steps(causal_end(block.row, start) - begin * kSteps);
    Operands<Unit> of{reinterpret_cast<const Element*>(weights) + begin, kTile, nullptr, 0, sum.output,
                      sum.row, block.rows, end - begin, reach};
    for (int64_t c = 0; c < work_.value_width; c += kPanel, of.c += kPanel) {
      const int vectors = int(smaller(kPanelVectors, (work_.value_width - c) / kWidth));
      of.ldb = vectors * kWidth;
      of.b = packed_value_ + c * steps(count) + begin * of.ldb;
      if constexpr (sizeof(T) == sizeof(float))
        if (values_in_place()) of.b = work_.value_at<T>(start + columns.begin) + c, of.ldb = call_.value.row;
      multiply(of, vectors, sum.also);
    }
  }

  /// The same for one row, reading the values where they lie.
  void add_values_of_row(const Block& block, int64_t r, int64_t start, const Range& columns, const float* weights,
                         float factor) const {
    accumulate_values(weights + columns.begin, work_.value_at<T>(start + columns.begin), call_.value.row,
                      columns.end - columns.begin, call_.value_dim, factor, block.output + r * work_.value_width);
  }

 private:
  /// Whether queries are read where they lie. They are read once a panel of keys, and over many panels a copy with rows
  /// next to each other pays. The scale then meets the product and not the query: the bits are the same for a power of 2.
  bool queries_in_place(const Block& block) const {
    const bool power_of_two = (std::bit_cast<uint32_t>(call_.scale) & 0x007fffff) == 0;
    return power_of_two && !work_.direct && call_.keys <= kPanelsInPlace * kPanel && block.rows % kExactRows == 0;
  }

  /// Whether values are read where they lie: few blocks of rows do not pay for packing.
  bool values_in_place() const {
    const bool windowed = call_.window_left >= 0 && call_.window_right >= 0 &&
                          call_.window_left + call_.window_right < kUnpackedWindow;
    return sizeof(T) == sizeof(float) && (work_.blocks <= kUnpackedBlocks || windowed) && call_.value_dim % kWidth == 0;
  }

  /// Elements of the unit that hold n of the depth; at least so many for a negative n.
  static int64_t steps(int64_t n) { return (n + kSteps - 1) / kSteps; }

  /// The first key that causality forbids the row, counted from `start`; far away without causality.
  int64_t causal_end(int64_t row, int64_t start) const {
    if (call_.window_right < 0) return INT64_MAX / 2;
    return position_of(call_, work_.length, row) + call_.window_right + 1 - start;
  }

  /// Asks for a share of the tile's bias, a few whole rows, while the panel at column `j` is computed.
  void prefetch_bias(const Block& block, int64_t start, const Range& columns, int64_t j) const {
    if (call_.bias.data == nullptr || call_.bias.column == 0 || call_.bias.row == 0) return;
    const int64_t panels = (columns.end - columns.begin / kPanel * kPanel + kPanel - 1) / kPanel;
    const int64_t share = (block.rows + panels - 1) / panels;
    const int64_t row = (j - columns.begin / kPanel * kPanel) / kPanel * share;
    const T* bias = row_of<T>(call_.bias, work_.task.batch, block.head, block.row + row);
    prefetch_rows(bias + start + columns.begin, call_.bias.row, smaller(share, block.rows - row),
                  columns.end - columns.begin);
  }

  const Work& work_;
  const AttentionCall& call_;
  Element *packed_key_ = nullptr, *packed_value_ = nullptr;
};

}  // namespace deployml::DEPLOYML_ISA
