// A ring buffer of the newest steps of all environment streams.
//
// Steps are numbered from 0 in the order in which they were added, the same numbers for every
// stream; step i occupies slot i % slots. Slots are grouped into segments of segment_steps slots.
// Each segment is one contiguous block, laid out by field, then stream, then step. The steps of one
// stream within one segment are therefore contiguous, and a segment can be written to a file, or
// mapped from one, as a whole. A ring that is kept in memory only has a single segment.
//
// Ownership: owns its memory; write() copies its input.
// Threads: not synchronized. Calls on different slots may run concurrently; the caller tracks which
//   steps are complete and when a slot may be overwritten.
// Complexity: construction O(fields), write() O(bytes of a step), pieces() O(number of pieces).
//   Memory is allocated only as the ring fills (see reserved_memory.h).
// Errors: std::invalid_argument for an invalid specification, MemoryRefused if address space cannot
//   be reserved; FileError where documented. Indices are not checked.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "field_spec.h"
#include "reserved_memory.h"
#include "segment_file.h"

namespace replay {

// The dimensions of a ring; each must be at least 1.
struct RingShape {
  std::size_t streams = 0;
  std::size_t slots = 0;          // per stream
  std::size_t segment_steps = 0;  // must divide slots
};

class StepRing {
 public:
  StepRing(const std::vector<FieldSpec>& fields, const RingShape& shape);

  // Stores step number `step` of all streams. columns[f] points to field f of the first stream;
  // consecutive streams are `stride_steps` steps apart.
  void write(std::uint64_t step, const std::byte* const* columns, std::size_t stride_steps = 1);

  // The address of one field of one step of one stream.
  std::byte* at(std::size_t field, std::size_t stream, std::uint64_t step) {
    return memory_.data() + offset(field, stream, step);
  }
  const std::byte* at(std::size_t field, std::size_t stream, std::uint64_t step) const {
    return memory_.data() + offset(field, stream, step);
  }

  // Calls visit(pointer, bytes) for each contiguous piece of the steps [step, step + count) of one
  // field of one stream, in chronological order.
  template <typename Visit>
  void pieces(std::size_t field, std::size_t stream, std::uint64_t step, std::size_t count,
              const Visit& visit) const {
    while (count > 0) {
      const auto until_end =
          static_cast<std::size_t>(shape_.segment_steps - step % shape_.segment_steps);
      const std::size_t here = std::min(count, until_end);
      visit(at(field, stream, step), here * step_bytes_[field]);
      step += here;
      count -= here;
    }
  }

  // Replaces the segment that contains step number `step` by zeros, or by the contents of a file
  // of segment_bytes() bytes.
  void clear_segment(std::uint64_t step) {
    memory_.clear(segment_offset(step), segment_bytes_);
    mapped_[segment(step)].clear();
  }
  void map_segment(std::uint64_t step, const OpenFile& file) {
    memory_.map_file(segment_offset(step), segment_bytes_, file.descriptor(), 0);
    mapped_[segment(step)] = file.path();
  }

  // Throws FileError if the steps [step, step + count), which were just copied, are mapped from a
  // file that was cut since.
  void require_intact(std::uint64_t step, std::size_t count) const;
  // Throws FileError if any page of the mapped files was lost (reserved_memory.h).
  void require_none_lost() const;

  const RingShape& shape() const { return shape_; }
  std::size_t fields() const { return step_bytes_.size(); }
  std::size_t streams() const { return shape_.streams; }
  std::size_t slots() const { return shape_.slots; }
  std::size_t segment_steps() const { return shape_.segment_steps; }
  // Including padding; a multiple of kPageBytes.
  std::size_t segment_bytes() const { return segment_bytes_; }
  std::size_t step_bytes(std::size_t field) const { return step_bytes_[field]; }
  // The offset of a step from the beginning of its segment.
  std::size_t offset_in_segment(std::size_t field, std::size_t stream, std::uint64_t step) const {
    const auto within = static_cast<std::size_t>(step % shape_.segment_steps);
    return field_offset_[field] + (stream * shape_.segment_steps + within) * step_bytes_[field];
  }

 private:
  std::size_t segment(std::uint64_t step) const {
    return static_cast<std::size_t>(step % shape_.slots / shape_.segment_steps);
  }
  std::size_t segment_offset(std::uint64_t step) const { return segment(step) * segment_bytes_; }
  std::size_t offset(std::size_t field, std::size_t stream, std::uint64_t step) const {
    return segment_offset(step) + offset_in_segment(field, stream, step);
  }

  RingShape shape_;
  std::vector<std::size_t> step_bytes_;
  std::vector<std::size_t> field_offset_;
  std::size_t segment_bytes_;
  ReservedMemory memory_;
  std::vector<std::string> mapped_;  // the path of each segment's file; empty if in memory
};

}  // namespace replay
