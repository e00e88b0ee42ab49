"""The instrument behind the benchmarks: clock, rounds, roof, machine, and the reports made of what they measured."""
