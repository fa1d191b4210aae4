import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from ingot.core.errors import DataError
from ingot.runtime.generation.text import TextStream, Tokenizer

TEXTS = ["plain", "naïve café", "日本語と漢字", "👩‍🚀 in space 🚀", "a\ufffdb", "Ελληνικά\n\ttabs"]


def save(library, folder):
    path = folder / "tokenizer.json"
    library.save(str(path))
    return Tokenizer(path)


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory):
    """One token per byte, as GPT-2 spells them, and a token that ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: at for at, letter in enumerate(alphabet)}
    library = Library(models.BPE(vocab, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return save(library, tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def of_words(tmp_path_factory):
    """Words with their space in front, and bytes for what has no word, as Llama spells them."""
    words = ["<unk>", "▁once", "▁upon", "▁a", "▁time", "s", ","]
    names = words + [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {name: at for at, name in enumerate(names)}
    library = Library(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return save(library, tmp_path_factory.mktemp("words"))


def streamed(tokenizer, tokens, **options):
    stream = TextStream(tokenizer, **options)
    return [*(stream.add(token) for token in tokens), stream.end()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_make_the_text(of_bytes, text):
    tokens = of_bytes.encode(text)

    pieces = streamed(of_bytes, tokens)

    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces).replace("a\ufffdb", "")


def test_a_character_comes_with_its_last_byte(of_bytes):
    tokens = of_bytes.encode("é!")

    assert streamed(of_bytes, tokens) == ["", "é", "!", ""]


def test_bytes_that_never_become_a_character_come_at_the_end(of_bytes):
    tokens = of_bytes.encode("é")[:1]

    assert streamed(of_bytes, tokens) == ["", "\ufffd"]


def test_a_word_after_the_prompt_keeps_its_space(of_words):
    prompt, tokens = [1], [2, 3, 4]

    assert streamed(of_words, tokens, prompt=prompt) == [" upon", " a", " time", ""]


def test_without_a_prompt_the_first_space_is_not_there(of_words):
    assert streamed(of_words, [1, 2]) == ["once", " upon", ""]


def test_bytes_between_words_become_a_character_when_they_are_complete(of_words):
    euro = [7 + byte for byte in "€".encode()]

    assert streamed(of_words, [1, *euro, 2]) == ["once", "", "", "€", " upon", ""]


def test_a_stop_string_ends_the_text_before_it(of_bytes):
    stream = TextStream(of_bytes, stop=["\n\n"])
    pieces = [stream.add(token) for token in of_bytes.encode("ab\n\ncd")]

    assert "".join(pieces) == "ab"
    assert stream.stopped
    assert stream.end() == ""


def test_what_may_begin_a_stop_string_is_held_until_it_does_not(of_bytes):
    tokens = of_bytes.encode("aENDx")[:-1]

    assert streamed(of_bytes, [*tokens, tokens[0]], stop=["ENDS"]) == ["a", "", "", "", "ENDa", ""]


def test_a_stop_string_that_was_not_finished_comes_at_the_end(of_bytes):
    assert streamed(of_bytes, of_bytes.encode("aEN"), stop=["END"]) == ["a", "", "", "EN"]


def test_of_two_stop_strings_the_earlier_place_counts(of_words):
    stream = TextStream(of_words, prompt=[1], stop=["time", "a t"])
    pieces = [stream.add(token) for token in [2, 3, 4]]

    assert "".join(pieces) == " upon "


def test_a_special_token_has_no_text_and_ends_texts(of_bytes):
    end = of_bytes.ends[0]

    assert len(of_bytes.ends) == 1
    assert streamed(of_bytes, [end]) == ["", ""]


def test_without_a_tokenizer_there_is_no_text():
    assert streamed(None, [1, 2]) == ["", "", ""]


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="must be a file"):
        Tokenizer(tmp_path / "tokenizer.json")


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30))
def test_any_text_survives_byte_by_byte(of_bytes, text):
    tokens = of_bytes.encode(text)

    pieces = streamed(of_bytes, tokens)

    assert "".join(pieces) == of_bytes.decode(tokens)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=30))
def test_any_bytes_give_what_decoding_them_at_once_gives(of_bytes, tokens):
    assert "".join(streamed(of_bytes, tokens)) == of_bytes.decode(tokens)


@settings(max_examples=150, deadline=None)
@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_where_the_first_stop_string_begins(of_bytes, text, stops):
    tokens = of_bytes.encode(text)

    found = "".join(streamed(of_bytes, tokens, stop=stops))

    # The first stop string to be complete ends the text; it may begin after a longer one.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    seen = text[: min(ends)] if ends else text
    wanted = min((seen.find(stop) for stop in stops if stop in seen), default=len(text))
    assert found == text[:wanted]
