// Errors inside a callback of onnxruntime: thrown where they are found, a status at the callback's end.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <new>

#include "ort_abi.h"

namespace deployml {

/// Thrown by `fail`.
struct Failure {
  int code;
  char text[512];
};

/// A status of onnxruntime's own, passed on as it is.
struct Passed {
  OrtStatus* status;
};

[[noreturn]] __attribute__((format(printf, 2, 3))) inline void fail(int code, const char* format, ...) {
  Failure failure{code, {}};
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(failure.text, sizeof failure.text, format, arguments);
  va_end(arguments);
  throw failure;
}

inline void check(OrtStatus* status) {
  if (status != nullptr) throw Passed{status};
}

/// Runs the body of a callback and turns what it throws into a status that names the operator.
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

}  // namespace deployml
