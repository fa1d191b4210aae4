import numpy as np
import pytest

from ingot.core.errors import EngineError
from ingot.runtime.energy import EnergyCounter, energy_per_call


@pytest.fixture
def zones(tmp_path):
    """Make the counters of two packages and of a part of the first, as the kernel shows them."""
    for name, value in (("intel-rapl:0", 100), ("intel-rapl:0:0", 40), ("intel-rapl:1", 900)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("1000\n")
    return tmp_path


def test_whole_packages_are_read_and_not_their_parts_again(zones):
    assert EnergyCounter.find(zones).read() == (100, 900)


def test_a_counter_that_started_again_is_followed(zones):
    counter = EnergyCounter.find(zones)

    assert counter.joules((100, 900), (300, 100)) == pytest.approx((200 + 200) / 1e6)


def test_a_machine_without_counters_is_told_so(tmp_path):
    with pytest.raises(EngineError, match="this machine shows none .* choose another goal"):
        EnergyCounter.find(tmp_path)


def test_a_counter_that_cannot_be_read_is_told_so(zones):
    (zones / "intel-rapl:1" / "energy_uj").unlink()

    with pytest.raises(EngineError, match="counters that this user may read"):
        EnergyCounter.find(zones)


def test_energy_is_divided_by_the_calls_of_each_window(zones):
    class Session:
        calls = 0

        def run(self, feeds):
            Session.calls += 1
            file = zones / "intel-rapl:0" / "energy_uj"
            file.write_text(str(int(file.read_text()) + 50))

    ticks = iter(np.arange(0, 100, 0.2))
    found = energy_per_call(
        Session(), {}, EnergyCounter.find(zones), runs=2, clock=lambda: float(next(ticks))
    )

    assert found == pytest.approx((50e-6, 50e-6))
    assert Session.calls == 1 + 2 * 2
