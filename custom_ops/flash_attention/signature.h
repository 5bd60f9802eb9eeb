// The operator's names and what each promises: which inputs and outputs a call has (op.py holds the same table).
//
//   FlashAttention[_bnsh|_packed][_past|_cache][_lengths][_mask][_bias][_slopes|_table][_sink][_weights]
//
// A function body of ONNX cannot have absent inputs, so there is one name per input signature; the inputs are query,
// key, value (with _packed one tensor of all three) and then those named, in that order.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <vector>

#include "attention.h"
#include "ort_abi.h"

namespace deployml {

/// One bit a part of a name, in the order of the name. attention.h shows them to backends as numbers.
inline constexpr const char* kPartNames[] = {"_bnsh", "_packed", "_past",  "_cache", "_lengths", "_mask",
                                             "_bias", "_slopes", "_table", "_sink",  "_weights"};
inline constexpr unsigned kPartCount = sizeof kPartNames / sizeof *kPartNames;

enum class Role {
  kQuery,
  kKey,
  kValue,
  kPastKey,
  kPastValue,
  kLengths,
  kMask,
  kBias,
  kSlopes,
  kTable,
  kSink,
  kPacked,
};
inline constexpr const char* kRoleNames[] = {"query", "key",    "value", "past_key", "past_value", "key_lengths",
                                             "mask",  "bias",   "slopes", "table",  "sink",       "packed"};
inline constexpr size_t kRoles = sizeof kRoleNames / sizeof *kRoleNames;

/// What a name stands for.
struct Signature {
  unsigned parts = 0;
  std::array<Role, kRoles> roles{};
  size_t inputs = 0;
  size_t outputs = 1;
  char name[128] = {};

  bool has(Part part) const { return (parts & part) != 0; }
  bool has_present() const { return has(kPast) || has(kCache); }
};

/// Whether these parts go together.
inline bool is_signature(unsigned parts) {
  const auto has = [parts](Part part) { return (parts & part) != 0; };
  if (has(kPast) && has(kCache)) return false;
  if (has(kCache) && !has(kLengths)) return false;
  if (has(kSlopes) && has(kTable)) return false;
  if (has(kPacked) && (has(kBnsh) || has(kPast) || has(kCache) || has(kWeights))) return false;
  return !(has(kWeights) && (has(kPast) || has(kCache)));
}

inline Signature make_signature(unsigned parts) {
  Signature s;
  s.parts = parts;
  const auto add = [&s](Role role) { s.roles[s.inputs++] = role; };
  if (s.has(kPacked)) {
    add(Role::kPacked);
  } else {
    add(Role::kQuery), add(Role::kKey), add(Role::kValue);
  }
  if (s.has_present()) add(Role::kPastKey), add(Role::kPastValue), s.outputs += 2;
  if (s.has(kLengths)) add(Role::kLengths);
  if (s.has(kMask)) add(Role::kMask);
  if (s.has(kBias)) add(Role::kBias);
  if (s.has(kSlopes)) add(Role::kSlopes);
  if (s.has(kTable)) add(Role::kTable);
  if (s.has(kSink)) add(Role::kSink);
  if (s.has(kWeights)) ++s.outputs;
  std::strcpy(s.name, "FlashAttention");
  for (unsigned i = 0; i < kPartCount; ++i)
    if (parts >> i & 1u) std::strcat(s.name, kPartNames[i]);
  return s;
}

/// The backends of this library: the CPU's, and that of a GPU where it was built for one. onnxruntime takes a domain
/// from one library alone, so the library for a GPU holds the kernels of both.
inline std::vector<const Backend*> backends() {
#if defined(DEPLOYML_EMULATED)
  return {&gpu_backend()};
#elif defined(DEPLOYML_GPU)
  return {&gpu_backend(), &cpu_backend()};
#else
  return {&cpu_backend()};
#endif
}

/// The node's attributes, checked.
struct Attributes {
  int64_t num_heads = 0;
  int64_t kv_heads = 0;
  int64_t causal = 0;
  int64_t lower_right = 0;
  int64_t window_left = -1;
  int64_t window_right = -1;
  float scale = 0.0f;  // 0: 1 / sqrt(head_dim)
  float softcap = 0.0f;
};

/// The operator onnxruntime holds a pointer to: its callbacks, then what distinguishes it.
struct Operator : OrtCustomOp {
  Signature signature;
  Element element = Element::kFloat32;
  const Backend* backend = nullptr;
};

/// What onnxruntime keeps for each node.
struct Kernel {
  const OrtApi* api;
  const Operator* op;
  Attributes attributes;
};

/// Runs one call: reads the inputs, checks them, makes the outputs, launches the backend (call.cc). Throws Failure.
void run_call(const Kernel& kernel, OrtKernelContext* context);

/// Tells onnxruntime the shapes of the outputs as far as they are known (infer.cc). Throws Failure.
void infer_shapes(const Operator& op, const OrtApi* api, OrtShapeInferContext* context);

}  // namespace deployml
