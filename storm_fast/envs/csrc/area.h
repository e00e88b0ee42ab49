// Area interpolation of ALE's screens, exact by integer arithmetic, and only where the screen has changed.
//
// A picture is the channel-wise maximum of two palette screens, shrunk by averaging areas and rounded to
// nearest, ties to even: storm_fast/collect/area.py says the same in NumPy. The average separates: a screen
// row is first shrunk to `columns` integer sums, which are kept, and the rows of the result are weighted sums
// of those. A screen row equal to the one of the step before costs a comparison, and a row of the result none
// of whose screen rows changed costs nothing.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

namespace storm_fast {

// How much of each input lies in each output, in the largest unit that makes every share an integer.
class Shares {
 public:
  Shares(std::size_t inputs, std::size_t outputs)
      : total_(static_cast<int>(inputs / std::gcd(inputs, outputs))) {
    const std::size_t unit = std::gcd(inputs, outputs);
    for (std::size_t output = 0; output < outputs; ++output) {
      const std::size_t begin = output * inputs, end = begin + inputs;  // in 1 / outputs of an input
      first_.push_back(begin / outputs);
      offset_.push_back(weight_.size());
      for (std::size_t input = begin / outputs; input * outputs < end; ++input) {
        const std::size_t from = std::max(begin, input * outputs), to = std::min(end, (input + 1) * outputs);
        weight_.push_back(static_cast<int>((to - from) / unit));
      }
    }
    offset_.push_back(weight_.size());
  }

  // Of each output: its weights' sum, its first input, how many inputs it has, and their weights.
  int total() const { return total_; }
  std::size_t first(std::size_t output) const { return first_[output]; }
  std::size_t count(std::size_t output) const { return offset_[output + 1] - offset_[output]; }
  const int* weights(std::size_t output) const { return weight_.data() + offset_[output]; }

 private:
  int total_;
  std::vector<std::size_t> first_, offset_;
  std::vector<int> weight_;
};

// The colours of a palette, each as lanes of 16 bits, so that one multiplication weights all channels: red,
// green and blue from the lowest lane up, or gray alone. A lane holds weighted sums: up to 255 * 160, on the
// widest screen.
struct Palette {
  std::size_t channels = 3;
  std::uint64_t lanes[256] = {};
};

inline std::uint64_t brighter(std::uint64_t a, std::uint64_t b) {
  std::uint64_t result = 0;
  for (int shift = 0; shift < 48; shift += 16) {
    const std::uint64_t lane = std::uint64_t{0xffff} << shift;
    result |= std::max(a & lane, b & lane);
  }
  return result;
}

class Picture {
 public:
  Picture(std::size_t screen_rows, std::size_t screen_columns, std::size_t rows, std::size_t columns,
          const Palette& palette)
      : screen_rows_(screen_rows),
        screen_columns_(screen_columns),
        rows_(rows),
        values_(columns * palette.channels),
        palette_(palette),
        down_(screen_rows, rows),
        across_(screen_columns, columns),
        newest_(screen_rows * screen_columns),
        other_(newest_.size()),
        narrow_(screen_rows * values_),
        sums_(values_),
        shown_(rows * values_),
        changed_(screen_rows) {}

  std::size_t bytes() const { return shown_.size(); }

  // Shrink the maximum of two screens into `out`, bytes() of it. `before` may be the same screen.
  void draw(const std::uint8_t* before, const std::uint8_t* newest, std::uint8_t* out) {
    for (std::size_t row = 0; row < screen_rows_; ++row) {
      const std::size_t at = row * screen_columns_;
      changed_[row] = !valid_ || std::memcmp(newest + at, newest_.data() + at, screen_columns_) != 0 ||
                      std::memcmp(before + at, other_.data() + at, screen_columns_) != 0;
      if (!changed_[row]) continue;
      // From the first to the last pixel that differs.
      std::size_t first = 0, last = screen_columns_ - 1;
      if (valid_) {
        const auto same = [&](std::size_t x) {
          return newest[at + x] == newest_[at + x] && before[at + x] == other_[at + x];
        };
        while (same(first)) ++first;
        while (same(last)) --last;
      }
      std::memcpy(newest_.data() + at, newest + at, screen_columns_);
      std::memcpy(other_.data() + at, before + at, screen_columns_);
      shrink_row(before + at, newest + at, first, last, narrow_.data() + row * values_);
    }
    valid_ = true;
    for (std::size_t row = 0; row < rows_; ++row) {
      const char* changed = changed_.data() + down_.first(row);
      if (std::find(changed, changed + down_.count(row), 1) != changed + down_.count(row)) average_row(row);
    }
    std::memcpy(out, shown_.data(), shown_.size());
  }

 private:
  using Sum = std::uint16_t;

  // The weighted sums of all columns that hold pixels first ... last.
  void shrink_row(const std::uint8_t* before, const std::uint8_t* newest, std::size_t first, std::size_t last,
                  Sum* narrow) {
    const std::size_t columns = values_ / palette_.channels;
    std::size_t column = first * columns / screen_columns_;
    for (narrow += column * palette_.channels; column < columns && across_.first(column) <= last; ++column) {
      const std::size_t start = across_.first(column), count = across_.count(column);
      const int* weights = across_.weights(column);
      std::uint64_t sum = 0;
      for (std::size_t x = start; x < start + count; ++x, ++weights) {
        std::uint64_t colour = palette_.lanes[newest[x]];
        if (before[x] != newest[x]) colour = brighter(colour, palette_.lanes[before[x]]);
        sum += static_cast<std::uint64_t>(*weights) * colour;
      }
      for (std::size_t channel = 0; channel < palette_.channels; ++channel, sum >>= 16)
        *narrow++ = static_cast<Sum>(sum);
    }
  }

  void average_row(std::size_t row) {
    const Sum* narrow = narrow_.data() + down_.first(row) * values_;
    std::fill(sums_.begin(), sums_.end(), 0);
    for (std::size_t k = 0; k < down_.count(row); ++k, narrow += values_) {
      const int weight = down_.weights(row)[k];
      for (std::size_t i = 0; i < values_; ++i) sums_[i] += weight * narrow[i];
    }
    std::uint8_t* shown = shown_.data() + row * values_;
    const int total = down_.total() * across_.total();
    // Sums stay below 2^24, so both types hold them; a quotient lies at least 1 / (2 total) from a tie, or on
    // it. An odd total has no ties, and for a small one float's error is far below that distance.
    if (total % 2 == 1 && total <= 2048) {
      const float scale = 1.0f / static_cast<float>(total);
      for (std::size_t i = 0; i < values_; ++i)
        shown[i] = static_cast<std::uint8_t>(static_cast<int>(static_cast<float>(sums_[i]) * scale + 0.5f));
    } else {
      // 1.5 * 2^52: adding it rounds to an integer, ties to even.
      constexpr double kToEven = 6755399441055744.0;
      for (std::size_t i = 0; i < values_; ++i)
        shown[i] = static_cast<std::uint8_t>(
            static_cast<int>(sums_[i] / static_cast<double>(total) + kToEven - kToEven));
    }
  }

  std::size_t screen_rows_, screen_columns_, rows_;
  std::size_t values_;  // of one row of the result: columns * channels
  Palette palette_;
  Shares down_, across_;
  std::vector<std::uint8_t> newest_, other_;  // the screens that narrow_ was made from
  std::vector<Sum> narrow_;
  std::vector<int> sums_;
  std::vector<std::uint8_t> shown_;
  std::vector<char> changed_;
  bool valid_ = false;
};

}  // namespace storm_fast
