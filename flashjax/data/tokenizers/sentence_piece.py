"""SentencePiece models, from their files and from the pieces that other files hold of them."""

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from flashjax.data.tokenizers.table import USUAL_NAMES, TableTokenizer, package

SPACE = "\u2581"  # how a space is written


class SentencePieceTokenizer(TableTokenizer):
    """A SentencePiece model.

    Args:
        name: what was asked for.
        model: the serialised model.
        roles: ids of the special tokens; those not given are what the model says, or the usual names.
    """

    def __init__(self, name: str, model: bytes, roles: Mapping[str, int | None] | None = None):
        module = package("sentencepiece", name)
        try:
            self._processor: Any = module.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"{name} is no SentencePiece model: {error}") from error
        processor = self._processor
        pieces, names = [], {}
        for index in range(processor.vocab_size()):
            piece = processor.id_to_piece(index)
            if processor.is_byte(index):
                pieces.append(byte_named(piece))
            elif processor.is_control(index) or processor.is_unknown(index) or processor.is_unused(index):
                pieces.append(b"")
                if processor.is_control(index):
                    names[piece] = index
            else:
                pieces.append(piece.replace(SPACE, " ").encode())
        found: dict[str, int | None] = {
            "pad": processor.pad_id(),
            "bos": processor.bos_id(),
            "eos": processor.eos_id(),
            "mask": next((self.token(usual) for usual in USUAL_NAMES["mask"] if self.token(usual) is not None), None),
        }
        found = {role: index for role, index in found.items() if index is not None and index >= 0} | dict(roles or {})
        super().__init__(
            name,
            pieces,
            names,
            found,
            hashlib.sha256(model).hexdigest(),
            processor.unk_id(),
            leading_space=processor.encode("a", out_type=str)[0].startswith(SPACE),
        )

    def token(self, text: str) -> int | None:
        index = self._processor.piece_to_id(text)
        return index if self._processor.id_to_piece(index) == text else None

    def _encode(self, text: str) -> Sequence[int]:
        return self._processor.encode(text)


def model_file(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], prefix: bool, squeeze: bool
) -> bytes:
    """The model file again of which a GGUF holds the pieces; the numbers of the types are SentencePiece's own."""
    schema: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    model = schema.ModelProto()
    for token, score, kind in zip(tokens, scores, types, strict=True):
        model.pieces.add(piece=token, score=score, type=kind)
    model.trainer_spec.model_type = schema.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = 6 in types
    model.trainer_spec.vocab_size = len(tokens)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = prefix
    model.normalizer_spec.remove_extra_whitespaces = squeeze
    return model.SerializeToString()


def byte_named(piece: str) -> bytes:
    """The byte that `<0x0A>` names."""
    return bytes([int(piece[3:5], 16)])
