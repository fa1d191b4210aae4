import zipfile

import numpy as np
import pytest
from PIL import Image

from ingot.core.errors import DataError
from ingot.data.data import Split, Task
from ingot.data.load import load_data
from ingot.data.pixels import ImageSpec


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_npz_with_splits_gives_these_splits(tmp_path):
    path = tmp_path / "d.npz"
    x = np.arange(6, dtype=np.float32)[:, None]
    np.savez(path, **{"calibration/x": x[:2], "test/x": x[2:], "test/y": np.array([0, 1, 0, 1])})

    data = load_data(path)

    assert data.task is Task.CLASSIFICATION
    assert data.split("test").inputs["*"][:, 0].tolist() == [2, 3, 4, 5]
    assert len(data.split("calibration")) == 2


def test_flat_npz_is_divided_one_to_four(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=np.arange(10.0)[:, None], y=np.arange(10) / 10)

    data = load_data(path)

    assert (len(data.split("calibration")), len(data.split("test"))) == (2, 8)
    assert data.task is Task.REGRESSION


def test_npz_of_objects_is_refused_without_unpickling(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))

    with pytest.raises(DataError, match="plain arrays"):
        load_data(path)


@pytest.mark.parametrize("suffix", [".npz", ".zip", ".parquet"])
def test_a_broken_file_is_named(tmp_path, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"PK not really")

    with pytest.raises(DataError, match="broken"):
        load_data(path)


def test_table_and_arrays_of_the_same_numbers_have_one_digest(tmp_path):
    rows = [(0.1, 1, 0), (0.2, 2, 1), (0.3, 3, 0), (0.4, 4, 1), (0.5, 5, 0), (0.6, 6, 1)]
    table = write(tmp_path / "d.csv", "a,b,label\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
    array = np.array(rows, np.float32)
    np.savez(tmp_path / "d.npz", x=array[:, :2], y=array[:, 2].astype(np.uint8))

    assert load_data(table).digest == load_data(tmp_path / "d.npz").digest


def test_jsonl_and_parquet_read_like_csv(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    csv = write(tmp_path / "d.csv", "a,label\n" + "".join(f"{i}.5,c{i % 2}\n" for i in range(10)))
    rows = [f'{{"a": {i}.5, "label": "c{i % 2}"}}' for i in range(10)]
    jsonl = write(tmp_path / "d.jsonl", "\n".join(rows))
    columns = {"a": [i + 0.5 for i in range(10)], "label": [f"c{i % 2}" for i in range(10)]}
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")

    found = [load_data(path) for path in (csv, jsonl, tmp_path / "d.parquet")]

    assert len({data.digest for data in found}) == 1
    assert found[0].classes == ("c0", "c1")


def test_unknown_column_suggests_the_nearest(tmp_path):
    path = write(tmp_path / "d.csv", "sentence,label\na,0\n")

    with pytest.raises(DataError, match="Did you mean 'sentence'"):
        load_data(path, columns={"text": "sentense", "target": "label"})


def test_texts_become_padded_ids_and_masks(tmp_path, word_tokenizer):
    path = write(
        tmp_path / "d.tsv", 'sentence\tlabel\ngood film\t1\nbad\t0\n"a b c\t1\ncat\t0\ndog\t1\n'
    )

    data = load_data(
        path,
        columns={"text": "sentence", "target": "label"},
        tokenizer=word_tokenizer,
        splits={"test": 1.0},
    )

    test = data.split("test")
    assert test.inputs["input_ids"][0].tolist() == [5, 7, 0, 0]
    assert test.inputs["attention_mask"][0].tolist() == [1, 1, 0, 0]
    assert test.inputs["input_ids"].dtype == np.int64
    assert set(test.inputs) == {"input_ids", "attention_mask"}
    assert test.labels[0] == "good film"


def test_scored_pairs_take_two_rows_each(tmp_path, word_tokenizer):
    path = write(tmp_path / "d.csv", "l,r,score\na,b,0.5\ncat,dog,4\n")

    data = load_data(
        path,
        columns={"text": "l", "text_b": "r", "target": "score"},
        tokenizer=word_tokenizer,
        splits={"test": 1.0},
        token_types=True,
    )

    test = data.split("test")
    assert data.task is Task.SIMILARITY
    assert test.inputs["input_ids"][:, 0].tolist() == [2, 3, 8, 9]
    assert test.inputs["token_type_ids"].shape == (4, 1)
    assert len(test) == 2


def test_classified_pairs_take_one_row_each(tmp_path, word_tokenizer):
    path = write(tmp_path / "d.csv", "text,text_b,label\na,b,yes\ncat,dog,no\n")

    data = load_data(path, tokenizer=word_tokenizer, splits={"test": 1.0})

    assert data.split("test").inputs["input_ids"].tolist() == [[2, 3], [8, 9]]
    assert data.split("test").targets.tolist() == [1, 0]


def test_long_texts_are_cut(tmp_path, word_tokenizer):
    path = write(tmp_path / "d.csv", "text\na b c a b c\nb\n")

    data = load_data(path, tokenizer=word_tokenizer, max_length=4, splits={"test": 1.0})

    assert data.split("test").inputs["input_ids"].shape == (2, 4)


def test_texts_without_a_tokenizer_say_how_to_give_one(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_data(write(tmp_path / "d.csv", "text\na\n"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", "", "at least one row"),
        ("d.csv", "a,a\n1,2\n", "different names"),
        ("d.csv", "a,b\n1\n", "2 fields; row 2 has 1"),
        ("d.csv", "a,label\nred,1\n", "must be numbers"),
        ("d.csv", "a,label\n1,\n", "none in row 0"),
        ("d.jsonl", "[1]\n", "JSON object"),
        ("d.jsonl", "{\n", "readable .jsonl"),
        ("d.cvs", "a\n1\n", "Did you mean '.csv'"),
        ("data.toml", "file = 3 4", "TOML"),
        ("data.toml", 'fil = "d.csv"', "Did you mean 'file'"),
        ("data.toml", 'name = "x"', "neither"),
        ("data.toml", "[splits.test]\ntake = 3", "must name a file"),
    ],
)
def test_unusable_files_are_refused_by_name(tmp_path, name, content, message):
    path = write(tmp_path / name, content)

    with pytest.raises(DataError, match=message):
        load_data(path)


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="exists"):
        load_data(tmp_path / "gone.csv")


def picture(path, value, size=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


def test_folders_of_images_take_the_class_from_the_folder(tmp_path):
    for split in ("train", "test"):
        for i, name in enumerate(("cat", "dog")):
            value = 51 * (i + 1) + (51 if split == "test" else 0) * 2
            picture(tmp_path / "pets" / split / name / "0.png", value)

    data = load_data(tmp_path / "pets", image=ImageSpec(mean=(0.2, 0, 0), std=(0.5,)))

    test = data.split("test")
    assert data.classes == ("cat", "dog")
    assert sorted(data.splits) == ["test", "training"]
    assert test.inputs["*"].shape == (2, 3, 4, 4)
    assert test.inputs["*"][0, 0, 0, 0] == pytest.approx((153 / 255 - 0.2) / 0.5)
    assert test.labels == ("test/cat/0.png", "test/dog/0.png")


def test_images_of_several_sizes_need_a_size(tmp_path):
    picture(tmp_path / "pets/cat/0.png", 1)
    picture(tmp_path / "pets/dog/0.png", 2, (6, 4))

    with pytest.raises(DataError, match="one size"):
        load_data(tmp_path / "pets", splits={"test": 1.0})
    data = load_data(
        tmp_path / "pets", splits={"test": 1.0}, image=ImageSpec((2, 3), layout="NHWC", channels=1)
    )
    assert data.split("test").inputs["*"].shape == (2, 2, 3, 1)


def test_a_broken_image_is_named(tmp_path):
    (tmp_path / "cat").mkdir()
    write(tmp_path / "cat" / "bad.png", "no image")

    with pytest.raises(DataError, match=r"cat/bad\.png"):
        load_data(tmp_path)


def zipped(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for i, name in enumerate(names):
            picture(tmp_path / "one.png", 10 * i)
            archive.write(tmp_path / "one.png", name)
    return tmp_path / "d.zip"


def test_zip_takes_labels_from_the_index_beside_it(tmp_path):
    write(tmp_path / "d.csv", "file,label\nb.png,1\na.png,0\n")

    data = load_data(zipped(tmp_path, ["a.png", "b.png"]), splits={"test": 1.0})

    assert data.split("test").labels == ("b.png", "a.png")
    assert data.split("test").targets.tolist() == [1, 0]


def test_zip_whose_index_names_a_missing_file_is_refused(tmp_path):
    write(tmp_path / "d.csv", "file,label\nc.png,1\n")

    with pytest.raises(DataError, match=r"first is 'c\.png'"):
        load_data(zipped(tmp_path, ["a.png"]))


def test_iterables_are_stacked():
    examples = (({"x": np.full(2, i, np.float32)}, i % 2) for i in range(10))

    data = load_data(examples)

    assert data.split("test").inputs["x"].shape == (8, 2)
    assert data.task is Task.CLASSIFICATION


def test_ragged_iterables_are_refused():
    with pytest.raises(DataError, match="one shape"):
        load_data([(np.zeros(2), None), (np.zeros(3), None)])


def test_mappings_hold_splits_or_examples():
    test = Split({"*": np.ones((1, 2), np.float32)})

    data = load_data({"test": test, "calib": [(np.zeros(2, np.float32), None)]})

    assert sorted(data.splits) == ["calibration", "test"]


def test_toml_says_it_all_and_the_caller_wins(tmp_path, word_tokenizer):
    write(tmp_path / "a.csv", "s,l\n" + "a,x\nb,y\nc,x\n")
    write(tmp_path / "b.csv", "s,l\ncat,y\ndog,x\n")
    path = write(
        tmp_path / "data.toml",
        'name = "pets"\ntokenizer = "tokenizer.json"\ncolumns = {text = "s", target = "l"}\n'
        '[splits.calibration]\nfile = "a.csv"\ntake = 2\n[splits.test]\nfile = "b.csv"\n',
    )

    data = load_data(path, name="other")

    assert data.name == "other"
    assert data.classes == ("x", "y")
    assert len(data.split("calibration")) == 2
    assert data.split("test").targets.tolist() == [1, 0]


def test_toml_refuses_what_two_files_share(tmp_path):
    write(tmp_path / "a.csv", "v,label\n1,0\n2,1\n")
    text = '[splits.calibration]\nfile = "a.csv"\n[splits.test]\nfile = "a.csv"\n'
    path = write(tmp_path / "data.toml", text)

    with pytest.raises(DataError, match="2 duplicate"):
        load_data(path)


def test_mnist_loads_through_a_mapping_of_keys(shared_data, tmp_path):
    file = shared_data / "mnist" / "mnist.npz"
    parts = {"calibration": "train", "test": "test"}
    body = "".join(
        f"[splits.{k}]\nfile = '{file}'\n"
        f"columns = {{image = '{v}_images', target = '{v}_labels'}}\n"
        for k, v in parts.items()
    )
    path = write(tmp_path / "data.toml", "[image]\nchannels = 1\n" + body)

    data = load_data(path)

    assert data.split("test").inputs["image"].shape == (1500, 1, 28, 28)


def test_cifar_jpegs_load_with_their_index(shared_data):
    spec = ImageSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

    data = load_data(shared_data / "cifar10" / "test_jpeg.zip", image=spec, splits={"test": 1.0})

    assert data.split("test").inputs["*"].shape == (5000, 3, 32, 32)
    assert np.bincount(data.split("test").targets).tolist() == [500] * 10


def test_sentence_pairs_load_as_similarity(shared_data, word_tokenizer):
    data = load_data(
        shared_data / "stsb" / "test_a.csv",
        columns={"text": "sentence1", "text_b": "sentence2", "target": "score"},
        tokenizer=word_tokenizer,
        splits={"test": 1.0},
    )

    assert data.task is Task.SIMILARITY
    assert len(data.split("test")) == 690


def test_sentences_load_as_classes(shared_data, word_tokenizer):
    data = load_data(
        shared_data / "sst2" / "dev.tsv",
        columns={"text": "sentence", "target": "label"},
        tokenizer=word_tokenizer,
    )

    assert data.task is Task.CLASSIFICATION
    assert sum(len(split) for split in data.splits.values()) == 872


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"x": np.ones(2), "test/x": np.ones(2)}, "all name a split or none"),
        ({}, "at least one split"),
        ({"test": 3}, "Split or an iterable"),
        ([np.ones(2)], "tuples"),
        ([({"a": np.ones(1)}, 0), ({"b": np.ones(1)}, 0)], "same inputs"),
    ],
)
def test_unusable_python_sources_are_refused(source, message):
    with pytest.raises(DataError, match=message):
        load_data(source)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[splits.test]\nfile = 'a.csv'\ntake = 9", "between 1 and the 4"),
        ("[splits.test]\nfile = 'a.csv'\nlimit = 9", "known keys"),
        ("[splits.test]\nfile = 'a.csv'\n[fractions]\na = 1.0", "fractions must not"),
        ("classes = ['x']\ntask = 'classification'\nfile = 'b.csv'", "among the classes"),
        ("file = 'a.csv'\n[image]\nstd = [0.0]", "std above 0"),
        ("file = 'a.csv'\n[image]\nmean = [0.0, 0.0]", "1 or 3 numbers"),
        ("[splits.dev]\nfile = 'two.npz'", "must find its split"),
    ],
)
def test_unusable_descriptions_are_refused(tmp_path, body, message):
    write(tmp_path / "a.csv", "v,label\n1,0\n2,1\n3,0\n4,1\n")
    write(tmp_path / "b.csv", "v,label\n1,x\n2,y\n")
    np.savez(tmp_path / "two.npz", **{"test/x": np.ones((1, 1)), "calibration/x": np.ones((1, 1))})

    with pytest.raises(DataError, match=message):
        load_data(write(tmp_path / "data.toml", body))


def test_toml_divides_one_file_by_its_fractions(tmp_path):
    write(tmp_path / "a.csv", "v,label\n" + "".join(f"{i},{i % 2}\n" for i in range(20)))
    body = "file = 'a.csv'\n[fractions]\ntraining = 0.5\ntest = 0.5"

    data = load_data(write(tmp_path / "data.toml", body))

    assert {name: len(split) for name, split in data.splits.items()} == {"training": 10, "test": 10}


def test_toml_takes_the_split_of_its_name_from_a_file_with_several(tmp_path):
    x = np.arange(6, dtype=np.float32)[:, None]
    np.savez(tmp_path / "two.npz", **{"test/x": x[:2], "calibration/x": x[2:]})
    body = "[splits.test]\nfile = 'two.npz'\n[splits.calib]\nfile = 'two.npz'"

    data = load_data(write(tmp_path / "data.toml", body))

    assert (len(data.split("test")), len(data.split("calibration"))) == (2, 4)


def test_data_with_splits_are_not_divided_again():
    arrays = {"test/x": np.ones((2, 1)), "calibration/x": np.zeros((2, 1))}

    with pytest.raises(DataError, match="divided again"):
        load_data(arrays, splits={"test": 1.0})


def test_npz_key_that_is_not_there_is_suggested(tmp_path):
    np.savez(tmp_path / "d.npz", images=np.ones((2, 1)))

    with pytest.raises(DataError, match="Did you mean 'images'"):
        load_data(tmp_path / "d.npz", columns={"x": "image"})


def test_task_none_leaves_the_targets_out(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.arange(10.0)[:, None], y=np.arange(10))

    assert load_data(tmp_path / "d.npz", task="none").split("test").targets is None


@pytest.mark.parametrize(
    ("text", "max_length", "tokenizer", "message"),
    [
        ("a", 0, "tokenizer.json", "at least 1 token"),
        ("a", 8, "gone.json", "is not there"),
        ("a", 8, "d.jsonl", "cannot be read"),
        ("", 8, "tokenizer.json", "at least one character"),
    ],
)
def test_unusable_texts_are_refused(tmp_path, word_tokenizer, text, max_length, tokenizer, message):
    path = write(tmp_path / "d.jsonl", f'{{"text": "{text}"}}\n')

    with pytest.raises(DataError, match=message):
        load_data(path, tokenizer=word_tokenizer.parent / tokenizer, max_length=max_length)


def test_zip_of_class_folders_needs_no_index(tmp_path):
    data = load_data(zipped(tmp_path, ["cat/a.png", "dog/b.png"]), splits={"test": 1.0})

    assert data.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("index", "message"), [("file,label\n", "at least one row"), ("path,label\na,1\n", "'file'")]
)
def test_unusable_index_is_refused(tmp_path, index, message):
    write(tmp_path / "d.csv", index)

    with pytest.raises(DataError, match=message):
        load_data(zipped(tmp_path, ["a.png"]))


@pytest.mark.parametrize("names", [[], ["a.png"]])
def test_images_outside_class_folders_are_refused(tmp_path, names):
    with pytest.raises(DataError, match="class"):
        load_data(zipped(tmp_path, names))
