// CMakeLists.txt compiles this to find out whether the collector can be.
#include <nanobind/nanobind.h>

#include <bit>
#include <filesystem>

static_assert(std::bit_cast<unsigned>(1.0f) != 0);

bool is_there(const char* path) { return std::filesystem::exists(path); }
