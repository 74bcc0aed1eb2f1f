#include "../gather.h"

#include <stdexcept>

#include "check.h"
#include "steps.h"

using replay::RingBuffer;
using replay::Window;

namespace {

// Two rings of 37 steps, the second of which has wrapped: steps 0.. and 20.. are held.
std::vector<RingBuffer> two_rings(const std::vector<replay::FieldSpec>& fields) {
  std::vector<RingBuffer> rings;
  for (std::size_t stream = 0; stream < 2; ++stream) {
    rings.emplace_back(fields, 37);
    for (std::size_t step = 0; step < 37 + 20 * stream; ++step) {
      rings.back().append(steps::Step(fields, stream, 1, step).columns());
    }
  }
  return rings;
}

}  // namespace

TEST(windows_arrive_whole_for_any_number_of_threads) {
  const auto fields = steps::fields();
  const auto rings = two_rings(fields);
  // The second stream's windows run over the wrap. The batch is large enough that several threads
  // are worth their while.
  const std::size_t length = 33;
  std::vector<Window> windows;
  for (std::size_t row = 0; row < 101; ++row) windows.push_back({row % 2, row % 5});
  for (const std::size_t threads : {1u, 2u, 3u, 200u}) {
    steps::Outputs outputs(fields, windows.size() * length);
    replay::gather(rings, windows, length, outputs.pointers(), threads);
    CHECK(outputs.guards_intact());
    for (std::size_t row = 0; row < windows.size(); ++row) {
      for (std::size_t t = 0; t < length; ++t) {
        const std::size_t step = 20 * windows[row].stream + windows[row].start + t;
        const std::size_t index = row * length + t;
        CHECK(steps::holds(outputs, fields, index, windows[row].stream, step));
        CHECK(outputs[steps::kFirst][index] == std::byte(step % 5 == 0));
      }
    }
  }
}

TEST(a_window_that_is_not_held_is_refused_before_anything_is_written) {
  const auto fields = steps::fields();
  const auto rings = two_rings(fields);
  steps::Outputs outputs(fields, 2 * 33);
  const std::byte untouched = outputs[0][0];
  CHECK_THROWS(std::out_of_range,
               replay::gather(rings, {{0, 0}, {0, 5}}, 33, outputs.pointers(), 1));
  CHECK_THROWS(std::out_of_range,
               replay::gather(rings, {{0, 0}, {2, 0}}, 33, outputs.pointers(), 1));
  CHECK(outputs[0][0] == untouched);
}

TEST(no_windows_are_no_work) { replay::gather({}, {}, 3, nullptr, 4); }

TEST_MAIN()
