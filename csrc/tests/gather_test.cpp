#include "../gather.h"

#include <pthread.h>

#include <stdexcept>
#include <system_error>
#include <thread>

#include "check.h"
#include "steps.h"

using replay::StepRing;
using replay::Window;

namespace {

constexpr std::size_t kHeld = 36;

// A ring that has wrapped, in segments of the given length: steps [20, 56) are held.
StepRing full_ring(const std::vector<replay::FieldSpec>& fields, std::size_t segment_steps) {
  StepRing ring(fields, {2, kHeld, segment_steps});
  for (std::size_t step = 0; step < 20 + kHeld; ++step) {
    ring.write(step, steps::Step(fields, 0, 2, step).columns());
  }
  return ring;
}

}  // namespace

TEST(windows_arrive_whole_for_any_number_of_threads_and_any_segments) {
  const auto fields = steps::fields();
  // Windows run over the wrap. The batch is large enough that several threads are worth their
  // while, and in the one segment of the last ring pieces are long enough to go past the cache.
  const std::size_t length = 33;
  std::vector<Window> windows;
  for (std::size_t row = 0; row < 101; ++row) windows.push_back({row % 2, 20 + row % 4});
  for (const std::size_t segment_steps : {4u, 18u, 36u}) {
    const StepRing ring = full_ring(fields, segment_steps);
    for (const std::size_t threads : {1u, 2u, 3u, 200u}) {
      steps::Outputs outputs(fields, windows.size() * length);
      replay::gather(ring, windows, length, outputs.pointers(), threads);
      CHECK(outputs.guards_intact());
      for (std::size_t row = 0; row < windows.size(); ++row) {
        for (std::size_t t = 0; t < length; ++t) {
          const std::size_t step = windows[row].start + t;
          const std::size_t index = row * length + t;
          CHECK(steps::holds(outputs, fields, index, windows[row].stream, step));
          CHECK(outputs[steps::kFirst][index] == std::byte(step % 5 == 0));
        }
      }
    }
  }
}

TEST(windows_arrive_whole_where_the_system_starts_no_threads) {
  const auto fields = steps::fields();
  const StepRing ring = full_ring(fields, 36);
  const std::vector<Window> windows(101, Window{1, 21});
  steps::Outputs outputs(fields, windows.size() * 33);
  pthread_attr_t usual;
  pthread_attr_t impossible;
  CHECK(pthread_getattr_default_np(&usual) == 0 && pthread_getattr_default_np(&impossible) == 0);
  CHECK(pthread_attr_setstacksize(&impossible, std::size_t{1} << 60) == 0);
  CHECK(pthread_setattr_default_np(&impossible) == 0);
  bool refused = false;
  try {
    std::thread([] {}).join();
  } catch (const std::system_error&) {
    refused = true;
  }
  replay::gather(ring, windows, 33, outputs.pointers(), 4);
  CHECK(pthread_setattr_default_np(&usual) == 0);
  CHECK(refused && outputs.guards_intact());
  for (std::size_t row = 0; row < windows.size(); ++row) {
    CHECK(steps::holds(outputs, fields, row * 33 + 32, 1, 21 + 32));
  }
}

TEST(long_pieces_arrive_whole_wherever_they_begin_and_end) {
  // Copies past the cache work in lines of 64 bytes: every length and beginning beside them.
  for (const std::size_t bytes : {1u, 63u, 64u, 65u, 127u}) {
    const std::vector<replay::FieldSpec> fields = {{"data", replay::DType::kUint8, {bytes}}};
    StepRing ring(fields, {1, 1500, 1500});
    for (std::size_t step = 0; step < 1500; ++step) {
      ring.write(step, steps::Step(fields, 0, 1, step).columns());
    }
    for (std::size_t start = 0; start < 70; ++start) {
      const std::size_t length = 1400 - start;
      steps::Outputs outputs(fields, length + 1);
      std::byte* shifted[] = {outputs.pointers()[0] + start % bytes};
      replay::gather(ring, {{0, start}}, length, shifted, 1);
      for (std::size_t i = 0; i < length * bytes; i += 1 + i % 7) {
        CHECK(shifted[0][i] == steps::byte_of(0, start + i / bytes, 0, i % bytes));
      }
      CHECK(shifted[0][length * bytes] == std::byte{0xA5} && outputs.guards_intact());
    }
  }
}

TEST(a_stream_that_does_not_exist_is_refused_before_anything_is_written) {
  const auto fields = steps::fields();
  const StepRing ring = full_ring(fields, 36);
  steps::Outputs outputs(fields, 2 * 33);
  CHECK_THROWS(std::out_of_range,
               replay::gather(ring, {{0, 20}, {2, 20}}, 33, outputs.pointers(), 1));
  CHECK(outputs[0][0] == std::byte{0xA5});
}

TEST(no_windows_are_no_work) {
  replay::gather(StepRing(steps::fields(), {1, 1, 1}), {}, 3, nullptr, 4);
}

TEST_MAIN()
