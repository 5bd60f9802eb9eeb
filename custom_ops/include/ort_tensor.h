// Inputs and outputs of a call, and its threads.
#pragma once

#include <atomic>
#include <cstdio>

#include "ort_status.h"

namespace deployml {

/// The sizes of a tensor, held without an allocation: small calls take microseconds.
struct Dims {
  static constexpr size_t kMost = 16;
  int64_t values[kMost] = {};
  size_t rank = 0;

  size_t size() const { return rank; }
  int64_t operator[](size_t axis) const { return values[axis]; }
};

/// Text of a shape for messages: "(2, 7, 64)".
struct ShapeText {
  char text[200];
  explicit ShapeText(const Dims& dims) {
    size_t at = size_t(std::snprintf(text, sizeof text, "("));
    for (size_t i = 0; i < dims.size() && at < sizeof text - 32; ++i)
      at += size_t(std::snprintf(text + at, sizeof text - at, i ? ", %lld" : "%lld", (long long)dims[i]));
    std::snprintf(text + at, sizeof text - at, ")");
  }
};

struct Input {
  const void* data = nullptr;
  Dims dims;
};

inline Input read_input(const OrtApi* api, const OrtKernelContext* context, size_t index, const char* name) {
  const OrtValue* value = nullptr;
  check(ort::KernelContextGetInput::call(api, context, index, &value));
  if (value == nullptr) fail(ort::kInvalidArgument, "input %s is absent, the name of the operator promises it", name);
  Input input;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(ort::GetTensorTypeAndShape::call(api, value, &info));
  OrtStatus* status = ort::GetDimensionsCount::call(api, info, &input.dims.rank);
  const bool fits = input.dims.rank <= Dims::kMost;
  if (status == nullptr && fits) status = ort::GetDimensions::call(api, info, input.dims.values, input.dims.rank);
  ort::ReleaseTensorTypeAndShapeInfo::call(api, info);
  check(status);
  if (!fits)
    fail(ort::kInvalidArgument, "input %s has %zu axes, more than %zu are not expected", name, input.dims.rank,
         Dims::kMost);
  void* data = nullptr;
  check(ort::GetTensorMutableData::call(api, const_cast<OrtValue*>(value), &data));
  input.data = data;
  return input;
}

/// Makes an output and returns its memory, nullptr for an empty tensor.
inline void* make_output(const OrtApi* api, OrtKernelContext* context, size_t index, const int64_t* dims,
                         size_t rank) {
  OrtValue* value = nullptr;
  check(ort::KernelContextGetOutput::call(api, context, index, dims, rank, &value));
  if (value == nullptr) fail(ort::kInvalidArgument, "output %zu must be wanted", index);
  void* data = nullptr;
  check(ort::GetTensorMutableData::call(api, value, &data));
  return data;
}

/// Runs body(user, i) for i in [0, total) on the session's threads. What was done is counted: the count is checked,
/// and it orders what the threads wrote before what the caller does next by an atomic that a race detector can see.
inline void parallel_for(const OrtApi* api, const OrtKernelContext* context, size_t total, void (*body)(void*, size_t),
                         void* user) {
  if (total == 1) return body(user, 0);
  struct Work {
    void (*body)(void*, size_t);
    void* user;
    std::atomic<size_t> done{0};
  } work{body, user};
  work.done.store(0, std::memory_order_release);
  const auto one = [](void* state, size_t index) {
    Work& shared = *static_cast<Work*>(state);
    static_cast<void>(shared.done.load(std::memory_order_acquire));
    shared.body(shared.user, index);
    shared.done.fetch_add(1, std::memory_order_acq_rel);
  };
  if (total > 0) check(ort::KernelContextParallelFor::call(api, context, one, total, 0, &work));
  if (work.done.load(std::memory_order_acquire) != total)
    fail(ort::kFail, "onnxruntime's thread pool did part of the work only");
}

}  // namespace deployml
