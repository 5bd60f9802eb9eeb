// FlashAttention as an onnxruntime custom operator: reads the node, checks every input, calls the backend.
//
// A function body of ONNX cannot have absent inputs, so the operator has one name per input signature:
//   FlashAttention[_bnsh][_past][_lengths][_mask][_bias][_slopes][_sink]
// with the inputs query, key, value and then those named, in that order (op.py holds the same table).
#include <array>
#include <atomic>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "attention.h"
#include "ort_abi.h"

namespace deployml {
namespace {

constexpr char kDomain[] = "deployml";

enum Part : unsigned { kBnsh = 1, kPast = 2, kLengths = 4, kMask = 8, kBias = 16, kSlopes = 32, kSink = 64 };
constexpr unsigned kSignatures = 128;
constexpr const char* kPartNames[] = {"_bnsh", "_past", "_lengths", "_mask", "_bias", "_slopes", "_sink"};
constexpr size_t kMostInputs = 10;

enum class Role { kQuery, kKey, kValue, kPastKey, kPastValue, kLengths, kMask, kBias, kSlopes, kSink };
constexpr const char* kRoleNames[] = {"query",       "key",  "value", "past_key", "past_value",
                                      "key_lengths", "mask", "bias",  "slopes",   "sink"};

struct Signature {
  unsigned parts = 0;
  std::array<Role, kMostInputs> roles{};
  size_t inputs = 0;
  size_t outputs = 1;
  char name[96] = {};

  bool has(Part part) const { return (parts & part) != 0; }
};

Signature make_signature(unsigned parts) {
  Signature s;
  s.parts = parts;
  const auto add = [&s](Role role) { s.roles[s.inputs++] = role; };
  add(Role::kQuery), add(Role::kKey), add(Role::kValue);
  if (s.has(kPast)) add(Role::kPastKey), add(Role::kPastValue), s.outputs = 3;
  if (s.has(kLengths)) add(Role::kLengths);
  if (s.has(kMask)) add(Role::kMask);
  if (s.has(kBias)) add(Role::kBias);
  if (s.has(kSlopes)) add(Role::kSlopes);
  if (s.has(kSink)) add(Role::kSink);
  std::strcpy(s.name, "FlashAttention");
  for (unsigned i = 0; i < 7; ++i)
    if (parts >> i & 1u) std::strcat(s.name, kPartNames[i]);
  return s;
}

/// The operator onnxruntime holds a pointer to: its callbacks, then what distinguishes it.
struct Operator : OrtCustomOp {
  Signature signature;
  Element element = Element::kFloat32;
};

const Operator& of(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

int ort_type(Element element) {
  if (element == Element::kFloat16) return ort::kFloat16;
  return element == Element::kBFloat16 ? ort::kBFloat16 : ort::kFloat;
}

/// Thrown inside a callback, turned into a status at its end.
struct Failure {
  int code;
  char text[512];
};

[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(int code, const char* format, ...) {
  Failure failure{code, {}};
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(failure.text, sizeof failure.text, format, arguments);
  va_end(arguments);
  throw failure;
}

/// A status of onnxruntime's own, passed on as it is.
struct Passed {
  OrtStatus* status;
};

void check(OrtStatus* status) {
  if (status != nullptr) throw Passed{status};
}

template <typename Body>
OrtStatus* guarded(const OrtApi* api, const char* name, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Passed& passed) {
    return passed.status;
  } catch (const Failure& failure) {
    char text[700];
    std::snprintf(text, sizeof text, "deployml::%s: %s", name, failure.text);
    return ort::CreateStatus::call(api, failure.code, text);
  } catch (const std::bad_alloc&) {
    return ort::CreateStatus::call(api, ort::kFail, "deployml: out of memory");
  }
}

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

struct Kernel {
  const OrtApi* api;
  const Operator* op;
  Attributes attributes;
};

/// Text of a shape for messages: "(2, 7, 64)".
struct ShapeText {
  char text[200];
  explicit ShapeText(const std::vector<int64_t>& dims) {
    size_t at = size_t(std::snprintf(text, sizeof text, "("));
    for (size_t i = 0; i < dims.size() && at < sizeof text - 32; ++i)
      at += size_t(std::snprintf(text + at, sizeof text - at, i ? ", %lld" : "%lld", (long long)dims[i]));
    std::snprintf(text + at, sizeof text - at, ")");
  }
};

struct Input {
  const void* data = nullptr;
  std::vector<int64_t> dims;
};

// ---------------------------------------------------------------------------------------------- attributes

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

// ---------------------------------------------------------------------------------------------- inputs

class Call {
 public:
  Call(const Kernel& kernel, OrtKernelContext* context)
      : kernel_(kernel), api_(kernel.api), context_(context), signature_(kernel.op->signature) {}

  void run() {
    read_inputs();
    call_.element = kernel_.op->element;
    set_sizes();
    set_optional();
    set_outputs();
    Runtime runtime{this, parallel_for, stream};
    const char* message = backend().launch(call_, runtime);
    check(pending_);
    if (message != nullptr) fail(ort::kFail, "%s", message);
  }

 private:
  void read_inputs() {
    size_t count = 0;
    check(ort::KernelContextGetInputCount::call(api_, context_, &count));
    if (count != signature_.inputs)
      fail(ort::kInvalidArgument, "has %zu inputs, its name asks for %zu", count, signature_.inputs);
    for (size_t i = 0; i < count; ++i) {
      const OrtValue* value = nullptr;
      check(ort::KernelContextGetInput::call(api_, context_, i, &value));
      if (value == nullptr)
        fail(ort::kInvalidArgument, "input %s is absent, the name of the operator promises it",
             kRoleNames[size_t(signature_.roles[i])]);
      inputs_[size_t(signature_.roles[i])] = read(value);
    }
  }

  Input read(const OrtValue* value) {
    Input input;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(ort::GetTensorTypeAndShape::call(api_, value, &info));
    size_t rank = 0;
    OrtStatus* status = ort::GetDimensionsCount::call(api_, info, &rank);
    if (status == nullptr) {
      input.dims.resize(rank);
      status = ort::GetDimensions::call(api_, info, input.dims.data(), rank);
    }
    ort::ReleaseTensorTypeAndShapeInfo::call(api_, info);
    check(status);
    void* data = nullptr;
    check(ort::GetTensorMutableData::call(api_, const_cast<OrtValue*>(value), &data));
    input.data = data;
    return input;
  }

  const Input& input(Role role) const { return inputs_[size_t(role)]; }

  [[noreturn]] void refuse(Role role, const char* expected) const {
    fail(ort::kInvalidArgument, "input %s has shape %s, expected %s", kRoleNames[size_t(role)],
         ShapeText(input(role).dims).text, expected);
  }

  /// Reads (B, rows, heads, dim) of query, key or value and its strides.
  View view_of(Role role, int64_t heads, int64_t* batch, int64_t* rows, int64_t* dim) const {
    const Input& x = input(role);
    if (signature_.has(kBnsh)) {
      if (x.dims.size() != 4 || x.dims[1] != heads) {
        char expected[96];
        std::snprintf(expected, sizeof expected, "(batch, %lld heads, length, head size)", (long long)heads);
        refuse(role, expected);
      }
      *batch = x.dims[0], *rows = x.dims[2], *dim = x.dims[3];
      return {x.data, heads * *rows * *dim, *rows * *dim, *dim, 1};
    }
    if (x.dims.size() != 3 || x.dims[2] % heads != 0) {
      char expected[96];
      std::snprintf(expected, sizeof expected, "(batch, length, a multiple of %lld heads)", (long long)heads);
      refuse(role, expected);
    }
    *batch = x.dims[0], *rows = x.dims[1], *dim = x.dims[2] / heads;
    return {x.data, *rows * x.dims[2], *dim, x.dims[2], 1};
  }

  void same(Role role, const char* what, int64_t found, int64_t expected) const {
    if (found != expected)
      fail(ort::kInvalidArgument, "input %s of shape %s has %s %lld, expected %lld", kRoleNames[size_t(role)],
           ShapeText(input(role).dims).text, what, (long long)found, (long long)expected);
  }

  void set_sizes() {
    const Attributes& a = kernel_.attributes;
    int64_t batch = 0, rows = 0, dim = 0;
    call_.heads = a.num_heads, call_.kv_heads = a.kv_heads;
    call_.query = view_of(Role::kQuery, a.num_heads, &call_.batch, &call_.queries, &call_.head_dim);
    call_.key = view_of(Role::kKey, a.kv_heads, &batch, &call_.keys, &dim);
    same(Role::kKey, "batch", batch, call_.batch);
    same(Role::kKey, "head size", dim, call_.head_dim);
    call_.value = view_of(Role::kValue, a.kv_heads, &batch, &rows, &call_.value_dim);
    same(Role::kValue, "batch", batch, call_.batch);
    same(Role::kValue, "length", rows, call_.keys);
    if (call_.head_dim < 1 || call_.head_dim > 1024) refuse(Role::kQuery, "a head size of 1 to 1024");
    if (call_.value_dim < 1 || call_.value_dim > 1024) refuse(Role::kValue, "a head size of 1 to 1024");
    if (signature_.has(kPast)) set_past();
    call_.scale = a.scale != 0.0f ? a.scale : 1.0f / std::sqrt(float(call_.head_dim));
    call_.softcap = a.softcap;
    call_.window_left = a.window_left, call_.window_right = a.window_right;
    call_.lower_right = a.lower_right != 0;
  }

  void set_past() {
    const auto past_of = [this](Role role, int64_t dim) {
      const Input& x = input(role);
      if (x.dims.size() != 4 || x.dims[0] != call_.batch || x.dims[1] != call_.kv_heads || x.dims[3] != dim) {
        char expected[128];
        std::snprintf(expected, sizeof expected, "(%lld, %lld, past, %lld)", (long long)call_.batch,
                      (long long)call_.kv_heads, (long long)dim);
        refuse(role, expected);
      }
      return x.dims[2];
    };
    call_.past = past_of(Role::kPastKey, call_.head_dim);
    same(Role::kPastValue, "length", past_of(Role::kPastValue, call_.value_dim), call_.past);
    call_.past_key = input(Role::kPastKey).data;
    call_.past_value = input(Role::kPastValue).data;
    call_.keys += call_.past;
  }

  /// Strides of a tensor that broadcasts to (batch, heads, queries, keys).
  View broadcast(Role role) const {
    const Input& x = input(role);
    const int64_t full[4] = {call_.batch, call_.heads, call_.queries, call_.keys};
    int64_t stride[4] = {0, 0, 0, 0}, step = 1;
    const size_t rank = x.dims.size();
    bool good = rank <= 4;
    for (size_t i = 0; good && i < rank; ++i) {
      const size_t axis = 3 - i;
      const int64_t dim = x.dims[rank - 1 - i];
      good = dim == full[axis] || dim == 1;
      stride[axis] = dim == 1 ? 0 : step;
      step *= dim;
    }
    if (!good) {
      char expected[160];
      std::snprintf(expected, sizeof expected, "one that broadcasts to (%lld, %lld, %lld, %lld)",
                    (long long)full[0], (long long)full[1], (long long)full[2], (long long)full[3]);
      refuse(role, expected);
    }
    return {x.data, stride[0], stride[1], stride[2], stride[3]};
  }

  void set_optional() {
    if (signature_.has(kLengths)) set_lengths();
    if (signature_.has(kMask)) call_.mask = broadcast(Role::kMask);
    if (signature_.has(kBias)) call_.bias = broadcast(Role::kBias);
    if (signature_.has(kSlopes)) call_.slopes = per_head(Role::kSlopes);
    if (signature_.has(kSink)) call_.sink = per_head(Role::kSink);
  }

  const void* per_head(Role role) const {
    const Input& x = input(role);
    if (x.dims.size() != 1 || x.dims[0] != call_.heads) {
      char expected[64];
      std::snprintf(expected, sizeof expected, "(%lld,)", (long long)call_.heads);
      refuse(role, expected);
    }
    return x.data;
  }

  void set_lengths() {
    const Input& x = input(Role::kLengths);
    if (x.dims.size() != 1 || x.dims[0] != call_.batch) {
      char expected[64];
      std::snprintf(expected, sizeof expected, "(%lld,)", (long long)call_.batch);
      refuse(Role::kLengths, expected);
    }
    call_.lengths = static_cast<const int32_t*>(x.data);
    if (backend().provider != nullptr) return;  // device memory: the kernel clamps instead
    for (int64_t b = 0; b < call_.batch; ++b)
      if (call_.lengths[b] < 0 || call_.lengths[b] > call_.keys)
        fail(ort::kInvalidArgument, "input key_lengths[%lld] is %d, allowed is 0 to %lld", (long long)b,
             call_.lengths[b], (long long)call_.keys);
  }

  void* output(size_t index, const std::vector<int64_t>& dims) {
    OrtValue* value = nullptr;
    check(ort::KernelContextGetOutput::call(api_, context_, index, dims.data(), dims.size(), &value));
    if (value == nullptr) fail(ort::kInvalidArgument, "output %zu must be wanted", index);
    void* data = nullptr;  // stays so for an empty tensor
    check(ort::GetTensorMutableData::call(api_, value, &data));
    return data;
  }

  void set_outputs() {
    const int64_t b = call_.batch, n = call_.heads, s = call_.queries, v = call_.value_dim;
    if (signature_.has(kBnsh)) {
      call_.output = {output(0, {b, n, s, v}), n * s * v, s * v, v, 1};
    } else {
      call_.output = {output(0, {b, s, n * v}), s * n * v, v, n * v, 1};
    }
    if (!signature_.has(kPast)) return;
    call_.present_key = output(1, {b, call_.kv_heads, call_.keys, call_.head_dim});
    call_.present_value = output(2, {b, call_.kv_heads, call_.keys, v});
  }

  /// Work for the thread pool that counts what was done: the count is checked, and it orders what the threads
  /// wrote before what the caller does next by an atomic that a race detector can see.
  struct Work {
    void (*body)(void*, size_t);
    void* user;
    std::atomic<size_t> done{0};
  };

  static void run_one(void* state, size_t index) {
    Work& work = *static_cast<Work*>(state);
    work.done.load(std::memory_order_acquire);
    work.body(work.user, index);
    work.done.fetch_add(1, std::memory_order_acq_rel);
  }

  static bool parallel_for(void* state, int64_t total, void (*body)(void*, size_t), void* user) {
    Call& self = *static_cast<Call*>(state);
    if (total == 0) return true;
    if (total == 1) {
      body(user, 0);
      return true;
    }
    Work work{body, user};
    work.done.store(0, std::memory_order_release);
    self.pending_ =
        ort::KernelContextParallelFor::call(self.api_, self.context_, run_one, size_t(total), 0, &work);
    return self.pending_ == nullptr && work.done.load(std::memory_order_acquire) == size_t(total);
  }

  static void* stream(void* state) {
    Call& self = *static_cast<Call*>(state);
    void* stream = nullptr;
    self.pending_ = ort::KernelContextGetGpuComputeStream::call(self.api_, self.context_, &stream);
    return stream;
  }

  const Kernel& kernel_;
  const OrtApi* api_;
  OrtKernelContext* context_;
  const Signature& signature_;
  std::array<Input, kMostInputs> inputs_{};
  AttentionCall call_;
  OrtStatus* pending_ = nullptr;
};

// ---------------------------------------------------------------------------------------------- shapes

/// Dimensions as shape inference sees them: -1 with an optional symbol where a size is not known.
struct SymbolicShape {
  int type = ort::kUndefined;
  std::vector<int64_t> dims;
  std::vector<const char*> symbols;

  void set(size_t axis, int64_t size) { dims[axis] = size, symbols[axis] = ""; }
};

SymbolicShape shape_of(const OrtApi* api, const OrtShapeInferContext* context, size_t index) {
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
void set_shape(const OrtApi* api, const OrtShapeInferContext* context, size_t index, SymbolicShape shape) {
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

/// One function serves all types of a name: onnxruntime asks only the first operator registered under it.
void infer(const Operator& op, const OrtApi* api, const OrtShapeInferContext* context) {
  const bool bnsh = op.signature.has(kBnsh);
  const SymbolicShape query = shape_of(api, context, 0), value = shape_of(api, context, 2);
  const size_t rank = bnsh ? 4 : 3;
  if (query.dims.size() != rank || value.dims.size() != rank) return;  // the kernel says what is wrong
  const int64_t heads = attribute_of(api, context, "num_heads");
  const int64_t kv_heads = attribute_of(api, context, "kv_heads");
  SymbolicShape out = query;
  const int64_t last = value.dims[rank - 1];
  if (bnsh) {
    out.dims[3] = last, out.symbols[3] = value.symbols[3];
  } else {
    out.set(2, last > 0 && kv_heads > 0 ? last / kv_heads * heads : -1);
  }
  set_shape(api, context, 0, out);
  if (!op.signature.has(kPast)) return;
  for (size_t i = 0; i < 2; ++i) {
    SymbolicShape present = shape_of(api, context, 3 + i);
    const SymbolicShape fresh = shape_of(api, context, 1 + i);
    if (present.dims.size() != 4 || fresh.dims.size() != rank) return;
    const int64_t rows = fresh.dims[bnsh ? 2 : 1];
    present.set(2, present.dims[2] >= 0 && rows >= 0 ? present.dims[2] + rows : -1);
    set_shape(api, context, 1 + i, present);
  }
}

// ---------------------------------------------------------------------------------------------- callbacks

const OrtApi* g_api = nullptr;  // one table for the whole process; needed by shape inference

OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  return guarded(api, of(op).signature.name, [&] {
    *kernel = new Kernel{api, &of(op), read_attributes(api, info)};
  });
}

OrtStatus* compute(void* state, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(state);
  return guarded(kernel.api, kernel.op->signature.name, [&] { Call(kernel, context).run(); });
}

OrtStatus* infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  return guarded(g_api, of(op).signature.name, [&] { infer(of(op), g_api, context); });
}

int input_type(const OrtCustomOp* op, size_t index) {
  const Role role = of(op).signature.roles[index];
  if (role == Role::kLengths) return ort::kInt32;
  return role == Role::kMask ? int(ort::kBool) : ort_type(of(op).element);
}

Operator make_operator(unsigned parts, Element element) {
  Operator op;
  static_cast<OrtCustomOp&>(op) = OrtCustomOp{};
  op.signature = make_signature(parts);
  op.element = element;
  op.version = ort::kApiVersion;
  op.GetName = [](const OrtCustomOp* self) { return of(self).signature.name; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) { return backend().provider; };
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

/// Every operator of the library; sessions keep pointers into it, so it is never freed.
const std::vector<Operator>& operators() {
  static const std::vector<Operator>& all = *[] {
    auto* made = new std::vector<Operator>;
    for (unsigned parts = 0; parts < kSignatures; ++parts)
      for (Element element : {Element::kFloat32, Element::kFloat16, Element::kBFloat16})
        if (backend().supports(element)) made->push_back(make_operator(parts, element));
    return made;
  }();
  return all;
}

/// The domain with all operators, made once and shared by all sessions of the process.
OrtStatus* shared_domain(const OrtApi* api, OrtCustomOpDomain** out) {
  static OrtCustomOpDomain* domain = nullptr;
  static OrtStatus* const failed = [api]() -> OrtStatus* {
    if (OrtStatus* status = ort::CreateCustomOpDomain::call(api, kDomain, &domain)) return status;
    for (const Operator& op : operators())
      if (OrtStatus* status = ort::CustomOpDomainAdd::call(api, domain, &op)) return status;
    return nullptr;
  }();
  *out = domain;
  return failed != nullptr ? ort::CreateStatus::call(api, ort::kFail, "deployml: registration failed") : nullptr;
}

}  // namespace
}  // namespace deployml

/// The entry point onnxruntime calls when the library is registered with a session's options.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) return nullptr;  // older than 1.17: there is no table to report an error with
  deployml::g_api = api;
  OrtCustomOpDomain* domain = nullptr;
  if (OrtStatus* status = deployml::shared_domain(api, &domain)) return status;
  return ort::AddCustomOpDomain::call(api, options, domain);
}
