// MixtureOfExperts as an onnxruntime custom operator: names, shapes, one call.
//
//   MixtureOfExperts_{silu|gelu|gelu_tanh|relu|relu_squared}[_gated][_bias]
//
// The inputs are x, experts, weights, inner, outer and with _bias inner_bias, outer_bias (op.py holds the same table).
#include <cstdio>
#include <limits>
#include <vector>

#include "experts.h"
#include "ort_attributes.h"
#include "ort_shape.h"
#include "ort_tensor.h"
#include "registration.h"

namespace deployml {
namespace {

constexpr const char* kActivations[] = {"silu", "gelu", "gelu_tanh", "relu", "relu_squared"};
constexpr int kActivationCount = sizeof kActivations / sizeof *kActivations;

enum Index : size_t { kX, kExperts, kWeights, kInner, kOuter, kInnerBias, kOuterBias };
constexpr const char* kInputNames[] = {"x", "experts", "weights", "inner", "outer", "inner_bias", "outer_bias"};

/// The backends of this library; that for a GPU holds the kernels of both (see flash_attention/signature.h).
std::vector<const ExpertsBackend*> backends() {
#if defined(DEPLOYML_EMULATED)
  return {&experts_on_gpu()};
#elif defined(DEPLOYML_GPU)
  return {&experts_on_gpu(), &experts_on_cpu()};
#else
  return {&experts_on_cpu()};
#endif
}

struct Operator : OrtCustomOp {
  const ExpertsBackend* backend = nullptr;
  Activation activation = Activation::kSilu;
  bool gated = false;
  bool bias = false;
  Element element = Element::kFloat32;
  char name[64] = {};

  size_t inputs() const { return bias ? 7 : 5; }
};

struct Kernel {
  const OrtApi* api;
  const Operator* op;
  float alpha = 1.0f;
  float limit = std::numeric_limits<float>::infinity();
  float offset = 0.0f;
};

const Operator& of(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

/// Memory of the provider's arena for one call, which goes back with it.
class Workspace {
 public:
  Workspace(const OrtApi* api, const OrtKernelContext* context) : api_(api), context_(context) {}
  ~Workspace() {
    for (void* memory : taken_)
      if (OrtStatus* status = ort::AllocatorFree::call(api_, allocator_, memory))
        ort::ReleaseStatus::call(api_, status);
    if (allocator_ != nullptr) ort::ReleaseAllocator::call(api_, allocator_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* take(size_t bytes) {
    if (allocator_ == nullptr) {
      const OrtValue* x = nullptr;
      const OrtMemoryInfo* memory = nullptr;
      check(ort::KernelContextGetInput::call(api_, context_, kX, &x));
      check(ort::GetTensorMemoryInfo::call(api_, x, &memory));
      check(ort::KernelContextGetAllocator::call(api_, context_, memory, &allocator_));
    }
    taken_.reserve(taken_.size() + 1);
    void* found = nullptr;
    check(ort::AllocatorAlloc::call(api_, allocator_, bytes, &found));
    if (found == nullptr) fail(ort::kFail, "no memory for %zu bytes", bytes);
    taken_.push_back(found);
    return found;
  }

 private:
  const OrtApi* api_;
  const OrtKernelContext* context_;
  OrtAllocator* allocator_ = nullptr;
  std::vector<void*> taken_;
};

/// One call of the operator: reads every input, checks it against the others, makes the output, runs.
class Call {
 public:
  Call(const Kernel& kernel, OrtKernelContext* context)
      : kernel_(kernel), op_(*kernel.op), context_(context), workspace_(kernel.api, context) {}

  void run() {
    for (size_t i = 0; i < op_.inputs(); ++i) inputs_[i] = read_input(kernel_.api, context_, i, kInputNames[i]);
    set_sizes();
    set_tensors();
    call_.activation = op_.activation, call_.element = op_.element, call_.gated = op_.gated;
    call_.alpha = kernel_.alpha, call_.limit = kernel_.limit, call_.offset = kernel_.offset;
    const Dims& x = inputs_[kX].dims;
    call_.output = make_output(kernel_.api, context_, 0, x.values, x.rank);
    const char* message = op_.backend->run(call_, {this, parallel_for, stream, allocate});
    if (message != nullptr) fail(ort::kFail, "%s", message);
  }

 private:
  [[noreturn]] void refuse(Index index, const char* expected) const {
    fail(ort::kInvalidArgument, "input %s has shape %s, expected %s", kInputNames[index],
         ShapeText(inputs_[index].dims).text, expected);
  }

  void set_sizes() {
    const Dims &x = inputs_[kX].dims, &inner = inputs_[kInner].dims, &outer = inputs_[kOuter].dims;
    if (x.rank == 0) refuse(kX, "(..., features)");
    if (outer.rank != 3) refuse(kOuter, "(experts, features, inner size)");
    if (inner.rank != 3) refuse(kInner, "(experts, rows, features)");
    call_.hidden = x[x.rank - 1], call_.count = outer[0], call_.inner = outer[2];
    call_.tokens = 1;
    for (size_t i = 0; i + 1 < x.rank; ++i) call_.tokens *= x[i];
    const Dims& experts = inputs_[kExperts].dims;
    if (experts.rank != x.rank) refuse_chosen(kExperts, -1);
    call_.each = experts[experts.rank - 1];
  }

  /// Refuses experts or weights; -1 stands for any number of them.
  [[noreturn]] void refuse_chosen(Index index, int64_t each) const {
    Dims wanted = inputs_[kX].dims;
    char text[280], last[32] = "experts a token";
    if (each >= 0) std::snprintf(last, sizeof last, "%lld", (long long)each);
    --wanted.rank;
    std::snprintf(text, sizeof text, "the axes of x before the last, %s, and then %s", ShapeText(wanted).text, last);
    refuse(index, text);
  }

  void expect_chosen(Index index) const {
    const Dims &x = inputs_[kX].dims, &found = inputs_[index].dims;
    bool same = found.rank == x.rank && found[found.rank - 1] == call_.each;
    for (size_t i = 0; same && i + 1 < x.rank; ++i) same = found[i] == x[i];
    if (!same) refuse_chosen(index, call_.each);
  }

  /// Checks a weight's shape and returns its data.
  const void* weight(Index index, int64_t rows, int64_t columns) const {
    const Dims& found = inputs_[index].dims;
    const int64_t wanted[] = {call_.count, rows, columns};
    const size_t rank = columns < 0 ? 2 : 3;
    bool same = found.rank == rank;
    for (size_t i = 0; same && i < rank; ++i) same = found[i] == wanted[i];
    if (!same) {
      Dims expected;
      expected.rank = rank;
      for (size_t i = 0; i < rank; ++i) expected.values[i] = wanted[i];
      refuse(index, ShapeText(expected).text);
    }
    return inputs_[index].data;
  }

  void set_tensors() {
    expect_chosen(kExperts), expect_chosen(kWeights);
    const int64_t made = op_.gated ? 2 * call_.inner : call_.inner;
    call_.x = inputs_[kX].data;
    call_.chosen = static_cast<const int64_t*>(inputs_[kExperts].data);
    call_.weights = inputs_[kWeights].data;
    call_.second = weight(kOuter, call_.hidden, call_.inner);
    call_.first = weight(kInner, made, call_.hidden);
    if (!op_.bias) return;
    call_.first_bias = weight(kInnerBias, made, -1);
    call_.second_bias = weight(kOuterBias, call_.hidden, -1);
  }

  static void parallel_for(void* state, int64_t total, void (*body)(void*, size_t), void* user) {
    const Call& self = *static_cast<Call*>(state);
    deployml::parallel_for(self.kernel_.api, self.context_, size_t(total), body, user);
  }

  static void* stream(void* state) {
    const Call& self = *static_cast<Call*>(state);
    void* stream = nullptr;
    check(ort::KernelContextGetGpuComputeStream::call(self.kernel_.api, self.context_, &stream));
    return stream;
  }

  static void* allocate(void* state, size_t bytes) { return static_cast<Call*>(state)->workspace_.take(bytes); }

  const Kernel& kernel_;
  const Operator& op_;
  OrtKernelContext* context_;
  Workspace workspace_;
  Input inputs_[7];
  ExpertsCall call_;
};

OrtStatus* compute(void* state, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(state);
  return guarded(kernel.api, kernel.op->name, [&] { Call(kernel, context).run(); });
}

OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  return guarded(api, of(op).name, [&] {
    Kernel made{api, &of(op)};
    constexpr float kMost = std::numeric_limits<float>::max(), kInfinity = std::numeric_limits<float>::infinity();
    if (of(op).activation == Activation::kSilu) read_float(api, info, "alpha", &made.alpha, 0.0f, kMost);
    if (of(op).gated) {
      read_float(api, info, "limit", &made.limit, 0.0f, kInfinity);
      read_float(api, info, "offset", &made.offset, -kMost, kMost);
    }
    *kernel = new Kernel{made};
  });
}

OrtStatus* infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  return guarded(interface(), of(op).name, [&] {
    set_shape(interface(), context, 0, shape_of(interface(), context, kX));
  });
}

Operator make_operator(const ExpertsBackend& backend, Activation activation, bool gated, bool bias, Element element) {
  Operator op;
  static_cast<OrtCustomOp&>(op) = blank_operator();
  op.backend = &backend;
  op.activation = activation, op.gated = gated, op.bias = bias, op.element = element;
  std::snprintf(op.name, sizeof op.name, "MixtureOfExperts_%s%s%s", kActivations[int(activation)],
                gated ? "_gated" : "", bias ? "_bias" : "");
  op.GetName = [](const OrtCustomOp* self) { return of(self).name; };
  op.GetExecutionProviderType = [](const OrtCustomOp* self) { return of(self).backend->provider; };
  op.GetInputType = [](const OrtCustomOp* self, size_t index) {
    return index == kExperts ? int(ort::kInt64) : ort_type(of(self).element);
  };
  op.GetInputTypeCount = [](const OrtCustomOp* self) { return of(self).inputs(); };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return ort_type(of(self).element); };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return size_t(1); };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.CreateKernelV2 = create_kernel;
  op.KernelComputeV2 = compute;
  op.InferOutputShapeFn = infer_shape;
  return op;
}

}  // namespace

void collect_experts(const Names& names, Operators* found) {
  for (int activation = 0; activation < kActivationCount; ++activation)
    for (bool gated : {false, true})
      for (bool bias : {false, true})
        for (const ExpertsBackend* backend : backends())
          for (Element element : kElements) {
            const Operator op = make_operator(*backend, Activation(activation), gated, bias, element);
            if (names.hold(op.name)) found->add(op);
          }
}

}  // namespace deployml
