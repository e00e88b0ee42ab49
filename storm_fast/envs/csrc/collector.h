// N games stepped by a few threads, the calling one among them. No Python here.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "game.h"

namespace storm_fast {

// Runs task(0) ... task(count - 1), in any order, on threads - 1 workers and whoever waits.
class Pool {
 public:
  explicit Pool(std::size_t threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Let the workers begin and return. The task must live until `finish`.
  void start(std::size_t count, std::function<void(std::size_t)> task);
  // Help until all is done; rethrows the first exception of a task.
  void finish();
  bool busy() const { return busy_; }

 private:
  void work(std::uint32_t job, std::size_t count);
  void serve();
  void stop();

  std::function<void(std::size_t)> task_;
  std::size_t count_ = 0;
  bool busy_ = false;  // between start and finish; the caller's thread alone reads it

  // The next share to take; its upper half is the job's number, so that a late worker takes nothing of
  // another job.
  std::atomic<std::uint64_t> next_{0};
  std::atomic<std::size_t> left_{0};
  std::atomic<std::uint32_t> job_{0};
  std::mutex mutex_;
  std::condition_variable begun_, done_;
  std::exception_ptr error_;
  bool stopping_ = false;
  std::vector<std::thread> workers_;
};

// Where a step is written: one row per game, `stride` bytes apart.
struct Frames {
  std::uint8_t* data = nullptr;
  std::int64_t stride = 0;
  std::uint8_t* row(std::size_t i) const { return data + static_cast<std::int64_t>(i) * stride; }
};

class Collector {
 public:
  Collector(const Settings& settings, std::size_t num_envs, std::size_t num_threads);

  std::size_t num_envs() const { return games_.size(); }
  int num_actions() const { return games_[0]->num_actions(); }
  float sticky() const { return games_[0]->sticky(); }
  bool busy() const { return pool_.busy(); }

  void reset(const std::int32_t* seeds, Frames observations);
  // `actions` are copied and must be in range.
  void send(const std::int64_t* actions, Frames observations, Frames terminals);
  const std::vector<Outcome>& recv();
  // No step may be under way, and no step or save may follow before a reset or restore.
  void emulate(const std::int64_t* actions, std::size_t steps);

  std::string save(std::size_t i) { return games_.at(i)->save(); }
  // Throws std::invalid_argument, before any game changes, unless there is a saved state of each.
  void restore(const std::vector<std::string>& saved);

 private:
  std::vector<std::unique_ptr<Game>> games_;
  std::vector<std::int64_t> actions_;
  std::vector<Outcome> outcomes_;
  Pool pool_;  // last: its threads end before what they use
};

}  // namespace storm_fast
