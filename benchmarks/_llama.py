"""llama.cpp, in an interpreter of its own: write a GPT-2 as GGUF, and run it.

`PYTHON benchmarks/_llama.py WEIGHTS.npz OUT.gguf Q4_0 HEADS` writes; `_decode_worker.py` runs.
Needs numpy, gguf and llama-cpp-python:

    python3 -m venv build/llama && build/llama/bin/pip install numpy gguf llama-cpp-python
    export INGOT_LLAMA_PYTHON=$PWD/build/llama/bin/python
"""

import ctypes
import sys
from pathlib import Path

import numpy as np

LONGEST = 256  # tokens of a sequence of the contest
MOST = 4  # sequences of a batch
BLOCK = {
    "norm1": "attn_norm",
    "qkv": "attn_qkv",
    "out": "attn_output",
    "norm2": "ffn_norm",
    "up": "ffn_up",
    "down": "ffn_down",
}
WHOLE = {"tokens": "token_embd", "places": "position_embd", "norm": "output_norm"}


def write(weights: Path, target: Path, form: str, heads: int) -> None:
    """Write every matrix in `form`, `Q4_0` or `Q8_0`; positions, norms and biases in floats.

    The token table is the vocabulary's matrix, too, as in GPT-2.
    """
    import gguf

    with np.load(weights) as arrays:
        tensors = {name: arrays[name] for name in arrays.files}
    vocab, width = tensors["tokens.weight"].shape
    layers = len({name.split(".")[1] for name in tensors if name.startswith("layers.")})
    writer = gguf.GGUFWriter(target, "gpt2")
    writer.add_context_length(len(tensors["places.weight"]))
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(4 * width)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(vocab)
    kind = gguf.GGMLQuantizationType[form]
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{form}"])
    for name, tensor in tensors.items():
        target_name = _gguf_name(name)
        if tensor.ndim == 2 and name != "places.weight":
            writer.add_tensor(target_name, gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target_name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{BLOCK[parts[2]]}.{parts[3]}"
    return f"{WHOLE[parts[0]]}.{parts[1]}"


class Llama:
    """A GGUF file in llama.cpp, with its default settings; a context for one and one for four."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if not self.model:
            raise RuntimeError(f"llama.cpp must load {path.name}; it does not")
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab = llama_cpp.llama_vocab_n_tokens(vocab)
        self.contexts = {batch: self._context(batch, threads) for batch in (1, MOST)}
        self.batch = llama_cpp.llama_batch_init(MOST * LONGEST, 0, 1)

    def _context(self, sequences: int, threads: int) -> object:
        settings = self.api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = sequences * LONGEST
        settings.n_seq_max = sequences
        settings.n_threads = settings.n_threads_batch = threads
        return self.api.llama_init_from_model(self.model, settings)

    def start(self, batch: int) -> None:
        """Forget everything."""
        self.context = self.contexts[batch]
        memory = self.api.llama_get_memory(self.context)
        self.api.llama_memory_clear(memory, True)
        self.length = 0

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Read `(batch, count)` tokens; scores after the last of each sequence."""
        rows, count = tokens.shape
        batch, last = self.batch, []
        batch.n_tokens = rows * count
        for row in range(rows):
            for at in range(count):
                place = row * count + at
                batch.token[place] = int(tokens[row, at])
                batch.pos[place] = self.length + at
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = row
                batch.logits[place] = at == count - 1
            last.append(row * count + count - 1)
        code = self.api.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode must return 0; it returned {code}")
        self.length += count
        return np.stack([self._scores(place) for place in last])

    def _scores(self, place: int) -> np.ndarray:
        found = self.api.llama_get_logits_ith(self.context, place)
        whole = ctypes.cast(found, ctypes.POINTER(ctypes.c_float * self.vocab))
        return np.frombuffer(whole.contents, np.float32).copy()


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
