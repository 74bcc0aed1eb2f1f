// Address space that costs memory only where it is written, and parts of which may be files.
//
// Ownership: each object owns one private mapping and unmaps it when destroyed; moving hands the
//   mapping over and leaves the source empty. Files are borrowed for the call that maps them.
// Threads: none of its own; concurrent use of the bytes is the caller's to order. `map_file` and
//   `clear` need the range alone.
// Complexity: one system call each, whatever the size.
// Errors: std::runtime_error where the system refuses; the range is then as it was.

#pragma once

#include <cstddef>

namespace replay {

class ReservedMemory {
 public:
  // Reserves `bytes` (at least 1) bytes that read as zero. No page is backed by memory until its
  // first write, and no swap is set aside, so a buffer may be larger than the memory it will
  // ever fill.
  explicit ReservedMemory(std::size_t bytes);
  ~ReservedMemory();

  ReservedMemory(ReservedMemory&& other) noexcept;
  ReservedMemory& operator=(ReservedMemory&& other) noexcept;
  ReservedMemory(const ReservedMemory&) = delete;
  ReservedMemory& operator=(const ReservedMemory&) = delete;

  // Puts `bytes` of an open file from `file_offset` on in the place of [offset, offset + bytes);
  // all three are multiples of kPageBytes. The pages are the system's file cache, which drops
  // them as it needs memory; what is written to them stays in this process.
  void map_file(std::size_t offset, std::size_t bytes, int descriptor, std::size_t file_offset);

  // Makes [offset, offset + bytes), multiples of kPageBytes, plain memory that reads as zero.
  void clear(std::size_t offset, std::size_t bytes);

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void unmap() noexcept;

  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// A multiple of the page size of every system that this runs on.
constexpr std::size_t kPageBytes = std::size_t{1} << 16;

}  // namespace replay
