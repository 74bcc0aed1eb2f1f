// The newest steps of all environment streams: one ring of memory.
//
// Steps are numbered from 0 in the order in which they were added, for all streams alike; step
// i stands in slot i % slots(). The slots are divided into segments of segment_steps(), each a
// block of its own: field after field, in it stream after stream, in it step after step. So the
// steps of one stream in one segment lie side by side, and a segment can be written to a file, or
// be one, as a whole. A ring in memory alone has a single segment.
//
// Ownership: owns its memory; write copies in.
// Threads: none of its own. Calls on different steps may run at once; which steps are whole, and
//   when a slot may be written again, is the caller's to know.
// Complexity: construction O(fields), write O(bytes of a step), pieces O(pieces); memory is touched
//   only as the ring fills (see reserved_memory.h).
// Errors: std::invalid_argument for a bad specification, std::runtime_error where memory cannot be
//   reserved.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "field_spec.h"
#include "reserved_memory.h"

namespace replay {

// The extents of a ring; each is at least 1.
struct RingShape {
  std::size_t streams = 0;
  std::size_t slots = 0;          // of each stream
  std::size_t segment_steps = 0;  // divides slots
};

class StepRing {
 public:
  StepRing(const std::vector<FieldSpec>& fields, const RingShape& shape);

  // Copies step number `step` of all streams in: columns[f] points to the first stream's step of
  // field f, the next stream's stands `stride_steps` steps behind it.
  void write(std::uint64_t step, const std::byte* const* columns, std::size_t stride_steps = 1);

  // Where one step of one stream stands.
  std::byte* at(std::size_t field, std::size_t stream, std::uint64_t step) {
    return memory_.data() + offset(field, stream, step);
  }
  const std::byte* at(std::size_t field, std::size_t stream, std::uint64_t step) const {
    return memory_.data() + offset(field, stream, step);
  }

  // Calls visit(pointer, bytes) for the `count` steps of a stream from `step` on, in order of time,
  // as few pieces as lie side by side.
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

  // Makes the segment that step number `step` stands in plain memory, or that file's contents.
  void clear_segment(std::uint64_t step) { memory_.clear(segment_offset(step), segment_bytes_); }
  void map_segment(std::uint64_t step, int descriptor) {
    memory_.map_file(segment_offset(step), segment_bytes_, descriptor, 0);
  }

  const RingShape& shape() const { return shape_; }
  std::size_t fields() const { return step_bytes_.size(); }
  std::size_t streams() const { return shape_.streams; }
  std::size_t slots() const { return shape_.slots; }
  std::size_t segment_steps() const { return shape_.segment_steps; }
  // A multiple of kPageBytes, padding included.
  std::size_t segment_bytes() const { return segment_bytes_; }
  std::size_t step_bytes(std::size_t field) const { return step_bytes_[field]; }
  // Where a step stands from the beginning of its segment.
  std::size_t offset_in_segment(std::size_t field, std::size_t stream, std::uint64_t step) const {
    const auto within = static_cast<std::size_t>(step % shape_.segment_steps);
    return field_offset_[field] + (stream * shape_.segment_steps + within) * step_bytes_[field];
  }

 private:
  std::size_t segment_offset(std::uint64_t step) const {
    return static_cast<std::size_t>(step % shape_.slots / shape_.segment_steps) * segment_bytes_;
  }
  std::size_t offset(std::size_t field, std::size_t stream, std::uint64_t step) const {
    return segment_offset(step) + offset_in_segment(field, stream, step);
  }

  RingShape shape_;
  std::vector<std::size_t> step_bytes_;
  std::vector<std::size_t> field_offset_;
  std::size_t segment_bytes_;
  ReservedMemory memory_;
};

}  // namespace replay
