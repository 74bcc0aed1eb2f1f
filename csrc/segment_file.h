// Files of segments: each is written once, completely or not at all, and verified when it is read.
//
// A file has the size and the byte layout of a segment in memory, so that it can be mapped in place
// of that memory. Steps that the segment does not hold yet are holes. Files have no header: a
// manifest, written after the file, records its contents and its checksum.
//
// Ownership: borrows the spans' memory for the call. Only OpenFile keeps a descriptor open.
// Threads: no shared state. Complexity: O(bytes).
// Errors: FileError with the path and the reason; std::system_error where the process may open no
//   more files, which says nothing about the file. A file that could not be written completely is
//   removed. Symbolic links and what is no regular file are neither read nor written.

#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace replay {

// A file that cannot be written or trusted; the message is one line for the user.
class FileError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A range of bytes in memory and its offset in the file.
struct Span {
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::size_t offset = 0;
};

// A file that is open for reading; the destructor closes it.
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

// The CRC-32 of zlib. `before` is the checksum of the preceding bytes.
std::uint32_t checksum(const std::byte* data, std::size_t bytes, std::uint32_t before = 0);

// Creates a file of `file_bytes` bytes, writes the spans to it and syncs it to disk. Returns the
// checksum of the spans in their order. Throws if the file exists.
std::uint32_t write_segment_file(const std::string& path, const std::vector<Span>& spans,
                                 std::size_t file_bytes);

// Throws unless a file has `file_bytes` bytes.
void require_size(const OpenFile& file, std::size_t file_bytes);

// Reads the spans from a file. Throws if the file does not have `file_bytes` bytes or the spans do
// not have the expected checksum; the contents of the spans' memory are then undefined.
void read_segment_file(const OpenFile& file, const std::vector<Span>& spans, std::size_t file_bytes,
                       std::uint32_t expected_checksum);

// Verifies a file as read_segment_file does, without writing to the spans' memory.
void check_segment_file(const OpenFile& file, const std::vector<Span>& spans,
                        std::size_t file_bytes, std::uint32_t expected_checksum);

}  // namespace replay
