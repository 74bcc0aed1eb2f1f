// Steps whose every byte follows from (stream, step, field, offset), so that a copy can be checked
// without keeping what was put in.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../field_spec.h"

namespace steps {

// An image-like field of odd size, a vector, and the two flags.
inline std::vector<replay::FieldSpec> fields() {
  return {{"image", replay::DType::kUint8, {3, 17, 19}},
          {"action", replay::DType::kFloat32, {3}},
          {"is_first", replay::DType::kBool, {}},
          {"is_terminal", replay::DType::kBool, {}}};
}

constexpr std::size_t kFloats = 1;  // index of action
constexpr std::size_t kFirst = 2;   // index of is_first

inline std::byte byte_of(std::size_t stream, std::size_t step, std::size_t field,
                         std::size_t offset) {
  if (field == kFirst) return std::byte(step % 5 == 0);
  if (field == kFirst + 1) return std::byte(step % 5 == 4);
  const std::uint64_t mixed = (stream * 1000003 + step * 7919 + field * 101 + offset) * 2654435761u;
  // Without the highest bits of an exponent the bytes of the floats are finite numbers.
  return static_cast<std::byte>((mixed >> 13) & (field == kFloats ? 0x3F : 0xFF));
}

// One step of streams [first_stream, first_stream + streams), column by column.
class Step {
 public:
  Step(const std::vector<replay::FieldSpec>& specs, std::size_t first_stream, std::size_t streams,
       std::size_t step) {
    for (std::size_t field = 0; field < specs.size(); ++field) {
      std::vector<std::byte> column;
      for (std::size_t stream = first_stream; stream < first_stream + streams; ++stream) {
        for (std::size_t offset = 0; offset < specs[field].step_bytes(); ++offset) {
          column.push_back(byte_of(stream, step, field, offset));
        }
      }
      columns_.push_back(std::move(column));
    }
    for (const auto& column : columns_) pointers_.push_back(column.data());
  }

  const std::byte* const* columns() const { return pointers_.data(); }

 private:
  std::vector<std::vector<std::byte>> columns_;
  std::vector<const std::byte*> pointers_;
};

// One output array a field, `count` steps long.
class Outputs {
 public:
  Outputs(const std::vector<replay::FieldSpec>& specs, std::size_t count) {
    for (const auto& spec : specs) {
      arrays_.emplace_back(count * spec.step_bytes() + kGuard, std::byte{0xA5});
    }
    for (auto& array : arrays_) pointers_.push_back(array.data());
  }

  std::byte* const* pointers() { return pointers_.data(); }
  const std::vector<std::byte>& operator[](std::size_t field) const { return arrays_[field]; }

  // Whether nothing was written past the end of any array.
  bool guards_intact() const {
    for (const auto& array : arrays_) {
      for (std::size_t i = array.size() - kGuard; i < array.size(); ++i) {
        if (array[i] != std::byte{0xA5}) return false;
      }
    }
    return true;
  }

 private:
  static constexpr std::size_t kGuard = 64;
  std::vector<std::vector<std::byte>> arrays_;
  std::vector<std::byte*> pointers_;
};

// Whether output step `index` of every field but is_first is (stream, step).
inline bool holds(const Outputs& outputs, const std::vector<replay::FieldSpec>& specs,
                  std::size_t index, std::size_t stream, std::size_t step) {
  for (std::size_t field = 0; field < specs.size(); ++field) {
    if (field == kFirst) continue;
    const std::size_t bytes = specs[field].step_bytes();
    for (std::size_t offset = 0; offset < bytes; ++offset) {
      if (outputs[field][index * bytes + offset] != byte_of(stream, step, field, offset)) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace steps
