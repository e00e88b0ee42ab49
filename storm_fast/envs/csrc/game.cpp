#include "game.h"

#include <bit>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "ale/emucore/System.hxx"
#include "ale/processor.h"

namespace storm_fast {

namespace {

constexpr char kFormat[] = "storm_fast-game-1";
// Some games keep hidden state that ALE neither saves nor resets (Qbert); some frames bring it to where it
// always is.
constexpr int kSettlingFrames = 40;

std::uint64_t fnv1a(const std::string& bytes) {
  std::uint64_t hash = 14695981039346656037ull;
  for (const char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 1099511628211ull;
  return hash;
}

Palette palette(ale::stella::OSystem& system, bool gray) {
  Palette result;
  result.channels = gray ? 1 : 3;
  // Screens hold odd values too: ALE grays out what is left of a frame, and a PAL game may lose its colours.
  // As ALE's getScreenRGB and getScreenGrayscale read its palette, each entry by itself and the one behind
  // it.
  for (int value = 0; value < 256; ++value) {
    std::uint64_t& lanes = result.lanes[value];
    if (gray) {
      lanes =
          value < 255 ? system.colourPalette().getRGB(value + 1) & 0xff : 0;  // beyond the last ALE has none
    } else {
      const std::uint64_t rgb = system.colourPalette().getRGB(value);
      lanes = (rgb >> 16 & 0xff) | (rgb >> 8 & 0xff) << 16 | (rgb & 0xff) << 32;
    }
  }
  return result;
}

}  // namespace

Game::Game(const Settings& settings) : settings_(settings), ale_(std::make_unique<ale::ALEInterface>()) {
  ale_->setFloat("repeat_action_probability", settings.sticky);
  settings_.sticky = ale_->getFloat("repeat_action_probability");
  if (settings_.sticky >= 1) throw std::invalid_argument("want sticky in [0, 1) when rounded to six digits");
  ale_->setInt("max_num_frames_per_episode", settings.frame_cap);
  load(0);
  actions_ = settings.full_action_space ? ale_->getLegalActionSet() : ale_->getMinimalActionSet();
  const ale::ALEScreen& screen = ale_->getScreen();
  const int height = static_cast<int>(screen.height()), width = static_cast<int>(screen.width());
  if (settings.rows < 1 || settings.rows > height || settings.columns < 1 || settings.columns > width)
    throw std::invalid_argument("want an observation of at most " + std::to_string(height) + " x " +
                                std::to_string(width) + ", the screen's size; got " +
                                std::to_string(settings.rows) + " x " + std::to_string(settings.columns));
  before_.resize(screen.arraySize());
  const auto rows = static_cast<std::size_t>(settings.rows),
             columns = static_cast<std::size_t>(settings.columns);
  picture_ = std::make_unique<Picture>(screen.height(), screen.width(), rows, columns,
                                       palette(*ale_->theOSystem, settings.gray));
}

void Game::load(std::int32_t seed) {
  // ALE ends the process where there is no file.
  if (!std::ifstream(settings_.rom)) throw std::runtime_error("want a readable ROM; got " + settings_.rom);
  ale_->setInt("random_seed", seed);
  ale_->loadROM(settings_.rom);
  if (!settings_.stock) Processor::take_over(ale_->theOSystem->console().system());
}

void Game::seed(std::int32_t seed, std::uint8_t* observation) {
  load(seed);
  seed_ = static_cast<std::uint32_t>(seed);
  episode_ = 0;
  start(observation);
}

void Game::start(std::uint8_t* observation) {
  ale_->reset_game();
  follow();  // some games draw while they are reset (DoubleDunk, Berzerk)
  last_ = ale::PLAYER_A_NOOP;
  const int noops = noops_of_episode();
  ++episode_;
  for (int frame = 0; frame < noops; ++frame) {
    act(ale::PLAYER_A_NOOP);
    if (ale_->game_over(true)) {
      ale_->reset_game();
      follow();
      last_ = ale::PLAYER_A_NOOP;
      break;
    }
  }
  lives_ = ale_->lives();
  return_ = 0;
  length_ = 0;
  draw(ale_->getScreen().getArray(), observation);
}

void Game::draw(const std::uint8_t* before, std::uint8_t* observation) {
  picture_->draw(before, ale_->getScreen().getArray(), observation);
}

ale::reward_t Game::act(ale::Action action) {
  // Two draws a frame, as ALE's: the second is of the other player's action.
  const double draw = static_cast<double>(random_()) / 4294967296.0;
  random_();
  if (draw >= settings_.sticky) last_ = action;
  return ale_->act(action);
}

int Game::noops_of_episode() const {
  std::uint64_t x = (static_cast<std::uint64_t>(seed_) << 32 | episode_) + 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  x ^= x >> 31;
  return static_cast<int>(x % (static_cast<std::uint64_t>(settings_.noops) + 1));
}

void Game::follow() {
  ale::stella::Serializer saved;
  ale_->environment->getEnvironmentRNG().saveState(saved);
  ale::stella::Deserializer reader(saved.get_str());
  std::istringstream text(reader.getString());
  text >> random_;
}

Outcome Game::step(std::size_t action, std::uint8_t* observation, std::uint8_t* terminal) {
  Outcome outcome;
  int frames = 0, reward = 0;
  while (frames < settings_.frame_skip && !outcome.terminated && !outcome.truncated) {
    if (frames > 0) std::memcpy(before_.data(), ale_->getScreen().getArray(), before_.size());
    reward += act(actions_[action]);
    ++frames;
    outcome.terminated = ale_->game_over(false);
    outcome.truncated = ale_->game_truncated();
  }
  const int lives = ale_->lives();
  outcome.reward = static_cast<float>(reward);
  outcome.life_lost = lives < lives_;
  outcome.episode_return = return_ += outcome.reward;
  outcome.episode_length = ++length_;
  lives_ = lives;
  const bool ended = outcome.terminated || outcome.truncated;
  draw(frames > 1 ? before_.data() : ale_->getScreen().getArray(), ended ? terminal : observation);
  if (ended) start(observation);
  return outcome;
}

void Game::emulate(std::size_t action) {
  for (int frame = 0; frame < settings_.frame_skip; ++frame) act(actions_[action]);
  if (ale_->game_over(true)) ale_->reset_game();
}

std::string Game::save() {
  std::ostringstream body;
  body << random_ << ' ' << static_cast<int>(last_) << ' ' << lives_ << ' '
       << std::bit_cast<std::uint64_t>(return_) << ' ' << length_ << ' ' << seed_ << ' ' << episode_ << '\n'
       << ale_->cloneState(true).serialize();
  std::ostringstream whole;
  whole << kFormat << ' ' << rom() << ' ' << fnv1a(body.str()) << '\n' << body.str();
  return whole.str();
}

void Game::check(const std::string& saved) const {
  const std::size_t end = saved.find('\n');
  std::istringstream head(saved.substr(0, end));
  std::string format, rom_saved;
  std::uint64_t hash = 0;
  head >> format >> rom_saved >> hash;
  const std::string body = end == std::string::npos ? "" : saved.substr(end + 1);
  if (!head || format != kFormat || hash != fnv1a(body))
    throw std::invalid_argument("want a game's saved state; these bytes are none, or are damaged");
  if (rom_saved != rom())
    throw std::invalid_argument("want the saved state of this game; got that of another ROM");
}

void Game::restore(const std::string& checked) {
  const std::size_t begin = checked.find('\n') + 1, line = checked.find('\n', begin);
  std::istringstream values(checked.substr(begin, line - begin));
  int last = 0;
  std::uint64_t bits = 0;
  values >> random_ >> last >> lives_ >> bits >> length_;
  // Earlier versions ended here, and began no episode with no-ops.
  if (!(values >> seed_ >> episode_)) seed_ = episode_ = 0;
  return_ = std::bit_cast<double>(bits);
  const std::mt19937 random = random_;
  ale_->reset_game();
  follow();
  last_ = ale::PLAYER_B_NOOP;  // until a frame takes the action that is to stick
  for (int frame = 0; frame < kSettlingFrames || last_ != last; ++frame) act(static_cast<ale::Action>(last));
  random_ = random;
  ale_->restoreState(ale::ALEState(checked.substr(line + 1)));
}

std::string Game::rom() const {
  return ale_->theOSystem->console().properties().get(ale::stella::Cartridge_MD5);
}

}  // namespace storm_fast
