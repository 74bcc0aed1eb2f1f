#include "gather.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace replay {

namespace {

// Copying fewer bytes takes less time than starting a thread.
constexpr std::size_t kBytesPerThread = std::size_t{1} << 20;
// Shorter pieces are copied through the cache, where the next reader finds them.
constexpr std::size_t kStreamedBytes = std::size_t{1} << 15;

#if defined(__SSE2__)

constexpr std::size_t kLine = 64;
constexpr std::size_t kPage = 4096;
// Number of pages whose copies are interleaved, which exploits memory-level parallelism.
constexpr std::size_t kPages = 4;

void stream_line(std::byte* output, const std::byte* input) {
  const auto* from = reinterpret_cast<const __m128i*>(input);
  auto* to = reinterpret_cast<__m128i*>(output);
  const __m128i a = _mm_loadu_si128(from);
  const __m128i b = _mm_loadu_si128(from + 1);
  const __m128i c = _mm_loadu_si128(from + 2);
  const __m128i d = _mm_loadu_si128(from + 3);
  _mm_stream_si128(to, a);
  _mm_stream_si128(to + 1, b);
  _mm_stream_si128(to + 2, c);
  _mm_stream_si128(to + 3, d);
}

// Copies with non-temporal stores up to the last full cache line; returns the number of bytes
// copied.
std::size_t stream(std::byte* output, const std::byte* input, std::size_t bytes) {
  const std::size_t head = (kLine - reinterpret_cast<std::uintptr_t>(output) % kLine) % kLine;
  std::memcpy(output, input, head);
  std::size_t done = head;
  for (; bytes - done >= kPages * kPage; done += kPages * kPage) {
    for (std::size_t line = 0; line < kPage; line += 2 * kLine) {
      for (std::size_t page = 0; page < kPages; ++page) {
        const std::size_t offset = done + page * kPage + line;
        stream_line(output + offset, input + offset);
        stream_line(output + offset + kLine, input + offset + kLine);
      }
    }
  }
  for (; bytes - done >= kLine; done += kLine) stream_line(output + done, input + done);
  _mm_sfence();  // orders them before the stores that signal completion
  return done;
}

#endif

void copy(std::byte* output, const std::byte* input, std::size_t bytes) {
  std::size_t done = 0;
#if defined(__SSE2__)
  if (bytes >= kStreamedBytes) done = stream(output, input, bytes);
#endif
  std::memcpy(output + done, input + done, bytes - done);
}

void copy_window(const StepRing& ring, const Window& window, std::size_t length, std::size_t row,
                 std::byte* const* outputs) {
  for (std::size_t field = 0; field < ring.fields(); ++field) {
    std::byte* output = outputs[field] + row * length * ring.step_bytes(field);
    ring.pieces(field, window.stream, window.start, length,
                [&](const std::byte* piece, std::size_t bytes) {
                  copy(output, piece, bytes);
                  output += bytes;
                });
  }
}

}  // namespace

void gather(const StepRing& ring, const std::vector<Window>& windows, std::size_t length,
            std::byte* const* outputs, std::size_t threads) {
  for (const Window& window : windows) {
    if (window.stream >= ring.streams()) {
      throw std::out_of_range("stream " + std::to_string(window.stream) + " of " +
                              std::to_string(ring.streams()));
    }
  }
  std::atomic<std::size_t> next_row{0};
  const auto copy_windows = [&] {
    for (std::size_t row; (row = next_row.fetch_add(1)) < windows.size();) {
      copy_window(ring, windows[row], length, row, outputs);
    }
  };
  std::size_t window_bytes = 0;
  for (std::size_t field = 0; field < ring.fields(); ++field) {
    window_bytes += length * ring.step_bytes(field);
  }
  const std::size_t useful = windows.size() * window_bytes / kBytesPerThread + 1;
  const std::size_t wanted = std::min({threads, windows.size(), useful});
  std::vector<std::thread> helpers;
  helpers.reserve(wanted);
  try {
    while (helpers.size() + 1 < wanted) helpers.emplace_back(copy_windows);
  } catch (const std::system_error&) {
    // The threads that did start share the windows.
  }
  copy_windows();
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace replay
