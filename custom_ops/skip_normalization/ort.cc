// SkipNormalization as an onnxruntime custom operator: names, shapes, one call.
//
//   SkipNormalization[_rms][_shift][_bias][_sum]
//
// The inputs are x, skip, scale and then those named, in that order (op.py holds the same table).
#include <algorithm>
#include <cstring>

#include "normalization.h"
#include "ort_attributes.h"
#include "ort_shape.h"
#include "ort_tensor.h"
#include "registration.h"

namespace deployml {
namespace {

enum Part : unsigned { kRms = 1, kShift = 2, kBias = 4, kSum = 8 };
constexpr const char* kPartNames[] = {"_rms", "_shift", "_bias", "_sum"};
constexpr unsigned kPartCount = sizeof kPartNames / sizeof *kPartNames;

constexpr int64_t kNumbersPerTask = 32768;  // some ten microseconds: less is not worth another thread

struct Operator : OrtCustomOp {
  unsigned parts = 0;
  Element element = Element::kFloat32;
  char name[64] = {};

  bool has(Part part) const { return (parts & part) != 0; }
};

struct Kernel {
  const OrtApi* api;
  const Operator* op;
  float epsilon;
};

const Operator& of(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

/// Rows of `width` numbers that skip has, when it is x or the end of x's axes, ones before that left out; else -1.
int64_t rows_of_skip(const Dims& x, const Dims& skip) {
  size_t lead = 0;
  while (lead < skip.rank && skip[lead] == 1 && skip.rank - lead > 1) ++lead;
  const size_t rank = skip.rank - lead;
  if (rank == 0 || rank > x.rank || skip.rank > x.rank) return -1;
  int64_t rows = 1;
  for (size_t i = 0; i < rank; ++i) {
    if (skip[lead + i] != x[x.rank - rank + i]) return -1;
    if (i + 1 < rank) rows *= skip[lead + i];
  }
  return rows;
}

const void* vector_of(const Kernel& kernel, OrtKernelContext* context, size_t index, const char* name, int64_t width) {
  const Input input = read_input(kernel.api, context, index, name);
  if (input.dims.rank != 1 || input.dims[0] != width)
    fail(ort::kInvalidArgument, "input %s has shape %s, expected (%lld,)", name, ShapeText(input.dims).text,
         (long long)width);
  return input.data;
}

/// Fills the call and makes its outputs.
NormalizationCall read_call(const Kernel& kernel, OrtKernelContext* context) {
  const Operator& op = *kernel.op;
  const Input x = read_input(kernel.api, context, 0, "x"), skip = read_input(kernel.api, context, 1, "skip");
  if (x.dims.rank == 0 || x.dims[x.dims.rank - 1] == 0)
    fail(ort::kInvalidArgument, "input x has shape %s, expected (..., at least one feature)", ShapeText(x.dims).text);
  NormalizationCall call;
  call.element = op.element;
  call.centred = !op.has(kRms);
  call.epsilon = kernel.epsilon;
  call.width = x.dims[x.dims.rank - 1];
  call.rows = 1;
  for (size_t i = 0; i + 1 < x.dims.rank; ++i) call.rows *= x.dims[i];
  call.skip_rows = rows_of_skip(x.dims, skip.dims);
  if (call.skip_rows < 0)
    fail(ort::kInvalidArgument, "input skip has shape %s, expected that of x, %s, or its last axes",
         ShapeText(skip.dims).text, ShapeText(x.dims).text);
  call.x = x.data, call.skip = skip.data;
  size_t next = 2;
  call.scale = vector_of(kernel, context, next++, "scale", call.width);
  if (op.has(kShift)) call.shift = vector_of(kernel, context, next++, "shift", call.width);
  if (op.has(kBias)) call.bias = vector_of(kernel, context, next++, "bias", call.width);
  call.output = make_output(kernel.api, context, 0, x.dims.values, x.dims.rank);
  if (op.has(kSum)) call.sum = make_output(kernel.api, context, 1, x.dims.values, x.dims.rank);
  return call;
}

struct Split {
  NormalizationCall call;
  int64_t rows;  // of a task
};

void run_task(void* user, size_t index) {
  const Split& split = *static_cast<const Split*>(user);
  const int64_t begin = int64_t(index) * split.rows;
  normalization_loop().run(split.call, begin, std::min(begin + split.rows, split.call.rows));
}

OrtStatus* compute(void* state, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(state);
  return guarded(kernel.api, kernel.op->name, [&] {
    Split split{read_call(kernel, context), 0};
    if (split.call.rows == 0) return;
    split.rows = std::max<int64_t>(1, kNumbersPerTask / split.call.width);
    const int64_t tasks = (split.call.rows + split.rows - 1) / split.rows;
    parallel_for(kernel.api, context, size_t(tasks), run_task, &split);
  });
}

OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  return guarded(api, of(op).name, [&] {
    float epsilon = 1e-5f;
    read_float(api, info, "epsilon", &epsilon);
    *kernel = new Kernel{api, &of(op), epsilon};
  });
}

OrtStatus* infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  return guarded(interface(), of(op).name, [&] {
    const SymbolicShape x = shape_of(interface(), context, 0);
    set_shape(interface(), context, 0, x);
    if (of(op).has(kSum)) set_shape(interface(), context, 1, x);
  });
}

Operator make_operator(unsigned parts, Element element) {
  Operator op;
  static_cast<OrtCustomOp&>(op) = blank_operator();
  op.parts = parts;
  op.element = element;
  std::strcpy(op.name, "SkipNormalization");
  for (unsigned i = 0; i < kPartCount; ++i)
    if (parts >> i & 1u) std::strcat(op.name, kPartNames[i]);
  op.GetName = [](const OrtCustomOp* self) { return of(self).name; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU's
  op.GetInputType = [](const OrtCustomOp* self, size_t) { return ort_type(of(self).element); };
  op.GetInputTypeCount = [](const OrtCustomOp* self) { return 3 + size_t(of(self).has(kShift)) + of(self).has(kBias); };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return ort_type(of(self).element); };
  op.GetOutputTypeCount = [](const OrtCustomOp* self) { return 1 + size_t(of(self).has(kSum)); };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.CreateKernelV2 = create_kernel;
  op.KernelComputeV2 = compute;
  op.InferOutputShapeFn = infer_shape;
  return op;
}

}  // namespace

void collect_normalization(const Names& names, Operators* found) {
  for (unsigned parts = 0; parts < 1u << kPartCount; ++parts) {
    if ((parts & kRms) != 0 && (parts & kShift) != 0) continue;  // root-mean-square normalisation has no shift
    for (Element element : kElements) {
      const Operator op = make_operator(parts, element);
      if (names.hold(op.name)) found->add(op);
    }
  }
}

}  // namespace deployml
