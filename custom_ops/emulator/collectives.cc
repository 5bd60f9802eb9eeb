// The warp operations, element by element, and the conversions of the half-precision types.
#include "gpu.h"

#include <cmath>

namespace deployml::gpu::emulator {
namespace {

/// Element `index` of a fragment of packed 16-bit values.
uint16_t element(const uint32_t* words, int index) { return uint16_t(words[index / 2] >> (index % 2 * 16)); }

/// The 8x8 matrices of ldmatrix.x4: matrix m has its rows at the addresses of lanes 8m to 8m + 7.
void load_matrices(void** lanes, bool transposed) {
  uint16_t values[4][8][8];
  const int last = at.thread;
  for (int i = 0; i < 32; ++i) {
    const char* row = static_cast<LoadMatrix*>(lanes[i])->row;
    at.thread = last / 32 * 32 + i;  // on whose account the row is read
    access_shared(row, 16, 16, false);
    std::memcpy(values[i / 8][i % 8], row, 16);
  }
  at.thread = last;
  for (int lane = 0; lane < 32; ++lane) {
    const int row = lane / 4, column = lane % 4 * 2;
    for (int m = 0; m < 4; ++m) {
      const uint16_t low = transposed ? values[m][column][row] : values[m][row][column];
      const uint16_t high = transposed ? values[m][column + 1][row] : values[m][row][column + 1];
      static_cast<LoadMatrix*>(lanes[lane])->r[m] = uint32_t(low) | uint32_t(high) << 16;
    }
  }
}

template <int kRows, int kColumns, int kDepth>
struct Product {
  float a[kRows][kDepth], b[kDepth][kColumns];

  float at(int row, int column) const {
    float sum = 0.0f;
    for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[k][column];
    return sum;
  }
};

}  // namespace

void run_shuffle(void** lanes, int warp) {
  for (int i = 0; i < warp; ++i) {
    Shuffle& mine = *static_cast<Shuffle*>(lanes[i]);
    if (mine.lane < 0 || mine.lane >= warp) fault("shuffles from lane %d of %d", mine.lane, warp);
    mine.taken = static_cast<Shuffle*>(lanes[mine.lane])->given;
  }
}

void run_load_matrix(void** lanes, int) { load_matrices(lanes, false); }
void run_load_matrix_transposed(void** lanes, int) { load_matrices(lanes, true); }

// With g = lane / 4 and t = lane % 4, element i of a lane is
//   A: row g + 8 * (i / 2 % 2), column 2t + i % 2 + 8 * (i / 4)
//   B: row 2t + i % 2 + 8 * (i / 2), column g
//   C: row g + 8 * (i / 2), column 2t + i % 2
void run_mma(void** lanes, int) {
  Product<16, 8, 16> product;
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& mine = *static_cast<Mma*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 8; ++i)
      product.a[g + 8 * (i / 2 % 2)][2 * t + i % 2 + 8 * (i / 4)] = mine.widen(element(mine.a, i));
    for (int i = 0; i < 4; ++i) product.b[2 * t + i % 2 + 8 * (i / 2)][g] = mine.widen(element(mine.b, i));
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      *static_cast<Mma*>(lanes[lane])->c[i] += product.at(lane / 4 + 8 * (i / 2), lane % 4 * 2 + i % 2);
}

// With block = lane / 16, element i of a lane is
//   A: row lane % 16, column 4 * block + i      B: row 4 * block + i, column lane % 16
//   C: row 4 * block + i, column lane % 16
void run_mfma(void** lanes, int) {
  Product<16, 16, 16> product;
  for (int lane = 0; lane < 64; ++lane) {
    const Mfma& mine = *static_cast<Mfma*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) {
      product.a[lane % 16][lane / 16 * 4 + i] = mine.widen(element(mine.a, i));
      product.b[lane / 16 * 4 + i][lane % 16] = mine.widen(element(mine.b, i));
    }
  }
  for (int lane = 0; lane < 64; ++lane)
    for (int i = 0; i < 4; ++i)
      *static_cast<Mfma*>(lanes[lane])->c[i] += product.at(lane / 16 * 4 + i, lane % 16);
}

float bfloat_to_float(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float x;
  std::memcpy(&x, &wide, sizeof x);
  return x;
}

uint16_t float_to_bfloat(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (std::isnan(x)) return uint16_t(bits >> 16 | 0x40u);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

float half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float x = exponent == 0    ? std::ldexp(float(mantissa), -24)
            : exponent < 31  ? std::ldexp(float(mantissa | 1024), exponent - 25)
            : mantissa == 0 ? INFINITY
                             : NAN;
  return bits >> 15 ? -x : x;
}

uint16_t float_to_half(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  if (std::isnan(x)) return uint16_t(sign | 0x7e00);
  if (size >= 65520.0f) return uint16_t(sign | 0x7c00);
  int exponent = 0;
  std::frexp(size, &exponent);
  // One unit in the last place is 2^-24 below 2^-14, and 2^-11 of the power of two above the value elsewhere.
  const int step = exponent - 1 < -14 ? -24 : exponent - 11;
  const float rounded = std::nearbyint(std::ldexp(size, -step));  // ties to even; at most 2048
  const int units = int(rounded);
  const int biased = step + 25;  // of a normal number with 1024 <= units < 2048
  if (units < 1024) return uint16_t(sign | units);
  return uint16_t(sign | ((biased << 10) + (units - 1024)));
}

}  // namespace deployml::gpu::emulator
