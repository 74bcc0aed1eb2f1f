// A range of address space that uses memory only where it is written, and parts of which can be
// mapped from files.
//
// Ownership: each object owns one private mapping and unmaps it on destruction; a moved-from object
//   owns nothing. map_file borrows the descriptor for the call; the mapping outlives its closing.
// Threads: not synchronized. map_file and clear must not run concurrently with any access to the
//   part that they replace.
// Complexity: one system call each, independent of size.
// Errors: MemoryRefused if the system has no address space left, std::runtime_error if the system
//   call fails otherwise; the range is then unchanged. A file that is cut, or cannot be read, while
//   it is mapped would end the process with SIGBUS at the next access. The first map_file installs
//   a handler that puts zeros in the place of such a page and counts it in lost_pages(); other
//   errors of this kind go to the handler that was there before.

#pragma once

#include <cstddef>
#include <new>
#include <string>
#include <utility>

namespace replay {

// Memory that the system refuses; the message is one line for the user.
class MemoryRefused : public std::bad_alloc {
 public:
  explicit MemoryRefused(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

struct GuardedRange;

class ReservedMemory {
 public:
  // Reserves `bytes` (at least 1) zero bytes. The system allocates a page at its first write and
  // commits no swap, so the range may exceed the machine's memory.
  explicit ReservedMemory(std::size_t bytes);
  ~ReservedMemory();

  ReservedMemory(ReservedMemory&& other) noexcept;
  ReservedMemory& operator=(ReservedMemory&& other) noexcept;
  ReservedMemory(const ReservedMemory&) = delete;
  ReservedMemory& operator=(const ReservedMemory&) = delete;

  // Maps `bytes` bytes of an open file, starting at `file_offset`, over [offset, offset + bytes).
  // All three numbers must be multiples of kPageBytes. Unmodified pages belong to the page cache,
  // which can evict them; writes are private to this process and never reach the file.
  void map_file(std::size_t offset, std::size_t bytes, int descriptor, std::size_t file_offset);

  // Replaces [offset, offset + bytes), multiples of kPageBytes, by zero-filled anonymous memory.
  void clear(std::size_t offset, std::size_t bytes);

  // Pages of mapped files that were gone when they were accessed and are zeros since.
  std::size_t lost_pages() const;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void unmap() noexcept;

  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  GuardedRange* guard_ = nullptr;  // absent until a file is mapped
};

// A multiple of the page size of every supported system.
constexpr std::size_t kPageBytes = std::size_t{1} << 16;

}  // namespace replay
