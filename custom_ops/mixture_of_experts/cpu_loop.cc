// The products of MixtureOfExperts and what stands between them.
//
// This file is compiled once per instruction set (see CMakeLists.txt). A task is a block of one expert's rows and some
// of the product's columns. With many rows the weights of a column block are packed, a piece of the depth at a time,
// and multiplied by the packed micro-kernel; with few they are read where they lie. How a number is summed depends on
// the sizes of its block alone.
#include "cpu_dots.h"
#include "experts.h"

namespace deployml::DEPLOYML_ISA {
namespace {

constexpr int64_t kDepthBlock = 128;       // the packed piece of a column block stays in the first cache
constexpr int64_t kUnpackedFloats = 160000;  // of rows that are read again for every few columns: second cache

/// Up to so many rows, packing takes longer than it saves; half types are widened anew for each few rows.
template <typename Form>
constexpr int64_t kUnpackedRows = kWidth == 16 ? 24 : sizeof(typename Form::Weight) == sizeof(float) ? 48 : 8;

static_assert(kColumnBlock % kPanel == 0 && kColumnBlock % kDotColumns == 0);
static_assert(kMostRows % kRowGranule == 0 && kRowPadding >= kRowGranule);

/// The sums of a block: kColumnBlock columns a row.
constexpr int64_t kSums = (kMostRows + kRowGranule) * kColumnBlock;
constexpr int64_t kPacked = kColumnBlock * kDepthBlock;

/// Memory of a task: two blocks of sums (gate and value), packed weights.
struct Memory {
  float* sums[2];
  float* packed;

  bool take(ThreadScratch scratch) {
    float* all = static_cast<float*>(scratch(sizeof(float) * (2 * kSums + kPacked)));
    if (all == nullptr) return false;
    sums[0] = all, sums[1] = all + kSums, packed = all + 2 * kSums;
    return true;
  }
};

/// The product of a block's rows with `columns` rows of weights, at most kColumnBlock.
template <typename Form>
struct Product {
  using Unit = typename Form::Unit;
  using T = typename Form::Weight;
  const typename Form::Row* a;
  int64_t lda;
  const T* weights;
  int64_t rows;
  int64_t columns;
  int64_t depth;
  const T* next;  // weights that will be wanted after these

  bool unpacked() const {
    return depth == 0 || rows <= kDotRows || (rows <= kUnpackedRows<Form> && rows * depth <= kUnpackedFloats);
  }

  void run(const Memory& memory, float* sums) const {
    if (unpacked()) return dots(Dots<Form>{a, lda, weights, depth, sums, kColumnBlock, rows, columns, depth});
    for (int64_t k = 0; k < depth; k += kDepthBlock) add_depth(memory, k, smaller(kDepthBlock, depth - k), sums);
  }

  /// Adds the products of a piece of the depth. A tile of rows at a time, and before each a share of the weights that
  /// will be packed next is asked for: memory would be idle otherwise.
  void add_depth(const Memory& memory, int64_t k, int64_t steps, float* sums) const {
    auto* packed = reinterpret_cast<typename Unit::Element*>(memory.packed);
    pack_transposed(weights + k, depth, columns, steps, packed);
    Epilogue also;
    also.more = k > 0;
    const T* ahead = k + steps < depth ? weights + k + steps : next;
    const int64_t tile = columns > kColumnBlock - kWidth ? tile_rows(kPanelVectors) : kRowGranule;
    const int64_t share = (columns * tile + rows - 1) / rows;
    for (int64_t r = 0, asked = 0; r < rows; r += tile, asked += share) {
      prefetch_rows(ahead + asked * depth, depth, smaller(share, columns - asked), steps);
      for (int64_t j = 0; j < columns; j += kPanel) {
        const int64_t width = smaller(kPanel, round_up(columns - j, kWidth));
        multiply(Operands<Unit>{a + r * lda + k, lda, packed + j * steps, width, sums + r * kColumnBlock + j,
                                kColumnBlock, smaller(tile, rows - r), steps},
                 int(width / kWidth), also);
      }
    }
  }
};

DEPLOYML_INLINE Vec at_most(Vec x, Vec bound) { return where_less(bound, x, bound, x); }  // NaN stays
DEPLOYML_INLINE Vec at_least(Vec x, Vec bound) { return where_less(x, bound, bound, x); }

/// 1 / (1 + e^-x) without an overflow on either side.
DEPLOYML_INLINE Vec sigmoid(Vec x) {
  const Vec e = exponential(sub(zero(), absolute(x))), one = set1(1.0f);
  return div(where_less(x, zero(), e, one), add(one, e));
}

template <Activation kActivation>
DEPLOYML_INLINE Vec activate(Vec x, Vec alpha) {
  if constexpr (kActivation == Activation::kSilu) return mul(x, sigmoid(mul(alpha, x)));
  const Vec half = mul(set1(0.5f), x), one = set1(1.0f);
  if constexpr (kActivation == Activation::kGelu)
    return mul(half, add(one, error_function(mul(x, set1(0.70710678f)))));
  if constexpr (kActivation == Activation::kGeluTanh) {
    const Vec cubed = mul(mul(x, x), mul(x, set1(0.044715f)));
    return mul(half, add(one, hyperbolic_tangent(mul(set1(0.79788456f), add(x, cubed)))));
  }
  const Vec positive = at_least(x, zero());
  return kActivation == Activation::kRelu ? positive : mul(positive, positive);
}

template <typename T>
DEPLOYML_INLINE Vec bias_at(const T* bias, int64_t column, int64_t columns) {
  return bias == nullptr ? zero() : load_first(bias + column, columns - column);
}

/// Bias and activation of a block's sums, into rows of `between` that are padded to whole vectors.
template <typename T, Activation kActivation>
void activate_block(const ExpertsCall& call, const Memory& memory, const T* bias, int64_t rows, int64_t columns,
                    float* out, int64_t stride) {
  const Vec alpha = set1(call.alpha), limit = set1(call.limit), least = set1(-call.limit), offset = set1(call.offset);
  const T* value_bias = bias == nullptr ? nullptr : bias + call.inner;
  for (int64_t j = 0; j < columns; j += kWidth) {
    const Vec add_gate = bias_at(bias, j, columns);
    const Vec add_value = call.gated ? bias_at(value_bias, j, columns) : zero();
    for (int64_t r = 0; r < rows; ++r) {
      const Vec h = add(load(memory.sums[0] + r * kColumnBlock + j), add_gate);
      if (!call.gated) {
        store(out + r * stride + j, activate<kActivation>(h, alpha));
        continue;
      }
      const Vec u = add(load(memory.sums[1] + r * kColumnBlock + j), add_value);
      const Vec value = add(at_least(at_most(u, limit), least), offset);
      store(out + r * stride + j, mul(activate<kActivation>(at_most(h, limit), alpha), value));
    }
  }
}

template <typename T>
void activate_any(const ExpertsCall& call, const Memory& memory, const T* bias, int64_t rows, int64_t columns,
                  float* out, int64_t stride) {
  switch (call.activation) {
    case Activation::kSilu:
      return activate_block<T, Activation::kSilu>(call, memory, bias, rows, columns, out, stride);
    case Activation::kGelu:
      return activate_block<T, Activation::kGelu>(call, memory, bias, rows, columns, out, stride);
    case Activation::kGeluTanh:
      return activate_block<T, Activation::kGeluTanh>(call, memory, bias, rows, columns, out, stride);
    case Activation::kRelu:
      return activate_block<T, Activation::kRelu>(call, memory, bias, rows, columns, out, stride);
    case Activation::kReluSquared:
      return activate_block<T, Activation::kReluSquared>(call, memory, bias, rows, columns, out, stride);
  }
}

/// How the first product multiplies, and what a token's row is turned into for it.
template <typename T>
struct First {
  using Form = FloatDots<T>;
  static void gather(const T* x, int64_t count, float* row) {
    for (int64_t i = 0; i < count; i += kWidth) store(row + i, load_first(x + i, count - i));
  }
};

#if defined(__AVX512BF16__)
/// Rows of bfloat16 stay what they are, an even number of them: the first product takes pairs.
template <>
struct First<BFloat> {
  using Form = PairDots;
  static void gather(const BFloat* x, int64_t count, float* row) { memcpy(row, x, size_t(count) * sizeof(BFloat)); }
};
#endif

template <typename T>
bool enter_typed(const ExpertsCall& call, const ExpertsPart& part, const ExpertsBlock& block, int64_t begin,
                 int64_t end, ThreadScratch scratch) {
  using Form = typename First<T>::Form;
  using Weight = typename Form::Weight;
  Memory memory;
  if (!memory.take(scratch)) return false;
  const int64_t made = call.gated ? 2 * call.inner : call.inner, rows = block.end - block.begin;
  const int64_t depth = call.hidden * int64_t(sizeof(T)) / int64_t(sizeof(Weight));
  const Weight* weights = static_cast<const Weight*>(call.first) + block.expert * made * depth;
  const T* bias = call.first_bias == nullptr ? nullptr : static_cast<const T*>(call.first_bias) + block.expert * made;
  const auto* given = reinterpret_cast<const typename Form::Row*>(part.given) + block.begin * part.hidden_stride;
  float* out = part.between + block.begin * part.inner_stride;
  for (int64_t j = begin; j < end; j += kColumnBlock) {
    const int64_t columns = smaller(kColumnBlock, end - j);
    const Weight* gate = weights + j * depth;
    const Weight* value = call.gated ? gate + call.inner * depth : gate;
    const Weight* next = gate + columns * depth;
    Product<Form> product{given, part.hidden_stride, gate, rows, columns, depth, call.gated ? value : next};
    product.run(memory, memory.sums[0]);
    product.weights = value, product.next = next;
    if (call.gated) product.run(memory, memory.sums[1]);
    activate_any(call, memory, bias == nullptr ? nullptr : bias + j, rows, columns, out + j, part.inner_stride);
  }
  return true;
}

template <typename T>
bool leave_typed(const ExpertsCall& call, const ExpertsPart& part, const ExpertsBlock& block, int64_t begin,
                 int64_t end, ThreadScratch scratch) {
  Memory memory;
  if (!memory.take(scratch)) return false;
  const int64_t rows = block.end - block.begin;
  const T* weights = static_cast<const T*>(call.second) + block.expert * call.hidden * call.inner;
  const T* bias =
      call.second_bias == nullptr ? nullptr : static_cast<const T*>(call.second_bias) + block.expert * call.hidden;
  const T* factors = static_cast<const T*>(call.weights) + part.token * call.each;
  const float* between = part.between + block.begin * part.inner_stride;
  for (int64_t j = begin; j < end; j += kColumnBlock) {
    const int64_t columns = smaller(kColumnBlock, end - j);
    const T* column = weights + j * call.inner;
    const T* next = column + columns * call.inner;
    const Product<FloatDots<T>> product{between, part.inner_stride, column, rows, columns, call.inner, next};
    product.run(memory, memory.sums[0]);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t slot = part.slots[block.begin + r];
      const Vec factor = set1(widen(factors[slot]));
      float* out = part.made + slot * part.hidden_stride + j;
      for (int64_t c = 0; c < columns; c += kWidth) {
        const Vec sum = load(memory.sums[0] + r * kColumnBlock + c);
        store(out + c, mul(factor, add(sum, bias_at(bias == nullptr ? nullptr : bias + j, c, columns))));
      }
    }
  }
  return true;
}

template <typename T>
void gather_typed(const ExpertsCall& call, const ExpertsPart& part, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(call.x) + (part.token + part.slots[r] / call.each) * call.hidden;
    float* out = part.given + r * part.hidden_stride;  // padded to whole vectors
    First<T>::gather(x, call.hidden, out);
  }
}

/// The choices of a token in their order; those that name no expert have no row in `made`.
template <typename T>
void add_up_typed(const ExpertsCall& call, const ExpertsPart& part, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    const int64_t* chosen = call.chosen + (part.token + n) * call.each;
    const float* made = part.made + n * call.each * part.hidden_stride;
    T* out = static_cast<T*>(call.output) + (part.token + n) * call.hidden;
    for (int64_t i = 0; i < call.hidden; i += kWidth) {
      Vec sum = zero();
      for (int64_t k = 0; k < call.each; ++k)
        if (call.names(chosen[k])) sum = add(sum, load(made + k * part.hidden_stride + i));
      if (i + kWidth <= call.hidden)
        store(out + i, sum);
      else
        store_first(out + i, sum, call.hidden - i);
    }
  }
}

#if defined(__AVX512BF16__)  // bfloat16 alone comes here

constexpr auto gather = gather_typed<BFloat>;
constexpr auto enter = enter_typed<BFloat>;
constexpr auto leave = leave_typed<BFloat>;
constexpr auto add_up = add_up_typed<BFloat>;

#else

void gather(const ExpertsCall& call, const ExpertsPart& part, int64_t begin, int64_t end) {
  if (call.element == Element::kFloat16) return gather_typed<Half>(call, part, begin, end);
  if (call.element == Element::kBFloat16) return gather_typed<BFloat>(call, part, begin, end);
  gather_typed<float>(call, part, begin, end);
}

bool enter(const ExpertsCall& call, const ExpertsPart& part, const ExpertsBlock& block, int64_t begin, int64_t end,
           ThreadScratch scratch) {
  if (call.element == Element::kFloat16) return enter_typed<Half>(call, part, block, begin, end, scratch);
  if (call.element == Element::kBFloat16) return enter_typed<BFloat>(call, part, block, begin, end, scratch);
  return enter_typed<float>(call, part, block, begin, end, scratch);
}

bool leave(const ExpertsCall& call, const ExpertsPart& part, const ExpertsBlock& block, int64_t begin, int64_t end,
           ThreadScratch scratch) {
  if (call.element == Element::kFloat16) return leave_typed<Half>(call, part, block, begin, end, scratch);
  if (call.element == Element::kBFloat16) return leave_typed<BFloat>(call, part, block, begin, end, scratch);
  return leave_typed<float>(call, part, block, begin, end, scratch);
}

void add_up(const ExpertsCall& call, const ExpertsPart& part, int64_t begin, int64_t end) {
  if (call.element == Element::kFloat16) return add_up_typed<Half>(call, part, begin, end);
  if (call.element == Element::kBFloat16) return add_up_typed<BFloat>(call, part, begin, end);
  add_up_typed<float>(call, part, begin, end);
}

#endif

#define DEPLOYML_TEXT_OF(x) #x
#define DEPLOYML_TEXT(x) DEPLOYML_TEXT_OF(x)

}  // namespace

extern const ExpertsLoop kExperts;
const ExpertsLoop kExperts{DEPLOYML_TEXT(DEPLOYML_ISA), gather, enter, leave, add_up};

}  // namespace deployml::DEPLOYML_ISA
