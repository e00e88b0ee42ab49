// One Atari game: ALE's core behind the environment of the paper (STORM sec. 4.1, Table 10).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "ale/ale_interface.hpp"
#include "area.h"

namespace storm_fast {

struct Settings {
  std::string rom;  // path of the game's ROM
  float sticky = 0.25f;
  bool full_action_space = false;
  int frame_skip = 4;
  int frame_cap = 108000;
  int noops = 0;  // frames without an action that may begin an episode, at most
  int rows = 64;
  int columns = 64;
  bool gray = false;
  bool stock = false;  // ALE's own emulator, the slow twin of ours
};

struct Outcome {
  float reward = 0;
  bool terminated = false;
  bool truncated = false;
  bool life_lost = false;
  double episode_return = 0;
  std::int64_t episode_length = 0;
};

class Game {
 public:
  // Throws std::runtime_error where the ROM cannot be read, and std::invalid_argument for a size beyond the
  // screen's, or where ALE rounds `sticky` to 1.
  explicit Game(const Settings& settings);

  int num_actions() const { return static_cast<int>(actions_.size()); }
  // The probability that ALE holds: six digits of the one asked for.
  float sticky() const { return settings_.sticky; }

  // Load the ROM anew with ALE's own random seed and begin an episode; its first frame goes to `observation`.
  // Throws std::runtime_error where the ROM cannot be read any more; the game is then as it was.
  void seed(std::int32_t seed, std::uint8_t* observation);

  // Repeat an action for `frame_skip` frames. Where the episode ends, its last frame goes to `terminal` and
  // the first of the next to `observation`; `outcome` is of the one that ended.
  Outcome step(std::size_t action, std::uint8_t* observation, std::uint8_t* terminal);

  // A step's frames of the emulator alone, without a picture: the floor that a step is compared with. Lives,
  // return and length are not followed.
  void emulate(std::size_t action);

  // All that `restore` needs to go on as if nothing had happened, with its random numbers.
  std::string save();
  // Throws std::invalid_argument for bytes that `save` of the same ROM did not give.
  void check(const std::string& saved) const;
  void restore(const std::string& checked);

 private:
  void load(std::int32_t seed);
  void start(std::uint8_t* observation);
  void draw(const std::uint8_t* before, std::uint8_t* observation);
  ale::reward_t act(ale::Action action);
  // How many frames without an action begin this episode: a hash of seed and episode, as the slow twin's.
  int noops_of_episode() const;
  // Take over ALE's random numbers.
  void follow();
  // The MD5 of the ROM.
  std::string rom() const;

  Settings settings_;
  std::unique_ptr<ale::ALEInterface> ale_;
  ale::ActionVect actions_;
  std::unique_ptr<Picture> picture_;
  std::vector<std::uint8_t> before_;  // the screen of the frame before

  // ALE's saved state lacks the action that a sticky frame repeats. It is known here all the same, by drawing
  // the random numbers that ALE draws.
  std::mt19937 random_;
  ale::Action last_ = ale::PLAYER_A_NOOP;
  int lives_ = 0;
  double return_ = 0;
  std::int64_t length_ = 0;
  std::uint32_t seed_ = 0;
  std::uint32_t episode_ = 0;
};

}  // namespace storm_fast
