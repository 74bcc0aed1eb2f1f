#include "reserved_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace replay {

namespace {

constexpr int kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

std::byte* map(void* where, std::size_t bytes, int flags, int descriptor, std::size_t offset) {
  void* address =
      mmap(where, bytes, PROT_READ | PROT_WRITE, flags, descriptor, static_cast<off_t>(offset));
  if (address == MAP_FAILED) {
    throw std::runtime_error("the system refused " + std::to_string(bytes) +
                             " bytes of address space: " + std::strerror(errno));
  }
  return static_cast<std::byte*>(address);
}

}  // namespace

ReservedMemory::ReservedMemory(std::size_t bytes)
    : data_(map(nullptr, bytes, kAnonymous, -1, 0)), bytes_(bytes) {}

ReservedMemory::~ReservedMemory() { unmap(); }

ReservedMemory::ReservedMemory(ReservedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

ReservedMemory& ReservedMemory::operator=(ReservedMemory&& other) noexcept {
  if (this != &other) {
    unmap();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

void ReservedMemory::map_file(std::size_t offset, std::size_t bytes, int descriptor,
                              std::size_t file_offset) {
  map(data_ + offset, bytes, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, descriptor, file_offset);
}

void ReservedMemory::clear(std::size_t offset, std::size_t bytes) {
  map(data_ + offset, bytes, kAnonymous | MAP_FIXED, -1, 0);
}

void ReservedMemory::unmap() noexcept {
  if (data_ != nullptr) munmap(data_, bytes_);
}

}  // namespace replay
