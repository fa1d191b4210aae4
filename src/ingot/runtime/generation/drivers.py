"""Which way of decoding a model gets: with a cache, or by reading everything again."""

from ingot.core.errors import EngineError
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
) -> Decoding:
    """Open a language model to generate with.

    The native engine keeps keys and values of what was read. Any other engine reads the whole
    sequence again for every token: the same text, slowly.

    Args:
        model: Takes token ids, gives scores of the vocabulary for every token.
        config: Engine, precision and threads. If not given: the native engine where it can run the
            model, else ONNX Runtime, and `why` says what the native engine misses.
        threads: Threads where no configuration is given; 0 for every physical core.
        cache_tokens: Room for keys and values, in tokens of all sequences together; native only.
        cache_bits: 32, or 8 for a quarter of the memory; native only.

    Raises:
        EngineError: The engine is missing or cannot run the model, or the model is no decoder.
    """
    room = {"cache_tokens": cache_tokens, "cache_bits": cache_bits}
    if config is None:
        try:
            return open_native(model, EngineConfig(NativeEngine.name, threads=threads), **room)
        except EngineError as error:
            config = EngineConfig(threads=threads)
            why = f"the native engine cannot run the model: {error}"
    elif config.engine == NativeEngine.name:
        return open_native(model, config, **room)
    else:
        why = f"{config.engine} was asked for, and it keeps no keys and values"
    session = open_session(model, config)
    try:
        return Recomputing(session, model.signature, why=why)
    except EngineError:
        session.close()
        raise
