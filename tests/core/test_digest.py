import hashlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingot.core.digest import canonical_json, digest_bytes, digest_json, hex_of, short

numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_digest_of_bytes_is_sha256_in_oci_form():
    digest = digest_bytes(b"abc")

    assert digest == "sha256:" + hashlib.sha256(b"abc").hexdigest()
    assert hex_of(digest) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert short(digest) == "ba7816bf8f01"


@given(st.dictionaries(st.text(), values, max_size=4))
def test_order_of_keys_does_not_change_a_digest(value):
    turned = dict(reversed(value.items()))

    assert digest_json(turned) == digest_json(value)


@given(values, values)
def test_different_canonical_bytes_have_different_digests(a, b):
    same = canonical_json(a) == canonical_json(b)

    assert (digest_json(a) == digest_json(b)) == same


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_without_json_form_are_refused(bad):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": bad})
