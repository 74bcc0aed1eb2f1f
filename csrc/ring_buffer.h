// The steps of one environment stream: a ring with one column of memory per field.
//
// A step is addressed by its age: index 0 is the oldest step held, size() - 1 the newest. Once
// capacity() steps are held, each append overwrites the oldest, so an index range never crosses
// the write cursor and every range within [0, size()) is consecutive in time.
//
// Ownership: owns its columns; append copies in, read copies out.
// Threads: none of its own. Concurrent const calls are safe; append needs the ring alone.
// Complexity: construction O(fields), append O(bytes of a step), read O(bytes read); memory is
//   touched only as the ring fills (see reserved_memory.h).
// Errors: std::invalid_argument for a bad specification, std::out_of_range for steps not held,
//   std::runtime_error where memory cannot be reserved. A call that throws has changed nothing.

#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "field_spec.h"
#include "reserved_memory.h"

namespace replay {

// Contiguous bytes inside a column.
struct Segment {
  const std::byte* data = nullptr;
  std::size_t bytes = 0;
};

class RingBuffer {
 public:
  // Room for `capacity_steps` (at least 1) steps of all `fields` (at least 1).
  RingBuffer(const std::vector<FieldSpec>& fields, std::size_t capacity_steps);

  // Copies one step in; columns[f] points to the step_bytes() of field f.
  void append(const std::byte* const* columns);

  // The `count` steps of field `field` from index `start` on, in order of time: one segment, or
  // two where the range runs over the end of the column; the unused one is empty. They stay valid
  // until the next append or the end of the ring.
  std::array<Segment, 2> segments(std::size_t field, std::size_t start, std::size_t count) const;

  // Copies the same range to `output`, which must hold count * step_bytes(field) bytes.
  void read(std::size_t field, std::size_t start, std::size_t count, std::byte* output) const;

  std::size_t size() const { return size_; }
  std::size_t capacity() const { return capacity_; }
  std::size_t fields() const { return columns_.size(); }
  std::size_t step_bytes(std::size_t field) const { return step_bytes_.at(field); }

 private:
  std::size_t capacity_;
  std::size_t size_ = 0;
  std::size_t cursor_ = 0;  // physical index that the next append writes
  std::vector<std::size_t> step_bytes_;
  std::vector<ReservedMemory> columns_;
};

}  // namespace replay
