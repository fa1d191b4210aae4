"""Small trained networks of other shapes, each with real inputs: audio, bytes, pictures, text.

Every function takes the folder of the shared data and a work folder and returns the float model
and data without labels, split into `calibration` and `test`. What a model wants as input follows
its makers' own rule.
"""

import json
import wave
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ingot.data.data import Data, Split
from ingot.data.splits import make_data
from ingot.models.load import load_model
from ingot.models.model import Model

RATE = 16_000  # samples per second of the audio models
CHUNK, CONTEXT = 512, 64  # samples that Silero hears at a time, and those it hears again
CLIP = 144_160  # samples, 9.01 s: what DNSMOS scores
MELS, WINDOW, HOP = 120, 321, 160
HEIGHT, WIDTH = 240, 320
SILERO = "silero_vad_16k_op15.onnx"
Loaded = tuple[Model, Data]


def silero_vad(shared: Path, work: Path) -> Loaded:
    """Return the speech detector and chunks of one minute of real speech with their states.

    The network is built in torch with the weights of the published ONNX file and gives its numbers
    (the .safetensors beside it holds others). States are those of that file on the recording up to
    the chunk. The first half minute calibrates, the second tests.
    """
    folder, path = shared / "audio_models" / "silero_vad", work / "silero_vad.npz"
    work.mkdir(parents=True, exist_ok=True)
    np.savez(path, allow_pickle=False, **_silero_weights(folder / SILERO))
    model = load_model("_silero:silero", weights=path, name="silero_vad", root=work / "store")
    return model, _speech(folder)


def silero_vad_file(shared: Path, work: Path) -> Loaded:
    """Return the published ONNX file of the speech detector, with branches, and the same chunks.

    The file keeps its state as (layer, row, width), so no batch of it has rows first; the model
    here takes and gives `state` as (row, layer, width) and fixes the sample rate. The answers are
    the same. OpenVINO does not load it: its branches differ in rank.
    """
    folder, path = shared / "audio_models" / "silero_vad", work / "silero_vad_file.onnx"
    work.mkdir(parents=True, exist_ok=True)
    onnx.save(_rows_first(onnx.load(folder / SILERO)), path)
    return load_model(path, root=work / "store"), _speech(folder)


def dnsmos(shared: Path, work: Path) -> Loaded:
    """Return the judge of speech quality (P.808) and spectra of real speech, plain and noisy.

    Windows of 9.01 s of one recording, a second apart; white noise of 0 to 20 dB below the speech
    is added to every second one. The first half minute calibrates, the second tests.
    """
    model = load_model(
        shared / "audio_models" / "dnsmos" / "model_v8.onnx", name="dnsmos", root=work / "store"
    )
    audio = _wav(shared / "audio_models" / "silero_vad" / "test.wav")
    rng = np.random.default_rng(0)
    splits = {}
    for name, part in (("calibration", audio[: 30 * RATE]), ("test", audio[30 * RATE :])):
        spectra = []
        for i, start in enumerate(range(0, len(part) - CLIP + 1, RATE // 2)):
            clip = part[start : start + CLIP]
            if i % 2:
                level = np.sqrt((clip**2).mean()) * 10 ** (-rng.uniform(0, 20) / 20)
                clip = clip + level * rng.standard_normal(CLIP)
            spectra.append(_mel_spectrum(clip))
        splits[name] = Split({"input_1": np.stack(spectra)})
    return model, make_data(splits, task="none", name="dnsmos")


def magika(shared: Path, work: Path) -> Loaded:
    """Return the judge of file types and the bytes of its makers' 46 sample files.

    Every third file calibrates, the others test.
    """
    folder = shared / "magika"
    model = load_model(folder / "standard_v3_3" / "model.onnx", name="magika", root=work / "store")
    settings = json.loads((folder / "standard_v3_3" / "config.min.json").read_text())
    rows, names = [], []
    with zipfile.ZipFile(folder / "samples.zip") as archive:
        for name in sorted(archive.namelist()):
            content = archive.read(name)
            if len(content) >= settings["min_file_size_for_dl"]:
                rows.append(_first_and_last_bytes(content, settings))
                names.append(name)
    tokens, index = np.stack(rows), np.arange(len(rows))
    splits = {
        name: Split({"bytes": tokens[chosen]}, labels=tuple(np.array(names)[chosen].tolist()))
        for name, chosen in (("calibration", index % 3 == 0), ("test", index % 3 != 0))
    }
    return model, make_data(splits, task="none", name="magika")


def face_detector(shared: Path, work: Path) -> Loaded:
    """Return the face detector and photographs, which show hardly any faces.

    Its folder holds no pictures. These are CIFAR-10's photographs, twelve to a picture, enlarged:
    real colours and edges, so ranges of activations are plausible, but nothing is said about faces.
    """
    model = load_model(
        shared / "face_detector" / "version-RFB-320.onnx", name="face_detector",
        root=work / "store",
    )  # fmt: skip
    splits = {}
    for name, file, count in (("calibration", "train", 32), ("test", "test", 40)):
        with np.load(shared / "cifar10" / f"{file}_lossless.npz") as arrays:
            images = arrays["images"][: 12 * count]
        splits[name] = Split({"input": np.stack(list(_mosaics(images)))})
    return model, make_data(splits, task="none", name="face_detector")


def sst2_encoder(shared: Path, work: Path, trained: Path) -> Loaded:
    """Return the sentiment encoder with the weights and tokenizer in `trained`, and its sentences.

    `python -m ingot_workloads.sst2_encoder.train --data ... --out TRAINED` makes both files. For
    labels use `ingot_workloads.sst2_encoder.data.load`.
    """
    from tokenizers import Tokenizer

    from ingot_workloads.sst2_encoder.data import load

    model = load_model(
        "ingot_workloads.sst2_encoder.model:sst2_encoder",
        weights=trained / "weights.safetensors", tokenizer=trained / "tokenizer.json",
        root=work / "store",
    )  # fmt: skip
    data = load(shared / "sst2", Tokenizer.from_file(str(trained / "tokenizer.json")))
    splits = {
        name: Split(data.split(name).inputs, labels=data.split(name).labels)
        for name in ("calibration", "test")
    }
    return model, make_data(splits, task="none", name="sst2")


SMALL_MODELS: dict[str, Callable[[Path, Path], Loaded]] = {
    "silero_vad": silero_vad,
    "silero_vad_file": silero_vad_file,
    "dnsmos": dnsmos,
    "magika": magika,
    "face_detector": face_detector,
}


def _silero_weights(path: Path) -> dict[str, np.ndarray]:
    """Return the weights of the ONNX file by their names in `_silero`."""
    names = {"model.stft.forward_basis_buffer": "stft_conv.weight"}
    for part in ("weight", "bias"):
        for i in range(4):
            names[f"model.encoder.{i}.reparam_conv.{part}"] = f"conv{i + 1}.{part}"
        names[f"model.decoder.decoder.2.{part}"] = f"final_conv.{part}"
        for side in ("ih", "hh"):
            names[f"model.decoder.rnn.{part}_{side}"] = f"lstm_cell.{part}_{side}"
    weights = onnx.load(path).graph.initializer
    return {names[w.name]: numpy_helper.to_array(w) for w in weights}


def _rows_first(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Let `state` come and go with rows first, and make the sample rate a constant."""
    graph = proto.graph
    kept = [value for value in graph.input if value.name == "input"]
    ends = [value for value in graph.output if value.name == "output"]
    shape = ["batch", 2, 128]
    kept.append(helper.make_tensor_value_info("state", onnx.TensorProto.FLOAT, shape))
    ends.append(helper.make_tensor_value_info("stateN", onnx.TensorProto.FLOAT, shape))
    _rename(graph, {"state": "state_by_layer", "stateN": "stateN_by_layer"})
    first = helper.make_node("Transpose", ["state"], ["state_by_layer"], perm=[1, 0, 2])
    last = helper.make_node("Transpose", ["stateN_by_layer"], ["stateN"], perm=[1, 0, 2])
    nodes = [first, *graph.node, last]
    weights = [*graph.initializer, numpy_helper.from_array(np.array(RATE, np.int64), "sr")]
    body = helper.make_graph(nodes, "silero_vad", kept, ends, weights)
    return helper.make_model(body, opset_imports=proto.opset_import, ir_version=proto.ir_version)


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        for side in (node.input, node.output):
            for i, name in enumerate(side):
                side[i] = names.get(name, name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names)


def _speech(folder: Path) -> Data:
    inputs = _chunks(folder / SILERO, _wav(folder / "test.wav"))
    half = len(inputs["input"]) // 2
    parts = {"calibration": slice(0, half, 8), "test": slice(half, None, 2)}
    splits = {name: Split({n: a[part] for n, a in inputs.items()}) for name, part in parts.items()}
    return make_data(splits, task="none", name="silero_vad")


def _chunks(path: Path, audio: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the detector hears on a recording, chunk after chunk."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    state, before = np.zeros((2, 1, 128), np.float32), np.zeros(CONTEXT, np.float32)
    heard, states = [], []
    for start in range(0, len(audio) - CHUNK + 1, CHUNK):
        chunk = audio[start : start + CHUNK]
        heard.append(np.concatenate([before, chunk]))
        states.append(state[:, 0])
        feeds = {"input": heard[-1][None], "state": state, "sr": np.array(RATE, np.int64)}
        state = session.run(["stateN"], feeds)[0]
        before = chunk[-CONTEXT:]
    return {"input": np.stack(heard), "state": np.stack(states)}


def _wav(path: Path) -> np.ndarray:
    with wave.open(str(path)) as stream:
        assert (stream.getframerate(), stream.getnchannels()) == (RATE, 1)
        samples = np.frombuffer(stream.readframes(stream.getnframes()), "<i2")
    return (samples / 32768).astype(np.float32)


def _mel_spectrum(clip: np.ndarray) -> np.ndarray:
    """Return `(900, 120)`: the spectrum in decibels below its peak, scaled as DNSMOS was trained.

    Power of 20 ms windows every 10 ms on Slaney's mel scale, as in the script that comes with it.
    """
    padded = np.pad(clip[:-HOP], WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * window)) ** 2 @ _mel_filters().T
    decibels = 10 * np.log10(np.maximum(power, 1e-10) / max(power.max(), 1e-10))
    return ((np.maximum(decibels, -80) + 40) / 40).astype(np.float32)


def _mel_filters() -> np.ndarray:
    """Return triangles of equal area `(mels, bins)` from 0 to 8 kHz."""
    steps = np.linspace(0, 15 + np.log(RATE / 2 / 1000) * 27 / np.log(6.4), MELS + 2)
    linear, curved = steps * 200 / 3, 1000 * np.exp((steps - 15) * np.log(6.4) / 27)
    edges = np.where(steps < 15, linear, curved)[:, None]
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rise, fall)) * 2 / (edges[2:] - edges[:-2])


def _first_and_last_bytes(content: bytes, settings: dict) -> np.ndarray:
    """Return the bytes at both ends without the white space around them, padded in the middle."""
    block, size, pad = settings["block_size"], settings["beg_size"], settings["padding_token"]
    first = np.full(size, pad, np.int32)
    last = np.full(settings["end_size"], pad, np.int32)
    start = content[:block].lstrip()[:size]
    end = content[-block:].rstrip()[-len(last) :]
    first[: len(start)] = list(start)
    last[len(last) - len(end) :] = list(end)
    return np.concatenate([first, last])


def _mosaics(images: np.ndarray) -> Iterator[np.ndarray]:
    """Give pictures `(3, 240, 320)` of 3 x 4 enlarged photographs, scaled as the detector wants."""
    from PIL import Image

    for start in range(0, len(images), 12):
        rows = [np.hstack(images[start + i : start + i + 4]) for i in (0, 4, 8)]
        picture = Image.fromarray(np.vstack(rows)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        pixels = np.asarray(picture, np.float32)
        yield np.ascontiguousarray(((pixels - 127) / 128).transpose(2, 0, 1))
