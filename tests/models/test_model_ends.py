"""How a language model ends its texts: read where it was loaded from, and kept with it."""

import json

import pytest

from ingot.compress.quantize.weights import QuantizeWeights
from ingot.compress.recipe import Recipe
from ingot.core.errors import DataError, ModelError
from ingot.models.ends import Ends, ends_of, read_ends
from ingot.models.model import GENERATION_FILE, Lineage
from ingot.models.store import copy_folder, folder_digest, store_model
from ingot.runtime.generation.text import Tokenizer, end_tokens, tokenizer_of
from ingot.testing.tiny import tiny_decoder


def write(folder, **files):
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


def save_words(path, special=("</s>", "<|im_end|>", "<pad>")):
    from tokenizers import AddedToken, models
    from tokenizers import Tokenizer as Library

    library = Library(models.BPE({letter: at for at, letter in enumerate("abcdef")}, []))
    library.add_special_tokens([AddedToken(name, special=True) for name in special])
    library.save(str(path))


@pytest.fixture
def stored(tmp_path):
    """Give `stored(ends)`: a tiny decoder that carries them and a tokenizer."""

    def make(ends):
        save_words(tmp_path / "tokenizer.json")
        return store_model(
            tiny_decoder(), lineage=Lineage("hf"), root=tmp_path / "store",
            extra={"tokenizer.json": tmp_path / "tokenizer.json", **ends.as_files()},
        )  # fmt: skip

    return make


def test_the_generation_config_comes_first(tmp_path):
    write(
        tmp_path, generation_config={"eos_token_id": [8, 9, 8]}, config={"eos_token_id": 2},
        tokenizer_config={"eos_token": "</s>"},
    )  # fmt: skip

    assert read_ends(tmp_path).tokens == (8, 9)


def test_the_config_comes_next(tmp_path):
    write(tmp_path, generation_config={}, config={"eos_token_id": 2})

    assert read_ends(tmp_path).tokens == (2,)


@pytest.mark.parametrize("token", ["<|im_end|>", {"content": "<|im_end|>", "special": True}])
def test_a_token_that_is_only_named_is_looked_up_in_the_tokenizer(tmp_path, token):
    save_words(tmp_path / "tokenizer.json")
    write(tmp_path, config={"eos_token_id": None}, tokenizer_config={"eos_token": token})

    assert read_ends(tmp_path) == Ends((7,), named={"eos_token": "<|im_end|>"})


@pytest.mark.parametrize("odd", [True, -1, "2", {"id": 2}, [None, 2.0], 1.5])
def test_odd_ids_count_as_not_said(tmp_path, odd):
    write(tmp_path, generation_config={"eos_token_id": odd})

    assert read_ends(tmp_path) == Ends()


def test_files_that_are_no_json_count_as_not_said(tmp_path):
    (tmp_path / "generation_config.json").write_bytes(b"\xff{")
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")

    assert read_ends(tmp_path) == Ends()
    assert Ends().as_files() == {}


def test_the_chat_template_comes_from_its_own_file_or_from_the_tokenizers(tmp_path):
    write(tmp_path, tokenizer_config={
        "chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}],
        "bos_token": "<s>",
    })  # fmt: skip
    listed = read_ends(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("own", encoding="utf-8")

    assert (listed.chat_template, listed.named) == ("d", {"bos_token": "<s>"})
    assert read_ends(tmp_path).chat_template == "own"


def test_a_model_carries_its_ends_through_recipes_and_copies(stored, tmp_path):
    ends = Ends((4, 7), "{{ messages }}", {"eos_token": "</s>"})
    model = stored(ends)

    small = Recipe((QuantizeWeights(),)).apply(model, root=tmp_path / "store")
    copy_folder(small, tmp_path / "copy")

    assert ends_of(model) == ends_of(small) == ends
    assert (tmp_path / "copy" / GENERATION_FILE).is_file()


def test_the_digest_covers_them(stored):
    assert stored(Ends((4,))).digest != stored(Ends((5,))).digest


def test_a_model_without_them_keeps_the_digest_that_it_had(stored):
    model = stored(Ends())

    assert model.generation_path is None
    assert folder_digest(model.path) == model.digest


def test_a_damaged_file_is_refused(stored):
    model = stored(Ends((4,)))
    (model.path / GENERATION_FILE).write_text('{"tokens": [1]}', encoding="utf-8")

    with pytest.raises(ModelError, match="must hold tokens"):
        ends_of(model)


def test_the_tokenizer_of_a_model_ends_texts_as_the_model_says(stored):
    assert tokenizer_of(stored(Ends((3,)))).ends == (3,)


def test_without_them_special_tokens_are_known_by_their_names(stored):
    model = stored(Ends())

    assert tokenizer_of(model).ends == (6, 7)
    assert end_tokens(model, tokenizer_of(model)) == (6, 7)


def test_end_tokens_may_be_named_or_numbered(stored):
    model = stored(Ends((3,)))
    tokenizer = tokenizer_of(model)

    assert end_tokens(model, tokenizer, ("<|im_end|>", "2")) == (7, 2)
    assert end_tokens(model, None) == (3,)
    with pytest.raises(DataError, match=r"Did you mean '</s>'"):
        end_tokens(model, tokenizer, ("<s>",))
    with pytest.raises(DataError, match="by its id"):
        end_tokens(model, None, ("</s>",))


def test_a_token_is_spelled_with_its_name_if_it_is_special(tmp_path):
    save_words(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")

    assert (tokenizer.spell(0), tokenizer.spell(6)) == ("a", "</s>")
    assert tokenizer.special == {6, 7, 8}
