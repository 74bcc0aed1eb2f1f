#include "reserved_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace replay {

// A range whose lost pages are replaced by the handler of SIGBUS. Ranges are reused, never freed:
// the handler may look at them at any time.
struct GuardedRange {
  std::atomic<std::byte*> data{nullptr};
  std::atomic<std::size_t> bytes{0};
  std::atomic<std::size_t> lost_pages{0};
  std::atomic<bool> used{true};
  GuardedRange* next = nullptr;
};

namespace {

constexpr int kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

std::byte* map(void* where, std::size_t bytes, int flags, int descriptor, std::size_t offset) {
  void* address =
      mmap(where, bytes, PROT_READ | PROT_WRITE, flags, descriptor, static_cast<off_t>(offset));
  if (address == MAP_FAILED) {
    const int error = errno;
    const std::string message = "the system refused " + std::to_string(bytes) +
                                " bytes of address space: " + std::strerror(error);
    if (error == ENOMEM) throw MemoryRefused(message);
    throw std::runtime_error(message);
  }
  return static_cast<std::byte*>(address);
}

std::atomic<GuardedRange*> guarded_ranges{nullptr};
struct sigaction previous_action{};

// Calls only what a signal handler may: atomics, and system calls without state in the library.
void replace_lost_page(int signal, siginfo_t* facts, void*) {
  const int error = errno;
  const auto address = reinterpret_cast<std::uintptr_t>(facts->si_addr);
  for (GuardedRange* range = guarded_ranges; range != nullptr; range = range->next) {
    const auto begin = reinterpret_cast<std::uintptr_t>(range->data.load());
    if (begin == 0 || address < begin || address - begin >= range->bytes) continue;
    const auto page_bytes = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    void* page = reinterpret_cast<void*>(address / page_bytes * page_bytes);
    if (mmap(page, page_bytes, PROT_READ | PROT_WRITE, kAnonymous | MAP_FIXED, -1, 0) == page) {
      ++range->lost_pages;
      errno = error;
      return;
    }
  }
  sigaction(signal, &previous_action, nullptr);  // the access is repeated on return
  errno = error;
}

void install_handler() {
  struct sigaction action{};
  action.sa_sigaction = replace_lost_page;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  sigemptyset(&action.sa_mask);
  static const int installed = sigaction(SIGBUS, &action, &previous_action);
  if (installed != 0) throw std::runtime_error("the system refused a handler of SIGBUS");
}

GuardedRange* guard(std::byte* data, std::size_t bytes) {
  install_handler();
  GuardedRange* range = guarded_ranges;
  while (range != nullptr && range->used.exchange(true)) range = range->next;
  if (range == nullptr) {
    range = new GuardedRange;
    range->next = guarded_ranges;
    while (!guarded_ranges.compare_exchange_weak(range->next, range)) {
    }
  }
  range->lost_pages = 0;
  range->bytes = bytes;
  range->data = data;
  return range;
}

}  // namespace

ReservedMemory::ReservedMemory(std::size_t bytes)
    : data_(map(nullptr, bytes, kAnonymous, -1, 0)), bytes_(bytes) {}

ReservedMemory::~ReservedMemory() { unmap(); }

ReservedMemory::ReservedMemory(ReservedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      guard_(std::exchange(other.guard_, nullptr)) {}

ReservedMemory& ReservedMemory::operator=(ReservedMemory&& other) noexcept {
  if (this != &other) {
    unmap();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    guard_ = std::exchange(other.guard_, nullptr);
  }
  return *this;
}

void ReservedMemory::map_file(std::size_t offset, std::size_t bytes, int descriptor,
                              std::size_t file_offset) {
  if (guard_ == nullptr) guard_ = guard(data_, bytes_);
  map(data_ + offset, bytes, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, descriptor, file_offset);
}

void ReservedMemory::clear(std::size_t offset, std::size_t bytes) {
  map(data_ + offset, bytes, kAnonymous | MAP_FIXED, -1, 0);
}

std::size_t ReservedMemory::lost_pages() const {
  return guard_ == nullptr ? 0 : guard_->lost_pages.load();
}

void ReservedMemory::unmap() noexcept {
  if (guard_ != nullptr) {
    guard_->data = nullptr;
    guard_->used = false;
    guard_ = nullptr;
  }
  if (data_ != nullptr) munmap(data_, bytes_);
}

}  // namespace replay
