#include "gather.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

namespace replay {

namespace {

// Fewer bytes than this are copied before another thread has started.
constexpr std::size_t kBytesPerThread = std::size_t{1} << 20;

void copy_row(const RingBuffer& ring, std::size_t start, std::size_t length, std::size_t row,
              std::byte* const* outputs) {
  for (std::size_t field = 0; field < ring.fields(); ++field) {
    std::byte* output = outputs[field] + row * length * ring.step_bytes(field);
    for (const Segment& segment : ring.segments(field, start, length)) {
      std::memcpy(output, segment.data, segment.bytes);
      output += segment.bytes;
    }
  }
}

void require_held(const std::vector<RingBuffer>& streams, const Window& window,
                  std::size_t length) {
  if (window.stream >= streams.size()) {
    throw std::out_of_range("stream " + std::to_string(window.stream) + " of " +
                            std::to_string(streams.size()));
  }
  streams[window.stream].segments(0, window.start, length);
}

}  // namespace

void gather(const std::vector<RingBuffer>& streams, const std::vector<Window>& windows,
            std::size_t length, std::byte* const* outputs, std::size_t threads) {
  for (const Window& window : windows) require_held(streams, window, length);
  std::atomic<std::size_t> next_row{0};
  const auto copy_rows = [&] {
    for (std::size_t row; (row = next_row.fetch_add(1)) < windows.size();) {
      copy_row(streams[windows[row].stream], windows[row].start, length, row, outputs);
    }
  };
  std::size_t row_bytes = 0;
  for (std::size_t field = 0; !streams.empty() && field < streams[0].fields(); ++field) {
    row_bytes += length * streams[0].step_bytes(field);
  }
  const std::size_t worthwhile = windows.size() * row_bytes / kBytesPerThread + 1;
  std::vector<std::thread> helpers;
  const std::size_t wanted = std::min({threads, windows.size(), worthwhile});
  helpers.reserve(wanted);
  try {
    while (helpers.size() + 1 < wanted) helpers.emplace_back(copy_rows);
  } catch (const std::system_error&) {
    // No more threads to be had: the ones there are share the rows.
  }
  copy_rows();
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace replay
