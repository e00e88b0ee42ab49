#include "processor.h"

#include <cstring>

#include "ale/emucore/System.hxx"

#if defined(__GNUC__)
#define STORM_FAST_FLATTEN __attribute__((flatten))  // calls are inlined, System::peek's above all
#else
#define STORM_FAST_FLATTEN
#endif

namespace storm_fast {

namespace {

constexpr uint16_t kTimer = 0x0284;  // INTIM: what is left of an interval
constexpr uint8_t kLoad = 0xad;      // LDA of an address
constexpr uint8_t kPlus = 0x10, kMinus = 0x30, kNotZero = 0xd0, kZero = 0xf0;  // branches on what was loaded

// Games spend what is left of a frame in `wait: LDA INTIM; Bxx wait`. The branch's code where `at` begins
// such a loop, of direct memory and within one page, else 0.
uint8_t waiting_branch(ale::stella::System& system, uint16_t at) {
  const uint8_t* page = system.getPageAccess((at & 0x1fff) >> system.pageShift()).directPeekBase;
  const unsigned offset = at & system.pageMask();
  if (page == nullptr || offset + 5u > system.pageMask()) return 0;
  const uint8_t* code = page + offset;
  if (std::memcmp(code, "\xad\x84\x02", 3) != 0 || code[4] != 0xfb) return 0;
  return code[3] == kPlus || code[3] == kMinus || code[3] == kNotZero || code[3] == kZero ? code[3] : 0;
}

}  // namespace

void Processor::take_over(ale::stella::System& system) {
  const auto* theirs = dynamic_cast<const M6502Low*>(&system.m6502());
  if (theirs == nullptr) return;
  system.attach(new Processor(*theirs));  // which owns it
  delete theirs;
}

bool Processor::runs(ale::stella::System& system) {
  return dynamic_cast<const Processor*>(&system.m6502()) != nullptr;
}

// A game's memory is bytes, which may lie anywhere as far as a compiler knows: after each store it would read
// every register anew. So the registers are locals while instructions run, under the names that ALE's
// instructions use.
STORM_FAST_FLATTEN bool Processor::execute(uint32_t number) {
  uint8_t A, X, Y, SP, IR;
  uint16_t PC;
  int N, notZ;  // not 0 or 1: what is not 0 counts
  bool V, B, D, I, C;
  ale::stella::System* const mySystem = this->mySystem;
  const auto fetch = [&] {
    A = this->A, X = this->X, Y = this->Y, SP = this->SP, IR = this->IR, PC = this->PC;
    N = this->N, V = this->V, B = this->B, D = this->D, I = this->I, notZ = this->notZ, C = this->C;
  };
  const auto put_back = [&] {
    this->A = A, this->X = X, this->Y = Y, this->SP = SP, this->IR = IR, this->PC = PC;
    this->N = N, this->V = V, this->B = B, this->D = D, this->I = I, this->notZ = notZ, this->C = C;
  };
  const auto peek = [&](uint16_t address) -> uint8_t {
    const uint8_t value = mySystem->peek(address);
    myLastAccessWasRead = true;
    return value;
  };
  const auto poke = [&](uint16_t address, uint8_t value) {
    mySystem->poke(address, value);
    myLastAccessWasRead = false;
  };
  const auto PS = [&](auto... given) {
    if constexpr (sizeof...(given) == 0) {
      return static_cast<uint8_t>(!!N << 7 | V << 6 | 1 << 5 | B << 4 | D << 3 | I << 2 | !notZ << 1 | C);
    } else {
      const uint8_t flags = (given, ...);
      N = flags & 0x80, V = flags & 0x40, D = flags & 0x08, I = flags & 0x04, notZ = !(flags & 0x02),
      C = flags & 0x01;
      B = true;  // as always on a 6507
    }
  };

  myExecutionStatus &= FatalErrorBit;
  fetch();
  for (;;) {
    for (; myExecutionStatus == 0 && number != 0; --number) {
      IR = peek(PC++);
      if (IR == kLoad) {
        if (const uint8_t branch = waiting_branch(*mySystem, PC - 1)) {
          // Only the load leaves anything behind; the branch is not executed here where it is not taken.
          const uint32_t load_cycles = myInstructionSystemCycleTable[kLoad];
          const uint32_t branch_cycles =
              myInstructionSystemCycleTable[branch] + mySystemCyclesPerProcessorCycle;
          for (;; number -= 2) {
            mySystem->incrementCycles(load_cycles);
            A = peek(kTimer);
            notZ = A;
            N = A & 0x80;
            const bool taken = branch == kPlus    ? !N
                               : branch == kMinus ? N != 0
                                                  : (notZ != 0) == (branch == kNotZero);
            if (!taken || number <= 2) break;
            mySystem->incrementCycles(branch_cycles);
          }
          PC += 2;
          continue;
        }
      }
      uint16_t operandAddress = 0;
      uint8_t operand = 0;
      mySystem->incrementCycles(myInstructionSystemCycleTable[IR]);
      switch (IR) {
#include "ale/emucore/M6502Low.ins"
        default:
          myExecutionStatus |= FatalErrorBit;
      }
    }
    if (myExecutionStatus & (MaskableInterruptBit | NonmaskableInterruptBit)) {
      put_back();
      interruptHandler();
      fetch();
    }
    const bool stopped = myExecutionStatus & StopExecutionBit;
    if (stopped || (myExecutionStatus & FatalErrorBit) || number == 0) {
      put_back();
      return stopped || !(myExecutionStatus & FatalErrorBit);
    }
  }
}

}  // namespace storm_fast
