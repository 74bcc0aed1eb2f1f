#include "../step_ring.h"

#include <cstring>
#include <limits>
#include <stdexcept>

#include "check.h"
#include "steps.h"

using replay::DType;
using replay::FieldSpec;
using replay::StepRing;

namespace {

constexpr std::size_t kStreams = 3;

// The steps [first, first + count) of a stream, read back as pieces.
bool reads(const StepRing& ring, const std::vector<FieldSpec>& fields, std::size_t stream,
           std::uint64_t first, std::size_t count) {
  steps::Outputs outputs(fields, count);
  for (std::size_t field = 0; field < fields.size(); ++field) {
    std::byte* output = outputs.pointers()[field];
    ring.pieces(field, stream, first, count, [&](const std::byte* piece, std::size_t bytes) {
      std::memcpy(output, piece, bytes);
      output += bytes;
    });
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (!steps::holds(outputs, fields, i, stream, first + i)) return false;
  }
  return outputs.guards_intact();
}

}  // namespace

TEST(every_range_reads_back_in_order_before_at_and_after_each_wrap) {
  const auto fields = steps::fields();
  const std::size_t sizes[][2] = {{1, 1}, {2, 2}, {7, 7}, {6, 3}, {8, 1}, {15, 5}};
  for (const auto& [slots, segment_steps] : sizes) {
    StepRing ring(fields, {kStreams, slots, segment_steps});
    for (std::size_t step = 0; step < 3 * slots + 2; ++step) {
      ring.write(step, steps::Step(fields, 0, kStreams, step).columns());
      const std::size_t oldest = step + 1 < slots ? 0 : step + 1 - slots;
      for (std::size_t first = oldest; first <= step; ++first) {
        for (std::size_t stream = 0; stream < kStreams; ++stream) {
          CHECK(reads(ring, fields, stream, first, step + 1 - first));
        }
      }
    }
  }
}

TEST(a_range_has_more_pieces_only_where_it_runs_over_the_end_of_a_segment) {
  StepRing ring({{"reward", DType::kFloat32, {}}}, {2, 10, 5});
  std::vector<std::size_t> found;
  const auto note = [&](const std::byte*, std::size_t bytes) { found.push_back(bytes); };
  ring.pieces(0, 1, 5, 5, note);
  CHECK((found == std::vector<std::size_t>{20}));
  found.clear();
  ring.pieces(0, 1, 8, 4, note);
  CHECK((found == std::vector<std::size_t>{8, 8}));
  CHECK(ring.at(0, 1, 12) == ring.at(0, 1, 2));
}

TEST(steps_of_one_stream_lie_side_by_side) {
  const auto fields = steps::fields();
  StepRing ring(fields, {kStreams, 12, 6});
  for (std::size_t field = 0; field < fields.size(); ++field) {
    CHECK(ring.at(field, 2, 7) - ring.at(field, 2, 6) ==
          static_cast<std::ptrdiff_t>(fields[field].step_bytes()));
    CHECK(ring.at(field, 1, 7) - ring.at(field, 0, 6) ==
          static_cast<std::ptrdiff_t>(ring.offset_in_segment(field, 1, 7) -
                                      ring.offset_in_segment(field, 0, 6)));
  }
}

TEST(a_cleared_segment_reads_as_zero_and_the_others_stay) {
  const auto fields = steps::fields();
  StepRing ring(fields, {kStreams, 6, 3});
  for (std::size_t step = 0; step < 6; ++step) {
    ring.write(step, steps::Step(fields, 0, kStreams, step).columns());
  }
  ring.clear_segment(1);
  for (std::size_t offset = 0; offset < fields[0].step_bytes(); ++offset) {
    CHECK(ring.at(0, 1, 1)[offset] == std::byte{0});
  }
  CHECK(reads(ring, fields, 1, 3, 3));
}

TEST(bad_specifications_are_refused) {
  const std::size_t huge = std::numeric_limits<std::size_t>::max() / 2;
  CHECK_THROWS(std::invalid_argument, StepRing({}, {1, 4, 4}));
  CHECK_THROWS(std::invalid_argument, StepRing(steps::fields(), {0, 4, 4}));
  CHECK_THROWS(std::invalid_argument, StepRing(steps::fields(), {1, 0, 1}));
  CHECK_THROWS(std::invalid_argument, StepRing(steps::fields(), {1, 4, 3}));
  CHECK_THROWS(std::invalid_argument, StepRing(steps::fields(), {1, 4, 0}));
  CHECK_THROWS(std::invalid_argument, StepRing({{"empty", DType::kUint8, {3, 0}}}, {1, 4, 4}));
  CHECK_THROWS(std::invalid_argument,
               StepRing({{"large", DType::kFloat64, {huge, huge}}}, {1, 4, 4}));
  CHECK_THROWS(std::invalid_argument, StepRing({{"large", DType::kUint8, {huge}}}, {1, 4, 4}));
  CHECK_THROWS(std::invalid_argument, StepRing({{"many", DType::kUint8, {}}}, {4, huge, huge}));
}

TEST(a_field_takes_the_bytes_of_its_elements) {
  const auto bytes = [](DType dtype) { return FieldSpec{"x", dtype, {3, 5}}.step_bytes(); };
  for (const DType dtype : {DType::kBool, DType::kUint8}) CHECK(bytes(dtype) == 15);
  CHECK(bytes(DType::kFloat16) == 30);
  for (const DType dtype : {DType::kInt32, DType::kFloat32}) CHECK(bytes(dtype) == 60);
  for (const DType dtype : {DType::kInt64, DType::kFloat64}) CHECK(bytes(dtype) == 120);
  CHECK_THROWS(std::invalid_argument, bytes(static_cast<DType>(7)));
}

TEST_MAIN()
