#include "../reserved_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <limits>
#include <utility>
#include <vector>

#include "check.h"

using replay::ReservedMemory;

namespace {

std::size_t resident_pages(ReservedMemory& memory) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> resident((memory.bytes() + page - 1) / page);
  CHECK(mincore(memory.data(), memory.bytes(), resident.data()) == 0);
  std::size_t count = 0;
  for (const unsigned char flags : resident) count += flags & 1;
  return count;
}

}  // namespace

TEST(memory_is_touched_only_where_it_is_written) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  ReservedMemory memory(1000 * page);
  CHECK(resident_pages(memory) == 0);
  memory.data()[0] = std::byte{1};
  memory.data()[7 * page + 3] = std::byte{1};
  CHECK(resident_pages(memory) == 2);
}

TEST(memory_reads_as_zero) {
  const ReservedMemory memory(12345);
  for (std::size_t i = 0; i < memory.bytes(); ++i) CHECK(memory.data()[i] == std::byte{0});
}

TEST(moving_hands_the_mapping_over) {
  ReservedMemory first(5000);
  first.data()[4999] = std::byte{9};
  const std::byte* address = first.data();
  ReservedMemory second(std::move(first));
  CHECK(second.data() == address);
  CHECK(first.data() == nullptr && first.bytes() == 0);
  ReservedMemory third(1);
  third = std::move(second);
  CHECK(third.data()[4999] == std::byte{9} && third.bytes() == 5000);
}

TEST(a_part_can_be_a_file_and_plain_memory_again) {
  using replay::kPageBytes;
  std::FILE* file = std::tmpfile();
  const std::vector<char> content(2 * kPageBytes, 'x');
  CHECK(std::fwrite(content.data(), 1, content.size(), file) == content.size());
  std::fflush(file);
  ReservedMemory memory(3 * kPageBytes);
  for (const std::size_t part : {0u, 1u, 2u}) memory.data()[part * kPageBytes] = std::byte{7};
  memory.map_file(kPageBytes, kPageBytes, fileno(file), kPageBytes);
  CHECK(memory.data()[0] == std::byte{7} && memory.data()[2 * kPageBytes] == std::byte{7});
  CHECK(memory.data()[kPageBytes] == std::byte{'x'});
  memory.data()[kPageBytes] = std::byte{9};  // stays here
  std::fseek(file, kPageBytes, SEEK_SET);
  CHECK(std::fgetc(file) == 'x');
  std::fclose(file);  // the mapping keeps what it needs
  CHECK(memory.data()[kPageBytes] == std::byte{9});
  memory.clear(kPageBytes, kPageBytes);
  CHECK(memory.data()[kPageBytes] == std::byte{0} && memory.data()[0] == std::byte{7});
  CHECK_THROWS(std::runtime_error, memory.map_file(0, kPageBytes, -1, 0));
  CHECK(memory.data()[0] == std::byte{7});
}

TEST(an_impossible_size_is_refused) {
  CHECK_THROWS(replay::MemoryRefused, ReservedMemory(std::numeric_limits<std::size_t>::max() / 2));
}

TEST_MAIN()
