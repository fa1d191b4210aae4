import io

import pytest

from ingot.runtime.native_engine import NativeEngine

TOKENS = ["--engine", "onnxruntime", "--threads", 1, "--max-tokens", 5]


@pytest.fixture
def words(folder):
    return [folder / "decoder.onnx", "--tokenizer", folder / "tokenizer.json", *TOKENS]


def test_the_text_goes_to_stdout_and_the_speed_to_stderr(run, words):
    done = run("generate", *words, "--prompt", "ABC")

    assert done.code == 0
    assert len(done.out) == 6  # five letters and the end of the line
    assert "5 tokens on onnxruntime fp32 x1: the first after" in done.err
    assert "keeps no keys and values" in done.err


def test_json_has_the_text_the_tokens_and_the_speed(run, words):
    plain = run("generate", *words, "--prompt", "ABC")
    done = run("generate", *words, "--prompt", "ABC", "--json", "--logprobs", 2)

    assert done.json["text"] == plain.out.rstrip("\n")
    assert len(done.json["tokens"]) == len(done.json["logprobs"]) == 5
    assert [len(row) for row in done.json["top"]] == [2] * 5
    assert done.json["finish"] == "length"
    assert done.json["token_ms"] > 0


def test_the_prompt_may_come_from_a_file_or_from_standard_input(run, words, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_text("ABC", encoding="utf-8")
    wanted = run("generate", *words, "--prompt", "ABC").out

    from_file = run("generate", *words, "--prompt-file", tmp_path / "prompt.txt").out
    monkeypatch.setattr("sys.stdin", io.StringIO("ABC"))
    from_stdin = run("generate", *words).out

    assert from_file == from_stdin == wanted


def test_a_model_without_a_tokenizer_takes_and_gives_token_ids(run, folder):
    done = run("generate", folder / "decoder.onnx", *TOKENS, "--tokens", "0,1,2")

    assert done.code == 0
    assert len(done.out.split()) == 5


def test_a_text_for_a_model_without_a_tokenizer_is_refused(run, folder):
    done = run("generate", folder / "decoder.onnx", *TOKENS, "--prompt", "ABC")

    assert done.code == 2
    assert "must come with a tokenizer" in done.err


def test_a_seed_gives_the_same_text_again(run, words):
    options = ["--prompt", "ABC", "--temperature", 1.5, "--top-k", 20, "--seed", 4]

    first, second = (run("generate", *words, *options).out for _ in range(2))
    other = run("generate", *words, *options[:-1], 5).out

    assert first == second != other


def test_a_stop_string_ends_the_text(run, words):
    text = run("generate", *words, "--prompt", "ABC").out.rstrip("\n")

    done = run("generate", *words, "--prompt", "ABC", "--stop", text[2], "--json")

    assert done.json["text"] == text[: text.index(text[2])]
    assert done.json["finish"] == "stop"


@pytest.mark.parametrize(
    ("options", "words_of_error"),
    [
        (["--prompt", "A", "--tokens", "1"], "Give one of"),
        (["--tokens", "1;2"], "ids like"),
        (["--prompt", "A", "--top-p", "2"], "top_p must be between"),
        (["--prompt", ""], "1 to"),
    ],
)
def test_misuse_is_refused_in_words(run, words, options, words_of_error):
    done = run("generate", *words, *options)

    assert done.code == 2
    assert words_of_error in done.err


def test_what_runs_the_model_and_why_is_one_line(run, words):
    asked = run("generate", *words, "--prompt", "ABC")
    free = run("generate", *words[:3], "--max-tokens", 2, "--prompt", "ABC")

    assert asked.err.splitlines()[0].startswith("On onnxruntime fp32 x1, as asked for; every token")
    assert (
        "which rounds none of the model's weights (--engine and --prec" in free.err.splitlines()[0]
    )


def test_floats_are_never_rounded_unasked(run, words):
    done = run("generate", *words[:3], "--max-tokens", 2, "--prompt", "ABC", "--json")

    assert (done.json["config"]["engine"], done.json["config"]["precision"]) == (
        "onnxruntime", "fp32",
    )  # fmt: skip
    assert "rounds none" in done.json["chosen_because"]
    assert "native" in done.json["slow_because"]


@pytest.mark.skipif(not NativeEngine().available().ok, reason="needs ingot-native")
def test_a_float_model_may_run_in_bf16_on_the_native_engine(run, folder):
    source = [folder / "decoder.onnx", "--tokenizer", folder / "tokenizer.json"]
    options = ["--precision", "bf16", "--threads", 1, "--max-tokens", 5]

    done = run("generate", *source, *options, "--prompt", "ABC", "--json")

    assert done.code == 0
    assert done.json["config"]["engine"] == "native"
    assert done.json["config"]["precision"] == "bf16"
    assert len(done.json["tokens"]) == 5
