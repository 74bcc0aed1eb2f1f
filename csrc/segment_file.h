// Files of a replay's segments: written once, whole or not at all, and checked when they are read.
//
// A file is as long as its segment, and a byte stands in it where it stands in the segment's
// memory, so that the file can be mapped in the memory's place. What a segment does not hold yet
// is a hole. There is no header: what a file holds, and its checksum, is for a manifest to say,
// which must be written after the file.
//
// Ownership: spans are borrowed for the call; descriptors are closed before it returns, but for the
//   one that OpenFile owns. Threads: none of its own, and no state. Complexity: O(bytes).
// Errors: std::runtime_error with the path and the system's reason; a file that could not be
//   written whole is removed.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace replay {

// Bytes in memory, and where they stand in the file.
struct Span {
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::size_t offset = 0;
};

// A file open for reading, closed with the object.
class OpenFile {
 public:
  explicit OpenFile(const std::string& path);
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  const std::string& path() const { return path_; }
  int descriptor() const { return descriptor_; }
  std::size_t bytes() const;

 private:
  std::string path_;
  int descriptor_;
};

// CRC-32 as zlib has it, of `bytes` after what gave `before`.
std::uint32_t checksum(const std::byte* data, std::size_t bytes, std::uint32_t before = 0);

// Writes the spans to a file of `file_bytes` bytes that must not be there yet, waits until the disk
// has it, and gives the checksum over the spans in their order.
std::uint32_t write_segment_file(const std::string& path, const std::vector<Span>& spans,
                                 std::size_t file_bytes);

// Fills the spans from a file that must have `file_bytes` bytes and that checksum. On an error
// their contents are undefined.
void read_segment_file(const OpenFile& file, const std::vector<Span>& spans, std::size_t file_bytes,
                       std::uint32_t expected_checksum);

// Throws what read_segment_file would, and leaves the spans' memory alone.
void check_segment_file(const OpenFile& file, const std::vector<Span>& spans,
                        std::size_t file_bytes, std::uint32_t expected_checksum);

}  // namespace replay
