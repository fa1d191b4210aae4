"""What becomes of rows: texts, numbers, images, and rows that do not fit."""

import csv
import json
from pathlib import Path

import batch_cases as cases
import numpy as np
import onnx
import pytest

from ingot.core.errors import DataError
from ingot.data.load import load_data, load_reading
from ingot.data.pixels import ImageSpec
from ingot.data.reading import Reading
from ingot.registry.version import Version
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.serve.batch.rows import LINE_LIMIT, columns_of, find_source, rows_of
from ingot.serve.batch.run import run_batch


def answer(model, source: Path, **fields):
    """Run a batch to JSON lines; give its rows and reasons of refusal by row number."""
    out = source.with_name("out.jsonl")
    found = run_batch(cases.small(model, source, out, max_errors=99, **fields))
    errors = cases.read_jsonl(found.error_file) if found.error_file else []
    return cases.read_jsonl(out), {error["row"]: error["reason"] for error in errors}


@pytest.fixture
def double(tmp_path):
    return cases.number_model(tmp_path / "model")


@pytest.fixture
def encoder(tmp_path):
    return cases.text_model(tmp_path / "model")


def test_numbers_of_columns_become_the_only_input(double, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("id,a,b,c,label\nx,1,2.5,-3,9\ny,4,5,1e-3,9\n")
    rows, _ = answer(double, source, keys=("id",))

    assert rows == [{"id": "x", "y": [2.0, 5.0, -6.0]}, {"id": "y", "y": [8.0, 10.0, 0.002]}]


def test_a_column_of_lists_is_an_input_of_its_name(double, tmp_path):
    source = cases.write_jsonl(tmp_path / "in.jsonl", [{"x": [1, 2, 3], "id": 7}])
    rows, _ = answer(double, source, keys=("id",))

    assert rows == [{"id": 7, "y": [2.0, 4.0, 6.0]}]


def test_rows_of_numbers_that_do_not_fit_are_named_with_the_reason(double, tmp_path):
    good = [1.0, 2.0, 3.0]
    bad = {
        1: ([1.0, float("nan"), 3.0], "must be finite"),
        2: ([1.0, 2.0], "shape"),
        3: ("many", "must be numbers"),
        4: (None, "must have a value"),
        5: ([[1.0], [2.0, 3.0]], "must be numbers of one shape"),
        6: ([1e300, 2.0, 3.0], "must be finite"),
        7: ([True, "a", {}], "must be numbers"),
    }
    lines = [{"x": bad[i][0] if i in bad else good} for i in range(10)]
    rows, refused = answer(double, cases.write_jsonl(tmp_path / "in.jsonl", lines))

    assert [row["row"] for row in rows] == [0, 8, 9]
    assert all(row["y"] == [2.0, 4.0, 6.0] for row in rows)
    assert set(refused) == set(bad)
    assert [i for i, (_, why) in bad.items() if why not in refused[i]] == []


def test_fractions_for_a_model_of_integers_are_refused(tmp_path):
    model = cases.number_model(tmp_path / "model", dtype=onnx.TensorProto.INT64)
    source = tmp_path / "in.csv"
    source.write_text("a,b,c\n1,2,3\n1,2.5,3\n")
    rows, refused = answer(model, source)

    assert [row["y"] for row in rows] == [[2, 4, 6]]
    assert "must be numbers" in refused[1]


def test_lines_that_are_no_rows_are_refused_and_the_rest_answered(double, tmp_path):
    source = tmp_path / "in.jsonl"
    good = b'{"x": [1, 2, 3]}\n'
    source.write_bytes(b"\xef\xbb\xbf" + good + b"{broken\n[1]\n\n\xff\n" + good)
    with source.open("ab") as stream:
        stream.write(b"[" * 100_000 + b"\n" + b'{"x": ' + b"9" * 5000 + b"}\n")
    rows, refused = answer(double, source)

    assert [row["row"] for row in rows] == [0, 4]
    assert ["JSON" in refused[i] for i in (1, 2, 3, 5, 6)] == [True] * 5


def test_lines_of_a_csv_with_other_fields_or_bytes_are_refused(encoder, tmp_path):
    source = tmp_path / "in.csv"
    source.write_bytes(b'id,text\n1,"good\nfilm"\n2,a,b\n3,\xff\n4,bad\n')
    rows, refused = answer(encoder, source, keys=("id",))

    assert [row["id"] for row in rows] == ["1", "4"]
    assert refused == {1: "the row must have 2 fields; got 3", 2: "column 'text' must be UTF-8"}


def test_a_csv_that_breaks_off_is_named_with_its_line(encoder, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text('text\ngood\n"bad" film\n')
    with pytest.raises(DataError, match="'in.csv' must be a readable csv file; got: line 3"):
        answer(encoder, source)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path):
    source = tmp_path / "in.jsonl"
    with source.open("wb") as stream:
        stream.write(b'{"x": 1}\n"')
        stream.truncate(LINE_LIMIT + 100)
    with pytest.raises(DataError, match="line 2 is longer"):
        list(rows_of(find_source(source), ["x"]))


def test_texts_that_are_too_long_are_refused_and_others_of_the_part_answered(encoder, tmp_path):
    texts = ["good film", "a b c good bad", "cat"]
    source = cases.write_csv(tmp_path / "in.csv", texts)
    rows, refused = answer(encoder, source, reading=Reading(max_length=4))

    assert refused == {1: "the text must have at most 4 tokens; it has more"}
    assert np.allclose(
        [row["embedding"] for row in rows],
        cases.embeddings_one_by_one(encoder, ["good film", "cat"]),
        atol=1e-5,
    )


def test_truncated_texts_are_answered_like_the_words_that_fit(encoder, tmp_path):
    source = cases.write_csv(tmp_path / "in.csv", ["a b c good bad"])
    rows, _ = answer(encoder, source, reading=Reading(max_length=3), truncate=True)

    wanted = cases.embeddings_one_by_one(encoder, ["a b c"])
    assert np.allclose([rows[0]["embedding"]], wanted, atol=1e-5)


def test_settings_of_a_data_toml_say_how_rows_are_read(encoder, tmp_path):
    settings = tmp_path / "data.toml"
    settings.write_text(
        'task = "none"\ncolumns = {text = "said", target = "score"}\nmax_length = 2\n'
        '[splits.test]\nfile = "gone.csv"\n'
    )
    source = cases.write_jsonl(tmp_path / "in.jsonl", [{"said": "cat dog"}, {"said": "a b c"}])
    rows, refused = answer(encoder, source, reading=load_reading(settings))

    assert (len(rows), list(refused)) == (1, [1])


def test_a_pair_is_read_as_one_sequence_as_load_data_reads_it(encoder, tmp_path):
    pairs = [("good", "film"), ("bad cat", "a")]
    source = tmp_path / "in.csv"
    source.write_text("text,text_b\n" + "".join(f"{a},{b}\n" for a, b in pairs))
    rows, _ = answer(encoder, source)

    wanted = cases.embeddings_one_by_one(encoder, [f"{a} {b}" for a, b in pairs])
    assert np.allclose([row["embedding"] for row in rows], wanted, atol=1e-5)


def test_the_two_texts_of_a_similarity_are_refused_with_what_to_do(encoder, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("text,text_b\ngood,film\n")
    with pytest.raises(DataError, match="--column text=COLUMN"):
        answer(encoder, source, reading=Reading(task="similarity"))


def test_a_model_of_texts_asks_for_the_column(encoder, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("sentence\ngood\n")
    with pytest.raises(DataError, match="--column text=COLUMN"):
        answer(encoder, source)
    with pytest.raises(DataError, match="Did you mean 'sentence'"):
        answer(encoder, source, reading=Reading(columns={"text": "sentense"}))
    with pytest.raises(DataError, match="Keys must be columns .* got nr"):
        answer(encoder, source, keys=("nr",))


def test_a_row_that_the_engine_refuses_is_found_among_its_neighbours(encoder, tmp_path):
    ids = [[5, 6], [7, 8], [4000, 2], [9, 2]]  # the vocabulary has 50 words
    lines = [{"input_ids": row, "attention_mask": [1, 1]} for row in ids]
    rows, refused = answer(encoder, cases.write_jsonl(tmp_path / "in.jsonl", lines))

    assert [row["row"] for row in rows] == [0, 1, 3]
    assert "the engine refused it" in refused[2]


def test_rows_of_different_lengths_are_answered_each_by_itself(encoder, tmp_path):
    texts = ["good film", "cat", "a b c", "dog"]
    ids = [[cases.WORDS.index(word) for word in text.split()] for text in texts]
    lines = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]
    rows, _ = answer(encoder, cases.write_jsonl(tmp_path / "in.jsonl", lines))

    wanted = cases.embeddings_one_by_one(encoder, texts)
    assert np.allclose([row["embedding"] for row in rows], wanted, atol=1e-5)


def test_keys_of_json_lines_keep_the_type_of_the_first(double, tmp_path):
    keys = [1, "2", 3.5, None, 4]
    lines = [{"id": key, "x": [1, 2, 3]} for key in keys] + [{"x": [1, 2, 3]}]
    rows, refused = answer(double, cases.write_jsonl(tmp_path / "in.jsonl", lines), keys=("id",))

    assert [row["id"] for row in rows] == [1, None, 4]
    assert "first row's type, int; got str" in refused[1]
    assert refused[5] == "key 'id' must be there; it is not"


def test_a_key_named_like_an_output_is_refused(double, tmp_path):
    source = cases.write_jsonl(tmp_path / "in.jsonl", [{"y": 1, "x": [1, 2, 3]}])
    with pytest.raises(DataError, match="got y twice"):
        answer(double, source, keys=("y",))


def test_answers_that_are_no_numbers_are_null_in_json_and_words_in_csv(tmp_path):
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(n, kind, ["batch", 2]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Log", ["x"], ["y"])], "log", [x], [y])
    path = tmp_path / "log.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    model = cases.load_model(path, root=tmp_path / "store")
    source = cases.write_jsonl(tmp_path / "in.jsonl", [{"x": [-1, 0]}, {"x": [1, 1]}])
    rows, _ = answer(model, source)
    run_batch(cases.small(model, source, tmp_path / "out.csv"))

    assert [row["y"] for row in rows] == [[None, None], [0.0, 0.0]]
    assert (tmp_path / "out.csv").read_text() == "row,y_0,y_1\n0,nan,-inf\n1,0.0,0.0\n"


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_an_output_per_token_has_the_tokens_of_its_row(tmp_path, form):
    helper, kind = onnx.helper, onnx.TensorProto.INT64
    names = ("input_ids", "attention_mask", "y")
    ids, mask, y = (helper.make_tensor_value_info(n, kind, ["batch", "sequence"]) for n in names)
    node = helper.make_node("Mul", ["input_ids", "attention_mask"], ["y"])
    graph = helper.make_graph([node], "tokens", [ids, mask], [y])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "tokens.onnx")
    tokenizer = cases.text_model(tmp_path / "model").tokenizer_path
    model = cases.load_model(tmp_path / "tokens.onnx", tokenizer=tokenizer, root=tmp_path / "store")
    texts = ["good film", "a b c good bad", "cat"]
    source, out = cases.write_csv(tmp_path / "in.csv", texts), tmp_path / f"out.{form}"
    run_batch(cases.small(model, source, out))

    wanted = [[cases.WORDS.index(word) for word in text.split()] for text in texts]
    assert per_token(out) == wanted


def per_token(out: Path) -> list[list[int]]:
    if out.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(out)["y"].to_pylist()
    if out.suffix == ".csv":
        with out.open(newline="") as stream:
            return [json.loads(row["y"]) for row in csv.DictReader(stream)]
    return [row["y"] for row in cases.read_jsonl(out)]


def test_buckets_and_streams_of_a_version_change_no_answer(encoder, tmp_path):
    texts = cases.sentences(20)
    source = cases.write_csv(tmp_path / "in.csv", texts)
    config = EngineConfig(threads=2, buckets=(8, 32), streams=2)
    version = Version("words", 1, encoder.digest, "e", config, "2026-01-01T00:00:00Z", 0)
    rows, _ = answer(encoder, source, version=version, threads=2)

    wanted = cases.embeddings_one_by_one(encoder, texts)
    assert np.allclose([row["embedding"] for row in rows], wanted, atol=1e-5)


def write_images(folder: Path, count: int = 5) -> np.ndarray:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8)).astype(np.uint8)
    folder.mkdir()
    for index, grid in enumerate(pixels):
        image.fromarray(grid).save(folder / f"{index}.png")
    return pixels


@pytest.mark.parametrize("rows_per_call", [None, 2])
def test_images_are_answered_like_their_pixels_and_broken_ones_refused(tmp_path, rows_per_call):
    model = cases.image_model(tmp_path / "model", batch=rows_per_call)
    pixels = write_images(tmp_path / "in")
    (tmp_path / "in" / "2.png").write_bytes(b"no picture")
    rows, refused = answer(model, tmp_path / "in", reading=Reading(image=ImageSpec(channels=1)))

    session = open_session(cases.image_model(tmp_path / "free"), EngineConfig())
    wanted = session.run({"image": (pixels[:, None] / np.float32(255)).astype(np.float32)})
    assert [row["file"] for row in rows] == ["0.png", "1.png", "3.png", "4.png"]
    assert np.allclose([r["logits"] for r in rows], wanted["logits"][[0, 1, 3, 4]], atol=1e-5)
    assert "must be readable" in refused[2]


def test_images_of_another_size_are_refused_unless_a_size_is_given(tmp_path):
    model = cases.image_model(tmp_path / "model")
    write_images(tmp_path / "in", 1)
    image = pytest.importorskip("PIL.Image")
    image.new("L", (9, 8)).save(tmp_path / "in" / "wide.png")
    rows, refused = answer(model, tmp_path / "in", reading=Reading(image=ImageSpec(channels=1)))

    assert (len(rows), "axis 3 is 9, not 8" in refused[1]) == (1, True)


def test_images_of_other_channels_are_refused_before_anything_runs(tmp_path):
    write_images(tmp_path / "in", 1)
    with pytest.raises(DataError, match="3 channels, NCHW"):
        answer(cases.image_model(tmp_path / "model"), tmp_path / "in")


def test_a_folder_of_several_kinds_or_of_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="has none"):
        find_source(tmp_path)
    (tmp_path / "a.csv").write_text("x\n")
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="1 of csv and 1 of jsonl"):
        find_source(tmp_path)


def test_a_tsv_keeps_its_quotes(tmp_path):
    source = tmp_path / "in.tsv"
    source.write_text('id\ttext\n1\t"so" he said\n')

    found = find_source(source)
    assert list(columns_of(found)) == ["id", "text"]
    assert [row.values for row in rows_of(found, ["text"])] == [{"text": '"so" he said'}]


def test_texts_are_answered_like_load_data_reads_them(encoder, tmp_path):
    texts = cases.sentences(12)
    source = cases.write_csv(tmp_path / "in.csv", texts)
    rows, _ = answer(encoder, source)
    data = load_data(source, tokenizer=encoder.tokenizer_path, splits={"test": 1.0}, task="none")

    session = open_session(encoder, EngineConfig())
    wanted = {
        label: session.run({n: a[i : i + 1] for n, a in data.split("test").inputs.items()})
        for i, label in enumerate(data.split("test").labels)
    }
    found = {text: row["embedding"] for text, row in zip(texts, rows, strict=True)}
    assert all(np.allclose(found[t], wanted[t]["embedding"][0], atol=1e-5) for t in wanted)
    assert json.loads(source.with_name("out.jsonl.manifest.json").read_text())["rows"] == 12


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("in.xlsx", b"", "must be one of .csv, .tsv"),
        ("in.csv", b"", "must start with a line of different column names"),
        ("in.csv", b"x,x\n1,2\n", "must start with a line of different column names"),
        ("in.csv", b'"x" y\n', "got: line 1"),
        ("in.parquet", b"PAR1 but no table PAR1", "must be a readable parquet file"),
        ("in.jsonl", b"", "Every input of the model must have its columns: x"),
        (
            "in.jsonl",
            b'{"id": [1], "x": [1, 2, 3]}',
            "Key 'id' must hold texts or numbers; got list",
        ),
    ],
)
def test_an_input_that_is_no_table_is_refused_before_anything_runs(
    double, tmp_path, name, content, match
):
    (tmp_path / name).write_bytes(content)
    keys = ("id",) if b"id" in content else ()
    with pytest.raises(DataError, match=match):
        answer(double, tmp_path / name, keys=keys)


def test_an_input_that_is_not_there_is_refused(double, tmp_path):
    with pytest.raises(DataError, match="'.*gone.csv' is not. Check the path"):
        answer(double, tmp_path / "gone.csv")


def test_files_of_a_folder_without_the_column_are_refused_by_name(double, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("a,b,c\n1,2,3\n")
    (tmp_path / "in" / "b.csv").write_text("a,b,d\n1,2,3\n")
    with pytest.raises(DataError, match="Column 'c' must be in 'b.csv'"):
        answer(double, tmp_path / "in")


def test_texts_for_a_model_of_numbers_are_refused(double, tmp_path):
    source = cases.write_csv(tmp_path / "in.csv", ["good"])
    with pytest.raises(DataError, match="fed to a model with input_ids"):
        answer(double, source, reading=Reading(columns={"text": "text"}))


def test_a_part_of_bad_texts_only_is_refused_whole(encoder, tmp_path):
    source = cases.write_jsonl(tmp_path / "in.jsonl", [{"text": ""}, {"text": 5}, {}])
    rows, refused = answer(encoder, source)

    assert rows == []
    assert [word in refused[i] for i, word in enumerate(("got none", "int", "NoneType"))] == [
        True
    ] * 3
