import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingot.core.errors import EvidenceError, ModelError, RegistryError
from ingot.models.model import Lineage
from ingot.models.store import store_model
from ingot.registry.registry import Registry
from ingot.testing.tiny import tiny_cnn


@pytest.fixture
def three(registry, model, prove):
    return [registry.release("digits", model, prove(model.digest, seed=s)) for s in range(3)]


def test_release_gives_the_first_version_with_the_config_of_its_evidence(registry, model, prove):
    evidence = prove(model.digest)

    version = registry.release("digits", model, evidence)

    assert (version.label, version.entry) == ("digits:1", 0)
    assert (version.model, version.evidence) == (model.digest, evidence.digest)
    assert version.config == evidence.config
    assert version.released == "2026-01-02T03:04:05+00:00"


def test_release_writes_its_facts_to_the_ledger(registry, model, prove):
    version = registry.release("digits", model, prove(model.digest))

    entry = registry.ledger.entry(version.entry)
    assert entry.kind == "release"
    assert entry.body["model"] == model.digest
    assert entry.body["evidence"] == version.evidence
    assert registry.ledger.verify().ok


def test_release_refuses_no_evidence(registry, model):
    with pytest.raises(EvidenceError, match="must come with evidence; got None"):
        registry.release("digits", model, None)


def test_release_refuses_evidence_for_another_model(registry, model, prove):
    with pytest.raises(EvidenceError, match="Evidence is for model abc but the version holds"):
        registry.release("digits", model, prove("sha256:abc"))


def test_release_refuses_evidence_without_claims(registry, model, prove):
    with pytest.raises(EvidenceError, match="at least one claim"):
        registry.release("digits", model, prove(model.digest, passed=()))


def test_release_refuses_evidence_with_a_failed_claim_and_names_it(registry, model, prove):
    with pytest.raises(EvidenceError, match="these did not: accuracy >= 0.6"):
        registry.release("digits", model, prove(model.digest, passed=(True, False)))

    assert registry.ledger.head().size == 0


def test_release_refuses_a_model_outside_the_store(registry, cnn, prove):
    with pytest.raises(ModelError, match="must be in the store"):
        registry.release("digits", cnn, prove(cnn.digest))


@pytest.mark.parametrize("name", ["", "Digits", "a/b", "a@b", "a:b", "-a", "a" * 65, "a\n"])
def test_release_refuses_a_bad_name(registry, model, prove, name):
    with pytest.raises(RegistryError, match="registry name must match"):
        registry.release(name, model, prove(model.digest))


def test_releasing_the_same_again_gives_the_same_version(registry, model, prove):
    first = registry.release("digits", model, prove(model.digest))

    assert registry.release("digits", model, prove(model.digest)) == first
    assert registry.ledger.head().size == 1


def test_a_failed_release_leaves_neither_row_nor_entry(folder, registry, model, prove):
    def broken_clock():
        raise OSError("no clock")

    with Registry.open(folder, now=broken_clock) as broken, pytest.raises(OSError, match="clock"):
        broken.release("digits", model, prove(model.digest))

    assert registry.versions() == ()
    assert registry.ledger.head().size == 0


def test_resolve_by_number_by_stage_and_newest(registry, three):
    registry.promote("digits", 2, "prod")

    assert registry.resolve("digits:1") == three[0]
    assert registry.resolve("digits@prod") == three[1]
    assert registry.resolve("digits") == three[2]


def test_versions_are_listed_in_order(registry, three):
    assert registry.versions("digits") == tuple(three)
    assert registry.versions() == tuple(three)


def test_everything_is_there_after_reopening(folder, registry, three):
    registry.promote("digits", 3, "prod")

    with Registry.open(folder) as again:
        assert again.resolve("digits@prod") == three[2]
        assert again.stages("digits") == {"prod": three[2]}


def test_rollback_goes_back_and_keeps_history(registry, three):
    for number in (1, 2, 3):
        registry.promote("digits", number, "prod")

    assert registry.rollback("digits", "prod") == three[1]
    assert registry.rollback("digits", "prod") == three[0]
    moves = [(m.action, m.number) for m in registry.history("digits", "prod")]
    assert moves == [
        ("promote", 1),
        ("promote", 2),
        ("promote", 3),
        ("rollback", 2),
        ("rollback", 1),
    ]


def test_rollback_with_nothing_before_is_refused(registry, three):
    registry.promote("digits", 1, "prod")

    with pytest.raises(RegistryError, match="it has only had digits:1"):
        registry.rollback("digits", "prod")


def test_promoting_what_is_there_already_writes_nothing(registry, three):
    registry.promote("digits", 1, "prod")
    registry.promote("digits", 1, "prod")

    assert len(registry.history("digits", "prod")) == 1
    assert registry.ledger.head().size == 4


def test_promoting_a_version_never_released_is_refused(registry, three):
    with pytest.raises(RegistryError, match="digits:9 must have been released"):
        registry.promote("digits", 9, "prod")


def test_promoting_to_a_bad_stage_is_refused(registry, three):
    with pytest.raises(RegistryError, match="registry stage must match"):
        registry.promote("digits", 1, "Prod!")


@pytest.mark.parametrize("reference", ["digts", "digts:1", "digts@prod"])
def test_an_unknown_name_gets_the_nearest(registry, three, reference):
    with pytest.raises(RegistryError, match="Did you mean 'digits'"):
        registry.resolve(reference)


@pytest.mark.parametrize("act", ["resolve", "history", "rollback"])
def test_an_unknown_stage_gets_the_nearest(registry, three, act):
    registry.promote("digits", 1, "prod")
    call = {
        "resolve": lambda: registry.resolve("digits@prd"),
        "history": lambda: registry.history("digits", "prd"),
        "rollback": lambda: registry.rollback("digits", "prd"),
    }[act]

    with pytest.raises(RegistryError, match="Did you mean 'prod'"):
        call()


@pytest.mark.parametrize("reference", ["digits:", "digits:0", "digits:x", "digits:-1"])
def test_a_reference_that_is_no_number_is_refused(registry, three, reference):
    with pytest.raises(RegistryError, match="name:number or name@stage"):
        registry.resolve(reference)


def test_unknown_names_are_refused_when_listing(registry):
    for call in (registry.versions, registry.stages):
        with pytest.raises(RegistryError, match="Nothing is available"):
            call("digits")


def test_evidence_comes_back_as_it_was(registry, model, prove):
    evidence = prove(model.digest)
    version = registry.release("digits", model, evidence)

    assert registry.evidence_of(version) == evidence


def test_model_comes_back_verified(registry, model, three):
    assert registry.model_of(three[0]).digest == model.digest


def test_names_count_their_versions_apart(registry, model, prove, three):
    assert registry.release("faces", model, prove(model.digest)).number == 1


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("promote"), st.integers(1, 3), st.sampled_from(["prod", "test"])),
        st.tuples(st.just("rollback"), st.just(0), st.sampled_from(["prod", "test"])),
    ),
    max_size=12,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=ACTIONS)
def test_any_sequence_of_moves_agrees_with_a_stack(tmp_path_factory, prove, actions):
    folder = tmp_path_factory.mktemp("sequence")
    model = store_model(tiny_cnn(), lineage=Lineage("onnx"), root=folder / "store")
    stacks = {"prod": [], "test": []}
    with Registry.open(folder) as registry:
        for seed in range(3):
            registry.release("digits", model, prove(model.digest, seed=seed))
        for action, number, stage in actions:
            stack = stacks[stage]
            if action == "promote":
                registry.promote("digits", number, stage)
                stack += [number] if stack[-1:] != [number] else []
            elif len(stack) > 1:
                registry.rollback("digits", stage)
                stack.pop()
            else:
                with pytest.raises(RegistryError):
                    registry.rollback("digits", stage)

            expected = {name: numbers[-1] for name, numbers in stacks.items() if numbers}
            found = {name: v.number for name, v in registry.stages("digits").items()}
            assert found == expected
            assert registry.ledger.verify().ok


def test_versions_that_differ_in_their_number_have_other_digests(three):
    assert three[0].digest != dataclasses.replace(three[0], number=2).digest
    assert three[0].digest == dataclasses.replace(three[0]).digest
