// The part of onnxruntime's C interface that a custom operator needs, written by hand.
//
// No registry ships onnxruntime's headers, and an operator library needs few of its functions, so the table is
// described by position: OrtApi is one append-only struct of function pointers. The slots below are those of API
// version 17, which every onnxruntime from 1.17 on hands out; the library is tested on 1.22 to 1.31.
// Nothing here links against libonnxruntime.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;
struct OrtOpAttr;
struct OrtMemoryInfo;
struct OrtAllocator;

using OrtFunction = void (*)();

/// The table of functions; index it with `ort::call<Slot>`.
struct OrtApi {
  OrtFunction slot[1];
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

/// An operator as onnxruntime sees it. The field order is fixed by the interface (208 bytes on 64 bit).
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

}  // extern "C"

static_assert(sizeof(void*) != 8 || sizeof(OrtCustomOp) == 208, "OrtCustomOp must match the interface");

namespace ort {

/// The interface version asked for: the newest whose slots are used below.
inline constexpr uint32_t kApiVersion = 17;

enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kInt32 = 6,
  kInt64 = 7,
  kBool = 9,
  kFloat16 = 10,
  kBFloat16 = 16,
};

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kNotImplemented = 9 };

enum Characteristic : int { kRequired = 0, kOptional = 1 };

enum AttributeType : int { kAttributeInt = 1, kAttributeFloat = 3 };

/// One function of the table: its position and its type.
template <size_t Index, typename Signature>
struct Slot;

template <size_t Index, typename Result, typename... Args>
struct Slot<Index, Result(Args...)> {
  static Result call(const OrtApi* api, Args... args) {
    return reinterpret_cast<Result (*)(Args...)>(api->slot[Index])(args...);
  }
};

using CreateStatus = Slot<0, OrtStatus*(int code, const char* message)>;
using CreateCustomOpDomain = Slot<26, OrtStatus*(const char* name, OrtCustomOpDomain** out)>;
using CustomOpDomainAdd = Slot<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)>;
using AddCustomOpDomain = Slot<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)>;
using GetTensorMutableData = Slot<51, OrtStatus*(OrtValue*, void** out)>;
using CreateTensorTypeAndShapeInfo = Slot<57, OrtStatus*(OrtTensorTypeAndShapeInfo** out)>;
using SetTensorElementType = Slot<58, OrtStatus*(OrtTensorTypeAndShapeInfo*, int type)>;
using SetDimensions = Slot<59, OrtStatus*(OrtTensorTypeAndShapeInfo*, const int64_t* dims, size_t count)>;
using GetTensorElementType = Slot<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int* out)>;
using GetDimensionsCount = Slot<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t* out)>;
using GetDimensions = Slot<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t* dims, size_t count)>;
using GetSymbolicDimensions =
    Slot<63, OrtStatus*(const OrtTensorTypeAndShapeInfo*, const char** names, size_t count)>;
using GetTensorTypeAndShape = Slot<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo** out)>;
using CreateMemoryInfo =
    Slot<68, OrtStatus*(const char* name, int allocator, int id, int memory, OrtMemoryInfo** out)>;
using AllocatorAlloc = Slot<75, OrtStatus*(OrtAllocator*, size_t bytes, void** out)>;
using AllocatorFree = Slot<76, OrtStatus*(OrtAllocator*, void* memory)>;
using KernelInfoGetAttributeFloat = Slot<85, OrtStatus*(const OrtKernelInfo*, const char* name, float* out)>;
using KernelInfoGetAttributeInt = Slot<86, OrtStatus*(const OrtKernelInfo*, const char* name, int64_t* out)>;
using KernelContextGetInputCount = Slot<88, OrtStatus*(const OrtKernelContext*, size_t* out)>;
using KernelContextGetOutputCount = Slot<89, OrtStatus*(const OrtKernelContext*, size_t* out)>;
using KernelContextGetInput = Slot<90, OrtStatus*(const OrtKernelContext*, size_t index, const OrtValue** out)>;
using KernelContextGetOutput =
    Slot<91, OrtStatus*(OrtKernelContext*, size_t index, const int64_t* dims, size_t count, OrtValue** out)>;
using ReleaseStatus = Slot<93, void(OrtStatus*)>;
using ReleaseMemoryInfo = Slot<94, void(OrtMemoryInfo*)>;
using ReleaseTensorTypeAndShapeInfo = Slot<99, void(OrtTensorTypeAndShapeInfo*)>;
using ReleaseCustomOpDomain = Slot<101, void(OrtCustomOpDomain*)>;
using ReleaseAllocator = Slot<132, void(OrtAllocator*)>;
using KernelContextGetGpuComputeStream = Slot<193, OrtStatus*(const OrtKernelContext*, void** out)>;
using GetTensorMemoryInfo = Slot<194, OrtStatus*(const OrtValue*, const OrtMemoryInfo** out)>;
using KernelInfoGetNodeName = Slot<244, OrtStatus*(const OrtKernelInfo*, char* out, size_t* size)>;
using KernelContextGetAllocator =
    Slot<253, OrtStatus*(const OrtKernelContext*, const OrtMemoryInfo*, OrtAllocator** out)>;
using ShapeInferContextGetInputCount = Slot<267, OrtStatus*(const OrtShapeInferContext*, size_t* out)>;
using ShapeInferContextGetInputTypeShape =
    Slot<268, OrtStatus*(const OrtShapeInferContext*, size_t index, OrtTensorTypeAndShapeInfo** out)>;
using ShapeInferContextGetAttribute =
    Slot<269, OrtStatus*(const OrtShapeInferContext*, const char* name, const OrtOpAttr** out)>;
using ShapeInferContextSetOutputTypeShape =
    Slot<270, OrtStatus*(const OrtShapeInferContext*, size_t index, const OrtTensorTypeAndShapeInfo*)>;
using SetSymbolicDimensions = Slot<271, OrtStatus*(OrtTensorTypeAndShapeInfo*, const char** names, size_t count)>;
using ReadOpAttr =
    Slot<272, OrtStatus*(const OrtOpAttr*, int type, void* out, size_t capacity, size_t* written)>;
using KernelContextParallelFor = Slot<274, OrtStatus*(const OrtKernelContext*, void (*body)(void*, size_t),
                                                      size_t total, size_t batches, void* user)>;

}  // namespace ort
