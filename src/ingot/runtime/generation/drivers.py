"""Which way of decoding a model gets: with a cache, or by reading everything again."""

from ingot.core.errors import EngineError, IngotError
from ingot.models.model import Model
from ingot.runtime.engine import EngineConfig
from ingot.runtime.engines import open_session
from ingot.runtime.generation.decoding import Decoding
from ingot.runtime.generation.native import open_native
from ingot.runtime.generation.recompute import Recomputing
from ingot.runtime.native_engine import NativeEngine

CACHE_TOKENS = 4096


def open_decoding(
    model: Model,
    config: EngineConfig | None = None,
    *,
    threads: int = 0,
    cache_tokens: int = CACHE_TOKENS,
    cache_bits: int = 32,
    is_fixed: bool = True,
) -> Decoding:
    """Open a language model to generate with.

    The native engine keeps keys and values of what was read. Any other engine reads the whole
    sequence again for every token: the same text, slowly.

    Args:
        model: Takes token ids, gives scores of the vocabulary for every token.
        config: Engine, precision and threads. If not given: the native engine where it runs the
            weights as they are, else ONNX Runtime, and `why` says what the native engine misses;
            float weights are rounded to bf16 only where that is asked for.
        threads: Threads where no configuration is given; 0 for every physical core.
        cache_tokens: Room for keys and values, in tokens of all sequences together; native only.
        cache_bits: 32, or 8 for a quarter of the memory; native only.
        is_fixed: Whether a native engine that was asked for, and cannot run the model, is an error;
            else ONNX Runtime in fp32 takes its place too.

    Raises:
        EngineError: The room of the cache is none, the engine is missing or cannot run the model,
            or the model is no decoder.
        ModelError: The model's file is missing or broken.
    """
    if cache_tokens < 1:
        raise EngineError(f"cache_tokens must be 1 or more; got {cache_tokens}. Raise it.")
    if cache_bits not in (8, 32):
        raise EngineError(f"cache_bits must be 8 or 32; got {cache_bits}. Use 32 for exactness.")
    room = {"cache_tokens": cache_tokens, "cache_bits": cache_bits}
    wanted = config or EngineConfig(NativeEngine.name, threads=threads)
    why = f"{wanted.engine} keeps no keys and values"
    if wanted.engine == NativeEngine.name:
        try:
            return open_native(model, wanted, **room)
        except EngineError as error:
            if config is not None and is_fixed:
                raise
            why = f"the native engine cannot run the model: {error}"
        wanted = EngineConfig(threads=wanted.threads)
    session = open_session(model, wanted)
    try:
        return Recomputing(session, model, why=why)
    except IngotError:
        session.close()
        raise
