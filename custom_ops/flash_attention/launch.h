// Between launch.cu, which prepares a call, and attend.cu, which is compiled once per element type.
#pragma once

#include "params.h"

namespace deployml {

struct Launch {
  Params params;
  gpu::Device device;
  const Runtime* runtime;
  void* stream;
};

using AttendFunction = const char*(const Launch& launch);

AttendFunction attend_float, attend_Half, attend_BFloat;

}  // namespace deployml
