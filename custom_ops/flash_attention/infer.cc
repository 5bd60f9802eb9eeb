// Shapes of the outputs, for onnxruntime's shape inference.
#include "ort_shape.h"
#include "signature.h"

namespace deployml {
namespace {

int64_t attribute_of(const OrtApi* api, const OrtShapeInferContext* context, const char* name) {
  const OrtOpAttr* attribute = nullptr;
  int64_t value = 0;
  size_t written = 0;
  OrtStatus* status = ort::ShapeInferContextGetAttribute::call(api, context, name, &attribute);
  if (status == nullptr && attribute != nullptr)
    status = ort::ReadOpAttr::call(api, attribute, ort::kAttributeInt, &value, sizeof value, &written);
  if (status != nullptr) ort::ReleaseStatus::call(api, status);
  return value;
}

/// Weights are (batch, heads, queries, keys).
void set_weights(const Operator& op, const OrtApi* api, const OrtShapeInferContext* context,
                 const SymbolicShape& query, int64_t heads) {
  const bool bnsh = op.signature.has(kBnsh);
  const SymbolicShape key = shape_of(api, context, 1);
  const size_t rows = bnsh ? 2 : 1;
  if (key.dims.size() != query.dims.size()) return;
  SymbolicShape weights = query;
  weights.dims.resize(4), weights.symbols.resize(4, "");
  weights.set(1, heads);
  weights.dims[2] = query.dims[rows], weights.symbols[2] = query.symbols[rows];
  weights.dims[3] = key.dims[rows], weights.symbols[3] = key.symbols[rows];
  set_shape(api, context, 1, weights);
}

/// (batch, length, all heads side by side) to (batch, length, those of the query).
void infer_packed(const OrtApi* api, const OrtShapeInferContext* context, int64_t heads, int64_t kv_heads) {
  SymbolicShape out = shape_of(api, context, 0);
  if (out.dims.size() != 3) return;
  const int64_t width = out.dims[2], all = heads + 2 * kv_heads;
  out.set(2, width > 0 && all > 0 ? width / all * heads : -1);
  set_shape(api, context, 0, out);
}

}  // namespace

/// One function serves all types of a name: onnxruntime asks only the first operator registered under it.
void infer_shapes(const Operator& op, const OrtApi* api, OrtShapeInferContext* context) {
  const int64_t heads = attribute_of(api, context, "num_heads");
  const int64_t kv_heads = attribute_of(api, context, "kv_heads");
  if (op.signature.has(kPacked)) return infer_packed(api, context, heads, kv_heads);
  const bool bnsh = op.signature.has(kBnsh);
  const SymbolicShape query = shape_of(api, context, 0), value = shape_of(api, context, 2);
  const size_t rank = bnsh ? 4 : 3;
  if (query.dims.size() != rank || value.dims.size() != rank) return;  // the kernel says what is wrong
  SymbolicShape out = query;
  const int64_t last = value.dims[rank - 1];
  if (bnsh) {
    out.dims[3] = last, out.symbols[3] = value.symbols[3];
  } else {
    out.set(2, last > 0 && kv_heads > 0 ? last / kv_heads * heads : -1);
  }
  set_shape(api, context, 0, out);
  if (op.signature.has(kWeights)) set_weights(op, api, context, query, heads);
  if (!op.signature.has_present()) return;
  for (size_t i = 0; i < 2; ++i) {
    SymbolicShape present = shape_of(api, context, 3 + i);
    const SymbolicShape fresh = shape_of(api, context, 1 + i);
    if (present.dims.size() != 4 || fresh.dims.size() != rank) return;
    const int64_t rows = fresh.dims[bnsh ? 2 : 1];
    if (op.signature.has(kPast)) present.set(2, present.dims[2] >= 0 && rows >= 0 ? present.dims[2] + rows : -1);
    set_shape(api, context, 1 + i, present);
  }
}

}  // namespace deployml
