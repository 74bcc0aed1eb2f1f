#include "segment_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>

namespace replay {

namespace {

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;

[[noreturn]] void fail(const std::string& path, int error) {
  if (error == EMFILE || error == ENFILE || error == ENOMEM) {
    throw std::system_error(error, std::generic_category(), path);
  }
  throw FileError(path + ": " + std::strerror(error));
}

// With eight tables, checksum() processes eight bytes per iteration.
using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr Tables make_tables() {
  Tables tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) * 0xEDB88320u);
    tables[0][byte] = value;
  }
  for (std::size_t table = 1; table < 8; ++table) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t before = tables[table - 1][byte];
      tables[table][byte] = (before >> 8) ^ tables[0][before & 0xFF];
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

void write_all(int descriptor, const std::string& path, const Span& span) {
  for (std::size_t done = 0; done < span.bytes;) {
    const ssize_t written = pwrite(descriptor, span.data + done, span.bytes - done,
                                   static_cast<off_t>(span.offset + done));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(path, errno);
    done += static_cast<std::size_t>(written);
  }
}

void read_all(const OpenFile& file, const Span& target) {
  for (std::size_t done = 0; done < target.bytes;) {
    const ssize_t read = pread(file.descriptor(), target.data + done, target.bytes - done,
                               static_cast<off_t>(target.offset + done));
    if (read < 0 && errno == EINTR) continue;
    if (read < 0) fail(file.path(), errno);
    if (read == 0) throw FileError(file.path() + ": ends too early");
    done += static_cast<std::size_t>(read);
  }
}

void require_checksum(const OpenFile& file, std::uint32_t actual, std::uint32_t expected) {
  if (actual != expected) throw FileError(file.path() + ": does not match its checksum");
}

// Splits the spans into parts of at most kChunkBytes and calls visit(part) for each, in order.
template <typename Visit>
void for_each_chunk(const std::vector<Span>& spans, const Visit& visit) {
  for (const Span& span : spans) {
    for (std::size_t done = 0; done < span.bytes; done += kChunkBytes) {
      visit(Span{span.data + done, std::min(kChunkBytes, span.bytes - done), span.offset + done});
    }
  }
}

}  // namespace

OpenFile::OpenFile(const std::string& path)
    // Without O_NONBLOCK the opening of a pipe would wait for its writer.
    : path_(path), descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)) {
  if (descriptor_ < 0 && errno != ELOOP) fail(path, errno);
  struct stat facts{};
  const bool regular =
      descriptor_ >= 0 && fstat(descriptor_, &facts) == 0 && S_ISREG(facts.st_mode);
  if (regular) return;
  if (descriptor_ >= 0) close(descriptor_);
  throw FileError(path + ": is no regular file");
}

OpenFile::~OpenFile() { close(descriptor_); }

void require_size(const OpenFile& file, std::size_t file_bytes) {
  const std::size_t bytes = file.bytes();
  if (bytes != file_bytes) {
    throw FileError(file.path() + ": has " + std::to_string(bytes) + " bytes, expected " +
                    std::to_string(file_bytes));
  }
}

std::size_t OpenFile::bytes() const {
  struct stat facts{};
  if (fstat(descriptor_, &facts) != 0) fail(path_, errno);
  return static_cast<std::size_t>(facts.st_size);
}

std::uint32_t checksum(const std::byte* data, std::size_t bytes, std::uint32_t before) {
  std::uint32_t value = ~before;
  const auto at = [&](std::size_t index) { return static_cast<std::uint32_t>(data[index]); };
  for (; bytes >= 8; bytes -= 8, data += 8) {
    value ^= at(0) | at(1) << 8 | at(2) << 16 | at(3) << 24;
    value = kTables[7][value & 0xFF] ^ kTables[6][value >> 8 & 0xFF] ^
            kTables[5][value >> 16 & 0xFF] ^ kTables[4][value >> 24] ^ kTables[3][at(4)] ^
            kTables[2][at(5)] ^ kTables[1][at(6)] ^ kTables[0][at(7)];
  }
  for (; bytes > 0; --bytes, ++data) value = (value >> 8) ^ kTables[0][(value ^ at(0)) & 0xFF];
  return ~value;
}

std::uint32_t write_segment_file(const std::string& path, const std::vector<Span>& spans,
                                 std::size_t file_bytes) {
  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor < 0) fail(path, errno);
  try {
    std::uint32_t sum = 0;
    for (const Span& span : spans) {
      write_all(descriptor, path, span);
      sum = checksum(span.data, span.bytes, sum);
    }
    if (ftruncate(descriptor, static_cast<off_t>(file_bytes)) != 0) fail(path, errno);
    if (fsync(descriptor) != 0) fail(path, errno);
    close(descriptor);
    return sum;
  } catch (...) {
    close(descriptor);
    unlink(path.c_str());
    throw;
  }
}

void read_segment_file(const OpenFile& file, const std::vector<Span>& spans, std::size_t file_bytes,
                       std::uint32_t expected_checksum) {
  require_size(file, file_bytes);
  std::uint32_t sum = 0;
  for_each_chunk(spans, [&](const Span& part) {
    read_all(file, part);
    sum = checksum(part.data, part.bytes, sum);
  });
  require_checksum(file, sum, expected_checksum);
}

void check_segment_file(const OpenFile& file, const std::vector<Span>& spans,
                        std::size_t file_bytes, std::uint32_t expected_checksum) {
  require_size(file, file_bytes);
  std::vector<std::byte> chunk(kChunkBytes);
  std::uint32_t sum = 0;
  for_each_chunk(spans, [&](const Span& part) {
    read_all(file, {chunk.data(), part.bytes, part.offset});
    sum = checksum(chunk.data(), part.bytes, sum);
  });
  require_checksum(file, sum, expected_checksum);
}

}  // namespace replay
