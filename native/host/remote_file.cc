#include "host/remote_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <system_error>
#include <utility>

namespace ldd {

namespace {

[[noreturn]] void fail(int error_number, const std::string& what) {
  throw std::system_error(error_number, std::generic_category(), what);
}

std::string proc_path(int pid, const char* name) {
  return "/proc/" + std::to_string(pid) + "/" + name;
}

// One line of /proc/<pid>/maps; all zero when it cannot be read.
struct MapsLine {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint64_t offset = 0;
  dev_t device = 0;
  std::uint64_t inode = 0;
  bool shared = false;
  bool writable = false;
};

MapsLine parse(const std::string& text) {
  MapsLine line;
  std::string permissions;
  char separator = 0;
  unsigned major_number = 0;
  unsigned minor_number = 0;
  std::istringstream in(text);
  in >> std::hex >> line.begin >> separator >> line.end >> permissions >> line.offset >>
      major_number >> separator >> minor_number >> std::dec >> line.inode;
  if (!in || permissions.size() < 4) {
    return {};
  }
  line.device = makedev(major_number, minor_number);
  line.writable = permissions[1] == 'w';
  line.shared = permissions[3] == 's';
  return line;
}

}  // namespace

RemoteFile map_remote_file(int pid, int remote_fd, std::uint64_t size_bytes) {
  const std::string path = proc_path(pid, "fd/") + std::to_string(remote_fd);
  // The peer may name any descriptor: opening a pipe or a terminal must not block.
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd.valid()) {
    fail(errno, "cannot open " + path);
  }
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    fail(EINVAL, path + " is no sealed memory file");
  }
  struct statfs system{};
  struct stat status{};
  if (::fstatfs(fd.get(), &system) != 0 || ::fstat(fd.get(), &status) != 0) {
    fail(errno, "cannot stat " + path);
  }
  if (system.f_type != TMPFS_MAGIC) {  // reading an absent large page may fault
    fail(EINVAL, path + " is no memory file of ordinary pages");
  }
  if (size_bytes == 0 || static_cast<std::uint64_t>(status.st_size) < size_bytes) {
    fail(EINVAL, path + " is smaller than announced");
  }
  MappedRegion mapping = MappedRegion::of_file(fd.get(), size_bytes, false);
  return {std::move(fd), std::move(mapping)};
}

bool maps_file_at(int pid, int fd, std::uint64_t address, std::uint64_t size_bytes, bool writable) {
  if (size_bytes > std::numeric_limits<std::uint64_t>::max() - address) {
    return false;
  }
  struct stat status{};
  if (::fstat(fd, &status) != 0) {
    fail(errno, "fstat");
  }
  const std::string path = proc_path(pid, "maps");
  std::ifstream maps(path);
  if (!maps) {
    fail(EACCES, "cannot read " + path);
  }
  std::uint64_t covered = address;  // one mapping may take several consecutive lines
  for (std::string line; covered < address + size_bytes && std::getline(maps, line);) {
    const MapsLine mapped = parse(line);
    if (mapped.end <= covered) {
      continue;
    }
    const bool same_file = mapped.inode == status.st_ino && mapped.device == status.st_dev;
    const bool as_asked = mapped.shared && (mapped.writable || !writable);
    if (mapped.begin > covered || !same_file || !as_asked ||
        mapped.offset + (covered - mapped.begin) != covered - address) {
      return false;
    }
    covered = mapped.end;
  }
  return covered >= address + size_bytes;
}

}  // namespace ldd
