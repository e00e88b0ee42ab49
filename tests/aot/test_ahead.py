"""Kernels are compiled side by side, before a phase is recorded; for a GPU that is not here."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from bench.instrument.ours import Ours
from bench.launches import as_on_a_gpu
from storm_fast.config import preset
from storm_fast.engine.phases import Phases
from storm_fast.engine.precision import choose
from storm_fast.kernels import ahead, backend
from storm_fast.kernels.twohot import kernel as twohot


class _Hopper:
    """What Triton asks a driver for until it launches something."""

    def get_current_device(self) -> int:
        return 99  # another than any that a test compiled for

    def get_current_stream(self, device: int | None = None) -> int:
        del device
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compiled(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The kernels that are compiled, by name, for a Hopper; none comes from a cache on disk."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    names: list[str] = []
    compile_one = JITFunction._do_compile

    def count(self: Any, *args: Any, **options: Any) -> Any:
        names.append(self.__name__)
        return compile_one(self, *args, **options)

    with mock.patch.object(type(driver), "active", _Hopper()), mock.patch.object(JITFunction, "_do_compile", count):
        yield names


def small() -> Phases:
    config = preset("storm")
    model = replace(config.model, batch=2, width=64, stem_channels=4, latents=8, classes=8, heads=2, bins=15)
    config = replace(
        config,
        model=model,
        agent=replace(config.agent, agent_width=64),
        imagine=replace(config.imagine, imagine_batch=16, horizon=3),
        loop=replace(config.loop, capacity=300),
    )
    return Ours(config, choose("cpu", "bf16"))._phases


def test_all_phases_are_compiled_at_once_and_nothing_else_changes(compiled: list[str]) -> None:
    phases = small()
    with as_on_a_gpu(), backend.using("triton"):
        before = {id(x): x.detach().clone() for x in phases.state()}
        draws = phases._t.generator.get_state(), torch.get_rng_state()
        phases.compile_ahead()
        first = list(compiled)
        assert {"_first_conv_fwd", "_apply_bwd", "_step_fwd", "_loss_bwd", "_return_fwd"} <= set(first)
        for x in phases.state():
            if id(x) in before:
                assert torch.equal(x, before[id(x)])
            else:  # a moment that the first update made
                assert not x.any()
        assert torch.equal(phases._t.generator.get_state(), draws[0])
        assert torch.equal(torch.get_rng_state(), draws[1])
        assert phases._trajectory is None
        compiled.clear()
        with ahead.compiling() as launched:
            phases.run_act()
            phases.run_model()
            phases.run_imagine()
            phases.run_agent()
    assert set(launched) == set(first)
    assert compiled == []


def test_a_kernel_that_cannot_be_compiled_is_an_error_of_the_block(compiled: list[str]) -> None:
    run = JITFunction.run
    fails = mock.patch.object(twohot._decode_fwd, "compile", side_effect=ValueError("no such instruction"))
    with fails, pytest.raises(ValueError, match="no such instruction"), ahead.compiling():
        twohot.decode_fwd(torch.zeros(2, 15), 15)
    assert compiled == ["_decode_fwd"]
    assert JITFunction.run is run
