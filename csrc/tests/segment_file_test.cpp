#include "../segment_file.h"

#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <stdexcept>
#include <string>

#include "check.h"
#include "temporary_folder.h"

using replay::OpenFile;
using replay::Span;

namespace {

const std::byte* bytes_of(const char* text) { return reinterpret_cast<const std::byte*>(text); }

// 300,000 bytes and 10 bytes, with a hole between them.
struct Pieces {
  Pieces() : large(300000), small(10) {
    for (std::size_t i = 0; i < large.size(); ++i) large[i] = std::byte((i * 2654435761u) >> 24);
    small.assign(10, std::byte{0x5A});
  }
  std::vector<Span> spans() {
    return {{large.data(), large.size(), 100}, {small.data(), small.size(), 350000}};
  }
  std::vector<std::byte> large;
  std::vector<std::byte> small;
};

constexpr std::size_t kFileBytes = 400000;

}  // namespace

TEST(the_checksum_is_zlibs) {
  CHECK(replay::checksum(bytes_of("123456789"), 9) == 0xCBF43926u);
  CHECK(replay::checksum(nullptr, 0) == 0);
  const char* text = "the quick brown fox jumps over the lazy dog";
  const std::uint32_t whole = replay::checksum(bytes_of(text), std::strlen(text));
  for (std::size_t split = 0; split <= std::strlen(text); ++split) {
    const std::uint32_t head = replay::checksum(bytes_of(text), split);
    CHECK(replay::checksum(bytes_of(text) + split, std::strlen(text) - split, head) == whole);
  }
}

TEST(what_was_written_reads_back) {
  const TemporaryFolder folder;
  Pieces written;
  Pieces read;
  const std::uint32_t sum =
      replay::write_segment_file(folder / "segment", written.spans(), kFileBytes);
  read.large.assign(read.large.size(), std::byte{0});
  read.small.assign(read.small.size(), std::byte{0});
  const OpenFile file(folder / "segment");
  CHECK(file.bytes() == kFileBytes);
  replay::check_segment_file(file, read.spans(), kFileBytes, sum);
  CHECK(read.small[0] == std::byte{0});
  replay::read_segment_file(file, read.spans(), kFileBytes, sum);
  CHECK(read.large == written.large && read.small == written.small);
}

TEST(a_file_is_written_once) {
  const TemporaryFolder folder;
  Pieces pieces;
  replay::write_segment_file(folder / "segment", pieces.spans(), kFileBytes);
  CHECK_THROWS(std::runtime_error, replay::write_segment_file(folder / "segment", {}, kFileBytes));
  CHECK(OpenFile(folder / "segment").bytes() == kFileBytes);
}

TEST(a_byte_changed_a_byte_lost_or_another_size_is_noticed) {
  const TemporaryFolder folder;
  const std::string path = folder / "segment";
  Pieces pieces;
  const std::uint32_t sum = replay::write_segment_file(path, pieces.spans(), kFileBytes);
  for (const long offset : {100L, 200000L, 350009L}) {
    std::FILE* stream = std::fopen(path.c_str(), "r+b");
    std::fseek(stream, offset, SEEK_SET);
    const int byte = std::fgetc(stream);
    std::fseek(stream, offset, SEEK_SET);
    std::fputc(byte ^ 1, stream);
    std::fclose(stream);
    CHECK_THROWS(std::runtime_error,
                 replay::check_segment_file(OpenFile(path), pieces.spans(), kFileBytes, sum));
    Pieces read;
    CHECK_THROWS(std::runtime_error,
                 replay::read_segment_file(OpenFile(path), read.spans(), kFileBytes, sum));
    stream = std::fopen(path.c_str(), "r+b");
    std::fseek(stream, offset, SEEK_SET);
    std::fputc(byte, stream);
    std::fclose(stream);
  }
  replay::check_segment_file(OpenFile(path), pieces.spans(), kFileBytes, sum);
  CHECK(truncate(path.c_str(), kFileBytes - 1) == 0);
  CHECK_THROWS(std::runtime_error,
               replay::check_segment_file(OpenFile(path), pieces.spans(), kFileBytes, sum));
}

TEST(a_file_that_does_not_fit_is_removed) {
  const TemporaryFolder folder;
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit little{100000, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &little);
  Pieces pieces;
  CHECK_THROWS(std::runtime_error,
               replay::write_segment_file(folder / "segment", pieces.spans(), kFileBytes));
  setrlimit(RLIMIT_FSIZE, &before);
  CHECK(access((folder / "segment").c_str(), F_OK) != 0);
}

TEST(paths_that_cannot_be_opened_are_named) {
  CHECK_THROWS(std::runtime_error, OpenFile("/nowhere/at/all"));
  CHECK_THROWS(std::runtime_error, replay::write_segment_file("/nowhere/at/all", {}, 1));
}

TEST_MAIN()
