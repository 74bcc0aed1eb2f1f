// Address space that costs memory only where it is written.
//
// Ownership: each object owns one private anonymous mapping and unmaps it when destroyed; moving
//   hands the mapping over and leaves the source empty.
// Threads: none of its own; concurrent use of the bytes is the caller's to order.
// Complexity: one system call to reserve and one to release, whatever the size.
// Errors: std::runtime_error where the system refuses the address space.

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

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void unmap() noexcept;

  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace replay
