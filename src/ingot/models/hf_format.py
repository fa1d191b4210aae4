"""Hugging Face folders: encoders, classifiers and decoders from local files, without their code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ingot.core.errors import ModelError
from ingot.core.extras import need
from ingot.models._export import export, quiet
from ingot.models.ends import read_ends
from ingot.models.model import TOKENIZER_FILE

_HEADS = {
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "logits"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "logits"),
    "ForCausalLM": ("AutoModelForCausalLM", "logits"),
    "LMHeadModel": ("AutoModelForCausalLM", "logits"),
}
_MODULES_FILE = "modules.json"
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_FAR = -1e4  # added to the scores of masked tokens: exp() of it is 0 in float32 and fits float16


def is_hf_folder(path: Path) -> bool:
    """Say whether a folder looks like a saved transformers model."""
    return (path / "config.json").is_file()


def read_hf(folder: Path) -> tuple[onnx.ModelProto, dict[str, Path | bytes]]:
    """Return the graph of a transformers folder, and the files to keep with it.

    These are the tokenizer and, for a causal language model, how its texts end.

    Inputs are `input_ids` and `attention_mask` `(batch, sequence)` int64. The output is
    `embedding` `(batch, hidden)` where sentence-transformers' pooling is described, else `logits`
    or `last_hidden_state`.

    Raises:
        ModelError: The folder has no safetensors weights, needs its own code, misses weights, or
            pools in a way that is not known.
    """
    config = _json(folder / "config.json")
    _check(folder, config)
    architecture = (config.get("architectures") or [""])[0]
    loader, output = next(
        (v for k, v in _HEADS.items() if architecture.endswith(k)),
        ("AutoModel", "last_hidden_state"),
    )
    steps = _sentence_steps(folder) if (folder / _MODULES_FILE).is_file() else ()
    if steps:
        loader, output = "AutoModel", "embedding"
    network = _wrap(_load(folder, loader), output, steps)
    ids = np.random.default_rng(0).integers(1, config.get("vocab_size", 100), (2, 8))
    mask = np.ones((2, 8), np.int64)
    mask[1, 5:] = 0
    example = {"input_ids": ids.astype(np.int64), "attention_mask": mask}
    proto = export(network, example, dynamic=True, outputs=[output])
    tokenizer = folder / TOKENIZER_FILE
    kept: dict[str, Path | bytes] = {TOKENIZER_FILE: tokenizer} if tokenizer.is_file() else {}
    if loader == "AutoModelForCausalLM":
        kept |= read_ends(folder).as_files()
    return proto, kept


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path.name} must be readable JSON; {error}. Download the folder again."
        ) from error


def _check(folder: Path, config: Any) -> None:
    if not isinstance(config, Mapping) or "model_type" not in config:
        raise ModelError(
            f"config.json of {folder.name} must name a model_type; got none. Save the model with "
            "save_pretrained()."
        )
    if "auto_map" in config:
        raise ModelError(
            f"{folder.name} must be an architecture that transformers ships; its config.json asks "
            "to run code from the folder (auto_map). Ingot never does: build it with a torch "
            "factory "
            "of your own, 'package.module:function'."
        )
    if not any(folder.glob("*.safetensors")):
        others = [p.name for p in folder.glob("*.bin")]
        raise ModelError(
            f"{folder.name} must hold its weights as *.safetensors; got {others or 'none'}. "
            "Pickled "
            "weights can run code and are not read: convert them where you trust them with "
            "save_pretrained(folder, safe_serialization=True)."
        )


def _load(folder: Path, loader: str) -> Any:
    need("torch", extra="hf", what="A Hugging Face folder")
    transformers = need("transformers", extra="hf", what="A Hugging Face folder")
    from safetensors import SafetensorError

    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        with quiet():
            network, facts = getattr(transformers, loader).from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                # plain MatMul, Softmax, MatMul: what both engines recognise as attention
                attn_implementation="eager",
                output_loading_info=True,
                dtype="float32",
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder.name} must load in transformers as {loader}; {str(error).splitlines()[0]}. "
            "Check that the folder is complete and that transformers knows this architecture."
        ) from error
    finally:
        if shown:
            bars.enable_progress_bar()
    missing = [k for k in facts["missing_keys"] if not k.startswith("pooler.")]
    if missing:
        raise ModelError(
            f"{folder.name} must hold every weight of its network; {len(missing)} are missing: "
            f"{', '.join(sorted(missing)[:5])}. They would be random: use a complete checkpoint."
        )
    network.config.use_cache = False  # one graph for a whole sequence
    return network.eval()


def _sentence_steps(folder: Path) -> tuple[str, ...]:
    """Return what follows the encoder: `mean` or `cls`, then perhaps `normalize`."""
    steps: list[str] = []
    for module in _json(folder / _MODULES_FILE):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Pooling":
            chosen = _json(folder / module["path"] / "config.json")
            modes = [k for k, v in chosen.items() if k.startswith("pooling_mode_") and v is True]
            if len(modes) != 1 or modes[0] not in _POOLINGS:
                raise ModelError(
                    f"Pooling of {folder.name} must be mean or CLS; got {modes}. Build the network "
                    "with a torch factory of your own."
                )
            steps.append(_POOLINGS[modes[0]])
        elif kind == "Normalize":
            steps.append("normalize")
        elif kind != "Transformer":
            raise ModelError(
                f"Modules of {folder.name} must be Transformer, Pooling and Normalize; got "
                f"{kind!r}. "
                "Build the network with a torch factory of your own."
            )
    return tuple(steps)


def _wrap(network: Any, output: str, steps: tuple[str, ...]) -> Any:
    import torch

    has_types = getattr(network.config, "type_vocab_size", 0) > 1
    # Decoders build causal masks themselves and must get the plain one.
    plain = bool(getattr(network.config, "is_decoder", False)) or not _takes_bias(network)

    class Wrapped(torch.nn.Module):  # type: ignore[misc] # torch is untyped here
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            bias = (1.0 - attention_mask[:, None, None, :].float()) * _FAR
            extra = {"token_type_ids": torch.zeros_like(input_ids)} if has_types else {}
            found = self.network(
                input_ids=input_ids, attention_mask=attention_mask if plain else bias, **extra
            )
            if not steps:
                return found[output]
            return _pool(torch, found["last_hidden_state"], attention_mask, steps)

    return Wrapped().eval()


def _takes_bias(network: Any) -> bool:
    """Say whether a ready additive mask `(batch, 1, 1, sequence)` gives the same answer.

    A mask made by the library brings a subgraph of comparisons and gathers that hides attention
    from the engines; most encoders pass a mask of rank four through unchanged.
    """
    import torch

    ids = torch.randint(
        1, network.config.vocab_size, (2, 6), generator=torch.Generator().manual_seed(0)
    )
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    try:
        with torch.inference_mode(), quiet():
            want = network(input_ids=ids, attention_mask=mask)[0]
            bias = (1.0 - mask[:, None, None, :].float()) * _FAR
            got = network(input_ids=ids, attention_mask=bias)[0]
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    gap = (want - got)[mask.bool()] if want.shape[:2] == mask.shape else want - got
    return bool(gap.abs().max() <= 1e-4 * want.abs().max())


def _pool(torch: Any, hidden: Any, mask: Any, steps: tuple[str, ...]) -> Any:
    value = hidden[:, 0]
    if "mean" in steps:
        kept = mask.unsqueeze(-1).to(hidden.dtype)
        value = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(value, dim=1) if "normalize" in steps else value
