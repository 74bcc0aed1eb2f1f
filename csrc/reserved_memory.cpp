#include "reserved_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace replay {

ReservedMemory::ReservedMemory(std::size_t bytes) : bytes_(bytes) {
  void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) {
    throw std::runtime_error("the system refused " + std::to_string(bytes) +
                             " bytes of address space: " + std::strerror(errno));
  }
  data_ = static_cast<std::byte*>(address);
}

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

void ReservedMemory::unmap() noexcept {
  if (data_ != nullptr) munmap(data_, bytes_);
}

}  // namespace replay
