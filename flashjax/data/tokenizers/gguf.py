"""The tokenizer that a GGUF file carries."""

from pathlib import Path
from typing import Any

from flashjax.data.tokenizers.byte_level import byte_level
from flashjax.data.tokenizers.hugging_face import HuggingFaceTokenizer
from flashjax.data.tokenizers.sentence_piece import SentencePieceTokenizer, model_file
from flashjax.data.tokenizers.table import TableTokenizer, package


def from_gguf(path: str | Path) -> TableTokenizer:
    """The tokenizer that a GGUF file carries (keys `tokenizer.ggml.*`), of type `gpt2` or `llama`.

    bos is None where the file says that texts begin without one (`add_bos_token`).

    Raises:
        FileNotFoundError, ValueError: no such file, no tokenizer in it, or one of another type.
        ImportError: gguf, or the package of that type, is not installed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    fields = package("gguf", str(path)).GGUFReader(path).fields

    def field(key: str, default: Any = None) -> Any:
        found = fields.get(f"tokenizer.ggml.{key}")
        return default if found is None else found.contents()

    kind, tokens = field("model"), field("tokens")
    if kind not in ("gpt2", "llama"):
        what = "no tokenizer" if kind is None else f"a tokenizer of type {kind!r}"
        raise ValueError(f"{path} holds {what}; known types: gpt2, llama")
    keys = {"pad": "padding", "bos": "bos", "eos": "eos", "mask": "mask"}
    roles = {role: field(f"{key}_token_id") for role, key in keys.items()}
    if field("add_bos_token") is False:
        roles["bos"] = None
    types = field("token_type", [1] * len(tokens))
    if kind == "llama":
        scores, prefix = field("scores"), bool(field("add_space_prefix", True))
        squeeze = bool(field("remove_extra_whitespaces", False))
        return SentencePieceTokenizer(str(path), model_file(tokens, scores, types, prefix, squeeze), roles)
    special = [token for token, type in zip(tokens, types, strict=True) if type == 3]
    added = [token for token, type in zip(tokens, types, strict=True) if type == 4]
    ids = {token: index for index, token in enumerate(tokens)}
    text = byte_level(ids, field("merges"), special, added, field("pre", "no name"), str(path))
    return HuggingFaceTokenizer(str(path), text, roles)
