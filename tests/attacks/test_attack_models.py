"""Smuggle code or foreign files into a model. A payload that ran would leave a marker file."""

import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from ingot.core.errors import ModelError
from ingot.models.load import load_model
from ingot.models.onnx_format import read_onnx
from ingot.testing.tiny import tiny_cnn

torch = pytest.importorskip("torch")


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "the-payload-ran"


def exported(path):
    program = torch.export.export(torch.nn.Linear(4, 3).eval(), (torch.zeros(2, 4),))
    torch.export.save(program, path)
    return path


def rewrite(path, change):
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def test_the_payload_would_run_if_it_were_unpickled(marker):
    pickle.loads(pickle.dumps(Payload(marker)))

    assert marker.exists()


@pytest.mark.parametrize("name", ["w.pt", "w.th", "w.bin"])
@pytest.mark.parametrize("plain", [True, False])
def test_a_pickle_as_a_state_dict_is_refused(tmp_path, marker, name, plain):
    from ingot.models.torch_format import build_module

    if plain:
        (tmp_path / name).write_bytes(pickle.dumps(Payload(marker)))
    else:
        torch.save({"weight": Payload(marker)}, tmp_path / name)

    with pytest.raises(ModelError, match="must"):
        build_module(lambda: torch.nn.Linear(1, 1), tmp_path / name)
    assert not marker.exists()


def test_an_object_array_in_an_npz_is_refused(tmp_path, marker):
    from ingot.models.torch_format import build_module

    np.savez(tmp_path / "w.npz", weight=np.array([Payload(marker)], dtype=object))

    with pytest.raises(ModelError, match="pickled objects"):
        build_module(lambda: torch.nn.Linear(1, 1), tmp_path / "w.npz")
    assert not marker.exists()


def test_pickled_sample_inputs_in_a_pt2_are_refused(tmp_path, marker):
    def change(files):
        key = next(k for k in files if "sample_inputs" in k)
        torch.save(Payload(marker), tmp_path / "p.pt")
        files[key] = (tmp_path / "p.pt").read_bytes()

    rewrite(exported(tmp_path / "n.pt2"), change)

    with pytest.raises(ModelError, match="sample inputs are pickled"):
        load_model(tmp_path / "n.pt2")
    assert not marker.exists()


def test_a_pickled_weight_in_a_pt2_is_refused(tmp_path, marker):
    def change(files):
        key = next(k for k in files if k.endswith("weights_config.json"))
        config = json.loads(files[key])
        row = next(iter(config["config"].values()))
        row["use_pickle"] = True
        files[key] = json.dumps(config).encode()
        files[key.rsplit("/", 1)[0] + "/" + row["path_name"]] = pickle.dumps(Payload(marker))

    rewrite(exported(tmp_path / "n.pt2"), change)

    with pytest.raises(ModelError, match="pickled object"):
        load_model(tmp_path / "n.pt2")
    assert not marker.exists()


@pytest.mark.parametrize("prefix", ["custom_obj_0", "opaque_obj_0"])
def test_a_custom_object_in_a_pt2_is_refused(tmp_path, marker, prefix):
    def change(files):
        key = next(k for k in files if k.endswith("constants_config.json"))
        files[key] = json.dumps(
            {"config": {"c": {"path_name": prefix, "is_param": False, "use_pickle": False}}}
        ).encode()
        files[key.rsplit("/", 1)[0] + "/" + prefix] = pickle.dumps(Payload(marker))

    rewrite(exported(tmp_path / "n.pt2"), change)

    with pytest.raises(ModelError, match="without running code"):
        load_model(tmp_path / "n.pt2")
    assert not marker.exists()


def test_python_in_a_size_of_a_pt2_is_refused(tmp_path, marker):
    def change(files):
        key = next(k for k in files if k.endswith("models/model.json"))
        program = json.loads(files[key])
        values = program["graph_module"]["graph"]["tensor_values"]
        code = f"__import__('pathlib').Path({str(marker)!r}).touch() or 2"
        next(iter(values.values()))["sizes"][0] = {"as_expr": {"expr_str": code, "hint": None}}
        files[key] = json.dumps(program).encode()

    rewrite(exported(tmp_path / "n.pt2"), change)

    with pytest.raises(ModelError, match="a size is the expression"):
        load_model(tmp_path / "n.pt2")
    assert not marker.exists()


def test_a_call_out_of_the_operators_in_a_pt2_is_refused(tmp_path):
    def change(files):
        key = next(k for k in files if k.endswith("models/model.json"))
        program = json.loads(files[key])
        program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"
        files[key] = json.dumps(program).encode()

    rewrite(exported(tmp_path / "n.pt2"), change)

    with pytest.raises(ModelError, match=r"calls 'torch\.hub\.load'"):
        load_model(tmp_path / "n.pt2")


def test_pickled_weights_in_a_hugging_face_folder_are_not_read(tmp_path, marker):
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))

    with pytest.raises(ModelError, match=r"safetensors; got \['pytorch_model\.bin'\]"):
        load_model(folder)
    assert not marker.exists()


def test_a_hugging_face_folder_that_brings_code_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoModel": "m.M"}}')

    with pytest.raises(ModelError, match="run code from the folder"):
        load_model(tmp_path)


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "link"])
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    (tmp_path / "link").symlink_to("/etc/passwd")
    proto = tiny_cnn()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())

    with pytest.raises(ModelError, match="must lie in the model's own folder"):
        read_onnx(tmp_path / "m.onnx")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    from ingot.models.torch_format import build_module

    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(80_000_000))

    with pytest.raises(ModelError, match="must not unpack to more"):
        build_module(lambda: torch.nn.Linear(1, 1), tmp_path / "w.npz")


def test_a_safetensors_header_that_lies_is_refused(tmp_path):
    from ingot.models.torch_format import build_module

    header = json.dumps(
        {"weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    ).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)

    with pytest.raises(ModelError, match="whole, valid file of weights"):
        build_module(lambda: torch.nn.Linear(1, 1), tmp_path / "w.safetensors")
