// Runs a fuzz target on every file of the given directories: what was found stays found, without a
// compiler that can fuzz. Each input is then damaged in some ways, the same in every run.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

#include "arena.h"

namespace {

using Input = std::vector<char>;

constexpr int kDamaged = 20;  // of each input

void run(const Input& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
}

void run_damaged(Input input, std::mt19937_64& random) {
  for (std::uint64_t changes = 1 + random() % 4; changes > 0 && !input.empty(); --changes) {
    const auto at = static_cast<std::ptrdiff_t>(random() % input.size());
    switch (random() % 4) {
      case 0:
        input[static_cast<std::size_t>(at)] = static_cast<char>(random());
        break;
      case 1:
        input.erase(input.begin() + at);
        break;
      case 2:
        input.insert(input.begin() + at, static_cast<char>(random()));
        break;
      default:
        input.resize(static_cast<std::size_t>(at));
    }
  }
  run(input);
}

}  // namespace

int main(int argc, char** argv) {
  std::mt19937_64 random(1);
  std::size_t files = 0;
  for (int i = 1; i < argc; ++i) {
    const std::filesystem::directory_iterator all(argv[i]);
    std::vector<std::filesystem::path> paths(begin(all), end(all));
    std::sort(paths.begin(), paths.end());
    for (const auto& path : paths) {
      std::ifstream file(path, std::ios::binary);
      const Input input(std::istreambuf_iterator<char>(file), {});
      std::printf("%s\n", path.c_str());
      std::fflush(stdout);
      run(input);
      for (int round = 0; round < kDamaged; ++round) {
        run_damaged(input, random);
      }
      ++files;
    }
  }
  CHECK(files > 0);
  std::printf("%zu files\n", files);
  return 0;
}
