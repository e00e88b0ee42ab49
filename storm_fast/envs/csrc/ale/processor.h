// ALE's processor, faster and the same in every bit. ALE's own is the slow twin.
#pragma once

#include "ale/emucore/M6502Low.hxx"

namespace storm_fast {

class Processor final : public ale::stella::M6502Low {
 public:
  // Put a Processor in the place of the console's, where that is an M6502Low: in the middle of a game, if
  // need be.
  static void take_over(ale::stella::System& system);
  static bool runs(ale::stella::System& system);

  bool execute(uint32_t number) override;

 private:
  explicit Processor(const M6502Low& other) : M6502Low(other) {}
};

}  // namespace storm_fast
