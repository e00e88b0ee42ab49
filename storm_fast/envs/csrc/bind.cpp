// The Python module `storm_fast.envs._collector`: arguments are checked here, before any game steps.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#ifndef _WIN32
#include <unistd.h>
#endif

#include <filesystem>
#include <sstream>

#include "ale/common/Log.hpp"
#include "collector.h"

namespace nb = nanobind;

namespace storm_fast {

namespace {

using Bytes = nb::ndarray<nb::numpy, nb::device::cpu>;
using Actions = nb::ndarray<nb::ro, nb::numpy, nb::device::cpu>;

template <typename Array>
std::string shape_of(const Array& array) {
  std::ostringstream text;
  text << '[';
  for (std::size_t axis = 0; axis < array.ndim(); ++axis) text << (axis ? ", " : "") << array.shape(axis);
  text << ']';
  return text.str();
}

[[noreturn]] void reject(const std::string& wanted, const std::string& got) {
  throw nb::value_error(("want " + wanted + "; got " + got).c_str());
}

// Python's face of a Collector: it owns a step's results, and keeps the caller's buffers alive until they are
// written.
class Bound {
 public:
  Bound(const std::string& rom, int num_envs, int num_threads, float sticky, bool full_action_space,
        int frame_skip, int frame_cap, int noops, int rows, int columns, bool gray, bool stock)
      : rows_(rows), columns_(columns), channels_(gray ? 1 : 3), owner_(process()) {
    if (num_envs < 1) reject("num_envs of at least 1", std::to_string(num_envs));
    if (num_threads < 1) reject("num_threads of at least 1", std::to_string(num_threads));
    if (!(sticky >= 0 && sticky < 1)) reject("sticky in [0, 1)", std::to_string(sticky));
    if (frame_skip < 1) reject("frame_skip of at least 1", std::to_string(frame_skip));
    if (frame_cap < frame_skip) reject("frame_cap of at least frame_skip", std::to_string(frame_cap));
    if (noops < 0) reject("noops of at least 0", std::to_string(noops));
    if (!std::filesystem::is_regular_file(rom)) reject("the path of a ROM", rom);
    // ALE ends the process where it meets a file that it does not know.
    if (!ale::ALEInterface::isSupportedROM(rom)) reject("a ROM that ALE knows", rom);
    const Settings settings{rom,   sticky, full_action_space, frame_skip, frame_cap,
                            noops, rows,   columns,           gray,       stock};
    nb::gil_scoped_release release;
    collector_ = std::make_unique<Collector>(settings, static_cast<std::size_t>(num_envs),
                                             static_cast<std::size_t>(num_threads));
  }

  ~Bound() {
    // A child made by fork has no workers to join: the memory is left to the end of the process.
    if (process() != owner_) {
      (void)collector_.release();
      return;
    }
    nb::gil_scoped_release release;
    collector_.reset();
  }

  int num_actions() { return collector_->num_actions(); }
  float sticky() { return collector_->sticky(); }

  void reset(const std::vector<std::int64_t>& seeds, const Bytes& observations) {
    const Guard guard(*this);
    if (seeds.size() != collector_->num_envs())
      reject(std::to_string(collector_->num_envs()) + " seeds", std::to_string(seeds.size()));
    std::vector<std::int32_t> words;
    for (const std::int64_t seed : seeds)
      words.push_back(static_cast<std::int32_t>(static_cast<std::uint32_t>(seed)));
    const Frames frames = frames_of(observations, "observations");
    finish();
    nb::gil_scoped_release release;
    collector_->reset(words.data(), frames);
    started_ = true;
  }

  void send(const Actions& actions, const Bytes& observations, const Bytes& terminals) {
    const Guard guard(*this);
    if (!started_) throw std::runtime_error("want reset() before send(); got send() first");
    if (collector_->busy()) throw nb::value_error("want recv() after send(); got a second send()");
    const std::vector<std::int64_t> checked = actions_of(actions);
    const Frames shown = frames_of(observations, "observations"), last = frames_of(terminals, "terminals");
    if (overlap(shown, last)) reject("observations and terminals apart", "overlapping memory");
    kept_ = {nb::cast(observations), nb::cast(terminals)};
    nb::gil_scoped_release release;
    collector_->send(checked.data(), shown, last);
  }

  nb::tuple recv() {
    const Guard guard(*this);
    if (!collector_->busy()) throw nb::value_error("want send() before recv(); got recv() alone");
    finish();
    const std::vector<Outcome>& outcomes = outcomes_;
    return nb::make_tuple(
        column<float>(outcomes, &Outcome::reward), column<bool>(outcomes, &Outcome::terminated),
        column<bool>(outcomes, &Outcome::truncated), column<bool>(outcomes, &Outcome::life_lost),
        column<double>(outcomes, &Outcome::episode_return),
        column<std::int64_t>(outcomes, &Outcome::episode_length));
  }

  void emulate(const std::vector<std::int64_t>& actions, int steps) {
    const Guard guard(*this);
    idle();
    const std::size_t wanted = collector_->num_envs() * static_cast<std::size_t>(steps);
    if (steps < 1 || actions.size() != wanted)
      reject(std::to_string(wanted) + " actions", std::to_string(actions.size()));
    for (const std::int64_t action : actions) check(action);
    started_ = false;
    nb::gil_scoped_release release;
    collector_->emulate(actions.data(), static_cast<std::size_t>(steps));
  }

  nb::list save() {
    const Guard guard(*this);
    idle();
    if (!started_) throw std::runtime_error("want reset() before save(); got save() first");
    nb::list result;
    for (std::size_t i = 0; i < collector_->num_envs(); ++i) {
      const std::string saved = collector_->save(i);
      result.append(nb::bytes(saved.data(), saved.size()));
    }
    return result;
  }

  void restore(const std::vector<nb::bytes>& saved) {
    const Guard guard(*this);
    if (saved.size() != collector_->num_envs())
      reject("the state of " + std::to_string(collector_->num_envs()) + " environments",
             std::to_string(saved.size()));
    finish();
    std::vector<std::string> states;
    for (const nb::bytes& bytes : saved) states.emplace_back(bytes.c_str(), bytes.size());
    nb::gil_scoped_release release;
    collector_->restore(states);
    started_ = true;
  }

 private:
  static long process() {
#ifdef _WIN32
    return 0;
#else
    return static_cast<long>(getpid());
#endif
  }

  // Held by a method for its whole length: with the GIL released, another Python thread might come in.
  class Guard {
   public:
    explicit Guard(Bound& bound) : inside_(bound.inside_) {
      if (bound.process() != bound.owner_)
        throw std::runtime_error(
            "want a collector of this process; got one made before fork(), whose threads are not here");
      if (inside_) throw std::runtime_error("want one Python thread at a time; another is in this collector");
      inside_ = true;
    }
    ~Guard() { inside_ = false; }
    Guard(const Guard&) = delete;

   private:
    bool& inside_;
  };

  void idle() const {
    if (collector_->busy()) throw nb::value_error("want recv() after send(); a step is under way");
  }

  // Wait for a step under way, if there is one, and let the caller's buffers go.
  void finish() {
    if (!collector_->busy()) return;
    struct Release {
      std::vector<nb::object>& kept;
      ~Release() { kept.clear(); }
    } let_go{kept_};
    nb::gil_scoped_release release;
    outcomes_ = collector_->recv();
  }

  void check(std::int64_t action) const {
    if (action < 0 || action >= collector_->num_actions())
      reject("actions in [0, " + std::to_string(collector_->num_actions()) + ")", std::to_string(action));
  }

  std::vector<std::int64_t> actions_of(const Actions& array) const {
    const nb::dlpack::dtype type = array.dtype();
    const bool integer = type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Int);
    if (array.ndim() != 1 || array.shape(0) != collector_->num_envs() || !integer ||
        (type.bits != 32 && type.bits != 64))
      reject(std::to_string(collector_->num_envs()) + " actions, int32 or int64", "shape " + shape_of(array));
    std::vector<std::int64_t> result;
    for (std::size_t i = 0; i < collector_->num_envs(); ++i) {
      const std::int64_t at = static_cast<std::int64_t>(i) * array.stride(0);
      const std::int64_t action = type.bits == 64 ? static_cast<const std::int64_t*>(array.data())[at]
                                                  : static_cast<const std::int32_t*>(array.data())[at];
      check(action);
      result.push_back(action);
    }
    return result;
  }

  Frames frames_of(const Bytes& array, const char* name) const {
    const std::int64_t num_envs = static_cast<std::int64_t>(collector_->num_envs());
    const std::int64_t shape[4] = {num_envs, rows_, columns_, channels_};
    const bool bytes = array.dtype() == nb::dtype<std::uint8_t>();
    bool fits = bytes && array.ndim() == 4;
    for (std::size_t axis = 0; fits && axis < 4; ++axis)
      fits = static_cast<std::int64_t>(array.shape(axis)) == shape[axis];
    std::ostringstream wanted;
    wanted << name << " uint8 [" << shape[0] << ", " << shape[1] << ", " << shape[2] << ", " << shape[3]
           << ']';
    if (!fits) reject(wanted.str(), (bytes ? "uint8 " : "another dtype, ") + shape_of(array));
    const std::int64_t frame = rows_ * columns_ * channels_;
    std::int64_t dense = 1;
    for (std::size_t axis = 3; axis > 0; --axis) {
      if (shape[axis] > 1 && array.stride(axis) != dense)
        reject(wanted.str() + " with contiguous frames", "other strides");
      dense *= shape[axis];
    }
    if (shape[0] > 1 && array.stride(0) < frame)
      reject(wanted.str() + " with frames apart", "frames that overlap");
    return {static_cast<std::uint8_t*>(array.data()), array.stride(0)};
  }

  bool overlap(const Frames& a, const Frames& b) const {
    const std::int64_t frame = rows_ * columns_ * channels_;
    const std::int64_t last = static_cast<std::int64_t>(collector_->num_envs()) - 1;
    return a.data < b.data + last * b.stride + frame && b.data < a.data + last * a.stride + frame;
  }

  template <typename T, typename Field>
  static nb::object column(const std::vector<Outcome>& outcomes, Field field) {
    T* values = new T[outcomes.size()];
    nb::capsule owner(values, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    for (std::size_t i = 0; i < outcomes.size(); ++i) values[i] = outcomes[i].*field;
    return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<1>>(values, {outcomes.size()}, owner));
  }

  int rows_, columns_, channels_;
  long owner_;  // the process whose threads these are
  bool started_ = false;
  bool inside_ = false;  // read and written under the GIL
  std::unique_ptr<Collector> collector_;
  std::vector<nb::object> kept_;
  std::vector<Outcome> outcomes_;
};

// A Picture by itself, for tests: palette screens in, an observation out.
class BoundPicture {
 public:
  BoundPicture(int screen_rows, int screen_columns, int rows, int columns,
               const std::vector<std::uint64_t>& colours) {
    if (colours.size() != 256 || rows < 1 || rows > screen_rows || columns < 1 || columns > screen_columns ||
        screen_columns > 160)
      throw nb::value_error("want 256 colours and a result no larger than the screen");
    Palette palette;
    std::copy(colours.begin(), colours.end(), palette.lanes);
    rows_ = static_cast<std::size_t>(rows);
    columns_ = static_cast<std::size_t>(columns);
    pixels_ = static_cast<std::size_t>(screen_rows) * static_cast<std::size_t>(screen_columns);
    picture_ = std::make_unique<Picture>(static_cast<std::size_t>(screen_rows),
                                         static_cast<std::size_t>(screen_columns), rows_, columns_, palette);
  }

  nb::object draw(const nb::bytes& before, const nb::bytes& newest) {
    if (before.size() != pixels_ || newest.size() != pixels_)
      reject(std::to_string(pixels_) + " pixels", "others");
    std::uint8_t* values = new std::uint8_t[picture_->bytes()];
    nb::capsule owner(values, [](void* p) noexcept { delete[] static_cast<std::uint8_t*>(p); });
    picture_->draw(reinterpret_cast<const std::uint8_t*>(before.c_str()),
                   reinterpret_cast<const std::uint8_t*>(newest.c_str()), values);
    return nb::cast(nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<3>>(values, {rows_, columns_, 3}, owner));
  }

 private:
  std::size_t rows_, columns_, pixels_;
  std::unique_ptr<Picture> picture_;
};

}  // namespace

}  // namespace storm_fast

NB_MODULE(_collector, module) {
  using storm_fast::Bound;
  using storm_fast::BoundPicture;
  ale::Logger::setMode(ale::Logger::mode::Error);
  module.attr("ale_version") = ALE_VERSION;
  nb::class_<BoundPicture>(module, "Picture")
      .def(nb::init<int, int, int, int, const std::vector<std::uint64_t>&>(), nb::arg("screen_rows"),
           nb::arg("screen_columns"), nb::arg("rows"), nb::arg("columns"), nb::arg("colours"))
      .def("draw", &BoundPicture::draw, nb::arg("before"), nb::arg("newest"));
  nb::class_<Bound>(module, "Collector")
      .def(nb::init<const std::string&, int, int, float, bool, int, int, int, int, int, bool, bool>(),
           nb::kw_only(), nb::arg("rom"), nb::arg("num_envs"), nb::arg("num_threads"), nb::arg("sticky"),
           nb::arg("full_action_space"), nb::arg("frame_skip"), nb::arg("frame_cap"), nb::arg("noops") = 0,
           nb::arg("rows"), nb::arg("columns"), nb::arg("gray"), nb::arg("stock") = false)
      .def_prop_ro("num_actions", &Bound::num_actions)
      .def_prop_ro("sticky", &Bound::sticky)
      .def("reset", &Bound::reset, nb::arg("seeds"), nb::arg("observations").noconvert())
      .def("send", &Bound::send, nb::arg("actions").noconvert(), nb::arg("observations").noconvert(),
           nb::arg("terminals").noconvert())
      .def("recv", &Bound::recv)
      .def("emulate", &Bound::emulate, nb::arg("actions"), nb::arg("steps"))
      .def("save", &Bound::save)
      .def("restore", &Bound::restore, nb::arg("saved"));
}
