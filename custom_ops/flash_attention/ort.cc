// FlashAttention as an onnxruntime custom operator: reads the node's attributes and registers every name.
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ort_status.h"
#include "signature.h"

namespace deployml {
namespace {

constexpr char kDomain[] = "deployml";

const Operator& of(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

int ort_type(Element element) {
  if (element == Element::kFloat16) return ort::kFloat16;
  return element == Element::kBFloat16 ? ort::kBFloat16 : ort::kFloat;
}

void read_int(const OrtApi* api, const OrtKernelInfo* info, const char* name, int64_t* out, int64_t low,
              int64_t high) {
  int64_t value = 0;
  if (OrtStatus* status = ort::KernelInfoGetAttributeInt::call(api, info, name, &value)) {
    ort::ReleaseStatus::call(api, status);  // absent: the default stands
    return;
  }
  if (value < low || value > high)
    fail(ort::kInvalidArgument, "attribute %s is %lld, allowed is %lld to %lld", name, (long long)value,
         (long long)low, (long long)high);
  *out = value;
}

void read_float(const OrtApi* api, const OrtKernelInfo* info, const char* name, float* out) {
  float value = 0.0f;
  if (OrtStatus* status = ort::KernelInfoGetAttributeFloat::call(api, info, name, &value)) {
    ort::ReleaseStatus::call(api, status);
    return;
  }
  if (!std::isfinite(value) || value < 0.0f)
    fail(ort::kInvalidArgument, "attribute %s is %g, it must be finite and not negative", name, double(value));
  *out = value;
}

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

const OrtApi* g_api = nullptr;  // one table for the whole process; needed by shape inference

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
  return guarded(g_api, of(op).signature.name, [&] { infer_shapes(of(op), g_api, context); });
}

int input_type(const OrtCustomOp* op, size_t index) {
  const Role role = of(op).signature.roles[index];
  if (role == Role::kLengths) return ort::kInt32;
  return role == Role::kMask ? int(ort::kBool) : ort_type(of(op).element);
}

Operator make_operator(const Backend& backend, unsigned parts, Element element) {
  Operator op;
  static_cast<OrtCustomOp&>(op) = OrtCustomOp{};
  op.signature = make_signature(parts);
  op.element = element;
  op.backend = &backend;
  op.version = ort::kApiVersion;
  op.GetName = [](const OrtCustomOp* self) { return of(self).signature.name; };
  op.GetExecutionProviderType = [](const OrtCustomOp* self) { return of(self).backend->provider; };
  op.GetInputType = input_type;
  op.GetInputTypeCount = [](const OrtCustomOp* self) { return of(self).signature.inputs; };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return ort_type(of(self).element); };
  op.GetOutputTypeCount = [](const OrtCustomOp* self) { return of(self).signature.outputs; };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return int(ort::kRequired); };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return int(ort::kRequired); };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = create_kernel;
  op.KernelComputeV2 = compute;
  op.InferOutputShapeFn = infer_shape;
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 0x7fffffff; };
  return op;
}

/// Whether `name` is in a comma list; every name is in the empty one.
bool listed(const std::string& list, const char* name) {
  if (list.empty()) return true;
  const std::string padded = "," + list + ",";
  return padded.find("," + std::string(name) + ",") != std::string::npos;
}

/// The operators of some names and their domain. Sessions keep pointers into it, so it is never freed.
struct Registered {
  std::vector<Operator> operators;
  OrtCustomOpDomain* domain = nullptr;
};

Registered* make_registered(const OrtApi* api, const std::string& names) {
  auto made = std::make_unique<Registered>();
  for (unsigned parts = 0; parts < 1u << kPartCount; ++parts) {
    if (!is_signature(parts) || !listed(names, make_signature(parts).name)) continue;
    for (const Backend* backend : backends())
      for (Element element : {Element::kFloat32, Element::kFloat16, Element::kBFloat16})
        if (backend->supports(element, parts)) made->operators.push_back(make_operator(*backend, parts, element));
  }
  check(ort::CreateCustomOpDomain::call(api, kDomain, &made->domain));
  for (const Operator& op : made->operators) check(ort::CustomOpDomainAdd::call(api, made->domain, &op));
  return made.release();
}

/// Made once for each list of names and shared by all sessions of the process.
OrtCustomOpDomain* shared_domain(const OrtApi* api, const std::string& names) {
  static std::mutex mutex;
  static auto& all = *new std::map<std::string, Registered*>;
  const std::lock_guard<std::mutex> lock(mutex);
  Registered*& found = all[names];
  if (found == nullptr) found = make_registered(api, names);
  return found->domain;
}

thread_local std::string g_only;  // what the next registration of this thread is limited to

}  // namespace
}  // namespace deployml

/// The entry point onnxruntime calls when the library is registered with a session's options.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) return nullptr;  // older than 1.17: there is no table to report an error with
  deployml::g_api = api;
  return deployml::guarded(api, "FlashAttention", [&] {
    OrtCustomOpDomain* domain = deployml::shared_domain(api, deployml::g_only);
    deployml::check(ort::AddCustomOpDomain::call(api, options, domain));
  });
}

/// Limits what this thread registers from now on to a comma list of names; null or "" lifts the limit.
///
/// onnxruntime makes a schema of every name for every session: some 20 ms for all of them, which a program that opens
/// many sessions and knows its models can save.
extern "C" __attribute__((visibility("default"))) void deployml_register_only(const char* names) {
  deployml::g_only = names == nullptr ? "" : names;
}
