// FlashAttention as an onnxruntime custom operator: reads the node's attributes and makes every name.
#include "ort_attributes.h"
#include "ort_status.h"
#include "registration.h"
#include "signature.h"

namespace deployml {
namespace {

const Operator& of(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

Attributes read_attributes(const OrtApi* api, const OrtKernelInfo* info) {
  constexpr int64_t kLong = int64_t(1) << 40;
  Attributes a;
  read_int(api, info, "num_heads", &a.num_heads, 1, 65536);
  read_int(api, info, "kv_heads", &a.kv_heads, 1, 65536);
  read_int(api, info, "causal", &a.causal, 0, 1);
  read_int(api, info, "lower_right", &a.lower_right, 0, 1);
  read_int(api, info, "window_left", &a.window_left, -1, kLong);
  read_int(api, info, "window_right", &a.window_right, -1, kLong);
  read_float(api, info, "scale", &a.scale);
  read_float(api, info, "softcap", &a.softcap);
  if (a.num_heads == 0 || a.kv_heads == 0)
    fail(ort::kInvalidArgument, "attribute %s is missing", a.num_heads == 0 ? "num_heads" : "kv_heads");
  if (a.num_heads % a.kv_heads != 0)
    fail(ort::kInvalidArgument, "attribute num_heads is %lld, no multiple of kv_heads %lld",
         (long long)a.num_heads, (long long)a.kv_heads);
  if (a.causal != 0 && a.window_right != 0) a.window_right = 0;
  return a;
}

OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  return guarded(api, of(op).signature.name, [&] {
    *kernel = new Kernel{api, &of(op), read_attributes(api, info)};
  });
}

OrtStatus* compute(void* state, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(state);
  return guarded(kernel.api, kernel.op->signature.name, [&] { run_call(kernel, context); });
}

OrtStatus* infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  return guarded(interface(), of(op).signature.name, [&] { infer_shapes(of(op), interface(), context); });
}

int input_type(const OrtCustomOp* op, size_t index) {
  const Role role = of(op).signature.roles[index];
  if (role == Role::kLengths) return ort::kInt32;
  return role == Role::kMask ? int(ort::kBool) : ort_type(of(op).element);
}

Operator make_operator(const Backend& backend, unsigned parts, Element element) {
  Operator op;
  static_cast<OrtCustomOp&>(op) = blank_operator();
  op.signature = make_signature(parts);
  op.element = element;
  op.backend = &backend;
  op.GetName = [](const OrtCustomOp* self) { return of(self).signature.name; };
  op.GetExecutionProviderType = [](const OrtCustomOp* self) { return of(self).backend->provider; };
  op.GetInputType = input_type;
  op.GetInputTypeCount = [](const OrtCustomOp* self) { return of(self).signature.inputs; };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return ort_type(of(self).element); };
  op.GetOutputTypeCount = [](const OrtCustomOp* self) { return of(self).signature.outputs; };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.CreateKernelV2 = create_kernel;
  op.KernelComputeV2 = compute;
  op.InferOutputShapeFn = infer_shape;
  return op;
}

}  // namespace

void collect_attention(const Names& names, Operators* found) {
  for (unsigned parts = 0; parts < 1u << kPartCount; ++parts) {
    if (!is_signature(parts) || !names.hold(make_signature(parts).name)) continue;
    for (const Backend* backend : backends())
      for (Element element : kElements)
        if (backend->supports(element, parts)) found->add(make_operator(*backend, parts, element));
  }
}

}  // namespace deployml
