from dataclasses import replace

from ingot.observe.observation import Observation

ONE = Observation("r", 1.0, "digits", "sha256:v")


def test_equal_observations_have_equal_digests_and_others_do_not():
    assert ONE.digest == replace(ONE).digest
    assert ONE.digest != replace(ONE, propensity=0.5).digest
