import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingot.core.errors import LedgerError
from ingot.ledger import tree

# Inputs and roots of the certificate-transparency project's merkle tree tests (RFC 6962).
ENTRIES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [tree.leaf_hash(entry) for entry in ENTRIES]

sizes = st.integers(1, 80)


def leaves_of(size: int) -> list[bytes]:
    return [tree.leaf_hash(bytes([i])) for i in range(size)]


def root_by_definition(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    half = max(1 << k for k in range(10) if 1 << k < len(leaves))
    parts = root_by_definition(leaves[:half]) + root_by_definition(leaves[half:])
    return hashlib.sha256(b"\x01" + parts).digest()


@pytest.mark.parametrize("size", range(9))
def test_root_is_the_published_one(size):
    assert tree.root_of(LEAVES[:size]).hex() == ROOTS[size]


@given(size=st.integers(0, 80))
def test_root_follows_the_recursive_definition(size):
    leaves = leaves_of(size)

    assert tree.root_of(leaves) == root_by_definition(leaves)


def test_inclusion_proof_of_the_last_of_three_is_the_node_over_the_first_two():
    proof = tree.inclusion_proof(tree.lookup_in(LEAVES), 2, 3)

    assert [node.hex() for node in proof] == [ROOTS[2]]


@given(st.data(), sizes)
def test_every_inclusion_proof_verifies(data, size):
    index = data.draw(st.integers(0, size - 1))
    leaves = leaves_of(size)

    proof = tree.inclusion_proof(tree.lookup_in(leaves), index, size)

    root = tree.root_of(leaves)
    assert tree.verify_inclusion(leaves[index], index, size, proof=proof, root=root)


@given(st.data(), st.integers(2, 80))
def test_inclusion_proof_fails_for_another_leaf_index_or_length(data, size):
    index = data.draw(st.integers(0, size - 1))
    leaves = leaves_of(size)
    root = tree.root_of(leaves)
    proof = tree.inclusion_proof(tree.lookup_in(leaves), index, size)
    other = (index + 1) % size

    assert not tree.verify_inclusion(leaves[other], index, size, proof=proof, root=root)
    assert not tree.verify_inclusion(leaves[index], other, size, proof=proof, root=root)
    assert not tree.verify_inclusion(leaves[index], index, size, proof=proof[:-1], root=root)
    assert not tree.verify_inclusion(leaves[index], index, size, proof=[*proof, root], root=root)


def test_inclusion_outside_the_tree_never_verifies():
    leaf = LEAVES[0]

    assert not tree.verify_inclusion(leaf, 1, 1, proof=[], root=leaf)
    assert not tree.verify_inclusion(leaf, -1, 1, proof=[], root=leaf)


@given(st.data(), sizes)
def test_every_consistency_proof_verifies(data, second):
    first = data.draw(st.integers(1, second))
    leaves = leaves_of(second)

    proof = tree.consistency_proof(tree.lookup_in(leaves), first, second)

    roots = {"first_root": tree.root_of(leaves[:first]), "second_root": tree.root_of(leaves)}
    assert tree.verify_consistency(first, second, proof=proof, **roots)


@given(st.data(), st.integers(2, 80))
def test_consistency_proof_fails_when_an_early_leaf_was_changed(data, second):
    first = data.draw(st.integers(1, second - 1))
    changed = data.draw(st.integers(0, first - 1))
    leaves = leaves_of(second)
    old_root = tree.root_of(leaves[:first])
    leaves[changed] = tree.leaf_hash(b"changed")

    proof = tree.consistency_proof(tree.lookup_in(leaves), first, second)

    roots = {"first_root": old_root, "second_root": tree.root_of(leaves)}
    assert not tree.verify_consistency(first, second, proof=proof, **roots)


@given(st.data(), st.integers(3, 80))
def test_consistency_proof_fails_with_a_flipped_bit_or_another_length(data, second):
    first = data.draw(st.integers(1, second - 1))
    leaves = leaves_of(second)
    proof = tree.consistency_proof(tree.lookup_in(leaves), first, second)
    roots = {"first_root": tree.root_of(leaves[:first]), "second_root": tree.root_of(leaves)}
    at = data.draw(st.integers(0, len(proof) - 1))
    flipped = [*proof]
    flipped[at] = bytes([flipped[at][0] ^ 1]) + flipped[at][1:]

    assert not tree.verify_consistency(first, second, proof=flipped, **roots)
    assert not tree.verify_consistency(first, second, proof=proof[:-1], **roots)
    assert not tree.verify_consistency(first, second, proof=[*proof, proof[-1]], **roots)


def test_equal_sizes_are_consistent_only_with_equal_roots_and_no_proof():
    a, b = LEAVES[:2]

    assert tree.verify_consistency(1, 1, first_root=a, second_root=a, proof=[])
    assert not tree.verify_consistency(1, 1, first_root=a, second_root=b, proof=[])
    assert not tree.verify_consistency(1, 1, first_root=a, second_root=a, proof=[a])
    assert not tree.verify_consistency(2, 1, first_root=a, second_root=a, proof=[a])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3)])
def test_inclusion_proof_refuses_an_index_outside_the_tree(index, size):
    with pytest.raises(LedgerError, match="inclusion proof"):
        tree.inclusion_proof(tree.lookup_in(LEAVES), index, size)


@pytest.mark.parametrize(("first", "second"), [(0, 3), (4, 3)])
def test_consistency_proof_refuses_sizes_out_of_order(first, second):
    with pytest.raises(LedgerError, match="consistency proof"):
        tree.consistency_proof(tree.lookup_in(LEAVES), first, second)
