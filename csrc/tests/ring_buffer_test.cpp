#include "../ring_buffer.h"

#include <limits>

#include "check.h"
#include "steps.h"

using replay::DType;
using replay::FieldSpec;
using replay::RingBuffer;

TEST(every_range_is_the_newest_steps_in_order_before_at_and_after_each_wrap) {
  const auto fields = steps::fields();
  for (const std::size_t capacity : {1u, 2u, 7u}) {
    RingBuffer ring(fields, capacity);
    for (std::size_t step = 0; step < 3 * capacity + 2; ++step) {
      ring.append(steps::Step(fields, 5, 1, step).columns());
      const std::size_t added = step + 1;
      const std::size_t size = added < capacity ? added : capacity;
      CHECK(ring.size() == size);
      for (std::size_t start = 0; start <= size; ++start) {
        for (std::size_t count = 0; count <= size - start; ++count) {
          steps::Outputs outputs(fields, count);
          for (std::size_t field = 0; field < fields.size(); ++field) {
            ring.read(field, start, count, outputs.pointers()[field]);
          }
          CHECK(outputs.guards_intact());
          for (std::size_t i = 0; i < count; ++i) {
            CHECK(steps::holds(outputs, fields, i, 5, added - size + start + i));
          }
        }
      }
    }
  }
}

TEST(a_range_has_two_segments_only_where_it_runs_over_the_end_of_the_column) {
  const std::vector<FieldSpec> fields = {{"reward", DType::kFloat32, {}}};
  RingBuffer ring(fields, 5);
  for (std::size_t step = 0; step < 7; ++step)
    ring.append(steps::Step(fields, 0, 1, step).columns());
  // Steps 2, 3, 4 stand in slots 2 to 4, steps 5 and 6 in slots 0 and 1.
  CHECK(ring.segments(0, 0, 3)[0].bytes == 12 && ring.segments(0, 0, 3)[1].bytes == 0);
  CHECK(ring.segments(0, 1, 4)[0].bytes == 8 && ring.segments(0, 1, 4)[1].bytes == 8);
  CHECK(ring.segments(0, 3, 2)[0].bytes == 8 && ring.segments(0, 3, 2)[1].bytes == 0);
}

TEST(steps_that_are_not_held_are_out_of_range) {
  const auto fields = steps::fields();
  RingBuffer ring(fields, 4);
  CHECK_THROWS(std::out_of_range, ring.segments(0, 0, 1));
  ring.append(steps::Step(fields, 0, 1, 0).columns());
  CHECK_THROWS(std::out_of_range, ring.segments(0, 0, 2));
  CHECK_THROWS(std::out_of_range, ring.segments(0, 1, 1));
  CHECK_THROWS(std::out_of_range, ring.segments(0, 2, 0));
  CHECK_THROWS(std::out_of_range, ring.segments(0, 1, std::numeric_limits<std::size_t>::max()));
  CHECK_THROWS(std::out_of_range, ring.segments(fields.size(), 0, 1));
}

TEST(bad_specifications_are_refused) {
  const std::size_t huge = std::numeric_limits<std::size_t>::max() / 2;
  CHECK_THROWS(std::invalid_argument, RingBuffer({}, 4));
  CHECK_THROWS(std::invalid_argument, RingBuffer(steps::fields(), 0));
  CHECK_THROWS(std::invalid_argument, RingBuffer({{"empty", DType::kUint8, {3, 0}}}, 4));
  CHECK_THROWS(std::invalid_argument, RingBuffer({{"large", DType::kFloat64, {huge, huge}}}, 4));
  CHECK_THROWS(std::invalid_argument, RingBuffer({{"large", DType::kUint8, {huge}}}, 4));
}

TEST_MAIN()
