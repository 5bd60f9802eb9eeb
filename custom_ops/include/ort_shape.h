// Shapes as onnxruntime's shape inference hands them out and takes them.
#pragma once

#include <vector>

#include "ort_status.h"

namespace deployml {

/// Dimensions as shape inference sees them: -1 with an optional symbol where a size is not known.
struct SymbolicShape {
  int type = ort::kUndefined;
  std::vector<int64_t> dims;
  std::vector<const char*> symbols;

  void set(size_t axis, int64_t size) { dims[axis] = size, symbols[axis] = ""; }
};

inline SymbolicShape shape_of(const OrtApi* api, const OrtShapeInferContext* context, size_t index) {
  OrtTensorTypeAndShapeInfo* info = nullptr;  // owned by the context
  check(ort::ShapeInferContextGetInputTypeShape::call(api, context, index, &info));
  SymbolicShape shape;
  size_t rank = 0;
  check(ort::GetTensorElementType::call(api, info, &shape.type));
  check(ort::GetDimensionsCount::call(api, info, &rank));
  shape.dims.resize(rank), shape.symbols.resize(rank, "");
  check(ort::GetDimensions::call(api, info, shape.dims.data(), rank));
  check(ort::GetSymbolicDimensions::call(api, info, shape.symbols.data(), rank));
  return shape;
}

/// Leaves the output without a shape where a size has neither value nor symbol: onnxruntime would take the -1 for a
/// size, and warn at every run. The type is known to it without us.
inline void set_shape(const OrtApi* api, const OrtShapeInferContext* context, size_t index, SymbolicShape shape) {
  for (size_t i = 0; i < shape.dims.size(); ++i)
    if (shape.dims[i] < 0 && shape.symbols[i][0] == '\0') return;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(ort::CreateTensorTypeAndShapeInfo::call(api, &info));
  OrtStatus* status = ort::SetTensorElementType::call(api, info, shape.type);
  if (status == nullptr)
    status = ort::SetDimensions::call(api, info, shape.dims.data(), shape.dims.size());
  if (status == nullptr)
    status = ort::SetSymbolicDimensions::call(api, info, shape.symbols.data(), shape.symbols.size());
  if (status == nullptr) status = ort::ShapeInferContextSetOutputTypeShape::call(api, context, index, info);
  ort::ReleaseTensorTypeAndShapeInfo::call(api, info);
  check(status);
}

}  // namespace deployml
