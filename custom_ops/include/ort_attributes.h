// A node's attributes, read with their bounds; an absent one leaves the default that stands in `out`.
#pragma once

#include <cmath>

#include "ort_status.h"

namespace deployml {

inline void read_int(const OrtApi* api, const OrtKernelInfo* info, const char* name, int64_t* out, int64_t low,
                     int64_t high) {
  int64_t value = 0;
  if (OrtStatus* status = ort::KernelInfoGetAttributeInt::call(api, info, name, &value)) {
    ort::ReleaseStatus::call(api, status);
    return;
  }
  if (value < low || value > high)
    fail(ort::kInvalidArgument, "attribute %s is %lld, allowed is %lld to %lld", name, (long long)value,
         (long long)low, (long long)high);
  *out = value;
}

inline void read_float(const OrtApi* api, const OrtKernelInfo* info, const char* name, float* out) {
  float value = 0.0f;
  if (OrtStatus* status = ort::KernelInfoGetAttributeFloat::call(api, info, name, &value)) {
    ort::ReleaseStatus::call(api, status);
    return;
  }
  if (!std::isfinite(value) || value < 0.0f)
    fail(ort::kInvalidArgument, "attribute %s is %g, it must be finite and not negative", name, double(value));
  *out = value;
}

/// A bound may be infinite; NaN is in no range.
inline void read_float(const OrtApi* api, const OrtKernelInfo* info, const char* name, float* out, float low,
                       float high) {
  float value = 0.0f;
  if (OrtStatus* status = ort::KernelInfoGetAttributeFloat::call(api, info, name, &value)) {
    ort::ReleaseStatus::call(api, status);
    return;
  }
  if (!(value >= low && value <= high))
    fail(ort::kInvalidArgument, "attribute %s is %g, allowed is %g to %g", name, double(value), double(low),
         double(high));
  *out = value;
}

}  // namespace deployml
