// The specification of one stored field: its name, element type and per-step shape.
//
// Plain values: cheap to copy, no synchronization.

#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace replay {

enum class DType : std::uint8_t { kBool, kUint8, kInt32, kInt64, kFloat16, kFloat32, kFloat64 };

// The bytes of one element.
inline std::size_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kBool:
    case DType::kUint8:
      return 1;
    case DType::kFloat16:
      return 2;
    case DType::kInt32:
    case DType::kFloat32:
      return 4;
    case DType::kInt64:
    case DType::kFloat64:
      return 8;
  }
  throw std::invalid_argument("unknown dtype");
}

struct FieldSpec {
  std::string name;
  DType dtype = DType::kUint8;
  std::vector<std::size_t> shape;  // of one step; empty for a scalar

  // The bytes of one step of one stream. Throws std::invalid_argument if a dimension is zero or
  // the product overflows std::size_t.
  std::size_t step_bytes() const {
    std::size_t bytes = dtype_bytes(dtype);
    for (const std::size_t extent : shape) {
      if (extent == 0) {
        throw std::invalid_argument("field '" + name + "' has a dimension of size 0");
      }
      if (bytes > std::numeric_limits<std::size_t>::max() / extent) {
        throw std::invalid_argument("field '" + name + "' is too large");
      }
      bytes *= extent;
    }
    return bytes;
  }
};

}  // namespace replay
