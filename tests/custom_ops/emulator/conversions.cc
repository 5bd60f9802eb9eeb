// The emulator's half-precision conversions against the compiler's own: all 65536 values, and floats between them.
#include <cmath>
#include <cstdio>
#include <cstring>

#include "gpu.h"

namespace {

using namespace deployml::gpu::emulator;

template <typename To, typename From>
To as(From x) {
  To y;
  static_assert(sizeof x == sizeof y);
  std::memcpy(&y, &x, sizeof y);
  return y;
}

int wrong = 0;

void expect(bool good, const char* what, float x) {
  if (!good && ++wrong < 10) std::printf("%s of %a\n", what, double(x));
}

void narrow(float x) {
  const auto exact = as<uint16_t>(static_cast<_Float16>(x));
  expect(std::isnan(x) ? std::isnan(half_to_float(float_to_half(x))) : float_to_half(x) == exact, "half", x);
  const float near = bfloat_to_float(float_to_bfloat(x));
  if (!std::isfinite(x)) return expect(std::isnan(x) ? std::isnan(near) : near == x, "bfloat", x);
  const float up = as<float>((as<uint32_t>(x) & 0xffff0000u) + 0x10000u), down = as<float>(as<uint32_t>(x) & 0xffff0000u);
  const double middle = (double(up) + double(down)) / 2;
  const bool even = (as<uint32_t>(down) >> 16 & 1u) == 0;
  const bool to_down = std::fabs(double(x)) < std::fabs(middle) || (double(x) == middle && even);
  expect(std::isinf(up) || near == (to_down ? down : up), "bfloat", x);
}

}  // namespace

int main() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float wide = static_cast<float>(as<_Float16>(uint16_t(bits)));
    const float ours = half_to_float(uint16_t(bits));
    expect(std::isnan(wide) ? std::isnan(ours) : as<uint32_t>(wide) == as<uint32_t>(ours), "float", wide);
    for (uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) narrow(as<float>(bits << 16 | low));
    for (uint32_t low : {0u, 1u, 0xfffu, 0x1000u, 0x1001u, 0x1fffu}) narrow(as<float>(as<uint32_t>(wide) + low));
  }
  std::printf("%d wrong\n", wrong);
}
