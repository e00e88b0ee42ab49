// What ALE's core asks of zlib, without zlib: it opens ROMs through gzopen, and they are not compressed; the
// PNG export, which nothing here calls, fails.
#pragma once

#include <cstdio>

using gzFile = std::FILE*;
using uLongf = unsigned long;
using uLong = unsigned long;
using uInt = unsigned int;
using Bytef = unsigned char;
constexpr int Z_OK = 0;

inline gzFile gzopen(const char* path, const char* mode) { return std::fopen(path, mode); }
inline int gzread(gzFile file, void* into, unsigned bytes) {
  return static_cast<int>(std::fread(into, 1, bytes, file));
}
inline int gzclose(gzFile file) { return std::fclose(file); }
inline int compress(Bytef*, uLongf*, const Bytef*, uLong) { return -1; }
inline uLong crc32(uLong, const Bytef*, uInt) { return 0; }
