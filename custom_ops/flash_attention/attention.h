// What one attention call means, for every backend: raw pointers, sizes and options, no framework type.
//
// ort.cc fills an AttentionCall and hands it to the backend's `launch`; a backend never sees onnxruntime.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element.h"

namespace deployml {

/// The optional parts of a call, one bit each: signature.h makes the operator's names of them.
enum Part : unsigned {
  kBnsh = 1,
  kPacked = 2,
  kPast = 4,
  kCache = 8,
  kLengths = 16,
  kMask = 32,
  kBias = 64,
  kSlopes = 128,
  kTable = 256,
  kSink = 512,
  kWeights = 1024,
};

/// A 4-D tensor (batch, head, row, column) with element strides; the column stride is 1 unless `column` says 0.
struct View {
  const void* data = nullptr;
  int64_t batch = 0;
  int64_t head = 0;
  int64_t row = 0;
  int64_t column = 1;
};

/// One call of FlashAttention. Optional tensors have `data == nullptr`.
///
/// With p(i) = i + offset(b), where offset is 0 for upper-left and length(b) - queries for lower-right
/// alignment, key j takes part in row i of batch b when j < length(b), p(i) - window_left <= j <=
/// p(i) + window_right (each bound only when >= 0), and the mask allows it.
struct AttentionCall {
  Element element = Element::kFloat32;
  int64_t batch = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t queries = 0;
  int64_t keys = 0;  // past included; with a cache, its capacity
  int64_t head_dim = 0;
  int64_t value_dim = 0;

  float scale = 1.0f;
  float softcap = 0.0f;       // 0: none
  int64_t window_left = -1;   // -1: unbounded
  int64_t window_right = -1;  // -1: unbounded, 0: causal
  bool lower_right = false;

  View query, key, value;           // element type `element`
  View output;                      // written; `data` is mutable memory
  View weights;                     // written when there: (batch, heads, queries, keys) of `element`
  const int32_t* lengths = nullptr;  // (batch), each in [0, keys]
  View mask;                        // bytes, 0 = excluded; strides may be 0
  View bias;                        // element type `element`; strides may be 0
  const void* slopes = nullptr;     // (heads), element type `element`
  const void* sink = nullptr;       // (heads), element type `element`

  // Relative positions: table[h * table_head + reach + clamp(j - p(i), -reach, reach)] is added to the capped scores,
  // with reach = table_size / 2 and table_size odd. Element type `element`; table_head is 0 for one row for all heads.
  const void* table = nullptr;
  int64_t table_size = 0;
  int64_t table_head = 0;

  // Past keys and values, (batch, kv_heads, past, dim) contiguous. When present, `key` and `value` hold only the
  // `fresh` new rows and the backend first writes past and new rows to present, then attends to present. Without a
  // cache the new rows follow the past. With one, past and present are buffers of `keys` rows, the new rows become
  // [length(b) - fresh, length(b)) and those before row 0 are dropped; present may be the same memory as past.
  bool cache = false;
  int64_t fresh = 0;
  int64_t past = 0;
  const void* past_key = nullptr;
  const void* past_value = nullptr;
  void* present_key = nullptr;
  void* present_value = nullptr;
};

/// What a backend may ask of the runtime that called it.
struct Runtime {
  void* state;
  /// Runs body(user, i) for i in [0, total) on the runtime's threads. Throws what the runtime says went wrong.
  void (*parallel_for)(void* state, int64_t total, void (*body)(void* user, size_t index), void* user);
  /// The runtime's compute stream, nullptr on the CPU.
  void* (*stream)(void* state);
  /// Memory of the provider for the call's own use until its work on the stream is done; nullptr when there is none.
  void* (*allocate)(void* state, size_t bytes);
};

/// A backend: where it runs and how it is called. `launch` returns nullptr or a static message.
struct Backend {
  const char* provider;  // execution provider, nullptr for the CPU
  bool (*supports)(Element element, unsigned parts);  // parts: bits of Part
  const char* (*launch)(const AttentionCall& call, const Runtime& runtime);
  bool device = false;  // the tensors are in memory of a device: their values cannot be looked at before the launch
};

const Backend& cpu_backend();  // cpu.cc
const Backend& gpu_backend();  // launch.cu

}  // namespace deployml
