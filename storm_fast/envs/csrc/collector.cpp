#include "collector.h"

#ifndef _WIN32
#include <pthread.h>
#include <signal.h>
#endif

#include <algorithm>
#include <utility>

namespace storm_fast {

namespace {

constexpr int kSpins = 200;  // polls, some microseconds, before a thread goes to sleep

// Threads begun while this lives take no signals: those are for Python's own threads.
class NoSignals {
#ifndef _WIN32
 public:
  NoSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~NoSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  NoSignals(const NoSignals&) = delete;

 private:
  sigset_t before_;
#endif
};

std::uint64_t packed(std::uint32_t job) { return static_cast<std::uint64_t>(job) << 32; }

}  // namespace

Pool::Pool(std::size_t threads) {
  [[maybe_unused]] const NoSignals no_signals;
  try {
    for (std::size_t i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
  } catch (...) {  // the system gives no more threads: those begun end first
    stop();
    throw;
  }
}

Pool::~Pool() {
  if (busy_) {
    try {
      finish();
    } catch (...) {  // nobody is left to be told
    }
  }
  stop();
}

void Pool::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  begun_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::start(std::size_t count, std::function<void(std::size_t)> task) {
  {
    const std::lock_guard lock(mutex_);
    task_ = std::move(task);
    count_ = count;
    error_ = nullptr;
    left_.store(count, std::memory_order_relaxed);
    const std::uint32_t job = job_.load(std::memory_order_relaxed) + 1;
    next_.store(packed(job), std::memory_order_release);
    job_.store(job, std::memory_order_release);
  }
  busy_ = true;
  if (!workers_.empty() && count > 0) begun_.notify_all();
}

void Pool::finish() {
  work(job_.load(std::memory_order_relaxed), count_);
  for (int spin = 0; spin < kSpins && left_.load(std::memory_order_acquire) > 0; ++spin)
    std::this_thread::yield();
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return left_.load(std::memory_order_acquire) == 0; });
  busy_ = false;
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Pool::work(std::uint32_t job, std::size_t count) {
  for (;;) {
    std::uint64_t next = next_.load(std::memory_order_acquire);
    const std::size_t i = next & 0xffffffffu;
    if (next >> 32 != job || i >= count) return;
    // Once a share is taken the job cannot end before it is done, so task_ is this job's.
    if (!next_.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel)) continue;
    try {
      task_(i);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      const std::lock_guard lock(mutex_);
      done_.notify_all();
    }
  }
}

void Pool::serve() {
  std::uint32_t seen = 0;
  for (;;) {
    std::size_t count = 0;
    for (int spin = 0; spin < kSpins && job_.load(std::memory_order_acquire) == seen; ++spin)
      std::this_thread::yield();
    {
      std::unique_lock lock(mutex_);
      begun_.wait(lock, [&] { return stopping_ || job_.load(std::memory_order_acquire) != seen; });
      if (stopping_) return;
      seen = job_.load(std::memory_order_acquire);
      count = count_;
    }
    work(seen, count);
  }
}

Collector::Collector(const Settings& settings, std::size_t num_envs, std::size_t num_threads)
    : games_(num_envs), actions_(num_envs), outcomes_(num_envs), pool_(std::min(num_threads, num_envs)) {
  // Starting a console takes milliseconds.
  pool_.start(num_envs, [&](std::size_t i) { games_[i] = std::make_unique<Game>(settings); });
  pool_.finish();
}

void Collector::reset(const std::int32_t* seeds, Frames observations) {
  pool_.start(num_envs(), [&](std::size_t i) { games_[i]->seed(seeds[i], observations.row(i)); });
  pool_.finish();
}

void Collector::send(const std::int64_t* actions, Frames observations, Frames terminals) {
  std::copy(actions, actions + num_envs(), actions_.begin());
  pool_.start(num_envs(), [this, observations, terminals](std::size_t i) {
    outcomes_[i] =
        games_[i]->step(static_cast<std::size_t>(actions_[i]), observations.row(i), terminals.row(i));
  });
}

const std::vector<Outcome>& Collector::recv() {
  pool_.finish();
  return outcomes_;
}

void Collector::restore(const std::vector<std::string>& saved) {
  for (std::size_t i = 0; i < num_envs(); ++i) games_[i]->check(saved.at(i));
  pool_.start(num_envs(), [&](std::size_t i) { games_[i]->restore(saved[i]); });
  pool_.finish();
}

void Collector::emulate(const std::int64_t* actions, std::size_t steps) {
  pool_.start(num_envs(), [&](std::size_t i) {
    for (std::size_t step = 0; step < steps; ++step)
      games_[i]->emulate(static_cast<std::size_t>(actions[i * steps + step]));
  });
  pool_.finish();
}

}  // namespace storm_fast
