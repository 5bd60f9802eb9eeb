// What one call of MixtureOfExperts means, and the seam between cpu.cc (order of the work, threads) and the loops that
// are compiled once per instruction set. No framework type.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element.h"

namespace deployml {

enum class Activation : int { kSilu, kGelu, kGeluTanh, kRelu, kReluSquared };

/// output[n] = sum over k of weights[n, k] * expert(chosen[n, k], x[n]); op.py says what an expert is.
struct ExpertsCall {
  Element element = Element::kFloat32;
  Activation activation = Activation::kSilu;
  bool gated = false;
  float alpha = 1.0f;
  float limit = __builtin_inff();
  float offset = 0.0f;

  int64_t tokens = 0;
  int64_t each = 0;    // experts of a token
  int64_t count = 0;   // experts there are
  int64_t hidden = 0;  // features
  int64_t inner = 0;   // numbers between the two products

  const void* x = nullptr;           // (tokens, hidden)
  const int64_t* chosen = nullptr;   // (tokens, each)
  const void* weights = nullptr;     // (tokens, each)
  const void* first = nullptr;       // (count, inner, hidden), gated (count, 2 * inner, hidden)
  const void* second = nullptr;      // (count, hidden, inner)
  const void* first_bias = nullptr;  // (count, inner or 2 * inner)
  const void* second_bias = nullptr; // (count, hidden)
  void* output = nullptr;            // (tokens, hidden)

  bool names(int64_t expert) const { return expert >= 0 && expert < count; }
};

/// Tokens that are handled together, and the call's memory for them. A slot is a token's k-th choice; rows are the
/// slots that name an expert, in the order of experts. Tables are float32.
struct ExpertsPart {
  int64_t token = 0;   // the first
  int64_t tokens = 0;
  int64_t rows = 0;
  const int64_t* slots = nullptr;  // of each row
  float* given = nullptr;    // (rows, hidden) the token of each row; avx512_bf16 keeps bfloat16 there
  float* between = nullptr;  // (rows, inner) after the activation
  float* made = nullptr;     // (slots, hidden) what the expert gives, times its weight
  int64_t hidden_stride = 0;
  int64_t inner_stride = 0;
};

/// Rows of one expert that are multiplied together.
struct ExpertsBlock {
  int64_t expert;
  int64_t begin;
  int64_t end;
};

/// Columns are cut at multiples of it.
inline constexpr int64_t kColumnBlock = 64;

/// Blocks have at most so many rows, and begin at multiples of kRowPadding from the expert's first row.
inline constexpr int64_t kMostRows = 384;

/// Rows that may be read behind a table's last one.
inline constexpr int64_t kRowPadding = 24;

/// Memory of the calling thread, 64-byte aligned, valid until the next call from it; nullptr when there is none.
using ThreadScratch = void* (*)(size_t bytes);

/// The loops of one instruction set. Those of products return false when memory ran out.
struct ExpertsLoop {
  const char* name;
  /// given, of rows [begin, end).
  void (*gather)(const ExpertsCall& call, const ExpertsPart& part, int64_t begin, int64_t end);
  /// between = act(given . first), of a block's rows and columns [begin, end).
  bool (*enter)(const ExpertsCall& call, const ExpertsPart& part, const ExpertsBlock& block, int64_t begin, int64_t end,
                ThreadScratch scratch);
  /// made = weight * (between . second), of a block's rows and columns [begin, end).
  bool (*leave)(const ExpertsCall& call, const ExpertsPart& part, const ExpertsBlock& block, int64_t begin, int64_t end,
                ThreadScratch scratch);
  /// output, of the part's tokens [begin, end).
  void (*add_up)(const ExpertsCall& call, const ExpertsPart& part, int64_t begin, int64_t end);
};

namespace avx512_bf16 {  // bfloat16, an even number of features
extern const ExpertsLoop kExperts;
}
namespace avx512 {
extern const ExpertsLoop kExperts;
}
namespace avx2 {
extern const ExpertsLoop kExperts;
}
namespace portable {
extern const ExpertsLoop kExperts;
}

/// What the kernel asks of the runtime that called it.
struct ExpertsRuntime {
  void* state;
  /// Runs body(user, i) for i in [0, total) on the runtime's threads. Throws what the runtime says went wrong.
  void (*parallel_for)(void* state, int64_t total, void (*body)(void* user, size_t index), void* user);
  /// The runtime's compute stream; only asked for on a GPU.
  void* (*stream)(void* state);
  /// Memory of the provider for the call's own use until its work on the stream is done; throws where there is none.
  void* (*allocate)(void* state, size_t bytes);
};

/// A backend: where it runs and how it is called. `run` returns nullptr or a static message.
struct ExpertsBackend {
  const char* provider;  // execution provider, nullptr for the CPU
  const char* (*run)(const ExpertsCall& call, const ExpertsRuntime& runtime);
};

const ExpertsBackend& experts_on_cpu();  // cpu.cc
const ExpertsBackend& experts_on_gpu();  // launch.cu

}  // namespace deployml
